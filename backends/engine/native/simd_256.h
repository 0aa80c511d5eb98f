/* What the kernels compute with, on AVX2: a vector of sixteen is two halves of eight. Names as in simd_512.h.
 *
 * Masks stay sixteen bits, as in AVX-512. Nearly all of them are full, so that case is asked for first. */
#ifndef STILL_SIMD_256_H
#define STILL_SIMD_256_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef struct { __m256 low, high; } Floats;
typedef struct { __m256i low, high; } Ints;
typedef uint16_t Mask;

#define HALVES static inline __attribute__((always_inline))

/* One operation on both halves. */
#define FLOATS_OF_2(name, half) HALVES Floats name(Floats x, Floats y) { return (Floats){half(x.low, y.low), half(x.high, y.high)}; }
#define INTS_OF_2(name, half) HALVES Ints name(Ints x, Ints y) { return (Ints){half(x.low, y.low), half(x.high, y.high)}; }
#define INTS_SHIFTED(name, half) HALVES Ints name(Ints x, int by) { return (Ints){half(x.low, by), half(x.high, by)}; }

FLOATS_OF_2(add_ps, _mm256_add_ps)
FLOATS_OF_2(sub_ps, _mm256_sub_ps)
FLOATS_OF_2(mul_ps, _mm256_mul_ps)
FLOATS_OF_2(div_ps, _mm256_div_ps)
FLOATS_OF_2(max_ps, _mm256_max_ps)
INTS_OF_2(add_epi32, _mm256_add_epi32)
INTS_OF_2(sub_epi32, _mm256_sub_epi32)
INTS_OF_2(max_epi32, _mm256_max_epi32)
INTS_OF_2(and_si512, _mm256_and_si256)
INTS_SHIFTED(slli_epi32, _mm256_slli_epi32)
INTS_SHIFTED(srli_epi32, _mm256_srli_epi32)
INTS_SHIFTED(srli_epi16, _mm256_srli_epi16)

HALVES Floats fmadd_ps(Floats x, Floats y, Floats z) {
    return (Floats){_mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high)};
}

HALVES Floats set1_ps(float x) { return (Floats){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
HALVES Ints set1_epi32(int x) { return (Ints){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
HALVES Floats setzero_ps(void) { return set1_ps(0.0f); }
HALVES Ints setzero_si512(void) { return set1_epi32(0); }
HALVES Ints lane_numbers(void) { return (Ints){_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)}; }

HALVES Floats loadu_ps(const void *at) { return (Floats){_mm256_loadu_ps(at), _mm256_loadu_ps((const float *)at + 8)}; }
HALVES void storeu_ps(void *at, Floats x) {
    _mm256_storeu_ps(at, x.low);
    _mm256_storeu_ps((float *)at + 8, x.high);
}
HALVES Ints loadu_si512(const void *at) {
    return (Ints){_mm256_loadu_si256(at), _mm256_loadu_si256((const __m256i *)at + 1)};
}
HALVES void storeu_si512(void *at, Ints x) {
    _mm256_storeu_si256(at, x.low);
    _mm256_storeu_si256((__m256i *)at + 1, x.high);
}
HALVES __m256i loadu_halves(const void *at) { return _mm256_loadu_si256(at); }
HALVES void storeu_halves(void *at, __m256i x) { _mm256_storeu_si256(at, x); }

HALVES Floats castsi512_ps(Ints x) { return (Floats){_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)}; }
HALVES Ints castps_si512(Floats x) { return (Ints){_mm256_castps_si256(x.low), _mm256_castps_si256(x.high)}; }
HALVES Floats cvtepi32_ps(Ints x) { return (Floats){_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
HALVES Ints cvtps_epi32(Floats x) { return (Ints){_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
HALVES Floats cvtph_ps(__m256i x) {
    return (Floats){_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))};
}
HALVES Ints cvtepu16_epi32(__m256i x) {
    return (Ints){_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1))};
}
/* The low halves and quarters of the elements, in order: packing works within 128 bits and would saturate what it is given. */
HALVES __m256i cvtepi32_epi16(Ints x) {
    const __m256i kept = _mm256_set1_epi32(0xffff);
    const __m256i packed = _mm256_packus_epi32(_mm256_and_si256(x.low, kept), _mm256_and_si256(x.high, kept));
    return _mm256_permute4x64_epi64(packed, 0xd8);
}
HALVES __m128i cvtepi32_epi8(Ints x) {
    const __m256i words = _mm256_and_si256(cvtepi32_epi16(x), _mm256_set1_epi16(0xff));
    return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
HALVES float first_ps(Floats x) { return _mm256_cvtss_f32(x.low); }

/* Sixteen bits to lanes of all ones or zeros, and back. */
HALVES Ints lanes_of(Mask mask) {
    const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), low = _mm256_set1_epi32(mask & 255), high = _mm256_set1_epi32(mask >> 8);
    return (Ints){_mm256_cmpeq_epi32(_mm256_and_si256(low, bits), bits), _mm256_cmpeq_epi32(_mm256_and_si256(high, bits), bits)};
}
HALVES Mask bits_of(__m256 low, __m256 high) { return (Mask)(_mm256_movemask_ps(low) | _mm256_movemask_ps(high) << 8); }
HALVES Mask less_epi32(Ints x, Ints y) {
    const Ints less = {_mm256_cmpgt_epi32(y.low, x.low), _mm256_cmpgt_epi32(y.high, x.high)};
    return bits_of(_mm256_castsi256_ps(less.low), _mm256_castsi256_ps(less.high));
}

HALVES Floats mask_mov_ps(Floats otherwise, Mask mask, Floats x) {
    const Floats chosen = castsi512_ps(lanes_of(mask));
    return (Floats){_mm256_blendv_ps(otherwise.low, x.low, chosen.low), _mm256_blendv_ps(otherwise.high, x.high, chosen.high)};
}
HALVES Ints mask_mov_epi32(Ints otherwise, Mask mask, Ints x) {
    return castps_si512(mask_mov_ps(castsi512_ps(otherwise), mask, castsi512_ps(x)));
}
HALVES Floats maskz_mov_ps(Mask mask, Floats x) { return castsi512_ps(and_si512(lanes_of(mask), castps_si512(x))); }
HALVES Floats maskz_loadu_ps(Mask mask, const void *at) {
    if (mask == 0xffff) return loadu_ps(at);
    const Ints lanes = lanes_of(mask);
    return (Floats){_mm256_maskload_ps(at, lanes.low), _mm256_maskload_ps((const float *)at + 8, lanes.high)};
}
HALVES Ints maskz_loadu_epi32(Mask mask, const void *at) { return castps_si512(maskz_loadu_ps(mask, at)); }
HALVES Floats mask_loadu_ps(Floats otherwise, Mask mask, const void *at) {
    return mask == 0xffff ? loadu_ps(at) : mask_mov_ps(otherwise, mask, maskz_loadu_ps(mask, at));
}
HALVES void mask_storeu_ps(void *at, Mask mask, Floats x) {
    if (mask == 0xffff) {
        storeu_ps(at, x);
        return;
    }
    const Ints lanes = lanes_of(mask);
    _mm256_maskstore_ps(at, lanes.low, x.low);
    _mm256_maskstore_ps((float *)at + 8, lanes.high, x.high);
}
/* Only masks of leading bytes are asked for. */
HALVES void mask_storeu_epi8(void *at, Mask mask, __m128i x) {
    if (mask == 0xffff) _mm_storeu_si128(at, x);
    else memcpy(at, &x, (size_t)__builtin_popcount(mask));
}

HALVES Mask greater_ps(Floats x, Floats y) {
    return bits_of(_mm256_cmp_ps(x.low, y.low, _CMP_GT_OQ), _mm256_cmp_ps(x.high, y.high, _CMP_GT_OQ));
}
HALVES Mask equal_ps(Floats x, Floats y) {
    return bits_of(_mm256_cmp_ps(x.low, y.low, _CMP_EQ_OQ), _mm256_cmp_ps(x.high, y.high, _CMP_EQ_OQ));
}

/* Sums and extremes fold sixteen to eight, four, two and one, as AVX-512's do. */
HALVES float reduce_add_ps(Floats x) {
    const __m256 eight = _mm256_add_ps(x.low, x.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
HALVES float reduce_max_ps(Floats x) {
    const __m256 eight = _mm256_max_ps(x.low, x.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
HALVES int reduce_max_epi32(Ints x) {
    const __m256i eight = _mm256_max_epi32(x.low, x.high);
    const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}
HALVES int reduce_min_epi32(Ints x) {
    const Ints ones = set1_epi32(-1); /* -1 - x turns the order round */
    return -1 - reduce_max_epi32(sub_epi32(ones, x));
}

HALVES Floats round_ps(Floats x) {
    enum { NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    return (Floats){_mm256_round_ps(x.low, NEAREST), _mm256_round_ps(x.high, NEAREST)};
}

/* x 2^n for whole n, by the exponent's bits: zero where that is below the normal numbers, whatever x is, and infinite from
 * n = 128 on. NaN gives NaN. */
HALVES __m256 times_power_half(__m256 x, __m256 n) {
    const __m256 below = _mm256_cmp_ps(n, _mm256_set1_ps(-126.0f), _CMP_LT_OQ);
    const __m256i power = _mm256_cvtps_epi32(_mm256_min_ps(n, _mm256_set1_ps(128.0f)));
    const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(power, _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(below, _mm256_mul_ps(x, _mm256_castsi256_ps(bits)));
}
HALVES Floats times_power_ps(Floats x, Floats n) {
    return (Floats){times_power_half(x.low, n.low), times_power_half(x.high, n.high)};
}

/* The lowest four bits of 32 words as bf16: no number from 0 to 15 has more than eight significant bits, so a table of
 * high bytes and one of low bytes, looked up by shuffles, hold them exactly. */
HALVES __m256i nibbles_half(__m256i words) {
    const __m256i highs = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41));
    const __m256i lows = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -128, 0, 0x40, -128, -96, -64, -32, 0, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70));
    const __m256i index = _mm256_and_si256(words, _mm256_set1_epi16(15));
    const __m256i low = _mm256_shuffle_epi8(lows, _mm256_or_si256(index, _mm256_set1_epi16(-0x8000)));
    return _mm256_or_si256(low, _mm256_shuffle_epi8(highs, _mm256_or_si256(_mm256_slli_epi16(index, 8), _mm256_set1_epi16(0x80))));
}
HALVES Ints low_nibbles_to_bf16(Ints words) { return (Ints){nibbles_half(words.low), nibbles_half(words.high)}; }

#endif
