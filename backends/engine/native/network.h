/* What Python hands over: a network, a step to run, and where results go. Plain C, no Python or torch headers.
 *
 * The layouts are made for the instructions that read them:
 *   weights  panels of 16 output channels, in padded to 64, out to 32:
 *              INT8, WIDE  [out / 16][in / 4][16][4] int8
 *              BF16  [out / 16][in / 2][16][2] bf16
 *              INT4  [out / 16][in / 8][16][2] uint16, four nibbles each: nibble j of half i is input 2 * j + i of eight
 *   keys     bf16, [page][kv head][dim / 2][16 tokens][2]
 *   values   bf16, [page][kv head][8 token pairs][dim][2]
 * Activations meet INT8 as bytes around ZERO_POINT (decoder.h) with a scale per row, WIDE as two such rows, the second holding what
 * the first left over, and the others as bf16.
 */
#ifndef STILL_NETWORK_H
#define STILL_NETWORK_H

#include <stdint.h>

#define PAGE 16
#define BLOCK_PAGES 4
#define BLOCK (PAGE * BLOCK_PAGES)
#define TILE 16
#define SPAN 4

typedef uint16_t bf16;

typedef enum { INT8, BF16, INT4, WIDE } Format;

/* INT8 and WIDE: w = packed * scale. INT4: w = packed * group_scale + group_min, in groups of `group` inputs (a multiple of 32; what
 * GPTQ and AWQ call a zero point is -group_min / group_scale). All per channel padded like `packed`. */
typedef struct {
    const void *packed;
    const float *scale;                      /* INT8, WIDE: [out] */
    const int32_t *offset;                   /* INT8: [out], 128 * sum of the channel's weights, where ZERO_POINT is 128 */
    const uint16_t *group_scale, *group_min; /* INT4: half precision [out / 16][in / group][16] */
    const float *bias;                       /* [out] or NULL */
    int32_t format, out, in, padded_in, group;
} Matrix;

typedef struct {
    const float *attn_norm, *mlp_norm;
    const float *q_norm, *k_norm, *attn_post_norm, *mlp_post_norm; /* NULL where the model has none */
    const float *cos, *sin;                                        /* [context, head_dim / 2] */
    int64_t window;                                                /* tokens a query sees, itself included; 0: all */
    Matrix qkv, o, gate_up, down;
} Layer;

typedef enum { SILU, GELU_TANH } Activation;

typedef struct {
    int32_t layers, hidden, intermediate, heads, kv_heads, head_dim, activation;
    float eps, attention_scale, embed_scale;
    const Layer *layer;
    const float *final_norm;
    const bf16 *embed; /* [vocab, hidden], or NULL: the rows of lm_head */
    Matrix lm_head;
    bf16 *keys, *values;
    int64_t layer_stride; /* elements of keys (and of values) per layer */
} Network;

/* A LoRA update of one matrix, y += B A x, the scale being in B. Rank i touches only the channels begin[i] .. end[i] - 1:
 * several projections share a fused matrix. */
typedef struct {
    const float *a;             /* [rank][in] */
    const float *b;             /* [rank][out] */
    const int32_t *begin, *end; /* [rank] */
    int32_t rank;               /* 0: none */
} LowRank;

typedef struct {
    LowRank qkv, o, gate_up, down;
} AdapterLayer;

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
    const AdapterLayer *const *adapter; /* per row: layers of its adapter, or NULL; NULL: no row has one */
} Step;

/* Query heads that share a kv head, and rows whose queries of one kv head fill a tile. */
static inline int heads_per_kv(const Network *net) { return net->heads / net->kv_heads; }
static inline int rows_per_tile(const Network *net) { return TILE / heads_per_kv(net); }

#endif
