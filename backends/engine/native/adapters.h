/* LoRA on one row in fp32: y = B (A x) (Hu et al., 2021). A row's result does not depend on other rows. */

/* delta[out] = B A x, or zeros without an update. */
static void low_rank_row(const LowRank *update, const float *x, int in, int out, float *delta) {
    memset(delta, 0, (size_t)out * sizeof(float));
    if (!update) return;
    for (int i = 0; i < update->rank; i++) {
        const float *a = update->a + (int64_t)i * in, *b = update->b + (int64_t)i * out;
        Floats sum = setzero_ps();
        for (int k = 0; k < in; k += 16) {
            const Mask m = head_mask(in - k);
            sum = fmadd_ps(maskz_loadu_ps(m, x + k), maskz_loadu_ps(m, a + k), sum);
        }
        const Floats weight = set1_ps(reduce_add_ps(sum));
        for (int k = update->begin[i]; k < update->end[i]; k += 16) {
            const Mask m = head_mask(update->end[i] - k);
            const Floats y = fmadd_ps(weight, maskz_loadu_ps(m, b + k), maskz_loadu_ps(m, delta + k));
            mask_storeu_ps(delta + k, m, y);
        }
    }
}
