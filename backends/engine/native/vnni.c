/* AVX-512 VNNI: Cascade Lake, Ice Lake and later. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#define NAME(x) x##_vnni
#include "decoder.h"
#endif
