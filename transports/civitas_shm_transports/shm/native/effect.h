/* What a handler has sent, remembered beside the message in hand, so that a handler that runs again after the death of
 * its process sends nothing twice. LAYOUT.md, "What a handler has sent"; tests/native/models/effect.pml.
 *
 * Guarantees, for an agent with one reader, whatever is killed when:
 * - a send that repeats one of an earlier life (same recipient, type and payload, and as many equal ones before it) is
 *   dropped exactly if that one was committed; everything else is sent;
 * - a handler that goes on where its earlier life stopped, instead of repeating it, loses nothing, unless it sends what
 *   equals something that the earlier life sent; a state that is saved in between (cv_effect_saved) removes that doubt.
 * What they rest on: a process's sends have numbers that only grow; the intent is complete before the publish; a reader
 * raises its evidence before it empties the slot; after proof of death the host looks at the slots first and at the
 * evidence second. At most one intent of a process is open at its death: from intent to publish nothing else runs.
 * Beyond CV_EFFECT_MAX sends of one handler, or without memory, a send is not remembered: it is committed all the same,
 * counted, and comes twice when its handler runs again.
 */
#ifndef CV_EFFECT_H
#define CV_EFFECT_H

#include "ledger.h"

#define CV_EFFECT_MAX 4096u      /* sends of one handler that are remembered: 32 KiB of the sender's arena */
#define CV_EFFECT_FIRST 16u      /* room of a first log: with its header four granules */
#define CV_NUMBERS (1ull << 20)  /* numbers that a process sets aside at once: one store to shared memory a million sends */

/* What one process knows about the agent of one mailbox that it reads; private memory. */
typedef struct {
    cv_mailbox *m;
    uint64_t current;       /* of the message in hand; 0 = none, so nothing is remembered */
    uint64_t tag;           /* of the state that is stored; 0 = none */
    unsigned entry;         /* in-hand entry of the message */
    unsigned deliveries;
    uint32_t asks;          /* made by the running handler */
    bool begun;             /* the log is this message's */
    bool told;              /* the user has been told that not all is remembered */
    uint32_t entries, room; /* of the log */
    uint64_t *log;          /* its entries; NULL: it lies in another arena, or nowhere */
    uint64_t *left;         /* digests of earlier lives; 0 = a send of this life has met it */
    uint32_t left_at, left_end, unmet;
} cv_effect;

/* --- digests --------------------------------------------------------------------------------------------------------- */

static inline uint64_t cv_fold(uint64_t a, uint64_t b) {
    __uint128_t product = (__uint128_t)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}
static inline uint64_t cv_word_at(const uint8_t *at) {
    uint64_t v;
    memcpy(&v, at, 8);
    return v;
}

/* 64 bits of all bytes, in the manner of wyhash: four products at a time for what is large. Not against forgers. */
static inline uint64_t cv_digest(uint64_t seed, const void *bytes, uint64_t size) {
    const uint64_t k0 = 0xa0761d6478bd642full, k1 = 0xe7037ed1a0b428dbull, k2 = 0x8ebc6af09c88c6e3ull,
                   k3 = 0x589965cc75374cc3ull;
    const uint8_t *at = bytes;
    uint64_t h = seed ^ k0, left = size;
    if (left >= 64) {
        uint64_t h1 = h ^ k1, h2 = h ^ k2, h3 = h ^ k3;
        for (; left >= 64; left -= 64, at += 64) {
            h = cv_fold(cv_word_at(at) ^ k0, cv_word_at(at + 8) ^ h);
            h1 = cv_fold(cv_word_at(at + 16) ^ k1, cv_word_at(at + 24) ^ h1);
            h2 = cv_fold(cv_word_at(at + 32) ^ k2, cv_word_at(at + 40) ^ h2);
            h3 = cv_fold(cv_word_at(at + 48) ^ k3, cv_word_at(at + 56) ^ h3);
        }
        h = cv_fold(h ^ k1, h1 ^ k2) ^ cv_fold(h2 ^ k3, h3 ^ k0);
    }
    for (; left >= 16; left -= 16, at += 16) h = cv_fold(cv_word_at(at) ^ k1, cv_word_at(at + 8) ^ h);
    uint64_t a = 0, b = 0; /* at most 15 bytes are left: read in two overlapping halves */
    if (left >= 8) {
        a = cv_word_at(at);
        b = cv_word_at(at + left - 8);
    } else if (left >= 4) {
        uint32_t low, high;
        memcpy(&low, at, 4);
        memcpy(&high, at + left - 4, 4);
        a = low;
        b = high;
    } else if (left) {
        a = (uint64_t)at[0] << 16 | (uint64_t)at[left / 2] << 8 | at[left - 1];
    }
    return cv_fold(h ^ a ^ k2, b ^ k3 ^ size << 8);
}

/* The low half of an id: 62 random bits and two fixed ones, so never 0. */
static inline uint64_t cv_id_low(const uint8_t id[16]) { return cv_word_at(id + 8); }

/* Whose log it is: of this message, upon this state. A state that is saved in the middle of a handler begins a new one. */
static inline uint64_t cv_log_key(const cv_effect *e) { return e->current ^ cv_fold(e->tag, 0x9e3779b97f4a7c15ull); }

/* --- the message in hand --------------------------------------------------------------------------------------------- */

static inline void cv_effect_free(cv_effect *e) {
    if (e) free(e->left);
    free(e);
}

static inline void cv_effect_forget(cv_effect *e) {
    free(e->left);
    e->left = NULL;
    e->unmet = 0;
}

/* The log that a mailbox names, with its number of entries on private words. False: there is none, or it is damaged. */
static inline bool cv_log_read(const cv_run *run, cv_mailbox *m, uint32_t mailbox, mb_message *log, uint32_t *room,
                               uint32_t *entries) {
    uint64_t ref = at_load(&m->log_ref), count = at_load(&m->log_count);
    if (!ref || !mb_read(run, mailbox, CV_LANE_LOG, 0, ref, log)) return false;
    *room = log->header.payload_len / 8;
    *entries = (uint32_t)count;
    return *room <= CV_EFFECT_MAX && count <= *room;
}

/* A message is in hand from here on. Of one that has been in hand before, what its earlier lives have sent is recalled. */
static inline void cv_effect_begin(const cv_ledger *l, uint32_t mailbox, cv_effect *e, const mb_message *message) {
    e->current = cv_id_low(message->header.id);
    e->entry = message->entry;
    e->deliveries = message->deliveries;
    e->asks = 0;
    e->begun = false;
    if (e->left) cv_effect_forget(e);
    if (message->deliveries < 2) return;
    mb_message log;
    uint32_t room, entries;
    if (at_load(&e->m->log_key) != cv_log_key(e) || !cv_log_read(l->run, e->m, mailbox, &log, &room, &entries)) return;
    if (!entries || !(e->left = malloc(entries * sizeof *e->left))) return;
    memcpy(e->left, log.body, entries * sizeof *e->left);
    e->left_at = 0;
    e->left_end = e->unmet = e->entries = entries;
    e->room = room;
    /* Written on only where this process's ledger has it: other arenas are read-only here, and what could not be taken over
     * of the own one is free to it. */
    const cv_account *own = l->account[mailbox];
    e->log = own && own->log_ref == log.ref ? (uint64_t *)(uintptr_t)log.body : NULL;
    e->begun = true;
}

static inline void cv_effect_end(cv_effect *e, unsigned entry) {
    if (e->entry != entry) return;
    e->current = 0;
    if (e->left) cv_effect_forget(e);
}

/* Another state is stored: what was sent before belongs to it, and a handler that runs again goes on from it. */
static inline void cv_effect_saved(cv_effect *e, uint64_t tag) {
    e->tag = tag;
    e->begun = false;
    if (e->left) cv_effect_forget(e);
}

/* Whether an earlier life has sent the same; each of its sends is met once. Repeated in order, the first look finds it. */
static inline bool cv_effect_meets(cv_effect *e, uint64_t digest) {
    for (uint32_t i = e->left_at; i < e->left_end; i++) {
        if (e->left[i] != digest) continue;
        e->left[i] = 0;
        while (e->left_at < e->left_end && !e->left[e->left_at]) e->left_at++;
        e->unmet--;
        return true;
    }
    return false;
}

/* --- the log ---------------------------------------------------------------------------------------------------------- */

/* A log with room for one more at least, in this process's arena, with the entries of the last one. False: no memory. */
static inline bool cv_log_grow(cv_ledger *l, uint32_t mailbox, cv_effect *e) {
    /* One that lies in another arena is moved at its size, if that has room for one more. */
    uint32_t room = e->entries < e->room ? e->room : 4 * e->room;
    mb_message log;
    if (!e->entries || room < CV_EFFECT_FIRST) room = CV_EFFECT_FIRST;
    if (room > CV_EFFECT_MAX) room = CV_EFFECT_MAX;
    uint64_t size = sizeof(cv_header) + 8ull * room, limit = l->arena->limit / 8 * 7;
    cv_account *account = cv_account_of(l, mailbox);
    uint64_t ref = account ? cv_alloc(l->arena, size, limit) : 0;
    if (!ref) return false;
    cv_header *h = (cv_header *)(l->run->arena[l->run->me] + cv_ref_granule(ref) * CV_GRANULE);
    *h = (cv_header){.granules = (uint32_t)((size + CV_GRANULE - 1) / CV_GRANULE), .payload_len = 8 * room,
                     .mailbox = mailbox, .lane = CV_LANE_LOG};
    h->check = cv_header_check(l->run, h);
    if (e->log) memcpy(h + 1, e->log, 8ull * e->entries);
    else if (e->entries && mb_read(l->run, mailbox, CV_LANE_LOG, 0, at_load(&e->m->log_ref), &log) &&
             log.header.payload_len >= 8 * e->entries)
        memcpy(h + 1, log.body, 8ull * e->entries);
    uint64_t old = account->log_ref;
    at_store(&e->m->log_ref, ref); /* as many entries in either: a death finds the one or the other */
    account->log_ref = ref;
    account->bytes += cv_chunk_bytes(l->arena, ref);
    if (old) cv_ledger_drop(l, account, old);
    e->log = (uint64_t *)(h + 1);
    e->room = room;
    return true;
}

static inline bool cv_log_is_full(const cv_effect *e) { return e->begun && e->entries >= CV_EFFECT_MAX; }

/* Room for one more entry of the running handler. False: the bound is reached, or there is no memory. */
static inline bool cv_log_ready(cv_ledger *l, uint32_t mailbox, cv_effect *e) {
    if (!e->begun) { /* what an earlier message left goes first, the name last: no entry is ever another message's */
        at_store(&e->m->log_count, 0);
        at_store(&e->m->log_key, cv_log_key(e));
        e->entries = 0;
        e->begun = true;
    }
    if (e->log && e->entries < e->room) return true;
    return e->entries < CV_EFFECT_MAX && cv_log_grow(l, mailbox, e);
}

/* The send of `digest` is about to be published: chunk `ref` with that number, to a lane of a mailbox.
 * SYNC POINT "intent before publish": pairs with cv_effect_settle. The index comes first: from there on the record is not
 * that of an entry that counts, so no half of it is ever taken for one; the count comes last. */
static inline void cv_effect_intend(cv_effect *e, uint64_t digest, uint64_t number, uint32_t to, unsigned lane, uint64_t ref) {
    e->log[e->entries] = digest;
    at_release(&e->m->open_index, e->entries);
    at_release(&e->m->open_number, number);
    at_release(&e->m->open_to, cv_open_to(to, lane, ref));
    at_release(&e->m->log_count, ++e->entries);
}

/* It was not published. */
static inline void cv_effect_undo(cv_effect *e) { at_release(&e->m->log_count, --e->entries); }

/* --- after a death ---------------------------------------------------------------------------------------------------- */

/* Whether the publish of chunk `ref` with that number by process `dead` happened: it lies in its lane, or has been taken.
 * In this order: a reader raises the evidence before it empties the slot. */
static inline bool cv_was_published(const cv_run *run, uint64_t to, uint64_t number, unsigned dead) {
    uint32_t mailbox = cv_open_mailbox(to);
    cv_mailbox *m = cv_mailbox_at(run, mailbox);
    cv_ring r;
    if (!m || cv_open_lane(to) >= CV_LANES || !cv_ring_of(run, mailbox, m, cv_open_lane(to), &r)) return false;
    for (uint64_t i = 0; i <= r.mask; i++) {
        uint64_t word = at_load(&r.ring[i]);
        unsigned state = cv_word_state(word);
        if (cv_word_ref(word) == cv_open_ref(to) && (state == CV_FULL || state == CV_TAKEN)) return true;
    }
    return at_load(&m->taken_from[dead]) >= number; /* above: an agent beside it has sent since, so this one was through */
}

/* The same by number alone, for who did not note the chunk: it waits in a lane, or has been taken. Only if `dead` has given
 * out no higher number before its death. */
static inline bool cv_number_was_published(const cv_run *run, uint32_t mailbox, uint64_t number, unsigned dead) {
    cv_mailbox *m = cv_mailbox_at(run, mailbox);
    for (unsigned lane = 0; m && lane < CV_LANES; lane++) {
        cv_ring r;
        if (!cv_ring_of(run, mailbox, m, lane, &r)) continue;
        for (uint64_t i = 0; i <= r.mask; i++) {
            uint64_t word = at_load(&r.ring[i]), ref = cv_word_ref(word);
            unsigned state = cv_word_state(word);
            if ((state != CV_FULL && state != CV_TAKEN) || cv_ref_arena(ref) != dead) continue;
            const uint8_t *at = cv_chunk_at(run, ref, sizeof(cv_header));
            if (at && ((const cv_header *)at)->number == number) return true;
        }
    }
    return m && at_load(&m->taken_from[dead]) >= number;
}

/* After proof of the death of `dead`, host only: the newest entry of a log counts only if it was published. Safe to be
 * killed in and to be run again. */
static inline void cv_effect_settle(const cv_run *run, cv_mailbox *m, unsigned dead) {
    uint64_t log = at_load(&m->log_ref), number = at_load(&m->open_number), count = at_load(&m->log_count);
    if (!log || cv_ref_arena(log) != dead || !number) return;
    if (count && at_load(&m->open_index) == count - 1 && !cv_was_published(run, at_load(&m->open_to), number, dead))
        at_store(&m->log_count, count - 1);
    at_store(&m->open_number, 0); /* settled, also if the log moves to another slot, whose numbers are others */
}

#endif
