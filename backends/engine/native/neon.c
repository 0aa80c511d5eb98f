/* NEON with dot products: Arm v8.2 and later (Apple M1, Graviton 2, Cortex-A76). */
#if defined(__aarch64__)
#pragma GCC target("arch=armv8.2-a+dotprod")
#define NAME(x) x##_neon
#include "decoder.h"
#endif
