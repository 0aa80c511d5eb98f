/* Where threads meet between the phases of a step, some three hundred times in each.
 *
 * libgomp's own barrier spins for milliseconds. When another program has preempted one of the threads, the others then keep
 * the very core busy that it could go on with, and a step takes tens of times longer. Here a thread spins for about as
 * long as a phase may be uneven, and then sleeps. */
#ifndef STILL_BARRIER_H
#define STILL_BARRIER_H

#include <omp.h>
#include <stdatomic.h>
#include <stdint.h>

#if defined(__linux__)
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Less than half a millisecond in all. */
#if defined(__x86_64__)
#define SPINS 8000 /* of some 50 ns */
#define pause_spinning() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define SPINS 20000 /* of some 10 to 20 ns; `yield` takes no time at all there */
#define pause_spinning() __asm__ volatile("isb" ::: "memory")
#endif

typedef struct {
    char before[64]; /* a cache line of its own: what lies beside it is read all the time */
    _Atomic int32_t arrived, generation, sleeping;
    char after[64];
} Barrier;

static inline void meet(Barrier *barrier) {
#if defined(__linux__) && defined(SPINS)
    const int threads = omp_get_num_threads();
    if (threads == 1) return;
    const int32_t generation = atomic_load(&barrier->generation);
    if (atomic_fetch_add(&barrier->arrived, 1) == threads - 1) {
        atomic_store(&barrier->arrived, 0);
        atomic_store(&barrier->generation, generation + 1);
        if (atomic_load(&barrier->sleeping)) syscall(SYS_futex, &barrier->generation, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
        return;
    }
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&barrier->generation, memory_order_acquire) != generation) return;
        pause_spinning();
    }
    atomic_fetch_add(&barrier->sleeping, 1);
    while (atomic_load(&barrier->generation) == generation)
        syscall(SYS_futex, &barrier->generation, FUTEX_WAIT_PRIVATE, generation, NULL, NULL, 0);
    atomic_fetch_sub(&barrier->sleeping, 1);
#else
    (void)barrier;
#pragma omp barrier
#endif
}

#endif
