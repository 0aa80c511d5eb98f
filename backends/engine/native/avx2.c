/* AVX2, FMA and half precision: Haswell, Zen and later. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define NAME(x) x##_avx2
#include "decoder.h"
#endif
