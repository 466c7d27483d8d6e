/* What the handler of an agent waits for, in its cell: written by its process while it waits long, read by the host.
 *
 * One writer per cell. `id` is zero while the rest is written and is stored last, so a reader that finds the same id
 * before and after has what belongs together; one that does not leaves it out and never waits for a writer, who may be
 * stopped. What it means is decided elsewhere (civitas_shm/deadlock.py), on two readings.
 */
#ifndef CV_WAITS_H
#define CV_WAITS_H

#include "run.h"

typedef struct {
    uint64_t id, on, since_ns, seen_ns;
    char type[CV_WAIT_TYPE]; /* ends with a zero */
} cv_wait;

static inline uint32_t cv_wait_target(const cv_wait *w) { return (uint32_t)w->on; }
static inline unsigned cv_wait_kind(const cv_wait *w) { return (unsigned)(w->on >> 32) & 1u; }

static inline void cv_wait_clear(cv_run *run, uint32_t agent) {
    at_store(&cv_cell_at(run, agent)->wait.id, 0);
    at_poke(&cv_cell_at(run, agent)->wants_room_in, 0);
}

/* Note, or note again: then only the time is new. */
static inline void cv_wait_note(cv_run *run, uint32_t agent, const cv_wait *w) {
    cv_cell *cell = cv_cell_at(run, agent);
    if (at_peek(&cell->wait.id) != w->id || at_peek(&cell->wait.on) != w->on) {
        at_store(&cell->wait.id, 0);
        at_store(&cell->wait.on, w->on);
        at_store(&cell->wait.since_ns, w->since_ns);
        at_store(&cell->wait.seen_ns, w->seen_ns);
        for (unsigned i = 0; i < CV_WAIT_TYPE / 8; i++) {
            uint64_t word;
            memcpy(&word, w->type + 8 * i, 8);
            at_store(&cell->wait.type[i], word);
        }
        at_store(&cell->wait.id, w->id);
    }
    at_store(&cell->wait.seen_ns, w->seen_ns);
    at_poke(&cell->wants_room_in, cv_wait_kind(w) == CV_WAIT_ROOM ? 1 + (uint64_t)cv_wait_target(w) : 0);
}

/* False: nothing is noted, or it changed while it was read. */
static inline bool cv_wait_read(cv_run *run, uint32_t agent, cv_wait *out) {
    cv_cell *cell = cv_cell_at(run, agent);
    out->id = at_load(&cell->wait.id);
    if (!out->id) return false;
    out->on = at_load(&cell->wait.on);
    out->since_ns = at_load(&cell->wait.since_ns);
    out->seen_ns = at_load(&cell->wait.seen_ns);
    for (unsigned i = 0; i < CV_WAIT_TYPE / 8; i++) {
        uint64_t word = at_load(&cell->wait.type[i]);
        memcpy(out->type + 8 * i, &word, 8);
    }
    out->type[CV_WAIT_TYPE - 1] = 0;
    return at_load(&cell->wait.id) == out->id && cv_index(cv_wait_target(out)) < cv_records(run);
}

#endif
