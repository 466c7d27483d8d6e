/* The ledger: what this process has published and not yet seen finished. Private memory; only the owner frees chunks,
 * and it does so here, lazily, so that readers never write into an arena.
 *
 * A chunk may be freed when the slot at its position no longer holds it and then no in-hand entry of that mailbox does.
 * In this order: the reader writes the entry before it empties the slot, so a message on its way from one to the other
 * is seen in at least one (the other order frees chunks in use: mailbox.pml, mutant hand_first).
 */
#ifndef CV_LEDGER_H
#define CV_LEDGER_H

#include "arena.h"
#include "mailbox.h"

typedef struct {
    uint64_t position, ref;
} cv_posted;

typedef struct {
    cv_posted *at; /* a ring of `room` entries (power of two) from `first` on */
    uint32_t first, n, room;
} cv_fifo;

typedef struct {
    cv_fifo lane[CV_LANES];
    uint64_t bytes;       /* of this process's arena in this mailbox */
    uint64_t state_ref;   /* chunk of state that this process committed last */
    uint64_t log_ref;     /* chunk of the log that this process wrote last (effect.h) */
    cv_fifo held;         /* out of their slots, still in hand; position is unused */
    uint32_t posts;       /* since the last look */
} cv_account;

typedef struct {
    cv_run *run;
    cv_arena *arena;
    cv_account **account; /* by mailbox; made at the first post */
    uint64_t freed;
} cv_ledger;

#define CV_LOOK_EVERY 32u          /* posts between two looks: a look costs a cache line of slots */
#define CV_LOOK_BYTES (1u << 20)   /* a mailbox that holds more than this is looked at on every post */
#define CV_LOOK_MOST 128u          /* entries in one look, so that a post has a bounded cost */

static inline int cv_ledger_init(cv_ledger *l, cv_run *run, cv_arena *arena) {
    l->run = run;
    l->arena = arena;
    l->freed = 0;
    l->account = calloc(run->mailboxes, sizeof *l->account);
    return l->account ? 0 : -1;
}

static inline void cv_ledger_free_all(cv_ledger *l) {
    for (uint32_t m = 0; l->account && m < l->run->mailboxes; m++) {
        if (!l->account[m]) continue;
        for (unsigned lane = 0; lane < CV_LANES; lane++) free(l->account[m]->lane[lane].at);
        free(l->account[m]->held.at);
        free(l->account[m]);
    }
    free(l->account);
    l->account = NULL;
}

static inline cv_account *cv_account_of(cv_ledger *l, uint32_t mailbox) {
    if (!l->account[mailbox]) l->account[mailbox] = calloc(1, sizeof(cv_account));
    return l->account[mailbox];
}

/* Make room for one more, before anything is published that would have to be noted. */
static inline bool cv_fifo_reserve(cv_fifo *f) {
    if (f->n < f->room) return true;
    uint32_t room = f->room ? 2 * f->room : 64;
    cv_posted *at = malloc(room * sizeof *at);
    if (!at) return false;
    for (uint32_t i = 0; i < f->n; i++) at[i] = f->at[(f->first + i) & (f->room - 1)];
    free(f->at);
    f->at = at;
    f->first = 0;
    f->room = room;
    return true;
}
static inline void cv_fifo_push(cv_fifo *f, cv_posted p) { f->at[(f->first + f->n++) & (f->room - 1)] = p; }

static inline void cv_ledger_drop(cv_ledger *l, cv_account *a, uint64_t ref) {
    a->bytes -= cv_chunk_bytes(l->arena, ref);
    cv_free(l->arena, ref);
    l->freed++;
}

/* The in-hand references of a mailbox, read after the slots. */
static inline unsigned cv_hand_refs(cv_mailbox *m, uint64_t refs[CV_HAND]) {
    unsigned n = 0;
    uint64_t high = at_load(&m->hand_high);
    if (high > CV_HAND) high = CV_HAND;
    for (unsigned e = 0; e < high; e++)
        if (cv_meta_state(at_load(&m->hand[e].meta)) != CV_HAND_FREE) refs[n++] = cv_word_ref(at_load(&m->hand[e].ref));
    return n;
}
static inline bool cv_among(const uint64_t *refs, unsigned n, uint64_t ref) {
    for (unsigned i = 0; i < n; i++)
        if (refs[i] == ref) return true;
    return false;
}

/* Free what is finished in one mailbox. */
static inline void cv_ledger_look(cv_ledger *l, uint32_t mailbox) {
    cv_account *a = l->account[mailbox];
    cv_mailbox *m = a ? cv_mailbox_at(l->run, mailbox) : NULL;
    if (!m) return;
    cv_posted gone[CV_LOOK_MOST];
    unsigned n = 0;
    a->posts = 0;
    if (a->state_ref && at_load(&m->state_ref) != a->state_ref) { /* the agent went on in another process */
        uint64_t old = a->state_ref;
        a->state_ref = 0;
        cv_ledger_drop(l, a, old);
    }
    if (a->log_ref && at_load(&m->log_ref) != a->log_ref) { /* likewise */
        uint64_t old = a->log_ref;
        a->log_ref = 0;
        cv_ledger_drop(l, a, old);
    }
    for (unsigned lane = 0; lane < CV_LANES; lane++) {
        cv_fifo *f = &a->lane[lane];
        cv_ring r;
        if (!f->n || !cv_ring_of(l->run, mailbox, m, lane, &r)) continue;
        while (f->n && n < CV_LOOK_MOST) {
            cv_posted p = f->at[f->first & (f->room - 1)];
            uint64_t word = at_load(mb_slot(&r, p.position));
            unsigned state = cv_word_state(word);
            if (cv_word_ref(word) == p.ref && (state == CV_FULL || state == CV_TAKEN)) break; /* later ones wait too */
            gone[n++] = p;
            f->first++;
            f->n--;
        }
    }
    if (!n && !a->held.n) return;
    uint64_t hand[CV_HAND];
    unsigned in_hand = cv_hand_refs(m, hand);
    for (uint32_t i = a->held.n; i-- > 0;) { /* once around: kept entries go to the end */
        cv_posted p = a->held.at[a->held.first++ & (a->held.room - 1)];
        a->held.n--;
        if (cv_among(hand, in_hand, p.ref)) cv_fifo_push(&a->held, p);
        else cv_ledger_drop(l, a, p.ref);
    }
    for (unsigned i = 0; i < n; i++) {
        if (!cv_among(hand, in_hand, gone[i].ref)) cv_ledger_drop(l, a, gone[i].ref);
        else if (cv_fifo_reserve(&a->held)) cv_fifo_push(&a->held, gone[i]);
        /* else: no memory to remember it; the chunk stays taken until a successor rebuilds the ledger */
    }
}

/* Free what is finished anywhere: when there is no room, and before a process goes idle. */
static inline void cv_ledger_look_all(cv_ledger *l) {
    for (uint32_t m = 0; m < cv_records(l->run); m++)
        for (uint64_t before = ~l->freed; l->account[m] && before != l->freed;) {
            before = l->freed;
            cv_ledger_look(l, m);
        }
}

/* Note a publish. The room was reserved before. */
static inline void cv_ledger_note(cv_ledger *l, uint32_t mailbox, unsigned lane, uint64_t position, uint64_t ref) {
    cv_account *a = l->account[mailbox];
    cv_fifo_push(&a->lane[lane], (cv_posted){position, ref});
    a->bytes += cv_chunk_bytes(l->arena, ref);
    if (++a->posts >= CV_LOOK_EVERY || a->bytes > CV_LOOK_BYTES) cv_ledger_look(l, mailbox);
}

/* --- a successor takes over the arena --------------------------------------------------------------------------- */

/* Take over one chunk that a mailbox refers to at that place. False: it is another's, does not check out there, or was
 * taken over already (a message on its way from slot to hand is seen in both; a damaged word may refer to anything). */
static inline bool cv_ledger_adopt(cv_ledger *l, uint64_t *adopted, uint32_t mailbox, unsigned lane, uint32_t position,
                                   uint64_t ref) {
    mb_message seen;
    uint64_t granule = cv_ref_granule(ref), bit = 1ull << (granule % 64);
    if (cv_ref_arena(ref) != l->run->me || !mb_read(l->run, mailbox, lane, position, ref, &seen)) return false;
    if (adopted[granule / 64] & bit || !cv_arena_adopt(l->arena, ref, seen.header.granules)) return false;
    adopted[granule / 64] |= bit;
    return true;
}

/* Note a chunk that was taken over, in one of the lanes or in hand. False: out of memory. */
static inline bool cv_ledger_keep(cv_ledger *l, uint32_t mailbox, unsigned lane, cv_posted p) {
    cv_account *a = cv_account_of(l, mailbox);
    cv_fifo *to = a ? lane < CV_LANES ? &a->lane[lane] : &a->held : NULL;
    if (!a || !cv_fifo_reserve(to)) return false;
    cv_fifo_push(to, p);
    a->bytes += cv_chunk_bytes(l->arena, p.ref);
    return true;
}

static inline bool cv_ledger_rebuild_one(cv_ledger *l, uint64_t *adopted, uint32_t mailbox, cv_mailbox *m) {
    for (unsigned lane = 0; lane < CV_LANES; lane++) {
        cv_ring r;
        if (!cv_ring_of(l->run, mailbox, m, lane, &r) || mb_is_empty(&r)) continue;
        uint64_t head = at_load(r.head);
        for (uint64_t p = head; p - head <= r.mask; p++) {
            uint64_t word = at_load(mb_slot(&r, p)), ref = cv_word_ref(word);
            unsigned state = cv_word_state(word);
            if ((state == CV_FULL || state == CV_TAKEN) && cv_ledger_adopt(l, adopted, mailbox, lane, mb_short(&r, p), ref) &&
                !cv_ledger_keep(l, mailbox, lane, (cv_posted){p, ref}))
                return false;
        }
    }
    for (unsigned e = 0; e < CV_HAND; e++) {
        uint64_t meta = at_load(&m->hand[e].meta), word = at_load(&m->hand[e].ref), ref = cv_word_ref(word);
        unsigned lane = (unsigned)(word >> 40) & 3u;
        if (cv_meta_state(meta) >= CV_HAND_RUNNING && lane < CV_LANES &&
            cv_ledger_adopt(l, adopted, mailbox, lane, cv_meta_position(meta), ref) &&
            !cv_ledger_keep(l, mailbox, CV_LANES, (cv_posted){0, ref}))
            return false;
    }
    uint64_t state = at_load(&m->state_ref), log = at_load(&m->log_ref);
    if (state && !cv_ledger_adopt(l, adopted, mailbox, CV_LANE_STATE, 0, state)) state = 0;
    if (log && !cv_ledger_adopt(l, adopted, mailbox, CV_LANE_LOG, 0, log)) log = 0;
    if (!state && !log) return true;
    cv_account *a = cv_account_of(l, mailbox);
    if (!a) return false;
    a->state_ref = state;
    a->log_ref = log;
    if (state) a->bytes += cv_chunk_bytes(l->arena, state);
    if (log) a->bytes += cv_chunk_bytes(l->arena, log);
    return true;
}

/* Find every chunk of this slot's arena that some mailbox still refers to, by the same reading as above: slots first,
 * then hands, then states. Whatever nothing refers to is free. -1: out of memory. */
static inline int cv_ledger_rebuild(cv_ledger *l) {
    cv_run *run = l->run;
    if (!cv_arena_has_memory(l->arena)) return 0; /* the slot's first process: every mailbox is a page it need not touch */
    uint64_t *adopted = calloc(run->arena_size[run->me] / CV_GRANULE / 64 + 1, sizeof *adopted);
    if (!adopted) return -1;
    bool done = true;
    for (uint32_t mailbox = 0; done && mailbox < cv_records(run); mailbox++) {
        cv_mailbox *m = cv_mailbox_at(run, mailbox);
        if (m) done = cv_ledger_rebuild_one(l, adopted, mailbox, m);
    }
    if (done) cv_arena_settle(l->arena, adopted);
    free(adopted);
    return done ? 0 : -1;
}

#endif
