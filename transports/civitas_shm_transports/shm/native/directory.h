/* The directory and the host's operations on a run: one writer, the host. Everything is allocated and filled first and
 * published by one word last, so a host that is killed in the middle of any of these leaves nothing half done.
 */
#ifndef CV_DIRECTORY_H
#define CV_DIRECTORY_H

#include "port.h"
#include "waits.h"

static inline uint32_t cv_ring_log2(uint32_t capacity) {
    uint32_t log2 = CV_RING_MIN_LOG2;
    while (log2 < CV_RING_MAX_LOG2 && (1u << log2) <= capacity) log2++; /* one place more, for the MARK */
    return log2;
}

static inline uint64_t cv_mailbox_size(uint32_t slots, const uint32_t capacity[CV_LANES]) {
    uint64_t size = cv_mailbox_head(slots);
    for (unsigned lane = 0; lane < CV_LANES; lane++) size += 8ull << cv_ring_log2(capacity[lane]);
    return cv_align(size, CV_LINE);
}

/* Add a record and its mailbox. The index, or -errno (ENOSPC: shared memory full; ENOMEM: no record or address space
 * left; EINVAL: impossible capacity or name). `mail_fd`: to ask the kernel for memory before it is touched. */
static inline int64_t cv_directory_add(cv_run *run, int mail_fd, const char *name, size_t name_len,
                                       const uint32_t capacity[CV_LANES], unsigned overflow, uint32_t replicas,
                                       uint64_t first_lap) {
    uint32_t index = cv_records(run);
    if (!name_len || name_len > CV_NAME_MAX || overflow > CV_LATEST || !replicas || replicas > CV_REPLICAS_MAX) return -EINVAL;
    for (unsigned lane = 0; lane < CV_LANES; lane++)
        if (!capacity[lane] || capacity[lane] >= 1u << CV_RING_MAX_LOG2) return -EINVAL;
    if (index >= run->mailboxes) return -ENOMEM;
    at_u64 *end = cv_mail_end(run);
    uint64_t at = CV_PAGE, size = cv_mailbox_size(run->slots, capacity);
    if (index) { /* from the last record, not from a counter that could be ahead of it */
        cv_record *last = cv_record_at(run, index - 1);
        at = last->mail_at + last->mail_size;
    }
    if (size > run->mail_size || at > run->mail_size - size) return -ENOMEM;
    uint64_t backed = at_load(end);
    if (at + size > backed) {
        uint64_t to = cv_align(at + size, 256u << 10);
        if (to > run->mail_size) to = run->mail_size;
        int rc;
        do { rc = fallocate(mail_fd, 0, (off_t)backed, (off_t)(to - backed)) ? errno : 0; } while (rc == EINTR);
        if (rc) return -rc;
        at_store(end, to);
    }
    cv_mailbox *m = (cv_mailbox *)(run->mail + at);
    memset(m, 0, size);
    m->magic = CV_MAGIC ^ index;
    m->index = index;
    m->overflow = overflow;
    m->replicas = replicas;
    uint64_t ring_at = cv_mailbox_head(run->slots);
    for (unsigned lane = 0; lane < CV_LANES; lane++) {
        uint32_t log2 = cv_ring_log2(capacity[lane]);
        m->capacity[lane] = capacity[lane];
        m->ring_log2[lane] = log2;
        m->ring_at[lane] = (uint32_t)ring_at;
        uint64_t start = first_lap << log2; /* tests begin two laps before the wrap */
        at_poke(&m->lane[lane].tail, start);
        at_poke(&m->lane[lane].head, start);
        at_u64 *ring = (at_u64 *)((uint8_t *)m + ring_at);
        for (uint64_t i = 0; i < 1ull << log2; i++) at_poke(&ring[i], cv_word(first_lap, CV_EMPTY, 0, 0));
        ring_at += 8ull << log2;
    }
    cv_record *r = cv_record_at(run, index);
    memset(r, 0, sizeof *r);
    r->mail_at = at;
    r->mail_size = size;
    for (unsigned lane = 0; lane < CV_LANES; lane++) {
        r->capacity[lane] = capacity[lane];
        r->ring_log2[lane] = (uint8_t)m->ring_log2[lane];
    }
    r->overflow = (uint8_t)overflow;
    r->replicas = replicas;
    r->name_len = (uint8_t)name_len;
    memcpy(r->name, name, name_len);
    at_poke(&r->word, CV_AGENT_OPEN);
    at_release(cv_count(run), index + 1); /* SYNC POINT "record complete" */
    return index;
}

/* --- a mailbox for another agent: LAYOUT.md, "A mailbox changes hands" ------------------------------------------------ */

/* Nothing waits in it, nobody has anything of it in hand, and nobody listens. */
static inline bool cv_is_empty(cv_run *run, uint32_t index, cv_mailbox *m) {
    for (unsigned lane = 0; lane < CV_LANES; lane++) {
        cv_ring r;
        if (!cv_ring_of(run, index, m, lane, &r) || mb_waiting(&r)) return false;
        uint64_t tail = at_load(r.tail), word = at_load(mb_slot(&r, tail));
        if (cv_word_state(word) != CV_MARK || cv_lap_ahead(word, mb_lap(&r, tail)) != 0) return false;
    }
    for (unsigned e = 0; e < CV_HAND; e++)
        if (cv_meta_state(at_load(&m->hand[e].meta)) != CV_HAND_FREE) return false;
    return !cv_set_any(cv_set_load(&m->listening));
}

/* Give up a closed, empty mailbox and its name: whoever looks up its old handle from now on is refused. A process that has
 * looked before may still be on its way to its CAS, and finds the MARK; so the MARK stays until every process has been
 * seen outside of such a call (the host's probe). False: it is not empty, or has been reused as often as handles count. */
static inline bool cv_retire(cv_run *run, uint32_t index) {
    cv_mailbox *m = cv_mailbox_at(run, index);
    cv_record *r = cv_record_at(run, index);
    uint64_t word = at_load(&r->word), reuse = at_load(&r->reuse);
    if (!m || (word & 0xff) == CV_AGENT_OPEN || reuse >= CV_REUSE_MAX) return false;
    if ((word & 0xff) == CV_AGENT_CLOSED && !cv_is_empty(run, index, m)) return false;
    at_store(&r->word, cv_agent_word(CV_AGENT_FREE, cv_agent_incarnation(word)));
    at_store(&r->reuse, reuse + 1); /* SYNC POINT "old handle refused" */
    return true;
}

/* Let publish go on behind the MARK, which counts as a message that was taken: its word comes never again, so no CAS that
 * was prepared before the close can succeed. */
static inline void cv_reopen_lane(const cv_ring *r) {
    uint64_t tail = mb_help_tail(r), word = at_load(mb_slot(r, tail)), lap = mb_lap(r, tail);
    if (cv_word_state(word) == CV_MARK && cv_lap_ahead(word, lap) == 0)
        at_cas(mb_slot(r, tail), word, cv_word(lap + 1, CV_EMPTY, 0, 0));
    mb_help_tail(r);
    mb_help_head(r);
}

/* A retired mailbox, which no process can be publishing to any more, for an agent of this name. Its rings are what they are:
 * the capacities must want the same. Ends in one word; a host that dies before it leaves the mailbox retired. -EINVAL. */
static inline int64_t cv_reopen(cv_run *run, uint32_t index, const char *name, size_t name_len,
                                const uint32_t capacity[CV_LANES], unsigned overflow, uint32_t replicas) {
    cv_mailbox *m = index < cv_records(run) ? cv_mailbox_at(run, index) : NULL;
    cv_record *r = cv_record_at(run, index);
    if (!m || (at_load(&r->word) & 0xff) != CV_AGENT_FREE || !name_len || name_len > CV_NAME_MAX || overflow > CV_LATEST ||
        !replicas || replicas > CV_REPLICAS_MAX)
        return -EINVAL;
    for (unsigned lane = 0; lane < CV_LANES; lane++)
        if (!capacity[lane] || m->ring_log2[lane] != cv_ring_log2(capacity[lane])) return -EINVAL;
    cv_set_store(&m->readers, (cv_set){{0}});
    at_store(&m->state_ref, 0);
    at_store(&m->log_ref, 0);
    at_store(&m->log_count, 0);
    at_store(&m->log_key, 0);
    at_store(&m->open_number, 0);
    m->overflow = overflow;
    m->replicas = replicas;
    cv_cell *cell = cv_cell_at(run, index);
    for (unsigned i = 0; i < sizeof *cell / 8; i++) at_poke((at_u64 *)cell + i, 0);
    for (unsigned lane = 0; lane < CV_LANES; lane++) {
        cv_ring ring;
        m->capacity[lane] = r->capacity[lane] = capacity[lane];
        if (!cv_ring_of(run, index, m, lane, &ring)) return -EINVAL;
        cv_reopen_lane(&ring);
    }
    r->overflow = (uint8_t)overflow;
    r->replicas = replicas;
    r->name_len = (uint8_t)name_len;
    memcpy(r->name, name, name_len);
    /* SYNC POINT "record complete": all of it, before somebody finds the name */
    at_store(&r->word, cv_agent_word(CV_AGENT_OPEN, cv_agent_incarnation(at_load(&r->word))));
    return cv_handle(run, index);
}

/* The name of a record as it is for this handle; its length, 0: the handle is not the record's any more. Copied between two
 * looks, because the host may be writing another one. */
static inline size_t cv_name(const cv_run *run, uint32_t handle, char out[CV_NAME_MAX]) {
    if (cv_index(handle) >= cv_records(run)) return 0;
    cv_record *r = cv_record_at(run, cv_index(handle));
    if ((at_load(&r->word) & 0xff) == CV_AGENT_FREE || at_load(&r->reuse) != cv_reuse(handle)) return 0;
    size_t size = r->name_len;
    if (size > CV_NAME_MAX) size = CV_NAME_MAX;
    memcpy(out, r->name, size);
    return at_load(&r->reuse) == cv_reuse(handle) ? size : 0;
}

/* The mailbox of a name among the records from `first` on: an open one, else the last that was closed; UINT32_MAX: there is none. */
static inline uint32_t cv_find(const cv_run *run, uint32_t first, const char *name, size_t name_len) {
    uint32_t found = UINT32_MAX;
    for (uint32_t index = first; index < cv_records(run); index++) {
        cv_record *r = cv_record_at(run, index);
        char its[CV_NAME_MAX];
        if (r->name_len != name_len) continue;
        uint32_t handle = cv_handle(run, index);
        if (cv_name(run, handle, its) != name_len || memcmp(its, name, name_len)) continue;
        found = handle;
        if ((at_load(&r->word) & 0xff) == CV_AGENT_OPEN) break;
    }
    return found;
}

/* This incarnation of the agent is about to be started; stored before it is. False, and nothing changes, when the word has
 * come as far already (another replica, a damaged word): the number never goes back, not by closing either. */
static inline bool cv_begin_life(cv_run *run, uint32_t mailbox, uint64_t incarnation) {
    at_u64 *word = &cv_record_at(run, mailbox)->word;
    uint64_t now = at_load(word);
    if (incarnation <= cv_agent_incarnation(now) || incarnation > CV_INCARNATION_MAX) return false;
    at_store(word, cv_agent_word(now & 0xff, incarnation));
    return true;
}

/* The highest incarnation of any agent that this run has had; those whose mailbox is closed count too. */
static inline uint64_t cv_last_incarnation(cv_run *run) {
    uint64_t last = 0;
    for (uint32_t index = run->slots; index < cv_records(run); index++) {
        uint64_t its = cv_agent_incarnation(at_load(&cv_record_at(run, index)->word));
        if (its > last) last = its;
    }
    return last;
}

/* Who reads from now on. In-hand entries of readers that are no longer in the set and have done with them go to the lowest
 * reader of the new set, which redelivers them: readers that are dead (in `dead`), and those whose agent has ended in a
 * process that lives on, which is what not listening says of one that the host does not count among the readers.
 * SYNC POINT "left in hand". */
static inline void cv_set_readers(cv_run *run, uint32_t mailbox, cv_set readers, cv_set dead) {
    cv_mailbox *m = cv_mailbox_at(run, mailbox);
    if (!m) return;
    if (cv_set_any(readers)) {
        unsigned heir = 0;
        while (!cv_set_has(readers, heir)) heir++;
        const cv_set listening = cv_set_load(&m->listening);
        for (unsigned e = 0; e < CV_HAND; e++) {
            uint64_t meta = at_load(&m->hand[e].meta);
            unsigned reader = cv_meta_reader(meta);
            if (cv_meta_state(meta) == CV_HAND_RUNNING && !cv_set_has(readers, reader) &&
                (cv_set_has(dead, reader) || !cv_set_has(listening, reader)))
                at_cas(&m->hand[e].meta, meta, cv_meta_moved(meta, heir));
        }
    }
    cv_set_store(&m->readers, readers); /* SYNC POINT "moved reader": all words, before the new reader's first scan */
}

/* End all lanes: nothing can be committed any more. False: damaged words are in the way of one; take what can be taken and
 * call again. Who waits for room is told, and finds the mailbox closed. */
static inline bool cv_close(cv_run *run, uint32_t mailbox) {
    cv_mailbox *m = cv_mailbox_at(run, mailbox);
    bool closed = true;
    for (unsigned lane = 0; m && lane < CV_LANES; lane++) {
        cv_ring r;
        if (cv_ring_of(run, mailbox, m, lane, &r)) closed = mb_close_lane(&r) && closed;
    }
    if (closed) {
        cv_record *r = cv_record_at(run, mailbox);
        at_store(&r->word, cv_agent_word(CV_AGENT_CLOSED, cv_agent_incarnation(at_load(&r->word))));
    }
    if (m) mb_tell_waiters(run, m);
    return closed;
}

/* Repair after proof of death, then wake everybody: its doorbells may be unrung, room it promised untold. */
static inline unsigned cv_slot_recover(cv_run *run, unsigned dead) {
    unsigned repaired = 0;
    for (uint32_t index = 0; index < cv_records(run); index++) {
        cv_mailbox *m = cv_mailbox_at(run, index);
        cv_ring rings[CV_LANES];
        bool sound = m != NULL;
        for (unsigned lane = 0; sound && lane < CV_LANES; lane++) sound = cv_ring_of(run, index, m, lane, &rings[lane]);
        if (!sound) continue;
        repaired += mb_recover(m, rings, dead);
        cv_effect_settle(run, m, dead);
        at_store(&cv_slot_at(run, dead)->wants_memory, 0);
        cv_set_leave(&m->listening, dead);
        cv_set_leave(&m->waiters, dead);
        cv_set_leave(&m->wanting, dead);
        if (cv_set_has(cv_set_load(&m->readers), dead)) cv_wait_clear(run, index);
    }
    return repaired;
}

static inline void cv_ring_all(cv_run *run) {
    for (unsigned slot = 0; slot < run->slots; slot++) {
        at_or(&cv_slot_at(run, slot)->alarm, CV_ALARM_SCAN | CV_ALARM_ROOM);
        cv_door_write(run->door[slot]); /* whatever its parity: it may be about to sleep */
    }
}

/* The readers that have a message of this mailbox in hand. */
static inline cv_set cv_busy_readers(cv_mailbox *m) {
    cv_set busy = {{0}};
    for (unsigned e = 0; e < CV_HAND; e++) {
        uint64_t meta = at_load(&m->hand[e].meta);
        if (cv_meta_state(meta) == CV_HAND_CLAIMED || cv_meta_state(meta) == CV_HAND_RUNNING)
            cv_set_add(&busy, cv_meta_reader(meta));
    }
    return busy;
}

/* Who waits for a place in a mailbox that has one, or whose announcement was taken. */
static inline cv_set cv_untold(cv_run *run, uint32_t index, cv_mailbox *m) {
    cv_set wanting = cv_set_load(&m->wanting);
    bool room = true, any = cv_set_any(wanting);
    cv_ring r;
    for (unsigned lane = 0; any && lane < CV_LANES; lane++)
        room &= cv_ring_of(run, index, m, lane, &r) && mb_waiting(&r) < r.capacity;
    return room ? wanting : cv_set_without(wanting, cv_set_load(&m->waiters));
}

/* Processes that sleep beside work, announced or not, or whose wait for room somebody has taken note of and told
 * nothing: ring them, and count. Only a process that was stopped between publish and doorbell, or between taking
 * `waiters` and telling them, leaves such a state. Rung but not awake yet is no miss, so the same sleep must be seen in
 * two polls. */
static inline unsigned cv_safety_poll(cv_run *run) {
    cv_set told_nothing = {{0}}; /* sleeps beside work, or beside room that it waits for */
    for (uint32_t index = 0; index < cv_records(run); index++) {
        cv_mailbox *m = cv_mailbox_at(run, index);
        if (!m) continue;
        told_nothing = cv_set_both(told_nothing, cv_untold(run, index, m));
        /* A reply lane is read whenever its process is awake; nobody has to listen there. */
        cv_set listening = cv_set_load(&m->readers);
        if (index >= run->slots) listening = cv_set_common(listening, cv_set_load(&m->listening));
        cv_ring r;
        uint64_t waiting = 0;
        for (unsigned lane = 0; lane < CV_LANES && cv_set_any(listening); lane++)
            if (cv_ring_of(run, index, m, lane, &r)) waiting += mb_waiting(&r);
        /* Who has a message in hand looks for the next one by itself. */
        if (waiting) told_nothing = cv_set_both(told_nothing, cv_set_without(listening, cv_busy_readers(m)));
    }
    unsigned missed = 0;
    for (unsigned slot = 1; slot < run->slots; slot++) {
        cv_slot *s = cv_slot_at(run, slot);
        uint64_t seq = at_load(&s->park_seq);
        bool work = cv_set_has(told_nothing, slot) || (at_load(&s->alarm) & ~(uint64_t)CV_ALARM_PROBE) != 0;
        for (uint32_t w = 0; !work && w < cv_bit_words(run); w++) work = at_load(&cv_slot_bits(run, slot)[w]) != 0;
        if (!work && seq & 1 && at_load(&s->wants_memory)) { /* only itself can see whether there is some: no miss */
            at_or(&s->alarm, CV_ALARM_ROOM);
            cv_door_write(run->door[slot]);
        }
        if (!(seq & 1) || !work || at_load(&s->state) != CV_SLOT_LIVE) {
            run->polled[slot] = 0;
        } else if (run->polled[slot] == seq) {
            missed++;
            at_add(&s->missed, 1);
            at_or(&s->alarm, CV_ALARM_SCAN | CV_ALARM_ROOM);
            cv_door_write(run->door[slot]);
        } else {
            run->polled[slot] = seq;
        }
    }
    return missed;
}

#endif
