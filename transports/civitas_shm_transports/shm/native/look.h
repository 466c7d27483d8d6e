/* Looking at a run without writing to it: what waits, what is in hand, and copies of messages that may be going just now.
 *
 * Rules of this file: no store and no CAS, so it works on memory that is mapped read-only; what the hints `head` and `tail`
 * would say after somebody had helped them is computed here instead. Everything is out of date at once. A reader of another
 * process maps no arena: chunks come as copies that the kernel makes (`pread`), because memory may be given back while it is
 * looked at, and a touch of what was given back would take memory again, or be a signal where none is left.
 */
#ifndef CV_LOOK_H
#define CV_LOOK_H

#include "mailbox.h"

/* Where the head of a lane is, helped or not. */
static inline uint64_t lk_head(const cv_ring *r) {
    uint64_t head = at_load(r->head);
    for (uint64_t n = 0; n <= r->mask && cv_lap_ahead(at_load(mb_slot(r, head)), mb_lap(r, head)) == 1; n++) head++;
    return head;
}
/* Where its tail is. */
static inline uint64_t lk_tail(const cv_ring *r) {
    uint64_t tail = at_load(r->tail), head = at_load(r->head);
    if (tail - head > r->mask + 1) tail = head; /* left behind head, or damaged: it says nothing */
    for (uint64_t n = 0; n <= r->mask; n++, tail++) {
        uint64_t word = at_load(mb_slot(r, tail));
        int ahead = cv_lap_ahead(word, mb_lap(r, tail));
        if (ahead < 0 || (ahead == 0 && (cv_word_state(word) == CV_EMPTY || cv_word_state(word) == CV_MARK))) break;
    }
    return tail;
}

/* Messages that wait in a lane, as mb_waiting counts them. */
static inline uint64_t lk_waiting(const cv_ring *r) {
    for (unsigned looks = 0; looks < MB_LOOKS; looks++) {
        uint64_t n = lk_tail(r) - lk_head(r);
        if (n <= r->mask + 1) return n;
    }
    return 0; /* damaged words, or a lane that moves on all the time */
}

/* As mb_is_closed. */
static inline bool lk_is_closed(const cv_run *run, cv_mailbox *m, uint32_t mailbox) {
    if ((at_load(&cv_record_at(run, mailbox)->word) & 0xff) != CV_AGENT_OPEN) return true;
    for (unsigned lane = 0; lane < CV_LANES; lane++) {
        cv_ring r;
        if (!cv_ring_of(run, mailbox, m, lane, &r)) continue;
        uint64_t tail = lk_tail(&r), word = at_load(mb_slot(&r, tail));
        if (cv_word_state(word) == CV_MARK && cv_lap_ahead(word, mb_lap(&r, tail)) == 0) return true;
    }
    return false;
}

/* Where a message lies: in hand (`entry` < CV_HAND), or in a slot of its lane. */
typedef struct {
    unsigned lane, entry;
    uint32_t position;
    uint64_t ref, meta;
} lk_place;

/* Up to `most` places of one mailbox: first what is in hand, then each lane in the order in which it is served. */
static inline uint32_t lk_places(const cv_run *run, uint32_t mailbox, cv_mailbox *m, lk_place *out, uint32_t most) {
    uint32_t n = 0;
    for (unsigned e = 0; e < CV_HAND && n < most; e++) {
        uint64_t meta = at_load(&m->hand[e].meta), word = at_load(&m->hand[e].ref);
        unsigned state = cv_meta_state(meta), lane = (unsigned)(word >> 40) & 3u;
        if ((state == CV_HAND_RUNNING || state == CV_HAND_BURIED) && lane < CV_LANES)
            out[n++] = (lk_place){.lane = lane, .entry = e, .position = cv_meta_position(meta), .ref = cv_word_ref(word), .meta = meta};
    }
    uint32_t in_hand = n;
    for (unsigned lane = 0; lane < CV_LANES; lane++) {
        cv_ring r;
        if (!cv_ring_of(run, mailbox, m, lane, &r)) continue;
        uint64_t position = lk_head(&r);
        for (uint64_t left = lk_waiting(&r); left && n < most; left--, position++) {
            uint64_t word = at_load(mb_slot(&r, position)), ref = cv_word_ref(word);
            unsigned state = cv_word_state(word);
            bool known = cv_lap_ahead(word, mb_lap(&r, position)) != 0 || (state != CV_FULL && state != CV_TAKEN);
            for (uint32_t i = 0; i < in_hand && !known; i++) known = out[i].ref == ref; /* taken, its slot not yet emptied */
            if (!known) out[n++] = (lk_place){.lane = lane, .entry = CV_HAND, .position = mb_short(&r, position), .ref = ref};
        }
    }
    return n;
}

/* A copy of `size` bytes at `at` of an arena; false when all of them are not to be had. */
static inline bool lk_copy(int fd, uint64_t arena_size, uint64_t at, void *out, uint64_t size) {
    return at >= CV_ARENA_DATA && size <= arena_size && at <= arena_size - size &&
           pread(fd, out, size, (off_t)at) == (ssize_t)size;
}

/* The header of the message at a place, copied and checked; its body, up to `most` bytes of type and payload, goes to `body`.
 * The number of bytes there; -1: nothing that checks out, or it has gone meanwhile. Looked at twice: what is the same before
 * and behind was there all the time, because no position comes again while somebody looks. */
static inline int64_t lk_read(const cv_run *run, const int *arena_fd, uint32_t mailbox, const lk_place *place, cv_header *h,
                              uint8_t *body, uint64_t most) {
    unsigned arena = cv_ref_arena(place->ref);
    uint64_t at = cv_ref_granule(place->ref) * CV_GRANULE;
    cv_header after;
    if (arena >= run->slots || !lk_copy(arena_fd[arena], run->arena_size[arena], at, h, sizeof *h) ||
        !mb_fits(run, mailbox, place->lane, place->position, h))
        return -1;
    uint64_t size = h->type_len + (uint64_t)h->payload_len;
    if (size > most) size = most;
    if (size && !lk_copy(arena_fd[arena], run->arena_size[arena], at + sizeof *h, body, size)) return -1;
    if (!lk_copy(arena_fd[arena], run->arena_size[arena], at, &after, sizeof after) || memcmp(h, &after, sizeof after)) return -1;
    return (int64_t)size;
}

#endif
