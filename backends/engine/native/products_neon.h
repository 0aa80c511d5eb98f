/* Block products (see gemm.h) on NEON with dot products: the sums of four rows and one panel are sixteen of the thirty-two
 * registers. Included once per instruction set. */

/* c[count][16] of one panel; `count` is a constant where it is called. */
static inline __attribute__((always_inline)) void panel_product(const uint8_t *a, int64_t stride, const int8_t *b, int in, int32_t *c,
                                                                const int count) {
    int32x4_t acc[4][4];
    for (int j = 0; j < count; j++)
        for (int i = 0; i < 4; i++) acc[j][i] = vdupq_n_s32(0);
    for (int k = 0; k < in; k += 16) {
        int8x16_t x[4];
        for (int j = 0; j < count; j++) x[j] = vreinterpretq_s8_u8(vld1q_u8(a + j * stride + k));
#define FOUR_INPUTS(s)                                                                              \
    {                                                                                               \
        int8x16_t w[4];                                                                             \
        for (int i = 0; i < 4; i++) w[i] = vld1q_s8(b + (k + 4 * s) * 16 + 16 * i);                 \
        for (int j = 0; j < count; j++)                                                             \
            for (int i = 0; i < 4; i++) acc[j][i] = vdotq_laneq_s32(acc[j][i], w[i], x[j], s);      \
    }
        FOUR_INPUTS(0)
        FOUR_INPUTS(1)
        FOUR_INPUTS(2)
        FOUR_INPUTS(3)
#undef FOUR_INPUTS
    }
    for (int j = 0; j < count; j++)
        for (int i = 0; i < 4; i++) vst1q_s32(c + j * 32 + 4 * i, acc[j][i]);
}

/* One sequence that decodes has a row or two: it should not pay for four. */
static void block_product(const uint8_t *a, int64_t stride, const int8_t *b0, const int8_t *b1, int in, int32_t (*c)[32], int rows) {
    const int8_t *const panel[2] = {b0, b1};
    for (int p = 0; p < 2; p++) {
        int r = 0;
        for (; r + 2 < rows; r += 4) panel_product(a + r * stride, stride, panel[p], in, c[r] + p * 16, 4);
        if (r < rows) panel_product(a + r * stride, stride, panel[p], in, c[r] + p * 16, 2);
    }
}

static inline __attribute__((always_inline)) void panel_product_bf16(const bf16 *a, int64_t stride, const bf16 *b, int in, float *c,
                                                                     const int count) {
    const uint32x4_t high = vdupq_n_u32(0xffff0000);
    float32x4_t acc[4][4];
    for (int j = 0; j < count; j++)
        for (int i = 0; i < 4; i++) acc[j][i] = vdupq_n_f32(0.0f);
    for (int k = 0; k < in; k += 4) {
        float32x4_t x[4];
        for (int j = 0; j < count; j++) x[j] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(a + j * stride + k), 16));
#define TWO_INPUTS(s)                                                                                                    \
    for (int i = 0; i < 4; i++) {                                                                                        \
        const uint32x4_t w = vreinterpretq_u32_u16(vld1q_u16(b + (k + 2 * s) * 16 + 8 * i));                             \
        const float32x4_t even = vreinterpretq_f32_u32(vshlq_n_u32(w, 16)), odd = vreinterpretq_f32_u32(vandq_u32(w, high)); \
        for (int j = 0; j < count; j++) {                                                                                \
            acc[j][i] = vfmaq_laneq_f32(acc[j][i], even, x[j], 2 * s);                                                   \
            acc[j][i] = vfmaq_laneq_f32(acc[j][i], odd, x[j], 2 * s + 1);                                                \
        }                                                                                                                \
    }
        TWO_INPUTS(0)
        TWO_INPUTS(1)
#undef TWO_INPUTS
    }
    for (int j = 0; j < count; j++)
        for (int i = 0; i < 4; i++) vst1q_f32(c + j * 32 + 4 * i, acc[j][i]);
}

static void block_product_bf16(const bf16 *a, int64_t stride, const bf16 *b0, const bf16 *b1, int in, float (*c)[32], int rows) {
    const bf16 *const panel[2] = {b0, b1};
    for (int p = 0; p < 2; p++) {
        int r = 0;
        for (; r + 2 < rows; r += 4) panel_product_bf16(a + r * stride, stride, panel[p], in, c[r] + p * 16, 4);
        if (r < rows) panel_product_bf16(a + r * stride, stride, panel[p], in, c[r] + p * 16, 2);
    }
}
