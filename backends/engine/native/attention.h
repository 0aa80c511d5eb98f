/* Attention of up to 16 queries (rows times the query heads of one kv head) over a run of pages, with a running softmax
 * (Milakov & Gimelshein, 2018; Dao et al., FlashAttention, 2022). Keys are taken in blocks of 64 at fixed positions, in
 * order, so a row's result has the same bits whatever shares its tile. Included once per instruction set. */

typedef struct {
    float most[TILE], sum[TILE];
} Softmax;

/* S[16][64] = queries . keys, for one block of up to 4 pages. */
static void vector_scores(const bf16 *query, const bf16 *const *pages, int count, int dim, int queries, float *s) {
    for (int p = 0; p < count; p++)
        for (int i = 0; i < queries; i += 4) {
            Floats acc[4] = {setzero_ps(), setzero_ps(), setzero_ps(), setzero_ps()};
            const uint32_t *q = (const uint32_t *)(query + (int64_t)i * dim);
            for (int d = 0; d < dim / 2; d++) {
                const Ints key = loadu_si512(pages[p] + d * 2 * PAGE);
                for (int j = 0; j < 4; j++) acc[j] = dot_bf16(acc[j], set1_epi32((int)q[j * (dim / 2) + d]), key);
            }
            for (int j = 0; j < 4; j++) storeu_ps(s + (i + j) * BLOCK + p * PAGE, acc[j]);
        }
}

/* acc[16][dim] += P[16][64] (bf16) . values. */
static void vector_values(const bf16 *weight, const bf16 *const *pages, int count, int dim, int queries, float *acc) {
    for (int i = 0; i < queries; i += 4)
        for (int d = 0; d < dim; d += 16) {
            Floats sum[4];
            for (int j = 0; j < 4; j++) sum[j] = loadu_ps(acc + (i + j) * dim + d);
            for (int p = 0; p < count; p++)
                for (int t = 0; t < PAGE / 2; t++) {
                    const Ints value = loadu_si512(pages[p] + t * 2 * dim + d * 2);
                    for (int j = 0; j < 4; j++) {
                        const uint32_t pair = *(const uint32_t *)(weight + (i + j) * BLOCK + p * PAGE + t * 2);
                        sum[j] = dot_bf16(sum[j], set1_epi32((int)pair), value);
                    }
                }
            for (int j = 0; j < 4; j++) storeu_ps(acc + (i + j) * dim + d, sum[j]);
        }
}

#ifdef __AMX_BF16__
/* The same with tiles: 16 queries at once, whether there are as many or not. A product's result is late by several others:
 * what is independent goes side by side. */
static void tile_scores(const bf16 *query, const bf16 *const *pages, int count, int dim, float *s) {
    for (int p = 0; p < count; p += 2) {
        const int both = p + 1 < count;
        _tile_zero(0);
        _tile_zero(1);
        for (int d = 0; d < dim; d += 32) {
            _tile_loadd(4, query + d, dim * sizeof(bf16));
            _tile_loadd(6, pages[p] + d * PAGE, 64);
            _tile_dpbf16ps(0, 4, 6);
            if (both) {
                _tile_loadd(2, pages[p + 1] + d * PAGE, 64);
                _tile_dpbf16ps(1, 4, 2);
            }
        }
        _tile_stored(0, s + p * PAGE, BLOCK * sizeof(float));
        if (both) _tile_stored(1, s + (p + 1) * PAGE, BLOCK * sizeof(float));
    }
}

static void tile_values(const bf16 *weight, const bf16 *const *pages, int count, int dim, float *acc) {
    const int64_t row = dim * sizeof(float), pair = 2 * dim * sizeof(bf16);
    for (int d = 0; d < dim; d += 64) {
        const int wide = dim - d > 32;
        float *at = acc + d;
        _tile_loadd(0, at, row);
        _tile_loadd(1, at + 16, row);
        if (wide) {
            _tile_loadd(2, at + 32, row);
            _tile_loadd(4, at + 48, row);
        }
        for (int p = 0; p < count; p++) {
            const bf16 *value = pages[p] + d * 2;
            _tile_loadd(5, weight + p * PAGE, BLOCK * sizeof(bf16));
            _tile_loadd(7, value, pair);
            _tile_dpbf16ps(0, 5, 7);
            _tile_loadd(3, value + 32, pair);
            _tile_dpbf16ps(1, 5, 3);
            if (wide) {
                _tile_loadd(7, value + 64, pair);
                _tile_dpbf16ps(2, 5, 7);
                _tile_loadd(3, value + 96, pair);
                _tile_dpbf16ps(4, 5, 3);
            }
        }
        _tile_stored(0, at, row);
        _tile_stored(1, at + 16, row);
        if (wide) {
            _tile_stored(2, at + 32, row);
            _tile_stored(4, at + 48, row);
        }
    }
}
#endif

static void block_scores(const bf16 *query, const bf16 *const *pages, int count, int dim, int queries, float *s) {
#ifdef __AMX_BF16__
    if (dim % 32 == 0) {
        tile_scores(query, pages, count, dim, s);
        return;
    }
#endif
    vector_scores(query, pages, count, dim, queries, s);
}

static void block_values(const bf16 *weight, const bf16 *const *pages, int count, int dim, int queries, float *acc) {
#ifdef __AMX_BF16__
    if (dim % 32 == 0) {
        tile_values(weight, pages, count, dim, acc);
        return;
    }
#endif
    vector_values(weight, pages, count, dim, queries, acc);
}

/* One query's scores to weights: scale, hide keys (unless `whole`: it sees all of the block), and add them up. Returns what
 * its earlier sums are to be multiplied by. */
static inline float row_softmax(const float *s, bf16 *weight, float *state_most, float *state_sum, float scale, int visible, int hidden, const int whole) {
    const Ints lane = lane_numbers();
    Floats x[BLOCK_PAGES];
    Floats most = set1_ps(-INFINITY);
    Mask seen[BLOCK_PAGES];
    for (int p = 0; p < BLOCK_PAGES; p++) {
        if (whole) {
            x[p] = mul_ps(loadu_ps(s + p * PAGE), set1_ps(scale));
        } else {
            Mask m = less_epi32(lane, set1_epi32(visible - p * PAGE));
            if (hidden > 0) m &= (Mask)~less_epi32(lane, set1_epi32(hidden - p * PAGE));
            seen[p] = m;
            x[p] = mask_mov_ps(set1_ps(-INFINITY), m, mul_ps(maskz_loadu_ps(m, s + p * PAGE), set1_ps(scale)));
        }
        most = max_ps(most, x[p]);
    }
    const float before = *state_most, now = fmaxf(before, reduce_max_ps(most));
    Floats total = setzero_ps();
    for (int p = 0; p < BLOCK_PAGES; p++) {
        Floats e = exp_ps(sub_ps(x[p], set1_ps(now)));
        if (!whole) e = maskz_mov_ps(seen[p], e);
        total = add_ps(total, e);
        store_bf16(weight + p * PAGE, e);
    }
    float kept = 1.0f;
    if (now != before) kept = before == -INFINITY ? 0.0f : first_ps(exp_ps(set1_ps(before - now)));
    *state_sum = *state_sum * kept + reduce_add_ps(total);
    *state_most = now;
    return kept;
}

/* Of all queries: weights, running maximum and sum, and acc rescaled. Keys outside first[i] .. last[i] are hidden. */
static void block_softmax(float *s, bf16 *weight, Softmax *state, float *acc, int queries, int dim, float scale,
                          int position, int keys, const int *first, const int *last) {
    for (int i = 0; i < queries; i++) {
        const int visible = last[i] - position + 1 < keys ? last[i] - position + 1 : keys, hidden = first[i] - position;
        if (visible <= 0 || hidden >= keys) { /* nothing seen: the weights are zero and the state stays */
            memset(weight + i * BLOCK, 0, BLOCK * sizeof(bf16));
            continue;
        }
        const float *scores = s + i * BLOCK;
        float *most = &state->most[i], *sum = &state->sum[i];
        const float kept = visible == BLOCK && hidden <= 0
                               ? row_softmax(scores, weight + i * BLOCK, most, sum, scale, visible, hidden, 1)
                               : row_softmax(scores, weight + i * BLOCK, most, sum, scale, visible, hidden, 0);
        if (kept == 1.0f) continue;
        for (int d = 0; d < dim; d += 16)
            storeu_ps(acc + i * dim + d, mul_ps(loadu_ps(acc + i * dim + d), set1_ps(kept)));
    }
}

/* One tile: rows `row_list[0 .. rows)` of one kv head over a group's pages; state and acc are kept per row between phases. */
static void attend_tile(const Network *net, const Layer *layer, const Step *step, const Group *group, const int32_t *row_list, int rows, int kv,
                        const bf16 *keys, const bf16 *values, const bf16 *query, float *state, float *acc) {
    const int dim = net->head_dim, share = net->heads / net->kv_heads, heads = net->heads;
    bf16 q[TILE * 256] __attribute__((aligned(64))), weight[TILE * BLOCK] __attribute__((aligned(64)));
    float s[TILE * BLOCK] __attribute__((aligned(64))), sums[TILE * 256] __attribute__((aligned(64)));
    Softmax softmax;
    int first[TILE], last[TILE];
    const int queries = rows * share, padded = (queries + 3) / 4 * 4;
    for (int i = 0; i < padded; i++) {
        const int used = i < queries;
        const int row = row_list[used ? i / share : 0];
        const int64_t head = (int64_t)row * heads + kv * share + (used ? i % share : 0);
        memcpy(q + i * dim, query + head * dim, dim * sizeof(bf16));
        memcpy(sums + i * dim, acc + head * dim, dim * sizeof(float));
        softmax.most[i] = state[2 * head];
        softmax.sum[i] = state[2 * head + 1];
        last[i] = step->positions[row];
        first[i] = layer->window && last[i] >= layer->window ? last[i] - (int)layer->window + 1 : 0;
    }
    int furthest = 0, nearest = INT32_MAX;
    for (int i = 0; i < queries; i++) {
        furthest = last[i] > furthest ? last[i] : furthest;
        nearest = first[i] < nearest ? first[i] : nearest;
    }
    const int64_t page_size = (int64_t)dim * PAGE;
    for (int p = 0; p < group->pages; p += BLOCK_PAGES) {
        const int count = group->pages - p < BLOCK_PAGES ? group->pages - p : BLOCK_PAGES;
        const int position = (group->page_position + p) * PAGE;
        if (position > furthest) break;
        if (position + count * PAGE <= nearest) continue; /* the window has left these keys behind */
        const bf16 *k[BLOCK_PAGES], *v[BLOCK_PAGES];
        for (int i = 0; i < count; i++) {
            const int64_t page = step->page_list[group->first_entry + p + i];
            k[i] = keys + (page * net->kv_heads + kv) * page_size;
            v[i] = values + (page * net->kv_heads + kv) * page_size;
        }
        block_scores(q, k, count, dim, padded, s);
        block_softmax(s, weight, &softmax, sums, padded, dim, net->attention_scale, position, count * PAGE, first, last);
        block_values(weight, v, count, dim, padded, sums);
    }
    for (int i = 0; i < queries; i++) {
        const int64_t head = (int64_t)row_list[i / share] * heads + kv * share + i % share;
        memcpy(acc + head * dim, sums + i * dim, dim * sizeof(float));
        state[2 * head] = softmax.most[i];
        state[2 * head + 1] = softmax.sum[i];
    }
}
