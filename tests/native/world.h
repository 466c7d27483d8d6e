/* A run in memory for the harnesses: segments, doorbells and ports, formatted as memory.py and segments.py do.
 *
 * Rules of this file: segments are memfds, so that nothing is left behind; there is one mapping, shared by all ports
 * (threads, forked children), because ThreadSanitizer knows memory by its address; whatever fails ends the program
 * with a sentence.
 */
#ifndef WORLD_H
#define WORLD_H

#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "directory.h"

__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("FAILED: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}
#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) die(__VA_ARGS__);                                                                            \
    } while (0)
#define EXPECT(condition) CHECK(condition, "%s:%d: %s", __FILE__, __LINE__, #condition)

typedef struct {
    cv_run map; /* what every port starts from; `me` and `incarnation` are its own */
    int mail_fd, arena_fd[CV_SLOTS_MAX];
    uint64_t first_lap;      /* of mailboxes that are added from now on */
    uint32_t reply_capacity; /* 0: 255 */
} world;

static inline uint8_t *world_segment(int *fd, uint32_t kind, uint64_t size, uint64_t back, uint32_t slots,
                                     uint32_t mailboxes, uint32_t owner) {
    static const uint8_t run_id[16] = "civitas harness";
    *fd = memfd_create("civitas-harness", MFD_CLOEXEC);
    CHECK(*fd >= 0 && ftruncate(*fd, (off_t)size) == 0 && fallocate(*fd, 0, 0, (off_t)back) == 0, "no memfd of %llu bytes",
          (unsigned long long)size);
    uint8_t *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    CHECK(at != MAP_FAILED, "no mapping of %llu bytes", (unsigned long long)size);
    cv_segment_format(at, kind, run_id, size, slots, mailboxes, owner);
    const char *why = cv_segment_refuse(at, size, kind, run_id);
    CHECK(!why, "a fresh segment is refused: %s", why);
    return at;
}

static inline void world_make(world *w, uint32_t slots, uint32_t mailboxes, uint64_t arena_bytes, uint64_t mail_bytes) {
    int fd;
    memset(w, 0, sizeof *w);
    cv_run *run = &w->map;
    run->slots = slots;
    run->mailboxes = mailboxes;
    run->seed = 0x5eed;
    run->directory_size = cv_directory_size(slots, mailboxes);
    run->cells_size = cv_cells_size(mailboxes);
    run->mail_size = mail_bytes;
    run->directory = world_segment(&fd, CV_KIND_DIRECTORY, run->directory_size, run->directory_size, slots, mailboxes, 0);
    at_poke((at_u64 *)(run->directory + CV_DIR_MAIL_END), CV_PAGE);
    close(fd);
    run->cells = world_segment(&fd, CV_KIND_CELLS, run->cells_size, run->cells_size, slots, mailboxes, 0);
    close(fd);
    run->mail = world_segment(&w->mail_fd, CV_KIND_MAIL, mail_bytes, CV_PAGE, slots, mailboxes, 0);
    for (uint32_t s = 0; s < slots; s++) {
        run->arena_size[s] = arena_bytes;
        run->arena[s] = world_segment(&w->arena_fd[s], CV_KIND_ARENA, arena_bytes, CV_ARENA_DATA, slots, mailboxes, s);
        run->door[s] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        CHECK(run->door[s] >= 0, "no eventfd");
    }
}

static inline void world_end(world *w) {
    cv_run *run = &w->map;
    munmap(run->directory, run->directory_size);
    munmap(run->cells, run->cells_size);
    munmap(run->mail, run->mail_size);
    close(w->mail_fd);
    for (uint32_t s = 0; s < run->slots; s++) {
        munmap(run->arena[s], run->arena_size[s]);
        close(w->arena_fd[s]);
        close(run->door[s]);
    }
}

/* Become the process of `slot`: the first of it, or a successor, who takes over what is in the arena. */
static inline void world_attach(world *w, cv_port *p, unsigned slot, uint64_t incarnation) {
    memset(p, 0, sizeof *p);
    p->run = w->map;
    p->run.me = slot;
    p->run.incarnation = incarnation;
    p->random = slot * 1000003 + incarnation;
    cv_slot *s = cv_slot_at(&w->map, slot);
    at_store(&s->incarnation, incarnation);
    at_store(&s->state, CV_SLOT_LIVE);
    CHECK(port_attach(p, w->arena_fd[slot]) == 0, "no memory to attach slot %u", slot);
}

/* Forget a port as a death does: nothing is released in shared memory. */
static inline void world_forget(cv_port *p) {
    port_leave(p);
}

/* Slots for processes number 0, 1, 2 …: 1, 64, 2, 65 …, so that neighbours lie in different words of a set of processes;
 * how many slots such a run has; and back. */
static inline unsigned world_slot(unsigned number) { return (number % 2 ? 64 : 1) + number / 2; }
static inline unsigned world_slots(unsigned processes) { return 64 + processes / 2; }
static inline unsigned world_number_of(unsigned slot) { return slot < 64 ? 2 * (slot - 1) : 2 * (slot - 64) + 1; }

static inline cv_set world_pair(unsigned a, unsigned b) { return cv_set_both(cv_set_of(a), cv_set_of(b)); }

static inline uint32_t world_mailbox(world *w, cv_port *host, const char *name, uint32_t capacity, unsigned overflow,
                                     cv_set readers) {
    const uint32_t capacities[CV_LANES] = {63, 63, capacity};
    uint32_t replicas = 0;
    for (unsigned i = 0; i < CV_SET_WORDS; i++) replicas += (uint32_t)__builtin_popcountll(readers.word[i]);
    int64_t index = cv_directory_add(&host->run, w->mail_fd, name, strlen(name), capacities, overflow,
                                     replicas ? replicas : 1, w->first_lap);
    CHECK(index >= 0, "no mailbox %s: %s", name, strerror((int)-index));
    cv_set_readers(&host->run, (uint32_t)index, readers, (cv_set){{0}});
    return (uint32_t)index;
}

/* The reply lanes, one for each slot, as ShmRunMemory._begin makes them. */
static inline void world_begin(world *w, cv_port *host) {
    char name[32];
    for (uint32_t s = 0; s < w->map.slots; s++) {
        snprintf(name, sizeof name, "_process.%u", s);
        world_mailbox(w, host, name, w->reply_capacity ? w->reply_capacity : 255, CV_ERROR, cv_set_of(s));
    }
}

static inline cv_ring world_lane(const world *w, uint32_t mailbox, unsigned lane) {
    cv_ring r;
    cv_mailbox *m = cv_mailbox_at(&w->map, mailbox);
    CHECK(m && cv_ring_of(&w->map, mailbox, m, lane, &r), "mailbox %u lane %u does not check out", mailbox, lane);
    return r;
}

static inline int world_send(cv_port *p, uint32_t mailbox, const void *payload, uint64_t size) {
    port_post post = {.mailbox = mailbox, .sender = mailbox, .lane = CV_LANE_NORMAL, .payload = payload,
                      .payload_len = size, .type = "n", .type_len = 1};
    return port_send(p, &post);
}
static inline int world_send_number(cv_port *p, uint32_t mailbox, uint64_t number) {
    return world_send(p, mailbox, &number, sizeof number);
}
static inline uint64_t world_number(const mb_message *m) {
    uint64_t number;
    CHECK(m->header.payload_len >= sizeof number, "a message of %u bytes", m->header.payload_len);
    memcpy(&number, m->body + m->header.type_len, sizeof number);
    return number;
}

/* Bytes of this port's arena that are in use after everything finished was looked at. */
static inline uint64_t world_used(cv_port *p) {
    cv_ledger_look_all(&p->ledger);
    return p->arena.used;
}

static inline bool world_bell_rang(const world *w, unsigned slot) {
    uint64_t count;
    return read(w->map.door[slot], &count, sizeof count) == sizeof count;
}

/* Until something is announced: look, spin, park, sleep. As in an event loop, a bell of an earlier sleep may be heard
 * while awake. A sleep of a minute is a failure: the safety poll has rung long before. It is counted in naps of a second,
 * so that whoever stops the whole harness for a while finds nothing. */
static inline uint32_t world_wait(cv_port *p, uint32_t *ready, uint32_t room, uint64_t *alarm) {
    struct pollfd door = {.fd = p->run.door[p->run.me], .events = POLLIN};
    if (poll(&door, 1, 0) == 1) cv_unpark(&p->run);
    for (;;) {
        uint32_t n = cv_collect(&p->run, ready, room, alarm);
        if (n || *alarm) return n;
        if (cv_spin(&p->run, 2000) || !cv_park(&p->run)) continue;
        int naps = 60;
        while (poll(&door, 1, 1000) != 1) CHECK(--naps, "slot %u slept for a minute", p->run.me);
        cv_unpark(&p->run);
    }
}

static inline unsigned dice(uint64_t *luck, unsigned sides) {
    *luck = *luck * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)(*luck >> 33) % sides;
}

#endif
