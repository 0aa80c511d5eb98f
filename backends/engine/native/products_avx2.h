/* Block products (see gemm.h) on AVX2, with or without VNNI: sixteen registers hold the sums of two rows and two panels, or
 * four rows and one. Included once per instruction set. */

#ifdef __AVXVNNI__
static inline __m256i dot_bytes(__m256i acc, __m256i x, __m256i weight) { return _mm256_dpbusd_avx_epi32(acc, x, weight); }
#else
/* vpmaddubsw adds two products of an unsigned and a signed byte in sixteen bits. They cannot overflow where both are
 * at most 127 in magnitude: 2 * 127 * 127 < 2^15. So the sign of the activation goes to the weight, as in llama.cpp. */
static inline __m256i dot_bytes(__m256i acc, __m256i x, __m256i weight) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(weight, x));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

static void block_product(const uint8_t *a, int64_t stride, const int8_t *b0, const int8_t *b1, int in, int32_t (*c)[32], int rows) {
    for (int r = 0; r < rows; r += 2) {
        __m256i acc[2][4];
        for (int j = 0; j < 2; j++)
            for (int i = 0; i < 4; i++) acc[j][i] = _mm256_setzero_si256();
        for (int k = 0; k < in; k += 4) {
            const __m256i *first = (const __m256i *)(b0 + k * 16), *second = (const __m256i *)(b1 + k * 16);
            const __m256i w[4] = {_mm256_loadu_si256(first), _mm256_loadu_si256(first + 1),
                                  _mm256_loadu_si256(second), _mm256_loadu_si256(second + 1)};
            for (int j = 0; j < 2; j++) {
                int32_t four;
                memcpy(&four, a + (r + j) * stride + k, 4);
                const __m256i x = _mm256_set1_epi32(four);
                for (int i = 0; i < 4; i++) acc[j][i] = dot_bytes(acc[j][i], x, w[i]);
            }
        }
        for (int j = 0; j < 2; j++)
            for (int i = 0; i < 4; i++) _mm256_store_si256((__m256i *)c[r + j] + i, acc[j][i]);
    }
}

/* c[rows][16] of one panel. */
static inline void panel_product_bf16(const bf16 *a, int64_t stride, const bf16 *b, int in, float *c, int rows) {
    const __m256i high = _mm256_set1_epi32((int)0xffff0000);
    for (int r = 0; r < rows; r += 4) {
        __m256 acc[4][2];
        for (int j = 0; j < 4; j++) acc[j][0] = acc[j][1] = _mm256_setzero_ps();
        for (int k = 0; k < in; k += 2) {
            const __m256i w0 = _mm256_loadu_si256((const __m256i *)(b + k * 16)), w1 = _mm256_loadu_si256((const __m256i *)(b + k * 16) + 1);
            const __m256 even[2] = {_mm256_castsi256_ps(_mm256_slli_epi32(w0, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(w1, 16))};
            const __m256 odd[2] = {_mm256_castsi256_ps(_mm256_and_si256(w0, high)), _mm256_castsi256_ps(_mm256_and_si256(w1, high))};
            for (int j = 0; j < 4; j++) {
                int32_t pair;
                memcpy(&pair, a + (r + j) * stride + k, sizeof pair);
                const __m256i x = _mm256_set1_epi32(pair);
                const __m256 x0 = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)), x1 = _mm256_castsi256_ps(_mm256_and_si256(x, high));
                for (int i = 0; i < 2; i++) acc[j][i] = _mm256_fmadd_ps(x1, odd[i], _mm256_fmadd_ps(x0, even[i], acc[j][i]));
            }
        }
        for (int j = 0; j < 4; j++)
            for (int i = 0; i < 2; i++) _mm256_storeu_ps(c + (r + j) * 32 + i * 8, acc[j][i]);
    }
}

static void block_product_bf16(const bf16 *a, int64_t stride, const bf16 *b0, const bf16 *b1, int in, float (*c)[32], int rows) {
    panel_product_bf16(a, stride, b0, in, c[0], rows);
    panel_product_bf16(a, stride, b1, in, c[0] + 16, rows);
}
