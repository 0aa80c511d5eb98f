/* What the kernels compute with, on NEON: a vector of sixteen is four quarters. Names as in simd_512.h.
 *
 * Masks stay sixteen bits, as in AVX-512. Nearly all of them are full, so that case is asked for first. */
#ifndef STILL_SIMD_128_H
#define STILL_SIMD_128_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

typedef struct { float32x4_t q[4]; } Floats;
typedef struct { int32x4_t q[4]; } Ints;
typedef struct { uint16x8_t low, high; } Halves;
typedef uint16_t Mask;

#define QUARTERS static inline __attribute__((always_inline))

/* One expression of a quarter's number for each quarter. */
#define EACH(type, quarter) ((type){{quarter(0), quarter(1), quarter(2), quarter(3)}})

#define OF_1(to, name, from, quarter) QUARTERS to name(from x) { return (to){{quarter(x.q[0]), quarter(x.q[1]), quarter(x.q[2]), quarter(x.q[3])}}; }
#define OF_2(type, name, quarter) QUARTERS type name(type x, type y) { return (type){{quarter(x.q[0], y.q[0]), quarter(x.q[1], y.q[1]), quarter(x.q[2], y.q[2]), quarter(x.q[3], y.q[3])}}; }
#define SHIFTED(name, quarter) QUARTERS Ints name(Ints x, int by) { return (Ints){{quarter(x.q[0], by), quarter(x.q[1], by), quarter(x.q[2], by), quarter(x.q[3], by)}}; }

OF_2(Floats, add_ps, vaddq_f32)
OF_2(Floats, sub_ps, vsubq_f32)
OF_2(Floats, mul_ps, vmulq_f32)
OF_2(Floats, div_ps, vdivq_f32)
OF_2(Floats, max_ps, vmaxq_f32)
OF_2(Ints, add_epi32, vaddq_s32)
OF_2(Ints, sub_epi32, vsubq_s32)
OF_2(Ints, max_epi32, vmaxq_s32)
OF_2(Ints, and_si512, vandq_s32)
OF_1(Floats, castsi512_ps, Ints, vreinterpretq_f32_s32)
OF_1(Ints, castps_si512, Floats, vreinterpretq_s32_f32)
OF_1(Floats, cvtepi32_ps, Ints, vcvtq_f32_s32)
OF_1(Ints, cvtps_epi32, Floats, vcvtnq_s32_f32)
OF_1(Floats, round_ps, Floats, vrndnq_f32)

QUARTERS Floats fmadd_ps(Floats x, Floats y, Floats z) {
#define QUARTER(i) vfmaq_f32(z.q[i], x.q[i], y.q[i])
    return EACH(Floats, QUARTER);
#undef QUARTER
}
/* Shifts by what is a constant where they are called: the operators become one instruction then. */
#define LEFT_32(x, by) ((x) << (by))
#define RIGHT_32(x, by) vreinterpretq_s32_u32(vreinterpretq_u32_s32(x) >> (by))
#define RIGHT_16(x, by) vreinterpretq_s32_u16(vreinterpretq_u16_s32(x) >> (short)(by))
SHIFTED(slli_epi32, LEFT_32)
SHIFTED(srli_epi32, RIGHT_32)
SHIFTED(srli_epi16, RIGHT_16)

QUARTERS Floats set1_ps(float x) { return (Floats){{vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x)}}; }
QUARTERS Ints set1_epi32(int x) { return (Ints){{vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x)}}; }
QUARTERS Floats setzero_ps(void) { return set1_ps(0.0f); }
QUARTERS Ints setzero_si512(void) { return set1_epi32(0); }
QUARTERS Ints lane_numbers(void) { return (Ints){{{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}, {12, 13, 14, 15}}}; }

QUARTERS Floats loadu_ps(const void *at) {
#define QUARTER(i) vld1q_f32((const float *)at + 4 * i)
    return EACH(Floats, QUARTER);
#undef QUARTER
}
QUARTERS void storeu_ps(void *at, Floats x) {
    for (int i = 0; i < 4; i++) vst1q_f32((float *)at + 4 * i, x.q[i]);
}
QUARTERS Ints loadu_si512(const void *at) {
#define QUARTER(i) vld1q_s32((const int32_t *)at + 4 * i)
    return EACH(Ints, QUARTER);
#undef QUARTER
}
QUARTERS void storeu_si512(void *at, Ints x) {
    for (int i = 0; i < 4; i++) vst1q_s32((int32_t *)at + 4 * i, x.q[i]);
}

QUARTERS Halves loadu_halves(const void *at) { return (Halves){vld1q_u16(at), vld1q_u16((const uint16_t *)at + 8)}; }
QUARTERS void storeu_halves(void *at, Halves x) {
    vst1q_u16(at, x.low);
    vst1q_u16((uint16_t *)at + 8, x.high);
}
QUARTERS uint16x4_t quarter_of(Halves x, int i) {
    const uint16x8_t half = i < 2 ? x.low : x.high;
    return i % 2 ? vget_high_u16(half) : vget_low_u16(half);
}
QUARTERS Floats cvtph_ps(Halves x) {
#define QUARTER(i) vcvt_f32_f16(vreinterpret_f16_u16(quarter_of(x, i)))
    return EACH(Floats, QUARTER);
#undef QUARTER
}
QUARTERS Ints cvtepu16_epi32(Halves x) {
#define QUARTER(i) vreinterpretq_s32_u32(vmovl_u16(quarter_of(x, i)))
    return EACH(Ints, QUARTER);
#undef QUARTER
}
/* The low halves and quarters of the elements, in order. */
QUARTERS Halves cvtepi32_epi16(Ints x) {
#define QUARTER(i) vmovn_u32(vreinterpretq_u32_s32(x.q[i]))
    return (Halves){vcombine_u16(QUARTER(0), QUARTER(1)), vcombine_u16(QUARTER(2), QUARTER(3))};
#undef QUARTER
}
QUARTERS uint8x16_t cvtepi32_epi8(Ints x) {
    const Halves halves = cvtepi32_epi16(x);
    return vcombine_u8(vmovn_u16(halves.low), vmovn_u16(halves.high));
}
QUARTERS float first_ps(Floats x) { return vgetq_lane_f32(x.q[0], 0); }

/* Sixteen bits to lanes of all ones or zeros, and back. */
QUARTERS uint32x4_t lanes_of(Mask mask, int quarter) {
    const uint32x4_t bits = {1, 2, 4, 8};
    return vtstq_u32(vdupq_n_u32(mask >> 4 * quarter), bits);
}
QUARTERS Mask bits_of(uint32x4_t a, uint32x4_t b, uint32x4_t c, uint32x4_t d) {
    const uint32x4_t bits = {1, 2, 4, 8};
    const uint32x4_t low = vorrq_u32(vandq_u32(a, bits), vandq_u32(b, bits << 4));
    const uint32x4_t high = vorrq_u32(vandq_u32(c, bits << 8), vandq_u32(d, bits << 12));
    return (Mask)vaddvq_u32(vorrq_u32(low, high));
}
#define MASK_OF(name, type, quarter) QUARTERS Mask name(type x, type y) { return bits_of(quarter(x.q[0], y.q[0]), quarter(x.q[1], y.q[1]), quarter(x.q[2], y.q[2]), quarter(x.q[3], y.q[3])); }
MASK_OF(less_epi32, Ints, vcltq_s32)
MASK_OF(greater_ps, Floats, vcgtq_f32)
MASK_OF(equal_ps, Floats, vceqq_f32)

QUARTERS Floats mask_mov_ps(Floats otherwise, Mask mask, Floats x) {
#define QUARTER(i) vbslq_f32(lanes_of(mask, i), x.q[i], otherwise.q[i])
    return EACH(Floats, QUARTER);
#undef QUARTER
}
QUARTERS Ints mask_mov_epi32(Ints otherwise, Mask mask, Ints x) {
#define QUARTER(i) vbslq_s32(lanes_of(mask, i), x.q[i], otherwise.q[i])
    return EACH(Ints, QUARTER);
#undef QUARTER
}
QUARTERS Floats maskz_mov_ps(Mask mask, Floats x) { return mask_mov_ps(setzero_ps(), mask, x); }
/* What is masked out is not touched: it may lie behind the end of an array. */
QUARTERS Floats mask_loadu_ps(Floats otherwise, Mask mask, const void *at) {
    if (mask == 0xffff) return loadu_ps(at);
    float lanes[16];
    storeu_ps(lanes, otherwise);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) lanes[i] = ((const float *)at)[i];
    return loadu_ps(lanes);
}
QUARTERS Floats maskz_loadu_ps(Mask mask, const void *at) { return mask_loadu_ps(setzero_ps(), mask, at); }
QUARTERS Ints maskz_loadu_epi32(Mask mask, const void *at) { return castps_si512(maskz_loadu_ps(mask, at)); }
QUARTERS void mask_storeu_ps(void *at, Mask mask, Floats x) {
    if (mask == 0xffff) {
        storeu_ps(at, x);
        return;
    }
    float lanes[16];
    storeu_ps(lanes, x);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) ((float *)at)[i] = lanes[i];
}
/* Only masks of leading bytes are asked for. */
QUARTERS void mask_storeu_epi8(void *at, Mask mask, uint8x16_t x) {
    if (mask == 0xffff) vst1q_u8(at, x);
    else memcpy(at, &x, (size_t)__builtin_popcount(mask));
}

/* Sums fold sixteen to eight, four, two and one, as AVX-512's do. */
QUARTERS float reduce_add_ps(Floats x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.q[0], x.q[2]), vaddq_f32(x.q[1], x.q[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
QUARTERS float reduce_max_ps(Floats x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.q[0], x.q[1]), vmaxq_f32(x.q[2], x.q[3]))); }
QUARTERS int reduce_max_epi32(Ints x) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.q[0], x.q[1]), vmaxq_s32(x.q[2], x.q[3]))); }
QUARTERS int reduce_min_epi32(Ints x) { return vminvq_s32(vminq_s32(vminq_s32(x.q[0], x.q[1]), vminq_s32(x.q[2], x.q[3]))); }

/* x 2^n for whole n, by the exponent's bits: zero where that is below the normal numbers, whatever x is, and infinite from
 * n = 128 on. NaN gives NaN. */
QUARTERS float32x4_t times_power_quarter(float32x4_t x, float32x4_t n) {
    const uint32x4_t below = vcltq_f32(n, vdupq_n_f32(-126.0f));
    const int32x4_t power = vcvtnq_s32_f32(vminq_f32(n, vdupq_n_f32(128.0f)));
    const float32x4_t factor = vreinterpretq_f32_s32(vaddq_s32(power, vdupq_n_s32(127)) << 23);
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(vmulq_f32(x, factor)), below));
}
OF_2(Floats, times_power_ps, times_power_quarter)

/* The lowest four bits of 32 words as bf16: no number from 0 to 15 has more than eight significant bits, so a table of
 * high bytes and one of low bytes hold them exactly. The high byte of an index is 0, which both tables have a 0 for. */
QUARTERS int32x4_t nibbles_quarter(int32x4_t words) {
    const uint8x16_t highs = {0, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41};
    const uint8x16_t lows = {0, 0x80, 0, 0x40, 0x80, 0xa0, 0xc0, 0xe0, 0, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70};
    const uint8x16_t index = vreinterpretq_u8_u16(vandq_u16(vreinterpretq_u16_s32(words), vdupq_n_u16(15)));
    const uint16x8_t high = vreinterpretq_u16_u8(vqtbl1q_u8(highs, index)), low = vreinterpretq_u16_u8(vqtbl1q_u8(lows, index));
    return vreinterpretq_s32_u16(vorrq_u16(low, vshlq_n_u16(high, 8)));
}
OF_1(Ints, low_nibbles_to_bf16, Ints, nibbles_quarter)

#endif
