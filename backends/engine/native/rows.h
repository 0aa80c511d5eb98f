/* Work on single rows: norms, quantization, rotary positions. Included once per instruction set. */

static inline Floats exp_ps(Floats x) {
    /* 2^n * 2^f with f in [-0.5, 0.5]; polynomial of degree 6 for 2^f, relative error below 2e-7. */
    const Floats t = mul_ps(x, set1_ps(1.44269504f));
    const Floats n = round_ps(t);
    const Floats f = sub_ps(t, n);
    Floats p = set1_ps(1.5403530e-4f);
    p = fmadd_ps(p, f, set1_ps(1.3333558e-3f));
    p = fmadd_ps(p, f, set1_ps(9.6181291e-3f));
    p = fmadd_ps(p, f, set1_ps(5.5504109e-2f));
    p = fmadd_ps(p, f, set1_ps(2.4022651e-1f));
    p = fmadd_ps(p, f, set1_ps(6.9314718e-1f));
    p = fmadd_ps(p, f, set1_ps(1.0f));
    return times_power_ps(p, n);
}

static inline Floats silu_ps(Floats x) {
    const Floats one = set1_ps(1.0f);
    return div_ps(x, add_ps(one, exp_ps(sub_ps(setzero_ps(), x))));
}

/* x * Phi(x) in the form with tanh, written with the logistic function: (1 + tanh t) / 2 = 1 / (1 + exp(-2 t)). */
static inline Floats gelu_tanh_ps(Floats x) {
    const Floats cubed = mul_ps(mul_ps(x, x), x);
    const Floats t = mul_ps(set1_ps(-1.59576912f), fmadd_ps(cubed, set1_ps(0.044715f), x));
    return div_ps(x, add_ps(set1_ps(1.0f), exp_ps(t)));
}

static inline Mask head_mask(int left) {
    return left >= 16 ? (Mask)0xffff : (Mask)((1u << left) - 1);
}

/* Quantize n floats to bytes around the zero point; returns the scale. The tail up to `padded` meets zero weights: any value will do.
 * Magnitudes are compared as integers, where NaN is above everything: it becomes the scale and with it the row's results. */
static float quantize_row(const float *x, uint8_t *out, int n) {
    const Ints magnitude = set1_epi32(0x7fffffff);
    Ints most = setzero_si512();
    for (int i = 0; i < n; i += 16) {
        const Ints bits = maskz_loadu_epi32(head_mask(n - i), x + i);
        most = max_epi32(most, and_si512(bits, magnitude));
    }
    const union { int32_t i; float f; } largest = {reduce_max_epi32(most)};
    const float scale = largest.f <= 1e-10f ? 1e-12f : largest.f / 127.0f;
    const Floats inverse = set1_ps(1.0f / scale);
    const Ints zero_point = set1_epi32(ZERO_POINT);
    for (int i = 0; i < n; i += 16) {
        const Mask m = head_mask(n - i);
        const Floats v = mul_ps(maskz_loadu_ps(m, x + i), inverse);
        const Ints q = add_epi32(cvtps_epi32(v), zero_point);
        mask_storeu_epi8(out + i, m, cvtepi32_epi8(q));
    }
    return scale;
}

/* Round n floats to bf16, zeros up to `width`: a stale infinity there would meet a zero weight and give NaN. */
static void halve_row(const float *x, bf16 *out, int n, int width) {
    for (int i = 0; i < width; i += 16) {
        const Mask m = i < n ? head_mask(n - i) : 0;
        store_bf16(out + i, maskz_loadu_ps(m, x + i));
    }
}

/* Sums of groups of bf16 values; `width` is padded, the last group may be short. */
static void sum_groups(const bf16 *x, float *sums, int width, int group) {
    for (int begin = 0, g = 0; begin < width; begin += group, g++) {
        Floats sum = setzero_ps();
        for (int i = begin; i < begin + group && i < width; i += 16) sum = add_ps(sum, load_bf16(x + i));
        sums[g] = reduce_add_ps(sum);
    }
}

static float inverse_rms(const float *x, int n, float eps) {
    Floats sum = setzero_ps();
    for (int i = 0; i < n; i += 16) {
        const Floats v = maskz_loadu_ps(head_mask(n - i), x + i);
        sum = fmadd_ps(v, v, sum);
    }
    return 1.0f / sqrtf(reduce_add_ps(sum) / (float)n + eps);
}

static void norm_row(const float *x, const float *weight, float *out, int n, float eps) {
    const Floats r = set1_ps(inverse_rms(x, n, eps));
    for (int i = 0; i < n; i += 16) {
        const Mask m = head_mask(n - i);
        const Floats v = mul_ps(maskz_loadu_ps(m, x + i), r);
        mask_storeu_ps(out + i, m, mul_ps(v, maskz_loadu_ps(m, weight + i)));
    }
}

static inline bf16 to_bf16(float value) {
    union { float f; uint32_t u; } v = {value};
    return (bf16)((v.u + 0x7fff + ((v.u >> 16) & 1)) >> 16); /* round to nearest even; values are finite */
}

/* Norm (where the model has one) and rotate one head in place. Which product is rounded first is said,
 * or it would be left to the compiler. */
static void rotate_head(float *x, const float *norm, const float *cos, const float *sin, int dim, float eps) {
    if (norm) norm_row(x, norm, x, dim, eps);
    for (int d = 0; d < dim / 2; d++) {
        const float low = x[d], high = x[d + dim / 2];
        x[d] = fmaf(low, cos[d], -(high * sin[d]));
        x[d + dim / 2] = fmaf(high, cos[d], low * sin[d]);
    }
}

/* One row of q, k, v after the projection: rotate, write k and v into their page, q as bf16 to `query`. */
static void place_row(const Network *net, const Layer *layer, float *qkv, int position, int64_t slot, bf16 *keys,
                      bf16 *values, bf16 *query) {
    const int dim = net->head_dim, kv_heads = net->kv_heads;
    const float *cos = layer->cos + (int64_t)position * (dim / 2), *sin = layer->sin + (int64_t)position * (dim / 2);
    float *k = qkv + net->heads * dim, *v = k + kv_heads * dim;
    const int64_t page = slot / PAGE;
    const int token = (int)(slot % PAGE);
    for (int h = 0; h < net->heads; h++) {
        float *head = qkv + h * dim;
        rotate_head(head, layer->q_norm, cos, sin, dim, net->eps);
        for (int d = 0; d < dim; d++) query[h * dim + d] = to_bf16(head[d]);
    }
    for (int h = 0; h < kv_heads; h++) {
        rotate_head(k + h * dim, layer->k_norm, cos, sin, dim, net->eps);
        bf16 *key = keys + (page * kv_heads + h) * dim * PAGE;
        bf16 *value = values + (page * kv_heads + h) * dim * PAGE;
        for (int d = 0; d < dim; d++) {
            key[(d / 2) * 2 * PAGE + token * 2 + (d & 1)] = to_bf16(k[h * dim + d]);
            value[(token / 2) * 2 * dim + d * 2 + (token & 1)] = to_bf16(v[h * dim + d]);
        }
    }
}
