/* Matrix products with their epilogues. Included once per instruction set, after the block products are defined:
 *
 *   block_product(a, stride, b0, b1, padded_in, c, rows)        a bytes around ZERO_POINT, b int8 panels, c int32: exact
 *   block_product_bf16(a, stride, b0, b1, padded_in, c, rows)   a and b bf16, c float, summed in the order of the inputs
 *
 * compute c[rows][32] = a[rows][in] times two panels of 16 channels. Each row's sums are formed in the same order however
 * many rows there are, so results do not depend on the batch.
 */

typedef enum { STORE, ADD, GATED } Epilogue;

/* Rows on their way into a product, in the forms that the formats ask for; see `prepare`. */
typedef struct {
    const uint8_t *quantized; /* INT8: [rows padded to 32, padded_in]; WIDE: twice as many rows */
    const float *scale;       /* INT8: [rows]; WIDE: [2 * rows] */
    const bf16 *halves;       /* BF16, INT4: [rows padded to 32, padded_in] */
    const float *sums;        /* INT4: [rows padded to 32, padded_in / 32], sums of the halves of each group */
    const float *delta;       /* what adapters add, [rows, out], or NULL */
    int rows;
} Rows;

static inline Floats dequantize(const int32_t *c, const Matrix *w, int channel, Floats row_scale) {
    Ints exact = loadu_si512(c);
    if (ZERO_POINT) exact = sub_epi32(exact, loadu_si512(w->offset + channel));
    return mul_ps(cvtepi32_ps(exact), mul_ps(row_scale, loadu_ps(w->scale + channel)));
}

/* Nibbles of one panel to bf16 [padded_in / 2][16][2], exactly: 0 .. 15. Scales follow in the product. */
static void unpack_int4(const uint16_t *packed, int in, bf16 *out) {
    for (int k = 0; k < in; k += 8) {
        Ints nibbles = loadu_si512(packed + k * 4);
        for (int j = 0; j < 4; j++) {
            storeu_si512(out + (k + 2 * j) * 16, low_nibbles_to_bf16(nibbles));
            nibbles = srli_epi16(nibbles, 4);
        }
    }
}

/* c[rows][32] for unpacked nibbles: each group's dot products are scaled as they are added. */
static void block_product_int4(const bf16 *a, const float *sums, const Matrix *w, const bf16 *const *panel, const int *channel,
                               float (*c)[2 * TILE], int rows) {
    float dots[2 * TILE][2 * TILE] __attribute__((aligned(64)));
    const int in = w->padded_in, groups = (in + w->group - 1) / w->group;
    for (int g = 0; g < groups; g++) {
        const int begin = g * w->group, width = in - begin < w->group ? in - begin : w->group;
        block_product_bf16(a + begin, in, panel[0] + begin * 16, panel[1] + begin * 16, width, dots, rows);
        for (int p = 0; p < 2; p++) {
            const int64_t at = ((int64_t)(channel[p] / 16) * groups + g) * 16;
            const Floats scale = cvtph_ps(loadu_halves(w->group_scale + at));
            const Floats least = cvtph_ps(loadu_halves(w->group_min + at));
            for (int r = 0; r < rows; r++) {
                float *total = c[r] + p * TILE;
                const Floats before = g ? loadu_ps(total) : setzero_ps();
                const Floats sum = set1_ps(sums[(int64_t)r * (in / 32) + g]);
                storeu_ps(total, fmadd_ps(loadu_ps(dots[r] + p * TILE), scale, fmadd_ps(sum, least, before)));
            }
        }
    }
}

/* Finish one row of one pair: bias, adapters, then what the epilogue says. */
static inline void finish(const Rows *x, const Matrix *w, Epilogue epilogue, int activation, const int32_t (*c)[2 * TILE],
                          int row, const int *channel, const Mask *mask, float *out) {
    Floats y[2];
    for (int p = 0; p < 2; p++) {
        if (w->format == INT8) {
            y[p] = dequantize(c[0] + p * TILE, w, channel[p], set1_ps(x->scale[row]));
        } else if (w->format == WIDE) {
            const Floats rest = dequantize(c[1] + p * TILE, w, channel[p], set1_ps(x->scale[2 * row + 1]));
            y[p] = add_ps(dequantize(c[0] + p * TILE, w, channel[p], set1_ps(x->scale[2 * row])), rest);
        } else {
            y[p] = castsi512_ps(loadu_si512(c[0] + p * TILE));
        }
        if (w->bias) y[p] = add_ps(y[p], maskz_loadu_ps(mask[p], w->bias + channel[p]));
        if (x->delta)
            y[p] = add_ps(y[p], maskz_loadu_ps(mask[p], x->delta + (int64_t)row * w->out + channel[p]));
    }
    if (epilogue == GATED) {
        const Floats gate = activation == GELU_TANH ? gelu_tanh_ps(y[0]) : silu_ps(y[0]);
        mask_storeu_ps(out, mask[0], mul_ps(gate, y[1]));
        return;
    }
    for (int p = 0; p < 2; p++) {
        float *at = out + p * TILE;
        if (epilogue == ADD) y[p] = add_ps(maskz_loadu_ps(mask[p], at), y[p]);
        mask_storeu_ps(at, mask[p], y[p]);
    }
}

/* y = x @ W.T for the panel pairs [begin, end). A pair is two neighbouring panels, or, for GATED, a gate panel and its up
 * panel, giving one panel act(gate) * up. ADD adds to y. `stride`: floats per row of y. `scratch`: two panels of bf16. */
static void product(const Rows *x, const Matrix *w, Epilogue epilogue, int activation, float *y, int64_t stride, int begin,
                    int end, bf16 *scratch) {
    int32_t c[2 * TILE][2 * TILE] __attribute__((aligned(64)));
    const int64_t in = w->padded_in, panel = in * 16;
    for (int pair = begin; pair < end; pair++) {
        const int first = epilogue == GATED ? pair * 16 : pair * 32;
        const int channel[2] = {first, epilogue == GATED ? first + w->out / 2 : first + 16};
        Mask mask[2];
        for (int p = 0; p < 2; p++) mask[p] = channel[p] < w->out ? head_mask(w->out - channel[p]) : 0;
        const int64_t at[2] = {channel[0] / 16 * panel, channel[1] / 16 * panel};
        const bf16 *unpacked[2] = {scratch, scratch + panel};
        if (w->format == INT4)
            for (int p = 0; p < 2; p++) unpack_int4((const uint16_t *)w->packed + at[p] / 4, (int)in, scratch + p * panel);
        const int planes = w->format == WIDE ? 2 : 1, block = 2 * TILE / planes;
        for (int row = 0; row < x->rows; row += block) {
            const int rows = x->rows - row < block ? x->rows - row : block;
            if (w->format == BF16) {
                const bf16 *packed = w->packed;
                block_product_bf16(x->halves + row * in, in, packed + at[0], packed + at[1], (int)in, (float(*)[32])c, rows);
            } else if (w->format == INT4) {
                block_product_int4(x->halves + row * in, x->sums + row * (in / 32), w, unpacked, channel, (float(*)[32])c, rows);
            } else {
                const int8_t *packed = w->packed;
                const uint8_t *rows8 = x->quantized + row * planes * in;
                block_product(rows8, in, packed + at[0], packed + at[1], (int)in, c, rows * planes);
            }
            for (int r = 0; r < rows; r++)
                finish(x, w, epilogue, activation, c + r * planes, row + r, channel, mask, y + (row + r) * stride + first);
        }
    }
}
