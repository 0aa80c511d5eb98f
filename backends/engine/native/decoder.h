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

static inline Floats load_bf16(const bf16 *x) { return castsi512_ps(slli_epi32(cvtepu16_epi32(loadu_halves(x)), 16)); }

#ifdef __AVX512BF16__
static inline Floats dot_bf16(Floats acc, Ints a, Ints b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
static inline void store_bf16(bf16 *out, Floats x) { _mm256_storeu_si256((__m256i *)out, (__m256i)_mm512_cvtneps_pbh(x)); }

/* What attention multiplies pairs of keys and values by. */
typedef bf16 Operand;
typedef Ints Pairs;
static inline Pairs pairs_of(Ints x) { return x; }
static inline Floats dot_pair(Floats acc, const Operand *a, Pairs b) {
    int32_t pair;
    memcpy(&pair, a, sizeof pair);
    return dot_bf16(acc, set1_epi32(pair), b);
}
static inline void store_operand(Operand *out, Floats x) { store_bf16(out, x); }
static inline void load_operands(Operand *out, const bf16 *x, int n) { memcpy(out, x, n * sizeof(bf16)); }
#else
static inline Floats high_halves(Ints x) { return castsi512_ps(and_si512(x, set1_epi32((int)0xffff0000))); }
static inline Floats dot_bf16(Floats acc, Ints a, Ints b) {
    acc = fmadd_ps(castsi512_ps(slli_epi32(a, 16)), castsi512_ps(slli_epi32(b, 16)), acc);
    return fmadd_ps(high_halves(a), high_halves(b), acc);
}
/* Rounded to bf16: its bits are the high halves. */
static inline Ints rounded(Floats x) {
    const Ints u = castps_si512(x);
    const Ints odd = and_si512(srli_epi32(u, 16), set1_epi32(1));
    return add_epi32(u, add_epi32(odd, set1_epi32(0x7fff)));
}
static inline void store_bf16(bf16 *out, Floats x) { storeu_halves(out, cvtepi32_epi16(srli_epi32(rounded(x), 16))); }

/* What attention multiplies pairs of keys and values by: floats of bf16's precision, widened once and not at every product. */
typedef float Operand;
typedef struct { Floats even, odd; } Pairs;
static inline Pairs pairs_of(Ints x) { return (Pairs){castsi512_ps(slli_epi32(x, 16)), high_halves(x)}; }
static inline Floats dot_pair(Floats acc, const Operand *a, Pairs b) {
    return fmadd_ps(set1_ps(a[1]), b.odd, fmadd_ps(set1_ps(a[0]), b.even, acc));
}
static inline void store_operand(Operand *out, Floats x) { storeu_ps(out, high_halves(rounded(x))); }
static inline void load_operands(Operand *out, const bf16 *x, int n) {
    for (int i = 0; i < n; i += 16) storeu_ps(out + i, load_bf16(x + i));
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
