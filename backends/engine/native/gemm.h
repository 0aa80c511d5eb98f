/* int8 matrix products with their epilogues. Included once per instruction set, after `block_product` is defined:
 *
 *   block_product(a, stride, b0, b1, padded_in, c, rows)
 *
 * computes c[rows][32] = a[rows][in] (uint8) times two panels of 16 channels, exactly, in int32.
 */

typedef enum { STORE, ADD, SWIGLU } Epilogue;

typedef struct {
    const uint8_t *x;     /* [rows padded to 32, padded_in] */
    const float *x_scale; /* [rows] */
    int rows;
} Quantized;

static inline __m512 dequantize(const int32_t *c, const Matrix *w, int channel, __m512 row_scale) {
    const __m512i exact = _mm512_sub_epi32(_mm512_loadu_si512(c), _mm512_loadu_si512(w->offset + channel));
    const __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), _mm512_mul_ps(row_scale, _mm512_loadu_ps(w->scale + channel)));
    return w->bias ? _mm512_add_ps(y, _mm512_loadu_ps(w->bias + channel)) : y;
}

/* y = x @ W.T for the panel pairs [begin, end). A pair is two neighbouring panels, or, for SWIGLU, a gate panel and its up
 * panel, giving one panel silu(gate) * up. ADD adds to y. `stride`: floats per row of y. */
static void product(const Quantized *x, const Matrix *w, Epilogue epilogue, float *y, int64_t stride, int begin, int end) {
    int32_t c[2 * TILE][2 * TILE] __attribute__((aligned(64)));
    const int64_t panel = (int64_t)w->padded_in * 16;
    const int half = w->out / 2;
    for (int pair = begin; pair < end; pair++) {
        const int first = epilogue == SWIGLU ? pair * 16 : pair * 32;
        const int second = epilogue == SWIGLU ? first + half : first + 16;
        const int8_t *b0 = w->packed + first / 16 * panel, *b1 = w->packed + second / 16 * panel;
        const __mmask16 m0 = first < w->out ? head_mask(w->out - first) : 0;
        const __mmask16 m1 = second < w->out ? head_mask(w->out - second) : 0;
        for (int row = 0; row < x->rows; row += 2 * TILE) {
            const int rows = x->rows - row < 2 * TILE ? x->rows - row : 2 * TILE;
            block_product(x->x + (int64_t)row * w->padded_in, w->padded_in, b0, b1, w->padded_in, c, rows);
            for (int r = 0; r < rows; r++) {
                const __m512 scale = _mm512_set1_ps(x->x_scale[row + r]);
                const __m512 left = dequantize(c[r], w, first, scale), right = dequantize(c[r] + 16, w, second, scale);
                float *out = y + (row + r) * stride + first;
                if (epilogue == SWIGLU) {
                    _mm512_mask_storeu_ps(out, m0, _mm512_mul_ps(silu_ps(left), right));
                } else if (epilogue == ADD) {
                    _mm512_mask_storeu_ps(out, m0, _mm512_add_ps(_mm512_maskz_loadu_ps(m0, out), left));
                    _mm512_mask_storeu_ps(out + 16, m1, _mm512_add_ps(_mm512_maskz_loadu_ps(m1, out + 16), right));
                } else {
                    _mm512_mask_storeu_ps(out, m0, left);
                    _mm512_mask_storeu_ps(out + 16, m1, right);
                }
            }
        }
    }
}
