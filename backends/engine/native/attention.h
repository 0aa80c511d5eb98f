/* Attention of queries over a run of pages, 16 at a time (rows times the query heads of one kv head), with a running softmax
 * (Milakov & Gimelshein, 2018; Dao et al., FlashAttention, 2022). Keys are taken in blocks of 64 at fixed positions, in
 * order, so a row's result has the same bits whatever shares its tile. Included once per instruction set. */

typedef struct {
    float most[TILE], sum[TILE];
} Softmax;

/* Queries that are computed side by side: with fewer, a product waits for the one before it. */
#ifdef __AVX512F__
#define SIDE_BY_SIDE 8
#else
#define SIDE_BY_SIDE 4
#endif

/* Of `rows` queries, a constant where it is called: their products with one page's keys. */
static inline __attribute__((always_inline)) void page_scores(const Operand *query, const bf16 *page, int dim, float *s, const int rows) {
    Floats acc[SIDE_BY_SIDE];
    for (int j = 0; j < rows; j++) acc[j] = setzero_ps();
    for (int d = 0; d < dim; d += 2) {
        const Pairs key = pairs_of(loadu_si512(page + d * PAGE));
        for (int j = 0; j < rows; j++) acc[j] = dot_pair(acc[j], query + j * dim + d, key);
    }
    for (int j = 0; j < rows; j++) storeu_ps(s + j * BLOCK, acc[j]);
}

/* S[16][64] = queries . keys, for one block of up to 4 pages. */
static void vector_scores(const Operand *query, const bf16 *const *pages, int count, int dim, int queries, float *s) {
    for (int p = 0; p < count; p++) {
        int i = 0;
        for (; i + SIDE_BY_SIDE <= queries; i += SIDE_BY_SIDE)
            page_scores(query + i * dim, pages[p], dim, s + i * BLOCK + p * PAGE, SIDE_BY_SIDE);
        if (i < queries) page_scores(query + i * dim, pages[p], dim, s + i * BLOCK + p * PAGE, 4);
    }
}

static inline __attribute__((always_inline)) void row_values(const Operand *weight, const bf16 *const *pages, int count, int dim,
                                                             float *acc, const int rows) {
    for (int d = 0; d < dim; d += 16) {
        Floats sum[SIDE_BY_SIDE];
        for (int j = 0; j < rows; j++) sum[j] = loadu_ps(acc + j * dim + d);
        for (int p = 0; p < count; p++)
            for (int t = 0; t < PAGE; t += 2) {
                const Pairs value = pairs_of(loadu_si512(pages[p] + t * dim + d * 2));
                for (int j = 0; j < rows; j++) sum[j] = dot_pair(sum[j], weight + j * BLOCK + p * PAGE + t, value);
            }
        for (int j = 0; j < rows; j++) storeu_ps(acc + j * dim + d, sum[j]);
    }
}

/* acc[16][dim] += P[16][64] . values. */
static void vector_values(const Operand *weight, const bf16 *const *pages, int count, int dim, int queries, float *acc) {
    int i = 0;
    for (; i + SIDE_BY_SIDE <= queries; i += SIDE_BY_SIDE)
        row_values(weight + i * BLOCK, pages, count, dim, acc + i * dim, SIDE_BY_SIDE);
    if (i < queries) row_values(weight + i * BLOCK, pages, count, dim, acc + i * dim, 4);
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

static void block_scores(const Operand *query, const bf16 *const *pages, int count, int dim, int queries, float *s) {
#ifdef __AMX_BF16__
    if (dim % 32 == 0) {
        tile_scores(query, pages, count, dim, s);
        return;
    }
#endif
    vector_scores(query, pages, count, dim, queries, s);
}

static void block_values(const Operand *weight, const bf16 *const *pages, int count, int dim, int queries, float *acc) {
#ifdef __AMX_BF16__
    if (dim % 32 == 0) {
        tile_values(weight, pages, count, dim, acc);
        return;
    }
#endif
    vector_values(weight, pages, count, dim, queries, acc);
}

/* One query's scores to weights: scale, hide keys (unless `whole`, a constant where it is called: it sees all of the block),
 * and add them up. Returns what its earlier sums are to be multiplied by. */
static inline __attribute__((always_inline)) float row_softmax(const float *s, Operand *weight, float *state_most, float *state_sum,
                                                               float scale, int visible, int hidden, const int whole) {
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
        store_operand(weight + p * PAGE, e);
    }
    float kept = 1.0f;
    if (now != before) kept = before == -INFINITY ? 0.0f : first_ps(exp_ps(set1_ps(before - now)));
    *state_sum = *state_sum * kept + reduce_add_ps(total);
    *state_most = now;
    return kept;
}

/* Of all queries: weights, running maximum and sum, and acc rescaled. Keys outside first[i] .. last[i] are hidden. */
static void block_softmax(float *s, Operand *weight, Softmax *state, float *acc, int queries, int dim, float scale,
                          int position, int keys, const int *first, const int *last) {
    for (int i = 0; i < queries; i++) {
        const int visible = last[i] - position + 1 < keys ? last[i] - position + 1 : keys, hidden = first[i] - position;
        if (visible <= 0 || hidden >= keys) { /* nothing seen: the weights are zero and the state stays */
            memset(weight + i * BLOCK, 0, BLOCK * sizeof(Operand));
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

/* Up to 16 queries of one kv head: rows `row[0 .. rows)` times the query heads that share it. first, last: positions each sees. */
typedef struct {
    Operand query[TILE * 256] __attribute__((aligned(64)));
    float sums[TILE * 256] __attribute__((aligned(64)));
    Softmax softmax;
    int first[TILE], last[TILE], queries, padded, nearest, furthest;
} Queries;

/* Of row i / share the head that shares the kv head, in arrays [rows, heads]. */
static inline int64_t head_of(const Network *net, const int32_t *row, int kv, int i) {
    const int share = heads_per_kv(net);
    return (int64_t)row[i / share] * net->heads + kv * share + i % share;
}

/* Take up what the rows' earlier phases left in state and acc. Four queries are computed at once: the rest repeat the first. */
static void gather_queries(Queries *tile, const Network *net, const Layer *layer, const Step *step, const Workspace *w,
                           const int32_t *row, int rows, int kv) {
    const int dim = net->head_dim;
    tile->queries = rows * heads_per_kv(net);
    tile->padded = (tile->queries + 3) / 4 * 4;
    tile->furthest = 0, tile->nearest = INT32_MAX;
    for (int i = 0; i < tile->padded; i++) {
        const int64_t head = head_of(net, row, kv, i < tile->queries ? i : 0);
        const int last = step->positions[head / net->heads];
        load_operands(tile->query + i * dim, w->query + head * dim, dim);
        memcpy(tile->sums + i * dim, w->attended + head * dim, dim * sizeof(float));
        tile->softmax.most[i] = w->state[2 * head];
        tile->softmax.sum[i] = w->state[2 * head + 1];
        tile->last[i] = last;
        tile->first[i] = layer->window && last >= layer->window ? last - (int)layer->window + 1 : 0;
        tile->furthest = tile->last[i] > tile->furthest ? tile->last[i] : tile->furthest;
        tile->nearest = tile->first[i] < tile->nearest ? tile->first[i] : tile->nearest;
    }
}

static void scatter_queries(const Queries *tile, const Network *net, Workspace *w, const int32_t *row, int kv) {
    const int dim = net->head_dim;
    for (int i = 0; i < tile->queries; i++) {
        const int64_t head = head_of(net, row, kv, i);
        memcpy(w->attended + head * dim, tile->sums + i * dim, dim * sizeof(float));
        w->state[2 * head] = tile->softmax.most[i];
        w->state[2 * head + 1] = tile->softmax.sum[i];
    }
}

/* A part of a group's rows over the group's pages, for one kv head; state and acc are kept per row between phases. A block of
 * keys and values meets all tiles while it is in the first-level cache. */
static void attend_part(const Network *net, const Layer *layer, const Step *step, Workspace *w, const Part *part, int kv,
                        const bf16 *keys, const bf16 *values) {
    const Group *group = part->group;
    const int32_t *row = step->row_list + part->first;
    const int dim = net->head_dim, per_tile = rows_per_tile(net);
    const int rows = part->rows, tiles = (rows + per_tile - 1) / per_tile;
    Queries tile[SPAN];
    Operand weight[TILE * BLOCK] __attribute__((aligned(64)));
    float s[TILE * BLOCK] __attribute__((aligned(64)));
    for (int t = 0, r = 0; t < tiles; t++, r += per_tile)
        gather_queries(tile + t, net, layer, step, w, row + r, rows - r < per_tile ? rows - r : per_tile, kv);
    const int64_t page_size = (int64_t)dim * PAGE;
    for (int p = 0; p < group->pages; p += BLOCK_PAGES) {
        const int count = group->pages - p < BLOCK_PAGES ? group->pages - p : BLOCK_PAGES;
        const int position = (group->page_position + p) * PAGE;
        const bf16 *k[BLOCK_PAGES], *v[BLOCK_PAGES];
        for (int i = 0; i < count; i++) {
            const int64_t page = step->page_list[group->first_entry + p + i];
            k[i] = keys + (page * net->kv_heads + kv) * page_size;
            v[i] = values + (page * net->kv_heads + kv) * page_size;
        }
        for (Queries *q = tile; q < tile + tiles; q++) {
            /* Still to come for all of its queries, or left behind by their windows. */
            if (position > q->furthest || position + count * PAGE <= q->nearest) continue;
            block_scores(q->query, k, count, dim, q->padded, s);
            block_softmax(s, weight, &q->softmax, q->sums, q->padded, dim, net->attention_scale, position, count * PAGE, q->first,
                          q->last);
            block_values(weight, v, count, dim, q->padded, q->sums);
        }
    }
    for (int t = 0; t < tiles; t++) scatter_queries(tile + t, net, w, row + t * per_tile, kv);
}
