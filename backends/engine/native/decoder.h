/* The decoder, for the instruction set that the including file targets. */
#include <math.h>
#include <stddef.h>
#include <omp.h>
#include <string.h>

#include "network.h"
#include "workspace.h"

#if defined(__aarch64__)
#include "simd_128.h"
#elif defined(__AVX512F__)
#include "simd_512.h"
#else
#include "simd_256.h"
#endif

/* What activations are quantized around: VNNI multiplies unsigned by signed bytes. AVX2 has no such product that is exact,
 * NEON one of signed bytes. */
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define ZERO_POINT 128
#else
#define ZERO_POINT 0
#endif

#ifdef __AVX512BF16__
static inline Floats dot_bf16(Floats acc, Ints a, Ints b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
static inline void store_bf16(bf16 *out, Floats x) { _mm256_storeu_si256((__m256i *)out, (__m256i)_mm512_cvtneps_pbh(x)); }
#else
static inline Floats dot_bf16(Floats acc, Ints a, Ints b) {
    const Ints high = set1_epi32((int)0xffff0000);
    acc = fmadd_ps(castsi512_ps(slli_epi32(a, 16)), castsi512_ps(slli_epi32(b, 16)), acc);
    return fmadd_ps(castsi512_ps(and_si512(a, high)), castsi512_ps(and_si512(b, high)), acc);
}
static inline void store_bf16(bf16 *out, Floats x) {
    const Ints u = castps_si512(x);
    const Ints odd = and_si512(srli_epi32(u, 16), set1_epi32(1));
    const Ints rounded = add_epi32(u, add_epi32(odd, set1_epi32(0x7fff)));
    storeu_halves(out, cvtepi32_epi16(srli_epi32(rounded, 16)));
}
#endif

#ifdef __AMX_TILE__
#include "products_amx.h"
#else
static void begin_products(void) {}
static void begin_attention(void) {}
static void release_thread(void) {}
#if defined(__aarch64__)
#include "products_neon.h"
#elif defined(__AVX512VNNI__)
#include "products_vnni.h"
#else
#include "products_avx2.h"
#endif
#endif

#include "rows.h"
#include "adapters.h"
#include "gemm.h"
#include "attention.h"
#include "forward.h"
