/* The mailbox: publish, take, release, close, recover. Names of the functions are those of the models.
 *
 * Guarantees (tests/native/models/mailbox.pml, lanes.pml, room.pml; the C harnesses of tests/native under sanitizers):
 * - publish is one CAS: before it nothing happened, after it the message is committed. A process that is killed or
 *   stopped at any instruction leaves no hole and blocks nobody;
 * - a committed message is in a slot or in the in-hand table until its reader released it, however often readers die;
 * - one sender's messages in one lane come out in order when one process reads;
 * - never more than `capacity` messages wait in a lane.
 * What they rest on: `head` and `tail` are hints that only ever grow and that anyone may help; truth is in the slots;
 * positions never restart; the in-hand entry is written before the slot is emptied; an owner frees a chunk when the slot
 * no longer holds it and then no in-hand entry does, looked at in this order.
 * The dead: repaired only after proof of death (mb_recover). The naughty: every word is checked on a private copy, every
 * loop is bounded.
 */
#ifndef CV_MAILBOX_H
#define CV_MAILBOX_H

#include "park.h"

enum { MB_OK = 0, MB_FULL = -1, MB_CLOSED = -2, MB_AGAIN = -3 };
#define MB_LOOKS 16u
#define MB_TRIES 100000u /* more than this many lost races in a row means corrupt words, not contention */

static inline uint64_t mb_lap(const cv_ring *r, uint64_t position) { return position >> r->log2; }
static inline at_u64 *mb_slot(const cv_ring *r, uint64_t position) { return &r->ring[position & r->mask]; }

/* Move `head` over positions that are done. Anyone may; returns the head seen last. */
static inline uint64_t mb_help_head(const cv_ring *r) {
    uint64_t head = at_load(r->head);
    for (uint64_t n = 0; n <= r->mask; n++) {
        if (cv_lap_ahead(at_load(mb_slot(r, head)), mb_lap(r, head)) != 1) break;
        head = at_cas(r->head, head, head + 1) ? head + 1 : at_load(r->head);
    }
    return head;
}

/* Move `tail` over positions whose producer died or was stopped before helping. Anyone may; returns the tail seen last. */
static inline uint64_t mb_help_tail(const cv_ring *r) {
    uint64_t tail = at_load(r->tail);
    for (uint64_t n = 0; n <= r->mask + 1; n++) {
        uint64_t head = at_load(r->head), next = tail + 1;
        if (tail - head > r->mask + 1) { /* left behind head, or damaged: it says nothing */
            next = head;
        } else {
            uint64_t word = at_load(mb_slot(r, tail));
            int ahead = cv_lap_ahead(word, mb_lap(r, tail));
            if (ahead < 0 || (ahead == 0 && (cv_word_state(word) == CV_EMPTY || cv_word_state(word) == CV_MARK))) break;
        }
        tail = at_cas(r->tail, tail, next) ? next : at_load(r->tail);
    }
    return tail;
}

/* Nothing waits in a lane, and nothing is on its way out of it: a scan of its ring would find nothing. A hint that was left
 * behind, or moved by a damaged word, only makes it say so later, or of a lane that no reader gets anything out of. */
static inline bool mb_is_empty(const cv_ring *r) {
    uint64_t head = at_load(r->head), word = at_load(mb_slot(r, head));
    return at_load(r->tail) == head && cv_word_state(word) == CV_EMPTY && cv_lap_ahead(word, mb_lap(r, head)) == 0;
}

/* Wake whoever waits for room here. The caller has released a slot or an in-hand entry (seq_cst) before.
 * SYNC POINT "waiter sees room": pairs with mb_wait. Looked at before it is exchanged, because nobody waits mostly. */
static inline void mb_tell_waiters(cv_run *run, cv_mailbox *m) {
    for (unsigned w = 0; w < CV_SET_WORDS; w++) {
        if (!at_load(&m->waiters.word[w])) continue;
        for (uint64_t waiters = at_xchg(&m->waiters.word[w], 0); waiters;) {
            unsigned slot = w * 64 + cv_lowest(&waiters);
            if (slot < run->slots) cv_alarm(run, slot, CV_ALARM_ROOM);
        }
    }
}

/* Announce that this process waits for room. The caller posts once more after this before it sleeps. */
static inline void mb_wait(cv_run *run, cv_mailbox *m) { cv_set_join(&m->waiters, run->me); }

/* For the safety poll, before mb_wait: what is waited for is a place in this mailbox, which a poll can see; or memory,
 * which only the waiter itself can. */
static inline void mb_want(cv_run *run, cv_mailbox *m, uint32_t mailbox) {
    run->wants[mailbox / 64] |= 1ull << (mailbox % 64);
    cv_set_join(&m->wanting, run->me);
}
static inline void mb_want_memory(cv_run *run) { at_store(&cv_slot_at(run, run->me)->wants_memory, 1); }

/* This process was told of room somewhere and is awake: whoever waits here tries again, and announces itself again. */
static inline void mb_told(cv_run *run) {
    for (uint32_t w = 0; w < cv_bit_words(run); w++)
        for (; run->wants[w]; run->wants[w] &= run->wants[w] - 1) {
            cv_mailbox *m = cv_mailbox_at(run, w * 64 + (uint32_t)__builtin_ctzll(run->wants[w]));
            if (m) cv_set_leave(&m->wanting, run->me);
        }
    at_u64 *memory = &cv_slot_at(run, run->me)->wants_memory;
    if (at_load(memory)) at_store(memory, 0);
}

/* A position as headers and in-hand entries carry it: modulo lap width x ring. A producer that was stopped between its
 * look and its CAS for exactly that many messages commits at a later position than it sealed; that is harmless then. */
static inline uint32_t mb_short(const cv_ring *r, uint64_t position) {
    return (uint32_t)(position & ((1ull << (16 + r->log2)) - 1));
}

/* Give a chunk its place and its check. Plain stores: the chunk is private until the CAS. */
static inline void mb_seal(const cv_run *run, const cv_ring *r, cv_header *h, uint64_t position) {
    h->position = mb_short(r, position);
    h->check = cv_header_check(run, h);
}

/* Whether the capacity leaves room behind `tail`, where tail lies in [head, head + N]. MB_AGAIN: a hint was moved. */
static inline int mb_room(const cv_ring *r, uint64_t tail, uint64_t head) {
    if (tail - head < r->capacity) return MB_OK;
    if (mb_help_head(r) != head) return MB_AGAIN;
    uint64_t at_tail = at_load(mb_slot(r, tail)), at_head = at_load(mb_slot(r, head));
    if (cv_lap_ahead(at_tail, mb_lap(r, tail)) == 0 && cv_word_state(at_tail) == CV_MARK) return MB_CLOSED;
    if (at_load(r->head) != head) return MB_AGAIN; /* this process was stopped in between */
    if (cv_lap_ahead(at_head, mb_lap(r, head)) == 0 && cv_word_state(at_head) == CV_EMPTY) {
        at_cas(r->tail, tail, head); /* the hint ran ahead of an empty slot: a damaged word */
        return MB_AGAIN;
    }
    return MB_FULL;
}

/* MB_FULL or MB_CLOSED when a publish would say so now; told before the payload is copied. MB_OK: try. */
static inline int mb_refuses(const cv_ring *r) {
    uint64_t tail = at_load(r->tail), head = at_load(r->head);
    int room = tail - head > r->mask + 1 ? MB_OK : mb_room(r, tail, head);
    return room == MB_AGAIN ? MB_OK : room;
}

/* Commit chunk `ref` (complete but for its seal; `h` is its header). *position is where it went.
 * MB_FULL: capacity reached; MB_CLOSED: the lane ends in a MARK; MB_AGAIN: given up after MB_TRIES lost races. */
static inline int mb_publish(cv_run *run, const cv_ring *r, cv_header *h, uint64_t ref, uint64_t *position) {
    for (unsigned tries = 0; tries < MB_TRIES; tries++) {
        uint64_t tail = at_load(r->tail), head = at_load(r->head);
        if (tail - head > r->mask + 1) { /* a tail outside [head, head + N] says nothing, and must not stay so: every */
            at_cas(r->tail, tail, head); /* publish from here on would find its place taken and help in vain */
            continue;
        }
        int room = mb_room(r, tail, head);
        if (room == MB_AGAIN) continue;
        if (room != MB_OK) return room;
        at_u64 *slot = mb_slot(r, tail);
        uint64_t word = at_load(slot), lap = mb_lap(r, tail);
        int ahead = cv_lap_ahead(word, lap);
        if (ahead == 0 && cv_word_state(word) == CV_EMPTY) {
            mb_seal(run, r, h, tail);
            /* SYNC POINT "message committed": chunk bytes are visible to whoever sees FULL; pairs with mb_take. */
            if (at_cas(slot, word, cv_word(lap, CV_FULL, h->flags & CV_FLAG_ASK, ref))) {
                at_cas(r->tail, tail, tail + 1);
                *position = tail;
                return MB_OK;
            }
        } else if (ahead == 0 && cv_word_state(word) == CV_MARK) {
            return MB_CLOSED;
        } else if (ahead >= 0) {
            at_cas(r->tail, tail, tail + 1); /* taken by somebody who died or was stopped before helping */
        } else if (mb_help_head(r) == head) {
            return MB_FULL; /* the lap before is not released: full by ring */
        }
    }
    return MB_AGAIN;
}

/* End a lane: nothing can be committed behind the MARK. Waits for nothing: the ring has more places than `capacity`
 * or the MARK takes the place that a later lap will free. True when the lane is closed now. */
static inline bool mb_close_lane(const cv_ring *r) {
    for (unsigned tries = 0; tries < MB_TRIES; tries++) {
        uint64_t tail = at_load(r->tail), head = at_load(r->head);
        if (tail - head > r->mask + 1) {
            at_cas(r->tail, tail, head);
            continue;
        }
        at_u64 *slot = mb_slot(r, tail);
        uint64_t word = at_load(slot), lap = mb_lap(r, tail);
        int ahead = cv_lap_ahead(word, lap);
        if (ahead == 0 && cv_word_state(word) == CV_MARK) return true;
        if (ahead == 0 && cv_word_state(word) == CV_EMPTY) {
            if (at_cas(slot, word, cv_word(lap, CV_MARK, 0, 0))) return true;
        } else if (ahead >= 0) {
            at_cas(r->tail, tail, tail + 1);
        } else if (mb_help_head(r) == head) {
            return false; /* ring full: the caller takes one message out and tries again */
        }
    }
    return false;
}

/* Remove the oldest waiting message (overflow policies); its chunk belongs to its owner again. FULL only: a message
 * that is being taken is never dropped, and nothing behind it either, because that would make no room.
 * `asked`: the header of what was dropped if it was a question, else its flags are 0. It is read before the CAS, because
 * behind it the chunk may be gone; the CAS proves that the slot has held it all the time. */
static inline bool mb_drop_oldest(const cv_run *run, const cv_ring *r, cv_header *asked) {
    asked->flags = 0;
    uint64_t head = mb_help_head(r);
    for (uint64_t position = head; position - head <= r->mask; position++) {
        at_u64 *slot = mb_slot(r, position);
        uint64_t word = at_load(slot);
        int ahead = cv_lap_ahead(word, mb_lap(r, position));
        if (ahead == 0 && cv_word_state(word) == CV_FULL) {
            if (cv_word_reader(word) == CV_ASKS &&
                (!cv_glance(run, cv_word_ref(word), asked) || asked->check != cv_header_check(run, asked)))
                asked->flags = 0;
            if (!at_cas(slot, word, cv_word(mb_lap(r, position) + 1, CV_EMPTY, 0, 0))) return false;
            mb_help_head(r);
            return true;
        }
        if (ahead <= 0) return false;
    }
    return false;
}

typedef struct {
    unsigned lane, entry, deliveries;
    uint32_t position;
    uint64_t ref;
    bool garbage; /* the slot or the chunk did not check out; nothing is in hand for the caller, the slot was emptied */
    bool alone;   /* suspected of a death: not begun, see mb_begin */
    cv_header header; /* private copy */
    const uint8_t *body; /* type bytes, then payload: bounds checked, content untrusted */
} mb_message;

/* Whether a header is that of a message at this place, and its bytes lie within its chunk. */
static inline bool mb_fits(const cv_run *run, uint32_t mailbox, unsigned lane, uint32_t position, const cv_header *h) {
    return h->check == cv_header_check(run, h) && h->mailbox == mailbox && h->lane == lane && h->position == position &&
           sizeof *h + h->type_len + (uint64_t)h->payload_len <= (uint64_t)h->granules * CV_GRANULE;
}

/* Check a chunk against the place it was found at; fills in ref, header and body. SYNC POINT "message committed". */
static inline bool mb_read(const cv_run *run, uint32_t mailbox, unsigned lane, uint32_t position, uint64_t ref,
                           mb_message *out) {
    const uint8_t *at = cv_chunk_at(run, ref, sizeof(cv_header));
    if (!at) return false;
    memcpy(&out->header, at, sizeof out->header);
    if (!mb_fits(run, mailbox, lane, position, &out->header)) return false;
    at = cv_chunk_at(run, ref, (uint64_t)out->header.granules * CV_GRANULE);
    if (!at) return false;
    out->body = at + sizeof out->header;
    out->ref = ref;
    return true;
}

/* What an in-hand entry refers to, for who only looks: its reader may release it meanwhile, and its owner give the memory
 * back. The header, and the message type in `type`. False: it is free, or its message has gone while it was looked at. */
static inline bool mb_look(const cv_run *run, cv_mailbox *m, uint32_t mailbox, unsigned entry, uint64_t *meta, cv_header *h,
                           uint8_t type[UINT16_MAX]) {
    *meta = at_load(&m->hand[entry].meta);
    uint64_t word = at_load(&m->hand[entry].ref), ref = cv_word_ref(word);
    unsigned lane = (unsigned)(word >> 40) & 3u;
    return cv_meta_state(*meta) == CV_HAND_RUNNING && lane < CV_LANES && cv_glance(run, ref, h) &&
           mb_fits(run, mailbox, lane, cv_meta_position(*meta), h) && cv_copy(run, ref, sizeof *h, h->type_len, type) &&
           at_load(&m->hand[entry].meta) == *meta;
}

/* A free in-hand entry, claimed for `reader`; CV_HAND when there is none. */
static inline unsigned mb_claim(cv_mailbox *m, unsigned reader) {
    for (unsigned i = 0; i < CV_HAND; i++) {
        unsigned entry = (reader + i) % CV_HAND;
        at_u64 *meta = &m->hand[entry].meta;
        uint64_t seen = at_peek(meta);
        if (cv_meta_state(seen) != CV_HAND_FREE || !at_cas(meta, seen, cv_meta(0, 0, reader, CV_HAND_CLAIMED))) continue;
        for (uint64_t high = at_load(&m->hand_high); high <= entry && !at_cas(&m->hand_high, high, entry + 1);)
            high = at_load(&m->hand_high);
        return entry;
    }
    return CV_HAND;
}

/* Never downwards: lanes overtake each other, and so do replicas, whose readers share the word. */
static inline void mb_raise(at_u64 *word, uint64_t to, bool shared) {
    uint64_t seen = at_peek(word);
    if (!shared) {
        if (seen < to) at_release(word, to);
        return;
    }
    while (seen < to && !at_cas(word, seen, to)) seen = at_load(word);
}

/* What does not check out goes to the dead letters as it is, so that somebody may look at it; without a free entry it is
 * only counted. */
static inline void mb_bury_garbage(cv_mailbox *m, unsigned reader, unsigned lane, uint32_t position, uint64_t ref) {
    unsigned entry = mb_claim(m, reader);
    if (entry == CV_HAND) return;
    at_release(&m->hand[entry].ref, ref | (uint64_t)lane << 40);
    at_release(&m->hand[entry].meta, cv_meta(position, 0, reader, CV_HAND_BURIED));
}

/* Take the next message of one lane. 1 = taken, in hand, `out` filled; 0 = nothing waits; -1 = closed and drained;
 * 2 = garbage was removed, call again. */
static inline int mb_take_lane(cv_run *run, cv_mailbox *m, uint32_t mailbox, unsigned lane, const cv_ring *r,
                               mb_message *out) {
    uint64_t head = mb_help_head(r), position = head;
    for (uint64_t n = 0; n <= r->mask; n++, position++) {
        at_u64 *slot = mb_slot(r, position);
        uint64_t word = at_load(slot), lap = mb_lap(r, position);
        int ahead = cv_lap_ahead(word, lap);
        if (ahead == 1) continue;               /* released by another reader, head not yet helped */
        if (ahead == 0 && cv_word_state(word) == CV_TAKEN) continue; /* another reader's */
        if (ahead == 0 && cv_word_state(word) == CV_EMPTY) return 0;
        if (ahead == 0 && cv_word_state(word) == CV_MARK) return -1;
        if (ahead != 0) {
            if (at_load(r->head) != head || at_load(slot) != word) return 2; /* head was old; look again */
            at_cas(slot, word, cv_word(lap + 1, CV_EMPTY, 0, 0));            /* a word that nobody writes */
            mb_tell_waiters(run, m);
            out->garbage = true;
            return 2;
        }
        uint64_t ref = cv_word_ref(word), taken = cv_word(lap, CV_TAKEN, run->me, ref);
        cv_prefetch(run, ref);
        if (!at_cas(slot, word, taken)) return 2; /* dropped, or another reader was faster */
        out->lane = lane;
        out->position = mb_short(r, position);
        out->deliveries = 1;
        out->alone = false;
        if (!mb_read(run, mailbox, lane, out->position, ref, out)) { /* only now: before the take it could be freed */
            out->garbage = true;
            mb_bury_garbage(m, run->me, lane, out->position, ref);
            at_store(slot, cv_word(lap + 1, CV_EMPTY, 0, 0));
            mb_help_head(r);
            mb_tell_waiters(run, m);
            return 2;
        }
        unsigned entry = mb_claim(m, run->me);
        if (entry == CV_HAND) { /* 64 messages in hand: put it back */
            at_store(slot, word);
            return 0;
        }
        out->entry = entry;
        /* SYNC POINT "taken before empty": evidence for the sender's successor; pairs with cv_was_published. */
        if (out->header.number) mb_raise(&m->taken_from[cv_ref_arena(ref)], out->header.number, m->replicas > 1);
        /* In hand first, slot second: the owner looks at the slot first, so it sees the message in one of the two. */
        at_release(&m->hand[entry].ref, ref | (uint64_t)lane << 40);
        at_release(&m->hand[entry].meta, cv_meta(out->position, 1, run->me, CV_HAND_RUNNING));
        at_store(slot, cv_word(lap + 1, CV_EMPTY, 0, 0)); /* SYNC POINT "waiter sees room" */
        mb_help_head(r);
        mb_tell_waiters(run, m);
        return 1;
    }
    return 0;
}

/* The in-hand entries of a reader, one bit each. */
static inline uint64_t mb_in_hand_of(cv_mailbox *m, unsigned reader) {
    uint64_t entries = 0;
    for (unsigned e = 0; e < CV_HAND; e++) {
        uint64_t meta = at_load(&m->hand[e].meta);
        if (cv_meta_state(meta) == CV_HAND_RUNNING && cv_meta_reader(meta) == reader) entries |= 1ull << e;
    }
    return entries;
}

/* Of a set of in-hand entries the one to be redelivered first: control before priority before normal, then the oldest.
 * Ages are compared modulo the width of a position. */
static inline unsigned mb_oldest_in_hand(const cv_run *run, cv_mailbox *m, uint32_t mailbox, uint64_t entries) {
    unsigned best = CV_HAND, best_lane = 0;
    uint32_t best_age = 0;
    for (; entries; entries &= entries - 1) {
        unsigned entry = (unsigned)__builtin_ctzll(entries), lane = (unsigned)(at_load(&m->hand[entry].ref) >> 40) & 3u;
        uint32_t age = 0;
        cv_ring r;
        if (lane < CV_LANES && cv_ring_of(run, mailbox, m, lane, &r))
            age = mb_short(&r, at_load(r.head) - cv_meta_position(at_load(&m->hand[entry].meta)));
        if (best != CV_HAND && (lane > best_lane || (lane == best_lane && age <= best_age))) continue;
        best = entry;
        best_lane = lane;
        best_age = age;
    }
    return best;
}

/* Put a message that a dead predecessor had in hand into this process's hand again, its delivery count raised before
 * anybody sees it. One that is suspected of a death (out->alone) waits instead: mb_begin counts. False: the entry is not
 * for redelivery; or it may not be had twice, or its chunk does not check out (out->garbage), and is buried. */
static inline bool mb_redeliver(cv_run *run, cv_mailbox *m, uint32_t mailbox, unsigned entry, mb_message *out) {
    uint64_t meta = at_load(&m->hand[entry].meta), word = at_load(&m->hand[entry].ref);
    if (cv_meta_state(meta) != CV_HAND_RUNNING || cv_meta_reader(meta) != run->me) return false;
    out->lane = (unsigned)(word >> 40) & 3u;
    out->entry = entry;
    out->position = cv_meta_position(meta);
    if (out->lane >= CV_LANES || !mb_read(run, mailbox, out->lane, out->position, cv_word_ref(word), out)) {
        out->garbage = true;
        at_store(&m->hand[entry].meta, cv_meta_in(meta, CV_HAND_BURIED));
        return false;
    }
    if (meta & CV_META_ONCE) {
        at_store(&m->hand[entry].meta, cv_meta_in(meta, CV_HAND_BURIED));
        return false;
    }
    out->alone = meta & CV_META_ALONE;
    meta = out->alone ? meta | CV_META_WAITS : cv_meta_delivered(meta & ~CV_META_WAITS);
    out->deliveries = cv_meta_deliveries(meta);
    at_store(&m->hand[entry].meta, meta); /* SYNC POINT "running before the handler" */
    return true;
}

/* The handler of a message that waited in hand begins now: its delivery count, raised before anybody sees it; 0 when the
 * entry is not this process's. A death from here on may be its doing. */
static inline unsigned mb_begin(const cv_run *run, cv_mailbox *m, unsigned entry) {
    if (entry >= CV_HAND) return 0;
    uint64_t meta = at_load(&m->hand[entry].meta);
    if (cv_meta_state(meta) != CV_HAND_RUNNING || cv_meta_reader(meta) != run->me) return 0;
    uint64_t begun = meta & CV_META_WAITS ? cv_meta_delivered(meta & ~CV_META_WAITS) : meta;
    if (!at_cas(&m->hand[entry].meta, meta, begun)) return 0; /* SYNC POINT "running before the handler" */
    return cv_meta_deliveries(begun);
}

/* At-most-once: from here on nobody gets the message again, whatever dies. False when the entry is not this process's. */
static inline bool mb_forgo(const cv_run *run, cv_mailbox *m, unsigned entry) {
    uint64_t meta = entry < CV_HAND ? at_load(&m->hand[entry].meta) : 0;
    if (cv_meta_state(meta) != CV_HAND_RUNNING || cv_meta_reader(meta) != run->me) return false;
    return at_cas(&m->hand[entry].meta, meta, meta | CV_META_ONCE);
}

/* The handler failed and its message is to be handed over again: one strike, and how many it has then; 0 when the entry is
 * not this process's. */
static inline unsigned mb_strike(const cv_run *run, cv_mailbox *m, unsigned entry) {
    if (entry >= CV_HAND) return 0;
    uint64_t meta = at_load(&m->hand[entry].meta);
    if (cv_meta_state(meta) != CV_HAND_RUNNING || cv_meta_reader(meta) != run->me) return 0;
    uint64_t struck = cv_meta_struck(meta, 1, 0) | CV_META_WAITS;
    return at_cas(&m->hand[entry].meta, meta, struck) ? cv_meta_strikes(struck) : 0;
}

/* Instead of a release: no handler gets the message again, it stays until the host has stored its letter. False when the
 * entry is not this process's. */
static inline bool mb_bury(const cv_run *run, cv_mailbox *m, unsigned entry) {
    if (entry >= CV_HAND) return false;
    uint64_t meta = at_load(&m->hand[entry].meta);
    if (cv_meta_state(meta) != CV_HAND_RUNNING || cv_meta_reader(meta) != run->me) return false;
    return at_cas(&m->hand[entry].meta, meta, cv_meta_in(meta, CV_HAND_BURIED)); /* SYNC POINT "given up" */
}

/* After proof of the death of `dead`, host only: what its death means for one message that it had in hand. Waits from now
 * on, whatever the verdict. False when the entry is not the dead one's. */
static inline bool mb_judge(cv_mailbox *m, unsigned entry, unsigned dead, unsigned strikes, unsigned kills, bool alone) {
    uint64_t meta = entry < CV_HAND ? at_load(&m->hand[entry].meta) : 0;
    if (cv_meta_state(meta) != CV_HAND_RUNNING || cv_meta_reader(meta) != dead) return false;
    at_store(&m->hand[entry].meta, cv_meta_struck(meta, strikes, kills) | CV_META_WAITS | (alone ? CV_META_ALONE : 0));
    return true;
}

/* Its letter is stored, host only: a buried message, or one that a dead reader (in `dead`) had in hand, is gone for good. */
static inline bool mb_discard(cv_run *run, cv_mailbox *m, unsigned entry, cv_set dead) {
    uint64_t meta = entry < CV_HAND ? at_load(&m->hand[entry].meta) : 0;
    unsigned state = cv_meta_state(meta);
    if (state != CV_HAND_BURIED && !(state == CV_HAND_RUNNING && cv_set_has(dead, cv_meta_reader(meta)))) return false;
    at_store(&m->hand[entry].meta, cv_meta(0, 0, 0, CV_HAND_FREE)); /* SYNC POINT "waiter sees room": memory */
    mb_tell_waiters(run, m);
    return true;
}

/* The handler has finished: the message is gone for good. False when the entry is not this process's: by CAS, because a
 * handler that outlived its agent may end at the very moment in which the host takes what the agent has left. */
static inline bool mb_release(cv_run *run, cv_mailbox *m, unsigned entry) {
    if (entry >= CV_HAND) return false;
    uint64_t meta = at_load(&m->hand[entry].meta);
    if (cv_meta_state(meta) != CV_HAND_RUNNING || cv_meta_reader(meta) != run->me) return false;
    /* SYNC POINT "waiter sees room": memory */
    if (!at_cas(&m->hand[entry].meta, meta, cv_meta(0, 0, 0, CV_HAND_FREE))) return false;
    mb_tell_waiters(run, m);
    return true;
}

/* After proof of the death of `dead`, host only: a half-taken message is finished when it is in hand already, else it
 * waits again. What is in hand stays so, for the successor. Returns the slots repaired. Safe to be killed in and to
 * be run again. */
static inline unsigned mb_recover(cv_mailbox *m, const cv_ring rings[CV_LANES], unsigned dead) {
    unsigned repaired = 0;
    for (unsigned lane = 0; lane < CV_LANES; lane++) {
        const cv_ring *r = &rings[lane];
        if (mb_is_empty(r)) continue; /* most are: the replies of a hundred processes take 8,192 places each */
        uint64_t head = at_load(r->head);
        for (uint64_t position = head; position - head <= r->mask; position++) {
            at_u64 *slot = mb_slot(r, position);
            uint64_t word = at_load(slot), lap = mb_lap(r, position);
            if (cv_lap_ahead(word, lap) != 0 || cv_word_state(word) != CV_TAKEN || cv_word_reader(word) != dead) continue;
            bool in_hand = false;
            for (unsigned e = 0; e < CV_HAND && !in_hand; e++) {
                uint64_t meta = at_load(&m->hand[e].meta);
                in_hand = cv_meta_state(meta) >= CV_HAND_RUNNING && cv_meta_reader(meta) == dead &&
                          cv_meta_position(meta) == mb_short(r, position) &&
                          at_load(&m->hand[e].ref) == (cv_word_ref(word) | (uint64_t)lane << 40);
            }
            at_cas(slot, word, in_hand ? cv_word(lap + 1, CV_EMPTY, 0, 0) : cv_word(lap, CV_FULL, 0, cv_word_ref(word)));
            repaired++;
        }
        mb_help_head(r);
        mb_help_tail(r); /* so that what it committed is counted */
    }
    for (unsigned e = 0; e < CV_HAND; e++) { /* claimed, but nothing written in yet */
        uint64_t meta = at_load(&m->hand[e].meta);
        if (cv_meta_state(meta) == CV_HAND_CLAIMED && cv_meta_reader(meta) == dead)
            at_cas(&m->hand[e].meta, meta, cv_meta(0, 0, 0, CV_HAND_FREE));
    }
    return repaired;
}

/* Messages that wait in a lane; out of date at once. Helps both hints first: a producer that is stopped between commit
 * and help must not hide its message from those who look. Whoever is stopped itself in between may find that head has
 * passed the tail that it read: looked at again, because "none" would say that everything is done. */
static inline uint64_t mb_waiting(const cv_ring *r) {
    for (unsigned looks = 0; looks < MB_LOOKS; looks++) {
        uint64_t tail = mb_help_tail(r), n = tail - mb_help_head(r);
        if (n <= r->mask + 1) return n;
    }
    return 0; /* damaged words */
}

/* Whether a mailbox is closed, or half closed by a host that died over it: then nothing comes through all of it either. */
static inline bool mb_is_closed(const cv_run *run, cv_mailbox *m, uint32_t mailbox) {
    if ((at_load(&cv_record_at(run, mailbox)->word) & 0xff) != CV_AGENT_OPEN) return true;
    for (unsigned lane = 0; lane < CV_LANES; lane++) {
        cv_ring r;
        if (!cv_ring_of(run, mailbox, m, lane, &r)) continue;
        uint64_t tail = mb_help_tail(&r), word = at_load(mb_slot(&r, tail));
        if (cv_word_state(word) == CV_MARK && cv_lap_ahead(word, mb_lap(&r, tail)) == 0) return true;
    }
    return false;
}

#endif
