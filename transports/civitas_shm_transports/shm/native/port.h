/* One process's door: what the binding calls. Puts run, arena, ledger and mailboxes together; no Python in it.
 *
 * Contracts stand in civitas_shm/transport.py (Port). Outcomes are its numbers: PORT_SENT and below.
 */
#ifndef CV_PORT_H
#define CV_PORT_H

#include <sched.h>

#include "effect.h"

enum { PORT_SENT = 0, PORT_FULL = -1, PORT_CLOSED = -2, PORT_NO_MEMORY = -3, PORT_TOO_LARGE = -4, PORT_UNKNOWN = -5 };

#define PORT_REPLY_PLACES 4096u /* asks at once of one process; its reply lane has twice as many places */

typedef struct {
    cv_run run;
    cv_arena arena;
    cv_ledger ledger;
    uint64_t random;      /* state of id generation; seeded by the kernel */
    uint64_t asks;        /* counter of correlations */
    uint64_t id_ms;       /* of the newest id */
    uint64_t refused;     /* bytes that the last post was refused for want of memory; 0 = it was not */
    uint64_t number, numbers; /* of the last send of a handler; up to where numbers are set aside */
    uint32_t forgetful;   /* 1 + mailbox of an agent whose handler just sent more than is remembered; the binding tells */
    cv_effect **effect;   /* by mailbox: the agents of this process that have a mailbox to themselves */
} cv_port;

/* Let go of private memory; the mappings are the caller's. */
static inline void port_leave(cv_port *p) {
    for (uint32_t i = 0; p->effect && i < p->run.mailboxes; i++) cv_effect_free(p->effect[i]);
    free(p->effect);
    p->effect = NULL;
    cv_ledger_free_all(&p->ledger);
    cv_arena_free_all(&p->arena);
}

/* Begin as the process of run.me, over what its predecessor left: `run` and `random` are filled in. -1: out of memory. */
static inline int port_attach(cv_port *p, int arena_fd) {
    if (cv_arena_init(&p->arena, &p->run, arena_fd) || cv_ledger_init(&p->ledger, &p->run, &p->arena)) return -1;
    if (cv_ledger_rebuild(&p->ledger)) return -1;
    if (!(p->effect = calloc(p->run.mailboxes, sizeof *p->effect))) return -1;
    p->number = p->numbers = at_load(&cv_slot_at(&p->run, p->run.me)->numbers);
    /* A reply that the predecessor was about to copy out: who asked died with it. */
    cv_mailbox *replies = cv_mailbox_at(&p->run, p->run.me);
    for (uint64_t entries = replies ? mb_in_hand_of(replies, p->run.me) : 0; entries; entries &= entries - 1)
        mb_release(&p->run, replies, (unsigned)__builtin_ctzll(entries));
    cv_rise(&p->run);
    return 0;
}

/* splitmix64: unique, not secret. */
static inline uint64_t port_random(cv_port *p) {
    uint64_t z = (p->random += 0x9e3779b97f4a7c15ull);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* uuid7: 48 bits of milliseconds, then random. The milliseconds of one process never go back, whatever its clock does. */
static inline void port_new_id(cv_port *p, uint64_t time_ns, uint8_t id[16]) {
    uint64_t now_ms = time_ns / 1000000;
    if (now_ms > p->id_ms) p->id_ms = now_ms;
    uint64_t high = p->id_ms << 16 | 0x7000 | (port_random(p) & 0x0fff);
    uint64_t low = (port_random(p) >> 2) | 0x8000000000000000ull;
    high = __builtin_bswap64(high);
    low = __builtin_bswap64(low);
    memcpy(id, &high, 8);
    memcpy(id + 8, &low, 8);
}

/* Relaxed counting; replicas share a cell, so there it must be one read-modify-write. */
static inline void port_count(cv_mailbox *m, at_u64 *counter, uint64_t by) {
    if (m && m->replicas > 1) at_add(counter, by);
    else at_poke(counter, at_peek(counter) + by);
}

typedef struct {
    uint32_t mailbox;  /* index */
    uint32_t reuse;    /* of the handle that the sender has */
    uint32_t sender;   /* handle */
    unsigned lane;
    uint8_t flags;
    int32_t priority;
    const void *payload;
    uint64_t payload_len;
    const char *type;
    uint64_t type_len;
    const cv_header *cause; /* NULL: a new trace begins */
    uint64_t correlation, deadline_ns;
    cv_effect *effect;   /* of the handler that sends; NULL: nothing is remembered of this post */
    uint64_t digest, number;
    const uint64_t *id;  /* NULL: a new one */
    uint32_t seq;  /* of a stream: chunk, from 1 on; of its question, CV_STREAM | first credits; 0 = no stream */
    uint16_t hops; /* how often a copy of it was posted before */
} port_post;

/* Most bytes that one post may take of this arena: an eighth is kept for replies and control, and one mailbox may hold
 * half of the rest. */
static inline uint64_t port_limit(const cv_port *p, const port_post *post) {
    bool kept = (post->flags & CV_FLAG_REPLY) || post->lane == CV_LANE_CONTROL;
    return kept ? p->arena.limit : p->arena.limit / 8 * 7;
}

/* The largest payload that a post of no type can commit, now or ever. */
static inline uint64_t port_payload_max(const cv_port *p) { return p->arena.limit / 8 * 7 / 2 - sizeof(cv_header); }

/* Whether one mailbox may hold `size` more bytes of this arena. */
static inline bool port_may_hold(const cv_account *account, uint64_t size, uint64_t limit) {
    return account->bytes + size <= limit / 2;
}

/* Room for a message, with the header filled in but for position and check. 0 = none; *outcome says why. */
static inline uint64_t port_chunk(cv_port *p, const port_post *post, cv_header **header, int *outcome) {
    uint64_t size = sizeof(cv_header) + post->type_len + post->payload_len, limit = port_limit(p, post);
    if (post->payload_len > UINT32_MAX || size > port_payload_max(p) + sizeof(cv_header)) {
        *outcome = PORT_TOO_LARGE;
        return 0;
    }
    cv_account *account = cv_account_of(&p->ledger, post->mailbox);
    *outcome = PORT_NO_MEMORY;
    p->refused = size;
    if (!account || (post->lane < CV_LANES && !cv_fifo_reserve(&account->lane[post->lane]))) return 0;
    if (!port_may_hold(account, size, limit)) {
        cv_ledger_look(&p->ledger, post->mailbox);
        if (!port_may_hold(account, size, limit)) return 0;
    }
    uint64_t ref = cv_alloc(&p->arena, size, limit);
    if (!ref) {
        cv_ledger_look_all(&p->ledger);
        if (!(ref = cv_alloc(&p->arena, size, limit))) return 0;
    }
    p->refused = 0;
    cv_header *h = (cv_header *)(p->run.arena[p->run.me] + cv_ref_granule(ref) * CV_GRANULE);
    uint64_t now = cv_now_ns(CLOCK_REALTIME), span = port_random(p);
    *h = (cv_header){.granules = (uint32_t)((size + CV_GRANULE - 1) / CV_GRANULE),
                     .payload_len = (uint32_t)post->payload_len,
                     .type_len = (uint16_t)post->type_len,
                     .codec = 1,
                     .flags = post->flags,
                     .mailbox = post->mailbox,
                     .lane = (uint8_t)post->lane,
                     .hops = post->hops,
                     .sender = post->sender,
                     .priority = post->priority,
                     .correlation = post->correlation,
                     .deadline_ns = post->deadline_ns,
                     .time_ns = now,
                     .seq = post->seq,
                     .number = post->number,
                     .asker = post->flags & CV_FLAG_REPLY ? post->cause->sender : 0};
    if (post->id) memcpy(h->id, post->id, 16);
    else port_new_id(p, now, h->id);
    memcpy(h->span_id, &span, 8);
    if (post->cause) {
        memcpy(h->trace_id, post->cause->trace_id, 16);
        memcpy(h->parent_span_id, post->cause->span_id, 8);
    } else {
        uint64_t trace[2] = {port_random(p), port_random(p)};
        memcpy(h->trace_id, trace, 16);
    }
    memcpy((uint8_t *)(h + 1), post->type, post->type_len);
    memcpy((uint8_t *)(h + 1) + post->type_len, post->payload, post->payload_len);
    *header = h;
    return ref;
}

/* The cell of a sender; NULL: it is no agent, or is gone and its cell is another one's. */
static inline cv_cell *port_cell(cv_port *p, uint32_t handle) {
    return cv_is_current(&p->run, handle) ? cv_cell_at(&p->run, cv_index(handle)) : NULL;
}

static inline int port_reply(cv_port *p, const cv_header *cause, port_post *post);

/* Drop the oldest message that waits; who asked it is told so, instead of waiting for its deadline. */
static inline bool port_drop_oldest(cv_port *p, const cv_ring *r, uint32_t mailbox) {
    cv_header asked;
    if (!mb_drop_oldest(&p->run, r, &asked)) return false;
    if (asked.flags & CV_FLAG_ASK) {
        port_post post = {.sender = mailbox, .flags = CV_FLAG_FAILED, .payload = "", .type = CV_DROPPED,
                          .type_len = sizeof CV_DROPPED - 1};
        uint64_t refused = p->refused;
        port_reply(p, &asked, &post); /* no memory for it: the deadline is what remains */
        p->refused = refused;
    }
    return true;
}

/* Make room by policy and publish. A reader in the middle of a take lets nothing be dropped for a moment; on the same
 * core it needs that core. */
static inline int port_publish_dropping(cv_port *p, cv_mailbox *m, const cv_ring *r, cv_header *h, uint64_t ref,
                                        uint64_t *position, uint64_t *dropped) {
    uint32_t mailbox = h->mailbox;
    if (m->overflow == CV_LATEST)
        while (*dropped <= r->mask && port_drop_oldest(p, r, mailbox)) ++*dropped;
    for (unsigned tries = 0;; tries++) {
        int outcome = mb_publish(&p->run, r, h, ref, position);
        if (outcome != MB_FULL || tries == 1024) return outcome;
        if (port_drop_oldest(p, r, mailbox)) ++*dropped;
        else if (tries % 64 == 63) sched_yield();
        else at_pause();
    }
}

/* Commit one message. The outcome; nothing is left behind unless it is PORT_SENT. */
static inline int port_send(cv_port *p, const port_post *post) {
    cv_mailbox *m = cv_mailbox_at(&p->run, post->mailbox);
    cv_ring r;
    if (post->mailbox >= cv_records(&p->run) || post->lane >= CV_LANES || post->type_len > UINT16_MAX) return PORT_UNKNOWN;
    if (!m || !cv_ring_of(&p->run, post->mailbox, m, post->lane, &r)) return PORT_CLOSED; /* damaged: nobody can read it */
    /* SYNC POINT "old handle refused": from here to the CAS under the GIL; pairs with cv_retire and what the host waits for. */
    if (at_load(&cv_record_at(&p->run, post->mailbox)->reuse) != post->reuse) return PORT_CLOSED;
    bool drops = m->overflow >= CV_DROP_OLDEST;
    cv_header *h;
    int outcome = drops ? MB_OK : mb_refuses(&r);
    if (outcome != MB_OK) { /* told before the payload is copied */
        p->refused = 0;
        return outcome == MB_FULL ? PORT_FULL : PORT_CLOSED;
    }
    uint64_t position = 0, dropped = 0, ref = port_chunk(p, post, &h, &outcome);
    if (!ref) return outcome;
    if (post->effect) cv_effect_intend(post->effect, post->digest, post->number, post->mailbox, post->lane, ref);
    outcome = drops ? port_publish_dropping(p, m, &r, h, ref, &position, &dropped)
                    : mb_publish(&p->run, &r, h, ref, &position);
    if (dropped) {
        at_add(&cv_cell_at(&p->run, post->mailbox)->dropped, dropped);
        mb_tell_waiters(&p->run, m); /* who waits for memory there may have it now */
    }
    if (outcome != MB_OK) {
        if (post->effect) cv_effect_undo(post->effect);
        cv_free(&p->arena, ref);
        return outcome == MB_CLOSED ? PORT_CLOSED : PORT_FULL;
    }
    cv_notify(&p->run, post->mailbox, &m->readers); /* SYNC POINT "moved reader" */
    cv_ledger_note(&p->ledger, post->mailbox, post->lane, position, ref);
    cv_cell *cell = port_cell(p, post->sender);
    if (cell) {
        at_poke(&cell->sent, at_peek(&cell->sent) + 1);
        at_poke(&cell->bytes_out, at_peek(&cell->bytes_out) + post->payload_len);
    }
    return PORT_SENT;
}

/* --- from inside of a handler ------------------------------------------------------------------------------------- */

/* What is remembered of the handler that sends, or NULL: the program itself, a task that has outlived its handler, an agent
 * that shares its mailbox. */
static inline cv_effect *port_handler(const cv_port *p, const port_post *post) {
    cv_effect *e = post->cause && cv_index(post->sender) < p->run.mailboxes ? p->effect[cv_index(post->sender)] : NULL;
    return e && e->current == cv_id_low(post->cause->id) ? e : NULL;
}

static inline void port_one_more(at_u64 *counter) { at_poke(counter, at_peek(counter) + 1); }

/* A number that no message of this process's slot has had: evidence of one publish, see native/effect.h. */
static inline uint64_t port_next_number(cv_port *p) {
    if (p->number == p->numbers) at_store(&cv_slot_at(&p->run, p->run.me)->numbers, p->numbers += CV_NUMBERS);
    return ++p->number;
}

/* port_send, once: what an earlier life of the running handler has sent is not sent again. `e` from port_handler. */
static inline int port_send_once(cv_port *p, port_post *post, cv_effect *e) {
    cv_cell *cell = cv_cell_at(&p->run, cv_index(post->sender));
    bool diverged = e->unmet, remembered = false;
    if (diverged || !cv_log_is_full(e)) {
        uint64_t digest = cv_digest(cv_digest(post->mailbox, post->type, post->type_len), post->payload, post->payload_len);
        if (!digest) digest = 1; /* 0 says "met" */
        if (diverged && cv_effect_meets(e, digest)) {
            port_one_more(&cell->replay_dropped);
            return PORT_SENT;
        }
        if ((remembered = cv_log_ready(&p->ledger, cv_index(post->sender), e))) {
            post->effect = e;
            post->digest = digest;
            post->number = port_next_number(p);
        }
    }
    if (!remembered && e->deliveries > 1) post->flags |= CV_FLAG_REPEATED;
    int outcome = port_send(p, post);
    if (outcome == PORT_SENT && diverged) port_one_more(&cell->replay_diverged);
    if (outcome != PORT_SENT || remembered) return outcome;
    port_one_more(&cell->not_remembered);
    if (!e->told) p->forgetful = 1 + post->sender;
    e->told = true;
    return outcome;
}

/* port_send of a question. Its answer dies with the process, so a handler that runs again asks again; but with the same
 * id, if it makes the same asks in the same order, and marked. The time in the id is that of the message in hand. */
static inline int port_ask_once(cv_port *p, port_post *post, cv_effect *e) {
    uint64_t id[2];
    memcpy(id, post->cause->id, 8);
    uint64_t bits = cv_fold(e->current ^ 0xa0761d6478bd642full, cv_digest(e->asks + 1, post->type, post->type_len));
    id[0] = __builtin_bswap64((__builtin_bswap64(id[0]) & ~0x0fffull) | (bits & 0x0fff));
    id[1] = __builtin_bswap64((cv_digest(bits, post->payload, post->payload_len) >> 2) | 0x8000000000000000ull);
    post->id = id;
    if (e->deliveries > 1) post->flags |= CV_FLAG_REPEATED;
    int outcome = port_send(p, post);
    if (outcome == PORT_SENT) e->asks++;
    return outcome;
}

/* This process begins to read for an agent, or ends. Only an agent that has its mailbox to itself is remembered. */
static inline void port_remember(cv_port *p, uint32_t mailbox, cv_mailbox *m, bool on) {
    cv_effect_free(p->effect[mailbox]);
    cv_effect *e = p->effect[mailbox] = on && m->replicas == 1 ? calloc(1, sizeof *e) : NULL;
    mb_message state;
    if (!e) return; /* out of memory too: then its sends are at least once */
    e->m = m;
    uint64_t ref = at_load(&m->state_ref);
    if (ref && mb_read(&p->run, mailbox, CV_LANE_STATE, 0, ref, &state)) e->tag = cv_id_low(state.header.id);
}

enum { PORT_ROOM_NOW = 1, PORT_ROOM_LATER = 0, PORT_ROOM_NEVER = -1 };

/* Announce that this process waits for what its last post to `mailbox` was refused: room in the lanes, or memory.
 * PORT_ROOM_NOW: it is there already, do not sleep. PORT_ROOM_NEVER: memory is short and no message of this process is on
 * its way that could give some back. The look comes after the announcement: what is released before is seen here, what
 * is released later tells. */
static inline int port_want_room(cv_port *p, uint32_t mailbox) {
    cv_mailbox *m = cv_mailbox_at(&p->run, mailbox);
    cv_account *account = m ? cv_account_of(&p->ledger, mailbox) : NULL;
    if (!account) return PORT_ROOM_LATER;
    if (p->refused) mb_want_memory(&p->run);
    else mb_want(&p->run, m, mailbox);
    mb_wait(&p->run, m);
    if (p->refused) {
        bool on_its_way = false;
        uint64_t limit = p->arena.limit / 8 * 7;
        for (uint32_t i = 0; i < cv_records(&p->run); i++) { /* any mailbox that holds a chunk of ours may give it back */
            cv_mailbox *holder = p->ledger.account[i] && p->ledger.account[i]->bytes ? cv_mailbox_at(&p->run, i) : NULL;
            if (holder) mb_wait(&p->run, holder);
        }
        cv_ledger_look_all(&p->ledger);
        for (uint32_t i = 0; i < cv_records(&p->run); i++) {
            const cv_account *a = p->ledger.account[i];
            on_its_way |= a && (a->held.n || a->lane[0].n || a->lane[1].n || a->lane[2].n);
        }
        uint64_t ref = port_may_hold(account, p->refused, limit) ? cv_alloc(&p->arena, p->refused, limit) : 0;
        if (!ref) return on_its_way ? PORT_ROOM_LATER : PORT_ROOM_NEVER;
        cv_free(&p->arena, ref);
    }
    for (unsigned lane = 0; lane < CV_LANES; lane++) { /* the caller finds out by posting whether it was its own */
        cv_ring r;
        if (cv_ring_of(&p->run, mailbox, m, lane, &r) && mb_waiting(&r) >= r.capacity) return PORT_ROOM_LATER;
    }
    return PORT_ROOM_NOW;
}

/* Answer `cause`. The asker keeps a place, so this never waits. PORT_CLOSED: nobody waits any more. */
static inline int port_reply(cv_port *p, const cv_header *cause, port_post *post) {
    unsigned slot = cv_correlation_slot(cause->correlation);
    if (!cause->correlation || slot >= p->run.slots) return PORT_CLOSED;
    if ((at_load(&cv_slot_at(&p->run, slot)->incarnation) & CV_INCARNATION_MASK) != cv_correlation_incarnation(cause->correlation))
        return PORT_CLOSED;
    if (cause->deadline_ns && cv_now_ns(CLOCK_MONOTONIC) > cause->deadline_ns) return PORT_CLOSED;
    post->mailbox = slot; /* the first mailboxes are the reply lanes of the slots */
    post->lane = CV_LANE_NORMAL;
    post->flags |= CV_FLAG_REPLY;
    post->cause = cause;
    post->correlation = cause->correlation;
    return port_send(p, post);
}

/* Take the next message: lanes in order. 1 = taken, 0 = nothing, -1 = closed and drained. */
static inline int port_take(cv_port *p, uint32_t mailbox, mb_message *out) {
    cv_mailbox *m = cv_mailbox_at(&p->run, mailbox);
    if (!m) return 0;
    cv_cell *cell = cv_cell_at(&p->run, mailbox);
    int closed = 0;
    for (unsigned lane = 0; lane < CV_LANES; lane++) {
        cv_ring r;
        if (!cv_ring_of(&p->run, mailbox, m, lane, &r)) continue;
        int got = 2;
        for (unsigned tries = 0; got == 2 && tries < MB_TRIES; tries++) {
            out->garbage = false;
            got = mb_take_lane(&p->run, m, mailbox, lane, &r, out);
            if (out->garbage) port_count(m, &cell->garbage, 1);
        }
        if (got == 1) return 1;
        if (got == -1) closed++;
    }
    return closed == CV_LANES ? -1 : 0;
}

/* A handler begins / has ended: cells for `top`, `why` and the watchdog. */
static inline void port_begin(cv_port *p, uint32_t mailbox, const mb_message *msg, uint64_t now_ns) {
    cv_cell *cell = cv_cell_at(&p->run, mailbox);
    at_poke(&cell->busy_since_ns, now_ns);
    at_poke(&cell->bytes_in, at_peek(&cell->bytes_in) + msg->header.payload_len);
    if (msg->deliveries > 1) at_poke(&cell->redelivered, at_peek(&cell->redelivered) + 1);
    if (p->effect[mailbox]) cv_effect_begin(&p->ledger, mailbox, p->effect[mailbox], msg);
}
static inline void port_end(cv_port *p, uint32_t mailbox, unsigned entry, uint64_t now_ns) {
    if (p->effect[mailbox]) cv_effect_end(p->effect[mailbox], entry);
    cv_cell *cell = cv_cell_at(&p->run, mailbox);
    cv_mailbox *m = cv_mailbox_at(&p->run, mailbox);
    uint64_t since = at_peek(&cell->busy_since_ns), took_us = since && now_ns > since ? (now_ns - since) / 1000 : 0;
    unsigned bucket = took_us ? 64 - (unsigned)__builtin_clzll(took_us) : 0;
    port_count(m, &cell->histogram[bucket < CV_HISTOGRAM ? bucket : CV_HISTOGRAM - 1], 1);
    port_count(m, &cell->handled, 1);
    at_poke(&cell->busy_since_ns, 0);
}

/* Store `state` with the id of the message in hand (`cause`): complete chunk first, then one word. */
static inline int port_commit_state(cv_port *p, uint32_t mailbox, const cv_header *cause, const void *state,
                                    uint64_t size) {
    cv_mailbox *m = cv_mailbox_at(&p->run, mailbox);
    if (!m || m->replicas > 1) return PORT_UNKNOWN;
    port_post post = {.mailbox = mailbox, .sender = mailbox, .lane = CV_LANE_STATE, .payload = state,
                      .payload_len = size, .type = "", .cause = cause};
    cv_header *h;
    int outcome;
    /* Old and new state are there at once; what could not be replaced is not stored in the first place. */
    if (sizeof *h + size > p->arena.limit / 8 * 7 / 4) return PORT_TOO_LARGE;
    uint64_t ref = port_chunk(p, &post, &h, &outcome);
    if (!ref) return outcome;
    if (cause) memcpy(h->id, cause->id, 16);
    h->check = cv_header_check(&p->run, h);
    cv_account *account = p->ledger.account[mailbox];
    uint64_t old = account->state_ref;
    at_store(&m->state_ref, ref); /* SYNC POINT "state committed": the chunk is complete; pairs with port_state */
    account->state_ref = ref;
    account->bytes += cv_chunk_bytes(&p->arena, ref);
    if (p->effect[mailbox]) cv_effect_saved(p->effect[mailbox], cv_id_low(h->id));
    if (old) cv_ledger_drop(&p->ledger, account, old);
    return PORT_SENT;
}

/* The committed state: `out` has its header and, in shared memory, its bytes (bounds checked). False: none. */
static inline bool port_state(cv_port *p, uint32_t mailbox, mb_message *out) {
    cv_mailbox *m = cv_mailbox_at(&p->run, mailbox);
    uint64_t ref = m ? at_load(&m->state_ref) : 0; /* SYNC POINT "state committed" */
    return ref && mb_read(&p->run, mailbox, CV_LANE_STATE, 0, ref, out);
}

#endif
