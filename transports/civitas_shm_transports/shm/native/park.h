/* Wake-up: ready bits, park word, doorbell. No system call while the receiver is awake.
 *
 * Guarantees (explored by tests/native/models/wake.pml and route.pml):
 * - a message that is committed while its reader sleeps is found: by its bit, by the doorbell, or, when its sender died
 *   between the two, by CV_ALARM_SCAN, which the host sets everywhere on any death before it rings;
 * - a sleeping process is rung at most once by each sender for one sleep.
 * What they rest on: bits are hints set after the publish; a bit is cleared before its mailbox is read; `park_seq` is
 * made odd before the last look; all of these are seq_cst operations.
 */
#ifndef CV_PARK_H
#define CV_PARK_H

#include <errno.h>
#include <time.h>
#include <unistd.h>

#include "run.h"

static inline uint64_t cv_now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static inline void cv_door_write(int fd) {
    uint64_t one = 1;
    while (write(fd, &one, sizeof one) < 0 && errno == EINTR) {}
    /* EAGAIN: the counter is full, so the door is ringing anyway. */
}

/* SYNC POINT "sleeper sees work": the caller has set a bit of `slot` (seq_cst) before; pairs with cv_park. */
static inline void cv_bell(cv_run *run, unsigned slot) {
    uint64_t seq = at_load(&cv_slot_at(run, slot)->park_seq);
    if ((seq & 1) && seq != run->rung[slot]) {
        run->rung[slot] = seq;
        cv_door_write(run->door[slot]);
    }
}

static inline void cv_alarm(cv_run *run, unsigned slot, uint64_t bits) {
    at_or(&cv_slot_at(run, slot)->alarm, bits);
    cv_bell(run, slot);
}

/* The host asks whether the loop of a process turns: a bit that the process takes when it polls. cv_probe_open: it has
 * not yet. Costs an idle process one wake-up, so it is asked only of those that give reason to ask. */
static inline void cv_probe(cv_run *run, unsigned slot) { cv_alarm(run, slot, CV_ALARM_PROBE); }
static inline bool cv_probe_open(const cv_run *run, unsigned slot) {
    return at_load(&cv_slot_at(run, slot)->alarm) & CV_ALARM_PROBE;
}

/* A message was committed into mailbox `index`: tell one of its readers. */
static inline void cv_notify_one(cv_run *run, uint32_t index, unsigned slot) {
    if (slot >= run->slots) return;
    at_u64 *word = &cv_slot_bits(run, slot)[index / 64];
    at_u64 *summary = &cv_slot_at(run, slot)->summary[index / 4096];
    uint64_t bit = 1ull << (index % 64), summary_bit = 1ull << (index / 64 % 64);
    /* Both seen set, word first: the reader has yet to take them, and reads the mailbox after that. Looking saves
     * two locked operations a message in a burst. */
    if (!(at_load(word) & bit)) at_or(word, bit);
    if (!(at_load(summary) & summary_bit)) at_or(summary, summary_bit);
    cv_bell(run, slot);
}

/* Each of its readers. They are looked up here, after the publish, and never remembered: a mailbox that is just changing
 * its readers is scanned by the new ones after the host has stored all words (route.pml). */
static inline void cv_notify(cv_run *run, uint32_t index, cv_shared_set *readers) {
    for (unsigned w = 0; w < CV_SET_WORDS; w++)
        for (uint64_t left = at_load(&readers->word[w]); left;) cv_notify_one(run, index, w * 64 + cv_lowest(&left));
}

/* Whether anything is announced to this process. */
static inline bool cv_announced(cv_run *run) {
    cv_slot *slot = cv_slot_at(run, run->me);
    if (at_load(&slot->alarm)) return true;
    for (uint32_t w = 0; w < (cv_bit_words(run) + 63) / 64; w++)
        if (at_load(&slot->summary[w])) return true;
    return false;
}

/* Take what is announced: up to `room` mailbox numbers into `ready`, alarm bits into *alarm. Bits are cleared before
 * the caller reads the mailboxes. What does not fit stays announced, and the next look begins there: otherwise many
 * flooded mailboxes of low number would hide the others. */
static inline uint32_t cv_collect(cv_run *run, uint32_t *ready, uint32_t room, uint64_t *alarm) {
    cv_slot *slot = cv_slot_at(run, run->me);
    at_u64 *bits = cv_slot_bits(run, run->me);
    uint32_t words = cv_bit_words(run), groups = (words + 63) / 64, first = run->look_from, n = 0;
    *alarm = at_load(&slot->alarm) ? at_xchg(&slot->alarm, 0) & ~(uint64_t)CV_ALARM_PROBE : 0;
    for (uint32_t i = 0; i <= groups; i++) { /* the first group twice: from `first` on, and at the end all of it */
        uint32_t s = (first / 64 + i) % groups;
        uint64_t which = i ? ~0ull : ~0ull << first % 64;
        if (!(at_load(&slot->summary[s]) & which)) continue;
        uint64_t summary = at_and(&slot->summary[s], ~which) & which;
        while (summary) {
            uint32_t w = s * 64 + (uint32_t)__builtin_ctzll(summary);
            summary &= summary - 1;
            if (w >= words) continue; /* a bit that no sender sets */
            if (n + 64 > room) {
                at_or(&slot->summary[s], 1ull << (w % 64) | summary);
                run->look_from = w;
                return n;
            }
            uint64_t word = at_xchg(&bits[w], 0);
            if (w == words - 1 && run->mailboxes % 64) word &= (1ull << run->mailboxes % 64) - 1; /* likewise */
            while (word) {
                ready[n++] = w * 64 + (uint32_t)__builtin_ctzll(word);
                word &= word - 1;
            }
        }
    }
    run->look_from = 0;
    return n;
}

/* Spin until something is announced or `spin_ns` have passed. */
static inline bool cv_spin(cv_run *run, uint64_t spin_ns) {
    uint64_t until = 0;
    for (unsigned turn = 0;; turn++) {
        if (cv_announced(run)) return true;
        at_pause();
        if (turn % 16 == 0) { /* a clock read costs as much as several looks */
            uint64_t now = cv_now_ns(CLOCK_MONOTONIC);
            if (!until) until = now + spin_ns;
            if (now >= until) return false;
        }
    }
}

/* SYNC POINT "sleeper sees work": odd first, then the last look. True = asleep: return to the event loop and wait for
 * the doorbell. False = something came in between; awake again. */
static inline bool cv_park(cv_run *run) {
    at_u64 *seq = &cv_slot_at(run, run->me)->park_seq;
    if (!(at_load(seq) & 1)) at_add(seq, 1);
    if (!cv_announced(run)) return true;
    at_add(seq, 1);
    return false;
}

/* A process takes over a slot, awake. The park word may be odd from a predecessor that was killed in its sleep: senders
 * have rung for that sleep and would not ring for it again. */
static inline void cv_rise(cv_run *run) {
    at_u64 *seq = &cv_slot_at(run, run->me)->park_seq;
    if (at_load(seq) & 1) at_add(seq, 1);
}

/* The doorbell was heard. One is added only if odd: the bell may be a stale one of an earlier sleep, and a blind
 * increment would then say "asleep" while awake, and "awake" in the next sleep. */
static inline void cv_unpark(cv_run *run) {
    uint64_t count;
    while (read(run->door[run->me], &count, sizeof count) < 0 && errno == EINTR) {}
    cv_rise(run);
}

#endif
