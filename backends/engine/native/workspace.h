/* Buffers of a step, kept from step to step and grown when one has more rows. */
#ifndef STILL_WORKSPACE_H
#define STILL_WORKSPACE_H

#include "barrier.h"
#include "network.h"

#define MAX_PHASES 64

/* Rows of a group whose attention one task computes, for each kv head: up to SPAN tiles of queries. */
typedef struct {
    const Group *group;
    int32_t first, rows; /* into row_list */
} Part;

typedef struct {
    int32_t rows, parts, threads;
    int64_t widest;
    float *x, *qkv, *attended, *state, *active, *scale, *normed, *branch, *sums, *delta;
    uint8_t *quantized;
    bf16 *halves, *query, *panels;
    Part *part;
    Barrier barrier;
    int32_t phases, phase_begin[MAX_PHASES + 1];
} Workspace;

static inline int padded(int width) { return (width + 63) / 64 * 64; }

#endif
