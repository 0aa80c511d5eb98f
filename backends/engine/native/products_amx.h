/* Block products (see gemm.h) by AMX tiles. Included once per instruction set. */

typedef struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } TileConfig;

/* Products: eight tiles of 16 rows of 64 bytes. */
static void begin_products(void) {
    TileConfig config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
}

/* Attention: besides, weights of one page (tile 5: 16 keys) and values of one page (tiles 3 and 7: 8 pairs of tokens). */
static void begin_attention(void) {
    TileConfig config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    config.bytes[5] = 32;
    config.rows[3] = config.rows[7] = 8;
    _tile_loadconfig(&config);
}
static void release_thread(void) { _tile_release(); }
static void block_product(const uint8_t *a, int64_t stride, const int8_t *b0, const int8_t *b1, int in, int32_t (*c)[32], int rows) {
    _tile_zero(0);
    _tile_zero(1);
    if (rows <= TILE) {
        for (int k = 0; k < in; k += 64) {
            _tile_loadd(4, a + k, stride);
            _tile_loadd(6, b0 + k * 16, 64);
            _tile_loadd(7, b1 + k * 16, 64);
            _tile_dpbusd(0, 4, 6);
            _tile_dpbusd(1, 4, 7);
        }
    } else {
        _tile_zero(2);
        _tile_zero(3);
        for (int k = 0; k < in; k += 64) {
            _tile_loadd(4, a + k, stride);
            _tile_loadd(5, a + TILE * stride + k, stride);
            _tile_loadd(6, b0 + k * 16, 64);
            _tile_loadd(7, b1 + k * 16, 64);
            _tile_dpbusd(0, 4, 6);
            _tile_dpbusd(1, 4, 7);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        }
        _tile_stored(2, c[TILE], 128);
        _tile_stored(3, c[TILE] + TILE, 128);
    }
    _tile_stored(0, c[0], 128);
    _tile_stored(1, c[0] + TILE, 128);
}
static void block_product_bf16(const bf16 *a, int64_t stride, const bf16 *b0, const bf16 *b1, int in, float (*c)[32], int rows) {
    const int64_t bytes = stride * (int64_t)sizeof(bf16);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < in; k += 32) {
        _tile_loadd(4, a + k, bytes);
        _tile_loadd(6, b0 + k * 16, 64);
        _tile_loadd(7, b1 + k * 16, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (rows > TILE) {
            _tile_loadd(5, a + TILE * stride + k, bytes);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c[0], 128);
    _tile_stored(1, c[0] + TILE, 128);
    _tile_stored(2, c[TILE], 128);
    _tile_stored(3, c[TILE] + TILE, 128);
}
