/* What the kernels compute with, on AVX-512: a vector of sixteen is one register. The names are Intel's without their prefix,
 * but for a few that AVX-512 has in one instruction and AVX2 in several. */
#ifndef STILL_SIMD_512_H
#define STILL_SIMD_512_H

#include <immintrin.h>

typedef __m512 Floats;
typedef __m512i Ints;
typedef __mmask16 Mask;

#define add_ps _mm512_add_ps
#define sub_ps _mm512_sub_ps
#define mul_ps _mm512_mul_ps
#define div_ps _mm512_div_ps
#define max_ps _mm512_max_ps
#define fmadd_ps _mm512_fmadd_ps
#define add_epi32 _mm512_add_epi32
#define sub_epi32 _mm512_sub_epi32
#define max_epi32 _mm512_max_epi32
#define and_si512 _mm512_and_si512
#define slli_epi32 _mm512_slli_epi32
#define srli_epi32 _mm512_srli_epi32
#define srli_epi16 _mm512_srli_epi16

#define set1_ps _mm512_set1_ps
#define set1_epi32 _mm512_set1_epi32
#define setzero_ps _mm512_setzero_ps
#define setzero_si512 _mm512_setzero_si512
#define lane_numbers() _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)

#define loadu_ps _mm512_loadu_ps
#define storeu_ps _mm512_storeu_ps
#define loadu_si512 _mm512_loadu_si512
#define storeu_si512 _mm512_storeu_si512
#define loadu_halves(at) _mm256_loadu_si256((const __m256i *)(at))
#define storeu_halves(at, x) _mm256_storeu_si256((__m256i *)(at), x)
#define mask_mov_ps _mm512_mask_mov_ps
#define mask_mov_epi32 _mm512_mask_mov_epi32
#define maskz_mov_ps _mm512_maskz_mov_ps
#define maskz_loadu_ps _mm512_maskz_loadu_ps
#define maskz_loadu_epi32 _mm512_maskz_loadu_epi32
#define mask_loadu_ps _mm512_mask_loadu_ps
#define mask_storeu_ps _mm512_mask_storeu_ps
#define mask_storeu_epi8 _mm_mask_storeu_epi8

#define castsi512_ps _mm512_castsi512_ps
#define castps_si512 _mm512_castps_si512
#define cvtepi32_ps _mm512_cvtepi32_ps
#define cvtps_epi32 _mm512_cvtps_epi32
#define cvtph_ps _mm512_cvtph_ps
#define cvtepu16_epi32 _mm512_cvtepu16_epi32
#define cvtepi32_epi16 _mm512_cvtepi32_epi16
#define cvtepi32_epi8 _mm512_cvtepi32_epi8
#define first_ps _mm512_cvtss_f32

#define less_epi32 _mm512_cmplt_epi32_mask
#define greater_ps(x, y) _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ)
#define equal_ps(x, y) _mm512_cmp_ps_mask(x, y, _CMP_EQ_OQ)

#define reduce_add_ps _mm512_reduce_add_ps
#define reduce_max_ps _mm512_reduce_max_ps
#define reduce_max_epi32 _mm512_reduce_max_epi32
#define reduce_min_epi32 _mm512_reduce_min_epi32

#define round_ps(x) _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define times_power_ps _mm512_scalef_ps

/* The lowest four bits of 32 words as bf16. vpermw looks at five bits of an index: the table repeats, so that the next
 * nibble's low bit does no harm. */
static inline __m512i low_nibbles_to_bf16(__m512i words) {
    static const float values[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const __m512i high = _mm512_srli_epi32(_mm512_castps_si512(_mm512_loadu_ps(values)), 16);
    const __m256i half = _mm512_cvtepi32_epi16(high);
    return _mm512_permutexvar_epi16(words, _mm512_inserti64x4(_mm512_castsi256_si512(half), half, 1));
}

#endif
