/* One process's door: what the binding calls. Puts run, arena, ledger and mailboxes together; no Python in it.
 *
 * Contracts stand in civitas_shm/transport.py (Port). Outcomes are its numbers: PORT_SENT and below.
 */
#ifndef CV_PORT_H
#define CV_PORT_H

#include "ledger.h"

enum { PORT_SENT = 0, PORT_FULL = -1, PORT_CLOSED = -2, PORT_NO_MEMORY = -3, PORT_TOO_LARGE = -4, PORT_UNKNOWN = -5 };

#define PORT_REPLY_PLACES 4096u /* asks at once of one process; its reply lane has twice as many places */

typedef struct {
    cv_run run;
    cv_arena arena;
    cv_ledger ledger;
    uint64_t random;      /* state of id generation; seeded by the kernel */
    uint64_t asks;        /* counter of correlations */
    bool attached;
} cv_port;

/* splitmix64: unique, not secret. */
static inline uint64_t port_random(cv_port *p) {
    uint64_t z = (p->random += 0x9e3779b97f4a7c15ull);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* uuid7: 48 bits of milliseconds, then random. */
static inline void port_new_id(cv_port *p, uint64_t time_ns, uint8_t id[16]) {
    uint64_t high = (time_ns / 1000000) << 16 | 0x7000 | (port_random(p) & 0x0fff);
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
    uint32_t mailbox, sender;
    unsigned lane;
    uint8_t flags;
    int32_t priority;
    const void *payload;
    uint64_t payload_len;
    const char *type;
    uint64_t type_len;
    const cv_header *cause; /* NULL: a new trace begins */
    uint64_t correlation, deadline_ns;
} port_post;

/* Most bytes that one post may take of this arena: an eighth is kept for replies and control, and one mailbox may hold
 * half of the rest. */
static inline uint64_t port_limit(const cv_port *p, const port_post *post) {
    bool kept = (post->flags & CV_FLAG_REPLY) || post->lane == CV_LANE_CONTROL;
    return kept ? p->arena.limit : p->arena.limit / 8 * 7;
}

/* Room for a message, with the header filled in but for position and check. 0 = none; *outcome says why. */
static inline uint64_t port_chunk(cv_port *p, const port_post *post, cv_header **header, int *outcome) {
    uint64_t size = sizeof(cv_header) + post->type_len + post->payload_len, limit = port_limit(p, post);
    if (post->payload_len > UINT32_MAX || size > p->arena.limit / 8 * 7 / 2) {
        *outcome = PORT_TOO_LARGE;
        return 0;
    }
    cv_account *account = cv_account_of(&p->ledger, post->mailbox);
    *outcome = PORT_NO_MEMORY;
    if (!account || (post->lane < CV_LANES && !cv_fifo_reserve(&account->lane[post->lane]))) return 0;
    if (account->bytes + size > limit / 2) {
        cv_ledger_look(&p->ledger, post->mailbox);
        if (account->bytes + size > limit / 2) return 0;
    }
    uint64_t ref = cv_alloc(&p->arena, size, limit);
    if (!ref) {
        cv_ledger_look_all(&p->ledger);
        if (!(ref = cv_alloc(&p->arena, size, limit))) return 0;
    }
    cv_header *h = (cv_header *)(p->run.arena[p->run.me] + cv_ref_granule(ref) * CV_GRANULE);
    uint64_t now = cv_now_ns(CLOCK_REALTIME), span = port_random(p);
    *h = (cv_header){.granules = (uint32_t)((size + CV_GRANULE - 1) / CV_GRANULE),
                     .payload_len = (uint32_t)post->payload_len,
                     .type_len = (uint16_t)post->type_len,
                     .codec = 1,
                     .flags = post->flags,
                     .mailbox = post->mailbox,
                     .lane = (uint8_t)post->lane,
                     .sender = post->sender,
                     .priority = post->priority,
                     .correlation = post->correlation,
                     .deadline_ns = post->deadline_ns,
                     .time_ns = now,
                     .asker = post->flags & CV_FLAG_REPLY ? post->cause->sender : 0};
    port_new_id(p, now, h->id);
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

static inline cv_cell *port_cell(cv_port *p, uint32_t mailbox) {
    return mailbox < p->run.mailboxes ? cv_cell_at(&p->run, mailbox) : NULL;
}

/* Commit one message. The outcome; nothing is left behind unless it is PORT_SENT. */
static inline int port_send(cv_port *p, const port_post *post) {
    cv_mailbox *m = cv_mailbox_at(&p->run, post->mailbox);
    cv_ring r;
    if (!m || post->lane >= CV_LANES || post->type_len > UINT16_MAX ||
        !cv_ring_of(&p->run, post->mailbox, m, post->lane, &r))
        return PORT_UNKNOWN;
    /* A full mailbox is told before the payload is copied. */
    if (m->overflow <= CV_ERROR && mb_waiting(&r) >= r.capacity && mb_help_head(&r) + r.capacity <= at_load(r.tail))
        if (cv_word_state(at_load(mb_slot(&r, at_load(r.tail)))) != CV_MARK) return PORT_FULL;
    cv_header *h;
    int outcome;
    uint64_t position = 0, ref = port_chunk(p, post, &h, &outcome);
    if (!ref) return outcome;
    uint32_t dropped = 0;
    if (m->overflow == CV_LATEST)
        for (uint64_t old; dropped <= r.mask && mb_drop_oldest(&r, &old);) dropped++;
    do outcome = mb_publish(&p->run, &r, h, ref, &position);
    while (outcome == MB_FULL && m->overflow >= CV_DROP_OLDEST && dropped < 64 + r.mask &&
           (mb_drop_oldest(&r, &(uint64_t){0}) ? ++dropped : (dropped += 8)));
    if (dropped) at_add(&cv_cell_at(&p->run, post->mailbox)->dropped, dropped);
    if (outcome != MB_OK) {
        cv_free(&p->arena, ref);
        return outcome == MB_FULL ? PORT_FULL : PORT_CLOSED;
    }
    /* Readers are looked up after the publish, never cached: a mailbox that just changed its reader is scanned by the
     * new one after the host stored it (route.pml). */
    cv_notify(&p->run, post->mailbox, at_load(&m->readers));
    cv_ledger_note(&p->ledger, post->mailbox, post->lane, position, ref);
    cv_cell *cell = port_cell(p, post->sender);
    if (cell) {
        at_poke(&cell->sent, at_peek(&cell->sent) + 1);
        at_poke(&cell->bytes_out, at_peek(&cell->bytes_out) + post->payload_len);
    }
    return PORT_SENT;
}

/* Answer `cause`. False: nobody waits any more. The asker keeps a place, so this never waits. */
static inline bool port_reply(cv_port *p, const cv_header *cause, port_post *post) {
    unsigned slot = cv_correlation_slot(cause->correlation);
    if (!cause->correlation || slot >= p->run.slots) return false;
    if ((at_load(&cv_slot_at(&p->run, slot)->incarnation) & 0x3ffff) != cv_correlation_incarnation(cause->correlation))
        return false;
    if (cause->deadline_ns && cv_now_ns(CLOCK_MONOTONIC) > cause->deadline_ns) return false;
    post->mailbox = slot; /* the first mailboxes are the reply lanes of the slots */
    post->lane = CV_LANE_NORMAL;
    post->flags |= CV_FLAG_REPLY;
    post->cause = cause;
    post->correlation = cause->correlation;
    return port_send(p, post) == PORT_SENT;
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
}
static inline void port_end(cv_port *p, uint32_t mailbox, uint64_t now_ns) {
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
    uint64_t ref = port_chunk(p, &post, &h, &outcome);
    if (!ref) return outcome;
    if (cause) memcpy(h->id, cause->id, 16);
    h->check = cv_header_check(&p->run, h);
    cv_account *account = p->ledger.account[mailbox];
    uint64_t old = account->state_ref;
    at_store(&m->state_ref, ref); /* SYNC POINT "state committed": the chunk is complete; pairs with port_state */
    account->state_ref = ref;
    account->bytes += cv_chunk_bytes(&p->arena, ref);
    if (old) cv_ledger_drop(&p->ledger, account, old);
    return PORT_SENT;
}

/* The committed state: bytes in shared memory (bounds checked) and a private copy of its header. NULL: none. */
static inline const uint8_t *port_state(cv_port *p, uint32_t mailbox, cv_header *h) {
    cv_mailbox *m = cv_mailbox_at(&p->run, mailbox);
    uint64_t ref = m ? at_load(&m->state_ref) : 0; /* SYNC POINT "state committed" */
    const uint8_t *at = ref ? cv_chunk_at(&p->run, ref, sizeof *h) : NULL;
    if (!at) return NULL;
    memcpy(h, at, sizeof *h);
    if (h->check != cv_header_check(&p->run, h) || h->mailbox != mailbox || h->lane != CV_LANE_STATE ||
        sizeof *h + (uint64_t)h->payload_len > (uint64_t)h->granules * CV_GRANULE ||
        !cv_chunk_at(&p->run, ref, (uint64_t)h->granules * CV_GRANULE))
        return NULL;
    return at + sizeof *h;
}

#endif
