/* The only file that names a memory order.
 *
 * Words used everywhere else (C11 5.1.2.4, as applied here):
 *   at_load / at_store / at_cas / at_or / at_xchg / at_add
 *       sequentially consistent. Every access that takes part in a store-then-load agreement between two processes
 *       (publish and park, release and waiters) uses these; a weaker one loses wake-ups (tests/native/models/wake.pml).
 *   at_acquire / at_release
 *       publish-and-see of plain bytes written before, where no such agreement hangs on it.
 *   at_peek / at_poke
 *       relaxed: a number for people, or a hint whose truth is checked elsewhere.
 * There are no stand-alone fences: ThreadSanitizer does not see them. Lock-free atomics are address-free, so they
 * work between mappings of different processes.
 */
#ifndef CV_ATOMICS_H
#define CV_ATOMICS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef _Atomic uint64_t at_u64;

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "64-bit atomics must be lock-free to be shared between processes");
_Static_assert(sizeof(at_u64) == 8, "an atomic word is 8 bytes");

static inline uint64_t at_load(at_u64 *word) { return atomic_load_explicit(word, memory_order_seq_cst); }
static inline void at_store(at_u64 *word, uint64_t value) { atomic_store_explicit(word, value, memory_order_seq_cst); }
static inline uint64_t at_or(at_u64 *word, uint64_t bits) {
    return atomic_fetch_or_explicit(word, bits, memory_order_seq_cst);
}
static inline uint64_t at_and(at_u64 *word, uint64_t bits) {
    return atomic_fetch_and_explicit(word, bits, memory_order_seq_cst);
}
static inline uint64_t at_xchg(at_u64 *word, uint64_t value) {
    return atomic_exchange_explicit(word, value, memory_order_seq_cst);
}
static inline uint64_t at_add(at_u64 *word, uint64_t value) {
    return atomic_fetch_add_explicit(word, value, memory_order_seq_cst);
}
/* True when *word was `expected` and is `desired` now. */
static inline bool at_cas(at_u64 *word, uint64_t expected, uint64_t desired) {
    return atomic_compare_exchange_strong_explicit(word, &expected, desired, memory_order_seq_cst,
                                                   memory_order_seq_cst);
}

static inline uint64_t at_acquire(at_u64 *word) { return atomic_load_explicit(word, memory_order_acquire); }
static inline void at_release(at_u64 *word, uint64_t value) {
    atomic_store_explicit(word, value, memory_order_release);
}
static inline uint64_t at_peek(at_u64 *word) { return atomic_load_explicit(word, memory_order_relaxed); }
static inline void at_poke(at_u64 *word, uint64_t value) { atomic_store_explicit(word, value, memory_order_relaxed); }

static inline void at_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield" ::: "memory");
#endif
}

#endif
