/* The whole decoder step in one call. Included once per instruction set; NAME(x) appends its suffix.
 *
 * One parallel region per step: threads go through the phases of each layer together and meet at the end of each. */

/* A row of inputs to the form its product asks for. */
static void prepare(Workspace *w, const Matrix *m, const float *x, int r) {
    const int64_t at = (int64_t)r * m->padded_in;
    if (m->format == INT8) {
        w->scale[r] = quantize_row(x, w->quantized + at, m->in);
        return;
    }
    if (m->format == WIDE) {
        uint8_t *first = w->quantized + 2 * at;
        float *rest = w->normed + (int64_t)r * m->in;
        w->scale[2 * r] = quantize_row(x, first, m->in);
        for (int i = 0; i < m->in; i++) rest[i] = x[i] - w->scale[2 * r] * (float)(int8_t)(first[i] - ZERO_POINT);
        w->scale[2 * r + 1] = quantize_row(rest, first + m->padded_in, m->in);
        return;
    }
    halve_row(x, w->halves + at, m->in, m->padded_in);
    if (m->format == INT4) sum_groups(w->halves + at, w->sums + at / 32, m->padded_in, m->group);
}

static void prepare_normed(const Network *net, Workspace *w, const Matrix *m, const float *weight, int rows) {
#pragma omp for schedule(static) nowait
    for (int r = 0; r < rows; r++) {
        float *normed = w->normed + (int64_t)r * net->hidden; /* kept: adapters read it */
        norm_row(w->x + (int64_t)r * net->hidden, weight, normed, net->hidden, net->eps);
        prepare(w, m, normed, r);
    }
    meet(&w->barrier);
}

static void prepare_plain(Workspace *w, const Matrix *m, const float *x, int rows) {
#pragma omp for schedule(static) nowait
    for (int r = 0; r < rows; r++) prepare(w, m, x + (int64_t)r * m->in, r);
    meet(&w->barrier);
}

/* y = x @ W.T by panel pairs. `delta`: what adapters add, or NULL. */
static void multiply(Workspace *w, const Matrix *m, Epilogue epilogue, int activation, const float *delta, float *y,
                     int64_t stride, int rows) {
    const Rows x = {w->quantized, w->scale, w->halves, w->sums, delta, rows};
    const int pairs = epilogue == GATED ? m->out / 32 : (m->out + 31) / 32;
    const int chunk = pairs / 64 > 1 ? pairs / 64 : 1;
    bf16 *scratch = w->panels + (int64_t)omp_get_thread_num() * w->widest * 32;
    begin_products();
#pragma omp for schedule(dynamic) nowait
    for (int pair = 0; pair < pairs; pair += chunk)
        product(&x, m, epilogue, activation, y, stride, pair, pair + chunk < pairs ? pair + chunk : pairs, scratch);
    meet(&w->barrier);
}

/* The adapters' part of a product, B A x for each row that has one, zeros for the others; NULL when no row has. */
#define ADAPTED(name, x) (step->adapter ? adapt(step, w, offsetof(AdapterLayer, name), l, x, &layer->name) : NULL)

static const float *adapt(const Step *step, Workspace *w, size_t which, int layer, const float *x, const Matrix *m) {
#pragma omp for schedule(dynamic, 4) nowait
    for (int r = 0; r < step->rows; r++) {
        const AdapterLayer *adapter = step->adapter[r];
        const LowRank *update = adapter ? (const LowRank *)((const char *)(adapter + layer) + which) : NULL;
        low_rank_row(update, x + (int64_t)r * m->in, m->in, m->out, w->delta + (int64_t)r * m->out);
    }
    meet(&w->barrier);
    return w->delta;
}

/* What a block gives is added to x, normed first where the model norms it. */
static void add_block(const Network *net, Workspace *w, const Matrix *m, const float *post_norm, const float *delta, int rows) {
    if (!post_norm) {
        multiply(w, m, ADD, net->activation, delta, w->x, net->hidden, rows);
        return;
    }
    multiply(w, m, STORE, net->activation, delta, w->branch, net->hidden, rows);
#pragma omp for schedule(static) nowait
    for (int r = 0; r < rows; r++) {
        float *row = w->branch + (int64_t)r * net->hidden, *x = w->x + (int64_t)r * net->hidden;
        norm_row(row, post_norm, row, net->hidden, net->eps);
        for (int i = 0; i < net->hidden; i++) x[i] += row[i];
    }
    meet(&w->barrier);
}

/* Row `token` of the embedding, which is the head itself where the two are tied. */
static void embed_row(const Network *net, int token, float *x) {
    const Matrix *head = &net->lm_head;
    const int64_t panel = (int64_t)(token / 16) * head->padded_in * 16;
    const int lane = token % 16;
    for (int i = 0; i < net->hidden; i++) {
        float value;
        if (!net->embed && head->format != BF16) {
            value = ((const int8_t *)head->packed)[panel + (i / 4) * 64 + lane * 4 + i % 4] * head->scale[token];
        } else {
            const bf16 *half = net->embed ? net->embed + (int64_t)token * net->hidden + i
                                          : (const bf16 *)head->packed + panel + (i / 2) * 32 + lane * 2 + i % 2;
            const union { uint32_t u; float f; } v = {(uint32_t)*half << 16};
            value = v.f;
        }
        x[i] = value * net->embed_scale;
    }
}

static void attend(const Network *net, const Layer *layer, const Step *step, Workspace *w, const bf16 *keys,
                   const bf16 *values) {
    const int heads = net->heads, dim = net->head_dim;
    begin_attention();
    for (int phase = 0; phase < w->phases; phase++) {
        const int begin = w->phase_begin[phase], parts = w->phase_begin[phase + 1] - begin;
#pragma omp for schedule(dynamic) nowait
        for (int task = 0; task < parts * net->kv_heads; task++) {
            /* Head by head: the keys and values of one stay in the second-level cache for all parts of a long prompt. */
            const Part *part = w->part + begin + task % parts;
            attend_part(net, layer, step, w, part, task / parts, keys, values);
        }
        meet(&w->barrier);
    }
#pragma omp for schedule(static) nowait
    for (int r = 0; r < step->rows; r++) {
        float *row = w->attended + (int64_t)r * heads * dim;
        for (int h = 0; h < heads; h++) {
            const float inverse = 1.0f / w->state[2 * ((int64_t)r * heads + h) + 1];
            for (int d = 0; d < dim; d++) row[h * dim + d] *= inverse;
        }
        prepare(w, &layer->o, row, r);
    }
    meet(&w->barrier);
}

static void place(const Network *net, const Layer *layer, const Step *step, Workspace *w, bf16 *keys, bf16 *values) {
    const int heads = net->heads, dim = net->head_dim, width = (heads + 2 * net->kv_heads) * dim;
#pragma omp for schedule(static) nowait
    for (int r = 0; r < step->rows; r++) {
        place_row(net, layer, w->qkv + (int64_t)r * width, step->positions[r], step->slots[r], keys, values,
                  w->query + (int64_t)r * heads * dim);
        for (int h = 0; h < heads; h++) {
            w->state[2 * ((int64_t)r * heads + h)] = -INFINITY;
            w->state[2 * ((int64_t)r * heads + h) + 1] = 0.0f;
        }
        memset(w->attended + (int64_t)r * heads * dim, 0, heads * dim * sizeof(float));
    }
    meet(&w->barrier);
}

/* Compute a step; `out` gets the hidden states after the final norm, [rows, hidden]. */
void NAME(forward)(const Network *net, const Step *step, Workspace *w, float *out) {
    const int rows = step->rows, hidden = net->hidden, width = (net->heads + 2 * net->kv_heads) * net->head_dim;
#pragma omp parallel
    {
#pragma omp for schedule(static) nowait
        for (int r = 0; r < rows; r++) embed_row(net, step->tokens[r], w->x + (int64_t)r * hidden);
        meet(&w->barrier);
        for (int l = 0; l < net->layers; l++) {
            const Layer *layer = net->layer + l;
            bf16 *keys = net->keys + l * net->layer_stride, *values = net->values + l * net->layer_stride;
            prepare_normed(net, w, &layer->qkv, layer->attn_norm, rows);
            const float *delta = ADAPTED(qkv, w->normed);
            multiply(w, &layer->qkv, STORE, net->activation, delta, w->qkv, width, rows);
            place(net, layer, step, w, keys, values);
            attend(net, layer, step, w, keys, values);
            delta = ADAPTED(o, w->attended);
            add_block(net, w, &layer->o, layer->attn_post_norm, delta, rows);
            prepare_normed(net, w, &layer->gate_up, layer->mlp_norm, rows);
            delta = ADAPTED(gate_up, w->normed);
            multiply(w, &layer->gate_up, GATED, net->activation, delta, w->active, net->intermediate, rows);
            prepare_plain(w, &layer->down, w->active, rows);
            delta = ADAPTED(down, w->active);
            add_block(net, w, &layer->down, layer->mlp_post_norm, delta, rows);
        }
#pragma omp for schedule(static) nowait
        for (int r = 0; r < rows; r++)
            norm_row(w->x + (int64_t)r * hidden, net->final_norm, out + (int64_t)r * hidden, hidden, net->eps);
        release_thread();
    }
}

/* Logits of `rows` hidden states: [rows, hidden] to [rows, vocab]. */
void NAME(logits)(const Network *net, const float *states, int rows, Workspace *w, float *out) {
#pragma omp parallel
    {
        prepare_plain(w, &net->lm_head, states, rows);
        multiply(w, &net->lm_head, STORE, net->activation, NULL, out, net->lm_head.out, rows);
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
        const Floats low = set1_ps(-INFINITY);
        Floats most = low, top = low;
        Ints at = set1_epi32(-1), index = lane_numbers();
        for (int i = 0; i < vocab; i += 16) {
            const Mask m = head_mask(vocab - i);
            const Floats v = mask_loadu_ps(low, m, x + i);
            most = max_ps(most, v);
            const Mask better = m & allowed[i / 16] & greater_ps(v, top);
            top = mask_mov_ps(top, better, v);
            at = mask_mov_epi32(at, better, index);
            index = add_epi32(index, set1_epi32(16));
        }
        const Floats largest = set1_ps(reduce_max_ps(most));
        Floats sum = setzero_ps();
        for (int i = 0; i < vocab; i += 16) {
            const Floats v = mask_loadu_ps(low, head_mask(vocab - i), x + i);
            sum = add_ps(sum, exp_ps(sub_ps(v, largest)));
        }
        normalizer[r] = first_ps(largest) + logf(reduce_add_ps(sum));
        const Mask winners = equal_ps(top, set1_ps(reduce_max_ps(top)));
        const Ints found = mask_mov_epi32(set1_epi32(INT32_MAX), winners, at);
        best[r] = reduce_min_epi32(found);
    }
}
