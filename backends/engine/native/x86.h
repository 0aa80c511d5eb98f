/* The x86 build of the decoder, for the instruction set that the including file targets. */
#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <omp.h>
#include <string.h>

#include "network.h"
#include "workspace.h"

#ifdef __AVX512BF16__
static inline __m512 dot_bf16(__m512 acc, __m512i a, __m512i b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
static inline void store_bf16(bf16 *out, __m512 x) { _mm256_storeu_si256((__m256i *)out, (__m256i)_mm512_cvtneps_pbh(x)); }
#else
static inline __m512 dot_bf16(__m512 acc, __m512i a, __m512i b) {
    const __m512i high = _mm512_set1_epi32((int)0xffff0000);
    acc = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), acc);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a, high)), _mm512_castsi512_ps(_mm512_and_si512(b, high)), acc);
}
static inline void store_bf16(bf16 *out, __m512 x) {
    const __m512i u = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm256_storeu_si256((__m256i *)out, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
#endif

#ifdef __AMX_TILE__
typedef struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } TileConfig;

/* Products: eight tiles of 16 rows of 64 bytes. */
static void begin_products(void) {
    TileConfig config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
}

/* Attention: besides, weights of one page (tile 5: 16 keys) and values of one page (tiles 3 and 7: 8 pairs of tokens). */
static void begin_attention(void) {
    TileConfig config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    config.bytes[5] = 32;
    config.rows[3] = config.rows[7] = 8;
    _tile_loadconfig(&config);
}
static void release_thread(void) { _tile_release(); }
static void block_product(const uint8_t *a, int64_t stride, const int8_t *b0, const int8_t *b1, int in, int32_t (*c)[32], int rows) {
    _tile_zero(0);
    _tile_zero(1);
    if (rows <= TILE) {
        for (int k = 0; k < in; k += 64) {
            _tile_loadd(4, a + k, stride);
            _tile_loadd(6, b0 + k * 16, 64);
            _tile_loadd(7, b1 + k * 16, 64);
            _tile_dpbusd(0, 4, 6);
            _tile_dpbusd(1, 4, 7);
        }
    } else {
        _tile_zero(2);
        _tile_zero(3);
        for (int k = 0; k < in; k += 64) {
            _tile_loadd(4, a + k, stride);
            _tile_loadd(5, a + TILE * stride + k, stride);
            _tile_loadd(6, b0 + k * 16, 64);
            _tile_loadd(7, b1 + k * 16, 64);
            _tile_dpbusd(0, 4, 6);
            _tile_dpbusd(1, 4, 7);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        }
        _tile_stored(2, c[TILE], 128);
        _tile_stored(3, c[TILE] + TILE, 128);
    }
    _tile_stored(0, c[0], 128);
    _tile_stored(1, c[0] + TILE, 128);
}
static void block_product_bf16(const bf16 *a, int64_t stride, const bf16 *b0, const bf16 *b1, int in, float (*c)[32], int rows) {
    const int64_t bytes = stride * (int64_t)sizeof(bf16);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < in; k += 32) {
        _tile_loadd(4, a + k, bytes);
        _tile_loadd(6, b0 + k * 16, 64);
        _tile_loadd(7, b1 + k * 16, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (rows > TILE) {
            _tile_loadd(5, a + TILE * stride + k, bytes);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c[0], 128);
    _tile_stored(1, c[0] + TILE, 128);
    _tile_stored(2, c[TILE], 128);
    _tile_stored(3, c[TILE] + TILE, 128);
}
#else
static void begin_products(void) {}
static void begin_attention(void) {}
static void release_thread(void) {}
static void block_product(const uint8_t *a, int64_t stride, const int8_t *b0, const int8_t *b1, int in, int32_t (*c)[32], int rows) {
    for (int r = 0; r < rows; r += 8) {
        __m512i acc[8][2];
        for (int j = 0; j < 8; j++) acc[j][0] = acc[j][1] = _mm512_setzero_si512();
        for (int k = 0; k < in; k += 4) {
            const __m512i w0 = _mm512_loadu_si512(b0 + k * 16), w1 = _mm512_loadu_si512(b1 + k * 16);
            for (int j = 0; j < 8; j++) {
                int32_t four;
                memcpy(&four, a + (r + j) * stride + k, 4);
                const __m512i x = _mm512_set1_epi32(four);
                acc[j][0] = _mm512_dpbusd_epi32(acc[j][0], x, w0);
                acc[j][1] = _mm512_dpbusd_epi32(acc[j][1], x, w1);
            }
        }
        for (int j = 0; j < 8; j++) {
            _mm512_store_si512(c[r + j], acc[j][0]);
            _mm512_store_si512(c[r + j] + 16, acc[j][1]);
        }
    }
}
static void block_product_bf16(const bf16 *a, int64_t stride, const bf16 *b0, const bf16 *b1, int in, float (*c)[32], int rows) {
    for (int r = 0; r < rows; r += 8) {
        __m512 acc[8][2];
        for (int j = 0; j < 8; j++) acc[j][0] = acc[j][1] = _mm512_setzero_ps();
        for (int k = 0; k < in; k += 2) {
            const __m512i w0 = _mm512_loadu_si512(b0 + k * 16), w1 = _mm512_loadu_si512(b1 + k * 16);
            for (int j = 0; j < 8; j++) {
                int32_t pair;
                memcpy(&pair, a + (r + j) * stride + k, sizeof pair);
                const __m512i x = _mm512_set1_epi32(pair);
                acc[j][0] = dot_bf16(acc[j][0], x, w0);
                acc[j][1] = dot_bf16(acc[j][1], x, w1);
            }
        }
        for (int j = 0; j < 8; j++) {
            _mm512_storeu_ps(c[r + j], acc[j][0]);
            _mm512_storeu_ps(c[r + j] + 16, acc[j][1]);
        }
    }
}
#endif

#include "rows.h"
#include "adapters.h"
#include "gemm.h"
#include "attention.h"
#include "forward.h"
