/* The library's entry points: which instruction set this machine has, workspaces, dispatch.
 *
 * The functions are called through ctypes; the module object exists only so that the build system knows the file. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "network.h"
#include "workspace.h"

#if defined(_WIN32)
#define API __declspec(dllexport)
#else
#define API __attribute__((visibility("default")))
#endif

enum { NONE, AVX2, AVX_VNNI, VNNI, VNNI_BF16, AMX, NEON };

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
typedef struct {
    void (*forward)(const Network *, const Step *, Workspace *, float *);
    void (*logits)(const Network *, const float *, int, Workspace *, float *);
    void (*pick)(const float *, int, int, const uint32_t *, int32_t *, float *);
} Kernels;

#define DECLARE(suffix)                                                              \
    void forward_##suffix(const Network *, const Step *, Workspace *, float *);      \
    void logits_##suffix(const Network *, const float *, int, Workspace *, float *); \
    void pick_##suffix(const float *, int, int, const uint32_t *, int32_t *, float *);
#define KERNELS(suffix) {forward_##suffix, logits_##suffix, pick_##suffix}
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>

DECLARE(avx2)
DECLARE(avx_vnni)
DECLARE(vnni)
DECLARE(vnni_bf16)
DECLARE(amx)
static const Kernels kernels[] = {
    [AVX2] = KERNELS(avx2), [AVX_VNNI] = KERNELS(avx_vnni), [VNNI] = KERNELS(vnni), [VNNI_BF16] = KERNELS(vnni_bf16), [AMX] = KERNELS(amx),
};

static int tiles_allowed(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if (!(d >> 22 & 1) || !(d >> 24 & 1) || !(d >> 25 & 1)) return 0; /* AMX-BF16, AMX-TILE, AMX-INT8 */
    /* Linux hands out the tile registers on request: ARCH_REQ_XCOMP_PERM for XTILEDATA. */
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

static int halves_allowed(void) {
    unsigned a, b, c, d;
    const int half_precision = __get_cpuid(1, &a, &b, &c, &d) && c >> 29 & 1;
    return half_precision && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static int avx_vnni_allowed(void) {
    unsigned a, b, c, d;
    return halves_allowed() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}

static int avx512_allowed(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

API int still_runs(int level) {
    __builtin_cpu_init();
    switch (level) {
    case AVX2: return halves_allowed();
    case AVX_VNNI: return avx_vnni_allowed();
    case VNNI: return avx512_allowed();
    case VNNI_BF16: return avx512_allowed() && __builtin_cpu_supports("avx512bf16");
    case AMX: return still_runs(VNNI_BF16) && tiles_allowed();
    default: return 0;
    }
}
#else
#include <sys/auxv.h>

DECLARE(neon)
static const Kernels kernels[] = {[NEON] = KERNELS(neon)};

API int still_runs(int level) { return level == NEON && getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
#endif

API void still_forward(int level, const Network *net, const Step *step, Workspace *w, float *out) {
    kernels[level].forward(net, step, w, out);
}

API void still_logits(int level, const Network *net, const float *states, int rows, Workspace *w, float *out) {
    kernels[level].logits(net, states, rows, w, out);
}

API void still_pick(int level, const float *logits, int rows, int vocab, const uint32_t *mask, int32_t *best, float *normalizer) {
    kernels[level].pick(logits, rows, vocab, mask, best, normalizer);
}
#else
API int still_runs(int level) { return (void)level, 0; }
API void still_pick(int level, const float *logits, int rows, int vocab, const uint32_t *mask, int32_t *best, float *normalizer) {
    (void)level, (void)logits, (void)rows, (void)vocab, (void)mask, (void)best, (void)normalizer;
}
API void still_forward(int level, const Network *net, const Step *step, Workspace *w, float *out) {
    (void)level, (void)net, (void)step, (void)w, (void)out;
}
API void still_logits(int level, const Network *net, const float *states, int rows, Workspace *w, float *out) {
    (void)level, (void)net, (void)states, (void)rows, (void)w, (void)out;
}
#endif

/* Let go of the calling thread's idle OpenMP workers. With more threads alive than cores, libgomp stops spinning at its
 * barriers and sleeps, which doubles the time of a decoding step: torch leaves a team behind in the thread that loads. */
API void still_release_team(void) { omp_pause_resource_all(omp_pause_soft); }

/* Packed weights are read from now on, not the file they were mapped from: its pages need not stay in memory. Unlike
 * MADV_DONTNEED this loses nothing if the memory turns out not to be a map of a file. */
API void still_page_out(const void *memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_PAGEOUT)
    const uintptr_t size = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t begin = ((uintptr_t)memory + size - 1) / size * size, end = ((uintptr_t)memory + bytes) / size * size;
    if (begin < end) madvise((void *)begin, end - begin, MADV_PAGEOUT);
#else
    (void)memory, (void)bytes;
#endif
}

/* Give back to the system what loading allocated and freed in between. */
API void still_trim(void) {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

static void *aligned(size_t bytes) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, bytes ? bytes : 64) ? NULL : memory;
}

static void drop_rows(Workspace *w) {
    void *buffers[] = {w->x,      w->qkv,  w->attended, w->state,     w->active, w->scale, w->normed,
                       w->branch, w->sums, w->delta,    w->quantized, w->halves, w->query, w->panels};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) free(buffers[i]);
    w->x = w->qkv = w->attended = w->state = w->active = w->scale = w->normed = w->branch = w->sums = w->delta = NULL;
    w->quantized = NULL;
    w->halves = w->query = w->panels = NULL;
    w->rows = 0;
}

API Workspace *still_workspace_new(void) { return calloc(1, sizeof(Workspace)); }

API void still_workspace_free(Workspace *w) {
    if (!w) return;
    drop_rows(w);
    free(w->part);
    free(w);
}

/* Make room for `rows` rows; `adapted`: of which some have adapters. Returns 0, or -1 when there is no memory. */
API int still_workspace_reserve(Workspace *w, const Network *net, int rows, int adapted) {
    const int threads = omp_get_max_threads();
    if (rows <= w->rows && threads <= w->threads && (!adapted || w->delta)) return 0;
    drop_rows(w);
    const size_t hidden = (size_t)net->hidden, inter = (size_t)net->intermediate;
    const size_t heads = (size_t)net->heads * net->head_dim, width = heads + 2 * (size_t)net->kv_heads * net->head_dim;
    size_t widest = hidden > heads ? hidden : heads;
    widest = (size_t)padded((int)(widest > inter ? widest : inter));
    const size_t n = (size_t)(rows + 31) / 32 * 32; /* products read whole blocks of 32 rows */
    const size_t updated = width > 2 * inter ? width : 2 * inter;
    w->widest = (int64_t)widest;
    w->threads = threads;
    const struct { void **buffer; size_t bytes; } wanted[] = {
        {(void **)&w->x, n * hidden * sizeof(float)},
        {(void **)&w->qkv, n * width * sizeof(float)},
        {(void **)&w->attended, n * heads * sizeof(float)},
        {(void **)&w->state, n * (size_t)net->heads * 2 * sizeof(float)},
        {(void **)&w->active, n * inter * sizeof(float)},
        {(void **)&w->scale, n * sizeof(float)},
        {(void **)&w->normed, n * hidden * sizeof(float)},
        {(void **)&w->branch, n * hidden * sizeof(float)},
        {(void **)&w->sums, n * (widest / 32) * sizeof(float)},
        {(void **)&w->delta, adapted ? n * (updated > hidden ? updated : hidden) * sizeof(float) : 0},
        {(void **)&w->quantized, n * widest},
        {(void **)&w->halves, n * widest * sizeof(bf16)},
        {(void **)&w->query, n * heads * sizeof(bf16)},
        {(void **)&w->panels, (size_t)threads * widest * 32 * sizeof(bf16)},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        *wanted[i].buffer = wanted[i].bytes ? aligned(wanted[i].bytes) : NULL;
        if (wanted[i].bytes && !*wanted[i].buffer) {
            drop_rows(w);
            return -1;
        }
    }
    memset(w->quantized, 128, n * widest);
    memset(w->halves, 0, n * widest * sizeof(bf16));
    w->rows = (int32_t)n;
    return 0;
}

/* Cut a step's groups into parts. Returns 0, or -1 when there is no memory or there are too many phases. */
API int still_workspace_parts(Workspace *w, const Network *net, const Step *step) {
    const int per_tile = rows_per_tile(net);
    int count = 0;
    for (int g = 0; g < step->groups; g++) count += (step->group[g].rows + per_tile - 1) / per_tile;
    /* Several tiles a part, as far as there are enough for all threads. */
    const int span = count * net->kv_heads / (8 * omp_get_max_threads());
    const int most = per_tile * (span < 1 ? 1 : span > SPAN ? SPAN : span);
    if (count > w->parts) {
        free(w->part);
        w->part = malloc((size_t)count * sizeof(Part));
        w->parts = w->part ? count : 0;
        if (!w->part) return -1;
    }
    int next = 0, phase = -1;
    w->phases = 0;
    for (int g = 0; g < step->groups; g++) {
        const Group *group = step->group + g;
        if (group->phase != phase) {
            if (w->phases == MAX_PHASES) return -1;
            phase = group->phase;
            w->phase_begin[w->phases++] = next;
        }
        for (int r = 0; r < group->rows; r += most) {
            const int rows = group->rows - r < most ? group->rows - r : most;
            w->part[next++] = (Part){group, group->first_row + r, rows};
        }
    }
    w->phase_begin[w->phases] = next;
    return 0;
}

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels", "Loaded through ctypes.", -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
