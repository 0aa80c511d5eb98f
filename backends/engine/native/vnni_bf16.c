/* AVX-512 VNNI and BF16: Cooper Lake, Zen 4 and later. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")
#define NAME(x) x##_vnni_bf16
#include "decoder.h"
#endif
