/* What Python hands over: a network, a step to run, and where results go. Plain C, no Python or torch headers.
 *
 * The layouts are made for the instructions that read them:
 *   weights  int8, panels of 16 output channels: [out / 16][in / 4][16][4], in padded to 64, out to 32
 *   keys     bf16, [page][kv head][dim / 2][16 tokens][2]
 *   values   bf16, [page][kv head][8 token pairs][dim][2]
 * Activations are quantized per row to uint8 with zero point 128.
 */
#ifndef STILL_NETWORK_H
#define STILL_NETWORK_H

#include <stdint.h>

#define PAGE 16
#define BLOCK_PAGES 4
#define BLOCK (PAGE * BLOCK_PAGES)
#define TILE 16

typedef uint16_t bf16;

typedef struct {
    const int8_t *packed;
    const float *scale;    /* [out], padded */
    const int32_t *offset; /* [out], padded: 128 * sum of the channel's weights */
    const float *bias;     /* [out] or NULL */
    int32_t out, in, padded_in;
} Matrix;

typedef struct {
    const float *attn_norm, *mlp_norm, *q_norm, *k_norm; /* the last two may be NULL */
    Matrix qkv, o, gate_up, down;
} Layer;

typedef struct {
    int32_t layers, hidden, intermediate, heads, kv_heads, head_dim;
    float eps, attention_scale;
    const Layer *layer;
    const float *final_norm;
    const bf16 *embed;      /* [vocab, hidden] */
    const float *cos, *sin; /* [context, head_dim / 2] */
    Matrix lm_head;
    bf16 *keys, *values;
    int64_t layer_stride;   /* elements of keys (and of values) per layer */
} Network;

/* Rows that attend to the same run of pages. Groups of one phase are independent; phases run in order, and a row meets
 * its pages in the order of its sequence, whoever it shares them with: results do not depend on the batch. */
typedef struct {
    int32_t first_row, rows;  /* into row_list */
    int32_t first_entry, pages; /* into page_list */
    int32_t page_position;    /* position of the run's first page in the sequence, a multiple of BLOCK_PAGES */
    int32_t phase;            /* ascending */
} Group;

typedef struct {
    int32_t rows, groups;
    const int32_t *tokens, *positions;
    const int64_t *slots;     /* page * PAGE + offset */
    const Group *group;       /* ordered by phase */
    const int32_t *row_list, *page_list;
} Step;

#endif
