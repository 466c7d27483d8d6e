/* Sets of processes: bit s % 64 of word s / 64. In shared memory (cv_shared_set) and as a private copy (cv_set).
 *
 * Rule (LAYOUT.md, "Sets of processes"; room.pml and route.pml with -DTWO_WORDS): no look at a shared set is one instant.
 * Each agreement that hangs on one is between one process and its own bit, so each word is set, looked at and exchanged
 * for itself; nothing may be concluded from two words of a set together.
 */
#ifndef CV_SETS_H
#define CV_SETS_H

#include "atomics.h"

#define CV_SLOTS_MAX 128u /* process slots: 7 bits in a slot word, one bit each in a set */
#define CV_SET_WORDS (CV_SLOTS_MAX / 64)

typedef struct {
    at_u64 word[CV_SET_WORDS];
} cv_shared_set;

typedef struct {
    uint64_t word[CV_SET_WORDS];
} cv_set;

/* --- private copies ---------------------------------------------------------------------------------------------------- */

static inline bool cv_set_has(cv_set set, unsigned slot) { return set.word[slot / 64] >> (slot % 64) & 1; }
static inline void cv_set_add(cv_set *set, unsigned slot) { set->word[slot / 64] |= 1ull << (slot % 64); }
static inline cv_set cv_set_of(unsigned slot) {
    cv_set set = {{0}};
    cv_set_add(&set, slot);
    return set;
}
static inline bool cv_set_any(cv_set set) {
    uint64_t any = 0;
    for (unsigned w = 0; w < CV_SET_WORDS; w++) any |= set.word[w];
    return any;
}
static inline cv_set cv_set_both(cv_set a, cv_set b) {
    for (unsigned w = 0; w < CV_SET_WORDS; w++) a.word[w] |= b.word[w];
    return a;
}
static inline cv_set cv_set_common(cv_set a, cv_set b) {
    for (unsigned w = 0; w < CV_SET_WORDS; w++) a.word[w] &= b.word[w];
    return a;
}
static inline cv_set cv_set_without(cv_set a, cv_set b) {
    for (unsigned w = 0; w < CV_SET_WORDS; w++) a.word[w] &= ~b.word[w];
    return a;
}
/* The lowest of a word, out of it. The word is not 0. */
static inline unsigned cv_lowest(uint64_t *word) {
    unsigned bit = (unsigned)__builtin_ctzll(*word);
    *word &= *word - 1;
    return bit;
}

/* --- in shared memory --------------------------------------------------------------------------------------------------- */

static inline cv_set cv_set_load(cv_shared_set *shared) {
    cv_set set;
    for (unsigned w = 0; w < CV_SET_WORDS; w++) set.word[w] = at_load(&shared->word[w]);
    return set;
}
/* One writer. Who is in the old and in the new set is in it at every instant between. */
static inline void cv_set_store(cv_shared_set *shared, cv_set set) {
    for (unsigned w = 0; w < CV_SET_WORDS; w++) at_store(&shared->word[w], set.word[w]);
}
static inline void cv_set_join(cv_shared_set *shared, unsigned slot) {
    at_or(&shared->word[slot / 64], 1ull << (slot % 64));
}
static inline void cv_set_leave(cv_shared_set *shared, unsigned slot) {
    at_and(&shared->word[slot / 64], ~(1ull << (slot % 64)));
}

#endif
