/* AVX-VNNI, without AVX-512: Alder Lake and later. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,avxvnni")
#define NAME(x) x##_avx_vnni
#include "decoder.h"
#endif
