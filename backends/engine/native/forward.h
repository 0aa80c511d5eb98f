/* The whole decoder step in one call. Included once per instruction set; NAME(x) appends its suffix.
 *
 * One parallel region per step: threads go through the phases of each layer together, meeting at the barriers that end
 * every `omp for`. */


static void quantize_normed(const Network *net, Workspace *w, const float *weight, int rows) {
#pragma omp for schedule(static)
    for (int r = 0; r < rows; r++) {
        float *scratch = w->scratch + (int64_t)omp_get_thread_num() * w->widest;
        norm_row(w->x + (int64_t)r * net->hidden, weight, scratch, net->hidden, net->eps);
        w->scale[r] = quantize_row(scratch, w->quantized + (int64_t)r * padded(net->hidden), net->hidden);
    }
}

static void quantize_plain(Workspace *w, const float *x, int width, int rows) {
#pragma omp for schedule(static)
    for (int r = 0; r < rows; r++)
        w->scale[r] = quantize_row(x + (int64_t)r * width, w->quantized + (int64_t)r * padded(width), width);
}

static void multiply(const Workspace *w, const Matrix *m, Epilogue epilogue, float *y, int64_t stride, int rows) {
    const Quantized x = {w->quantized, w->scale, rows};
    const int pairs = epilogue == SWIGLU ? m->out / 32 : (m->out + 31) / 32;
    const int chunk = pairs / 64 > 1 ? pairs / 64 : 1;
    begin_products();
#pragma omp for schedule(dynamic)
    for (int pair = 0; pair < pairs; pair += chunk)
        product(&x, m, epilogue, y, stride, pair, pair + chunk < pairs ? pair + chunk : pairs);
}

static void attend(const Network *net, const Step *step, Workspace *w, const bf16 *keys, const bf16 *values) {
    const int heads = net->heads, dim = net->head_dim;
    begin_attention();
    for (int phase = 0; phase < w->phases; phase++) {
        const int begin = w->phase_begin[phase], tasks = (w->phase_begin[phase + 1] - begin) * net->kv_heads;
#pragma omp for schedule(dynamic)
        for (int task = 0; task < tasks; task++) {
            const Tile *tile = w->tile + begin + task / net->kv_heads;
            attend_tile(net, step, tile->group, step->row_list + tile->first, tile->rows, task % net->kv_heads, keys,
                        values, w->query, w->state, w->attended);
        }
    }
#pragma omp for schedule(static)
    for (int r = 0; r < step->rows; r++) {
        float *row = w->attended + (int64_t)r * heads * dim;
        for (int h = 0; h < heads; h++) {
            const float inverse = 1.0f / w->state[2 * ((int64_t)r * heads + h) + 1];
            for (int d = 0; d < dim; d++) row[h * dim + d] *= inverse;
        }
        w->scale[r] = quantize_row(row, w->quantized + (int64_t)r * padded(heads * dim), heads * dim);
    }
}

static void place(const Network *net, const Layer *layer, const Step *step, Workspace *w, bf16 *keys, bf16 *values) {
    const int heads = net->heads, dim = net->head_dim, width = (heads + 2 * net->kv_heads) * dim;
#pragma omp for schedule(static)
    for (int r = 0; r < step->rows; r++) {
        place_row(net, layer, w->qkv + (int64_t)r * width, step->positions[r], step->slots[r], keys, values,
                  w->query + (int64_t)r * heads * dim);
        for (int h = 0; h < heads; h++) {
            w->state[2 * ((int64_t)r * heads + h)] = -INFINITY;
            w->state[2 * ((int64_t)r * heads + h) + 1] = 0.0f;
        }
        memset(w->attended + (int64_t)r * heads * dim, 0, heads * dim * sizeof(float));
    }
}

/* Compute a step; `out` gets the hidden states after the final norm, [rows, hidden]. */
void NAME(forward)(const Network *net, const Step *step, Workspace *w, float *out) {
    const int rows = step->rows, hidden = net->hidden, width = (net->heads + 2 * net->kv_heads) * net->head_dim;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < hidden; i++) {
                union { uint32_t u; float f; } v = {(uint32_t)net->embed[(int64_t)step->tokens[r] * hidden + i] << 16};
                w->x[(int64_t)r * hidden + i] = v.f;
            }
        for (int l = 0; l < net->layers; l++) {
            const Layer *layer = net->layer + l;
            bf16 *keys = net->keys + l * net->layer_stride, *values = net->values + l * net->layer_stride;
            quantize_normed(net, w, layer->attn_norm, rows);
            multiply(w, &layer->qkv, STORE, w->qkv, width, rows);
            place(net, layer, step, w, keys, values);
            attend(net, step, w, keys, values);
            multiply(w, &layer->o, ADD, w->x, hidden, rows);
            quantize_normed(net, w, layer->mlp_norm, rows);
            multiply(w, &layer->gate_up, SWIGLU, w->active, net->intermediate, rows);
            quantize_plain(w, w->active, net->intermediate, rows);
            multiply(w, &layer->down, ADD, w->x, hidden, rows);
        }
#pragma omp for schedule(static)
        for (int r = 0; r < rows; r++)
            norm_row(w->x + (int64_t)r * hidden, net->final_norm, out + (int64_t)r * hidden, hidden, net->eps);
        release_thread();
    }
}

/* Logits of `rows` hidden states: [rows, hidden] to [rows, vocab]. */
void NAME(logits)(const Network *net, const float *states, int rows, Workspace *w, float *out) {
#pragma omp parallel
    {
        quantize_plain(w, states, net->hidden, rows);
        multiply(w, &net->lm_head, STORE, out, net->lm_head.out, rows);
        release_thread();
    }
}

/* For each row of logits: the best token among those the mask allows (the first of equals), and the log-sum-exp of all.
 * mask: [rows, (vocab + 31) / 32], bit set = allowed. A row that holds NaN has a normalizer that is NaN. */
void NAME(pick)(const float *logits, int rows, int vocab, const uint32_t *mask, int32_t *best, float *normalizer) {
    const int words = (vocab + 31) / 32;
#pragma omp parallel for schedule(static)
    for (int r = 0; r < rows; r++) {
        const float *x = logits + (int64_t)r * vocab;
        const uint16_t *allowed = (const uint16_t *)(mask + (int64_t)r * words);
        const __m512 low = _mm512_set1_ps(-INFINITY);
        __m512 most = low, top = low;
        __m512i at = _mm512_set1_epi32(-1), index = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        for (int i = 0; i < vocab; i += 16) {
            const __mmask16 m = head_mask(vocab - i);
            const __m512 v = _mm512_mask_loadu_ps(low, m, x + i);
            most = _mm512_max_ps(most, v);
            const __mmask16 better = _mm512_mask_cmp_ps_mask((__mmask16)(m & allowed[i / 16]), v, top, _CMP_GT_OQ);
            top = _mm512_mask_mov_ps(top, better, v);
            at = _mm512_mask_mov_epi32(at, better, index);
            index = _mm512_add_epi32(index, _mm512_set1_epi32(16));
        }
        const __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(most));
        __m512 sum = _mm512_setzero_ps();
        for (int i = 0; i < vocab; i += 16) {
            const __m512 v = _mm512_mask_loadu_ps(low, head_mask(vocab - i), x + i);
            sum = _mm512_add_ps(sum, exp_ps(_mm512_sub_ps(v, largest)));
        }
        normalizer[r] = _mm512_cvtss_f32(largest) + logf(_mm512_reduce_add_ps(sum));
        const __mmask16 winners = _mm512_cmp_ps_mask(top, _mm512_set1_ps(_mm512_reduce_max_ps(top)), _CMP_EQ_OQ);
        const __m512i found = _mm512_mask_mov_epi32(_mm512_set1_epi32(INT32_MAX), winners, at);
        best[r] = _mm512_reduce_min_epi32(found);
    }
}
