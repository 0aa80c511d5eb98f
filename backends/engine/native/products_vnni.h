/* Block products (see gemm.h) by AVX-512 VNNI: eight rows, or two that are left, and two panels.
 * Included once per instruction set. */

/* `count` rows, a constant where it is called. */
static inline __attribute__((always_inline)) void rows_product(const uint8_t *a, int64_t stride, const int8_t *b0, const int8_t *b1,
                                                               int in, int32_t (*c)[32], const int count) {
    __m512i acc[8][2];
    for (int j = 0; j < count; j++) acc[j][0] = acc[j][1] = _mm512_setzero_si512();
    for (int k = 0; k < in; k += 4) {
        const __m512i w0 = _mm512_loadu_si512(b0 + k * 16), w1 = _mm512_loadu_si512(b1 + k * 16);
        for (int j = 0; j < count; j++) {
            int32_t four;
            memcpy(&four, a + j * stride + k, 4);
            const __m512i x = _mm512_set1_epi32(four);
            acc[j][0] = _mm512_dpbusd_epi32(acc[j][0], x, w0);
            acc[j][1] = _mm512_dpbusd_epi32(acc[j][1], x, w1);
        }
    }
    for (int j = 0; j < count; j++) {
        _mm512_store_si512(c[j], acc[j][0]);
        _mm512_store_si512(c[j] + 16, acc[j][1]);
    }
}

/* One sequence that decodes has a row in one format and two in the other: it should not pay for eight. */
static void block_product(const uint8_t *a, int64_t stride, const int8_t *b0, const int8_t *b1, int in, int32_t (*c)[32], int rows) {
    int r = 0;
    for (; r + 2 < rows; r += 8) rows_product(a + r * stride, stride, b0, b1, in, c + r, 8);
    if (r < rows) rows_product(a + r * stride, stride, b0, b1, in, c + r, 2);
}

static inline __attribute__((always_inline)) void rows_product_bf16(const bf16 *a, int64_t stride, const bf16 *b0, const bf16 *b1,
                                                                    int in, float (*c)[32], const int count) {
    __m512 acc[8][2];
    for (int j = 0; j < count; j++) acc[j][0] = acc[j][1] = _mm512_setzero_ps();
    for (int k = 0; k < in; k += 2) {
        const __m512i w0 = _mm512_loadu_si512(b0 + k * 16), w1 = _mm512_loadu_si512(b1 + k * 16);
        for (int j = 0; j < count; j++) {
            int32_t pair;
            memcpy(&pair, a + j * stride + k, sizeof pair);
            const __m512i x = _mm512_set1_epi32(pair);
            acc[j][0] = dot_bf16(acc[j][0], x, w0);
            acc[j][1] = dot_bf16(acc[j][1], x, w1);
        }
    }
    for (int j = 0; j < count; j++) {
        _mm512_storeu_ps(c[j], acc[j][0]);
        _mm512_storeu_ps(c[j] + 16, acc[j][1]);
    }
}

static void block_product_bf16(const bf16 *a, int64_t stride, const bf16 *b0, const bf16 *b1, int in, float (*c)[32], int rows) {
    int r = 0;
    for (; r + 2 < rows; r += 8) rows_product_bf16(a + r * stride, stride, b0, b1, in, c + r, 8);
    if (r < rows) rows_product_bf16(a + r * stride, stride, b0, b1, in, c + r, 2);
}
