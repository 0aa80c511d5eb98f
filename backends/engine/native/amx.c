/* AMX tiles: Sapphire Rapids and later. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-int8,amx-bf16")
#define NAME(x) x##_amx
#include "decoder.h"
#endif
