/* Processes under SIGKILL and SIGSTOP: the parent is the host and kills its children at random, recovers after waitpid,
 * and starts a successor that takes over slot, arena and what was in hand.
 *
 * processes seconds=8 producers=3 consumers=2 boxes=3 capacity=5 replicas=0 state=0 stops=1 pause_us=8000 large=70000
 *           dawdle=1 seed=1
 *
 * pause_us: the longest time between two kills. large: the bytes of every 64th message. With long pauses, nothing large
 * and readers that do not dawdle there are few kills and many messages, millions in some seconds.
 *
 * The books are kept outside the run's memory. A producer writes a number down after the send has returned; its successor
 * goes on behind the last one written down. It ends with 0 when:
 * - nothing that was written down is lost;
 * - in order per sender and mailbox with one reader, whoever died in between;
 * - no more doubles than messages in hand at the kills, and one for each killed producer (killed between send and book);
 * - with state=1: a double is recognised by the id that was committed with the state, so the state counts each once;
 * - without SIGSTOP the safety poll found nothing to do;
 * - all memory of all arenas is free in the end, and nothing was garbage.
 */
#include "world.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { PRODUCERS_MAX = 8, CONSUMERS_MAX = 8, BOXES_MAX = 8, NUMBERS_MAX = 1 << 22, KEEP = 3, LARGE_MAX = 70000 };
#define POLL_NS 250000000ull

static struct {
    unsigned seconds, producers, consumers, boxes, capacity, replicas, state, stops, pause_us, large, dawdle, seed;
} with = {.seconds = 8, .producers = 3, .consumers = 2, .boxes = 3, .capacity = 5, .stops = 1, .pause_us = 8000,
          .large = LARGE_MAX, .dawdle = 1, .seed = 1};

/* Outside the run's memory; what the children write here survives them too. */
typedef struct {
    _Atomic bool finish, stop;
    _Atomic uint64_t written[PRODUCERS_MAX][BOXES_MAX]; /* last number that a send returned for */
    _Atomic uint64_t last[BOXES_MAX][PRODUCERS_MAX];    /* one reader: last number handled */
    _Atomic uint64_t recognised, redelivered;
    _Atomic uint8_t times[PRODUCERS_MAX][BOXES_MAX][NUMBERS_MAX]; /* handled how often */
} books;

typedef struct {
    uint32_t producer, box;
    uint64_t number; /* of this producer in this mailbox, from 1 */
    uint32_t fill_size;
} body;

typedef struct {
    uint64_t counted, last[PRODUCERS_MAX];
} agent_state;

static world w;
static books *b;
static cv_port host;
static uint32_t box[BOXES_MAX];

/* --- children -------------------------------------------------------------------------------------------------- */

static void produce(unsigned slot, unsigned index, uint64_t incarnation) {
    cv_port p;
    world_attach(&w, &p, slot, incarnation);
    uint64_t luck = with.seed * 7919 + slot * 104729 + incarnation;
    static uint8_t bytes[sizeof(body) + LARGE_MAX];
    while (!atomic_load(&b->finish)) {
        unsigned to = dice(&luck, with.boxes);
        body *at = (body *)bytes;
        *at = (body){.producer = index, .box = to, .number = atomic_load(&b->written[index][to]) + 1,
                     .fill_size = dice(&luck, 64) ? dice(&luck, 500) : with.large};
        if (at->number >= NUMBERS_MAX) { /* the books are full; enough for a minute, at a million a second in 18 lists */
            usleep(1000);
            continue;
        }
        memset(at + 1, (uint8_t)at->number, at->fill_size);
        int outcome;
        while ((outcome = world_send(&p, box[to], bytes, sizeof *at + at->fill_size)) != PORT_SENT) {
            CHECK(outcome == PORT_FULL || outcome == PORT_NO_MEMORY, "a post ended with %d", outcome);
            int room = port_want_room(&p, box[to]);
            CHECK(room != PORT_ROOM_NEVER, "memory will never be there");
            uint32_t ready[256];
            uint64_t alarm;
            if (room == PORT_ROOM_LATER) world_wait(&p, ready, 256, &alarm);
        }
        atomic_store(&b->written[index][to], at->number);
    }
    exit(0);
}

/* Now and then, so that kills hit what is seldom long. */
static void dawdle(uint64_t *luck) {
    if (with.dawdle && dice(luck, 64) == 0) usleep(dice(luck, 1000));
}

static agent_state states[BOXES_MAX];
static uint8_t state_ids[BOXES_MAX][16];

static void handle(cv_port *p, unsigned i, const mb_message *m) {
    body at;
    const uint8_t *bytes = m->body + m->header.type_len;
    EXPECT(m->header.payload_len >= sizeof at);
    memcpy(&at, bytes, sizeof at);
    CHECK(at.producer < with.producers && at.box == i && at.number && at.number < NUMBERS_MAX &&
              m->header.payload_len == sizeof at + at.fill_size,
          "box %u: a message that nobody sent", i);
    for (uint32_t k = 0; k < at.fill_size; k++)
        CHECK(bytes[sizeof at + k] == (uint8_t)at.number, "box %u: number %llu of producer %u is changed", i,
              (unsigned long long)at.number, at.producer);
    if (m->deliveries > 1) atomic_fetch_add(&b->redelivered, 1);
    atomic_fetch_add(&b->times[at.producer][i][at.number], 1);
    if (with.replicas) return;
    uint64_t last = atomic_load(&b->last[i][at.producer]);
    CHECK(at.number <= last + 1, "box %u, producer %u: %llu after %llu", i, at.producer, (unsigned long long)at.number,
          (unsigned long long)last);
    if (at.number == last + 1) atomic_store(&b->last[i][at.producer], at.number);
    if (!with.state) return;
    if (!memcmp(state_ids[i], m->header.id, 16)) {
        CHECK(m->deliveries > 1, "box %u: the id of a state came with a first delivery", i);
        atomic_fetch_add(&b->recognised, 1);
        return;
    }
    agent_state next = states[i];
    if (at.number == next.last[at.producer] + 1) { /* else: its producer sent it twice */
        next.counted++;
        next.last[at.producer] = at.number;
    }
    CHECK(at.number <= next.last[at.producer], "box %u: the state misses a message before %llu of producer %u", i,
          (unsigned long long)at.number, at.producer);
    int outcome = port_commit_state(p, box[i], &m->header, &next, sizeof next);
    CHECK(outcome == PORT_SENT, "a commit of state ended with %d", outcome);
    states[i] = next;
    memcpy(state_ids[i], m->header.id, 16);
}

/* What dead readers left first, then new ones; some stay in hand while the next ones come. */
static void drain(cv_port *p, unsigned i, uint64_t *inherited, uint64_t *luck) {
    cv_mailbox *m = cv_mailbox_at(&p->run, box[i]);
    unsigned kept[KEEP], n = 0, keep = with.state ? 1 : KEEP;
    for (;;) {
        mb_message message;
        if (*inherited) {
            unsigned entry = mb_oldest_in_hand(&p->run, m, box[i], *inherited);
            *inherited &= ~(1ull << entry);
            EXPECT(mb_redeliver(&p->run, m, box[i], entry, &message));
        } else if (port_take(p, box[i], &message) != 1) {
            break;
        }
        dawdle(luck);
        handle(p, i, &message);
        dawdle(luck);
        kept[n++] = message.entry;
        while (n == keep || (n && dice(luck, 2))) EXPECT(mb_release(&p->run, m, kept[--n]));
    }
    while (n) EXPECT(mb_release(&p->run, m, kept[--n]));
}

static void consume(unsigned slot, uint64_t incarnation) {
    cv_port p;
    world_attach(&w, &p, slot, incarnation);
    uint64_t luck = with.seed * 31 + slot * 104729 + incarnation, alarm = CV_ALARM_SCAN, inherited[BOXES_MAX] = {0};
    uint32_t ready[256], n = 0;
    for (unsigned i = 0; i < with.boxes; i++) {
        cv_mailbox *m = cv_mailbox_at(&p.run, box[i]);
        if (!cv_set_has(cv_set_load(&m->readers), slot)) continue;
        inherited[i] = mb_in_hand_of(m, slot);
        cv_set_join(&m->listening, slot);
        mb_message stored;
        if (!port_state(&p, box[i], &stored)) continue;
        EXPECT(stored.header.payload_len == sizeof states[i]);
        memcpy(&states[i], stored.body, sizeof states[i]);
        memcpy(state_ids[i], stored.header.id, 16);
    }
    while (!atomic_load(&b->stop)) {
        for (unsigned i = 0; i < with.boxes; i++) {
            bool announced = alarm & CV_ALARM_SCAN;
            for (uint32_t k = 0; k < n; k++) announced |= ready[k] == box[i];
            if (announced && cv_set_has(cv_set_load(&cv_mailbox_at(&p.run, box[i])->readers), slot))
                drain(&p, i, &inherited[i], &luck);
        }
        n = world_wait(&p, ready, 256, &alarm);
    }
    exit(0);
}

/* --- the host ----------------------------------------------------------------------------------------------------- */

typedef struct {
    pid_t pid;
    uint64_t incarnation, continue_ns; /* 0 = it is not stopped */
} child;

static child children[CV_SLOTS_MAX];
static unsigned processes;
static uint64_t kills, stops, in_hand_at_kills, producer_kills, missed;

static void start(unsigned slot) {
    child *c = &children[slot];
    at_store(&cv_slot_at(&w.map, slot)->incarnation, ++c->incarnation);
    fflush(NULL);
    c->pid = fork();
    CHECK(c->pid >= 0, "no process");
    if (c->pid) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    unsigned number = world_number_of(slot);
    if (number < with.consumers) consume(slot, c->incarnation);
    else produce(slot, number - with.consumers, c->incarnation);
}

static void reap(unsigned slot, bool killed) {
    int status;
    EXPECT(waitpid(children[slot].pid, &status, 0) == children[slot].pid);
    if (killed) CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "slot %u ended by itself: %#x", slot, status);
    else CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "slot %u ended with %#x", slot, status);
    at_store(&cv_slot_at(&w.map, slot)->state, CV_SLOT_DEAD);
}

static void kill_one(unsigned slot) {
    kill(children[slot].pid, SIGKILL); /* a stopped one dies as well */
    reap(slot, true);
    children[slot].continue_ns = 0;
    kills++;
    if (world_number_of(slot) >= with.consumers) producer_kills++;
    for (unsigned i = 0; i < with.boxes; i++) {
        cv_mailbox *m = cv_mailbox_at(&w.map, box[i]);
        in_hand_at_kills += (unsigned)__builtin_popcountll(mb_in_hand_of(m, slot));
    }
    cv_slot_recover(&host.run, slot);
    cv_ring_all(&host.run);
}

static void continue_stopped(uint64_t now_ns) {
    for (unsigned s = 1; s < w.map.slots; s++)
        if (children[s].continue_ns && now_ns >= children[s].continue_ns) {
            kill(children[s].pid, SIGCONT);
            children[s].continue_ns = 0;
        }
}

static uint64_t left_over(void) {
    uint64_t n = 0, refs[CV_HAND];
    for (unsigned i = 0; i < with.boxes; i++) {
        cv_ring r = world_lane(&w, box[i], CV_LANE_NORMAL);
        n += mb_waiting(&r) + cv_hand_refs(cv_mailbox_at(&w.map, box[i]), refs);
    }
    return n;
}

static void settings(int argc, char **argv) {
    const struct {
        const char *name;
        unsigned *value;
    } names[] = {{"seconds", &with.seconds}, {"producers", &with.producers}, {"consumers", &with.consumers},
                 {"boxes", &with.boxes},     {"capacity", &with.capacity},   {"replicas", &with.replicas},
                 {"state", &with.state},     {"stops", &with.stops},         {"seed", &with.seed},
                 {"pause_us", &with.pause_us}, {"large", &with.large},       {"dawdle", &with.dawdle}};
    for (int i = 1; i < argc; i++) {
        bool known = false;
        for (unsigned k = 0; k < sizeof names / sizeof *names; k++) {
            size_t size = strlen(names[k].name);
            if (strncmp(argv[i], names[k].name, size) || argv[i][size] != '=') continue;
            *names[k].value = (unsigned)strtoul(argv[i] + size + 1, NULL, 10);
            known = true;
        }
        CHECK(known, "no setting %s", argv[i]);
    }
    EXPECT(with.producers <= PRODUCERS_MAX && with.consumers <= CONSUMERS_MAX && with.boxes <= BOXES_MAX &&
           with.large <= LARGE_MAX && with.pause_us);
}

static void torture(void) {
    uint64_t luck = with.seed, now = cv_now_ns(CLOCK_MONOTONIC), end = now + with.seconds * 1000000000ull, poll = now;
    while ((now = cv_now_ns(CLOCK_MONOTONIC)) < end) {
        usleep(dice(&luck, with.pause_us));
        continue_stopped(now);
        if (now - poll > POLL_NS) {
            poll = now;
            missed += cv_safety_poll(&host.run);
        }
        unsigned slot = world_slot(dice(&luck, processes));
        if (with.stops && dice(&luck, 3) == 0) {
            kill(children[slot].pid, SIGSTOP);
            children[slot].continue_ns = now + dice(&luck, 30) * 1000000ull + 1;
            stops++;
            continue;
        }
        unsigned also = dice(&luck, 4) ? slot : world_slot(dice(&luck, processes)); /* sometimes two are dead at once */
        kill_one(slot);
        if (also != slot) kill_one(also);
        start(slot);
        if (also != slot) start(also);
    }
}

int main(int argc, char **argv) {
    settings(argc, argv);
    processes = with.consumers + with.producers;
    alarm(with.seconds * 2 + 1000); /* the watchdog; long, because all of this may be stopped for a while from outside */
    b = mmap(NULL, sizeof *b, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    EXPECT(b != MAP_FAILED);
    world_make(&w, world_slots(processes), 64 + world_slots(processes), 4u << 20, 8u << 20);
    world_attach(&w, &host, 0, 1);
    world_begin(&w, &host);
    w.first_lap = 65534;
    for (unsigned i = 0; i < with.boxes; i++) {
        char name[16];
        snprintf(name, sizeof name, "box%u", i);
        cv_set readers = cv_set_of(world_slot(i % with.consumers));
        for (unsigned c = 0; with.replicas && c < with.consumers; c++) cv_set_add(&readers, world_slot(c));
        box[i] = world_mailbox(&w, &host, name, with.capacity, CV_BLOCK_SENDER, readers);
    }
    for (unsigned i = 0; i < processes; i++) start(world_slot(i));
    torture();
    continue_stopped(~0ull);
    atomic_store(&b->finish, true);
    cv_ring_all(&host.run);
    for (unsigned i = with.consumers; i < processes; i++) reap(world_slot(i), false);
    for (unsigned turn = 1; left_over(); turn++) {
        usleep(1000);
        if (turn % 250 == 0) missed += cv_safety_poll(&host.run);
        CHECK(turn < 60000, "%llu messages were left over for a minute", (unsigned long long)left_over());
    }
    atomic_store(&b->stop, true);
    cv_ring_all(&host.run);
    for (unsigned i = 0; i < with.consumers; i++) reap(world_slot(i), false);

    uint64_t written = 0, unnoted = 0, counted = 0, garbage = 0, doubles = 0;
    for (unsigned i = 0; i < with.boxes; i++) {
        garbage += at_load(&cv_cell_at(&w.map, box[i])->garbage);
        for (unsigned p = 0; p < with.producers; p++) {
            uint64_t numbers = b->written[p][i];
            written += numbers;
            for (uint64_t n = 1; n <= numbers; n++) {
                CHECK(b->times[p][i][n], "LOST: number %llu of producer %u to box %u", (unsigned long long)n, p, i);
                doubles += b->times[p][i][n] - 1;
            }
            /* One more than noted: the producer was killed between the commit and its note, and its successor was told
             * to finish before it sent that number again. */
            uint64_t more = with.replicas ? 0 : b->last[i][p] - numbers;
            CHECK(more <= 1, "box %u, producer %u: ended at %llu of %llu", i, p, (unsigned long long)b->last[i][p],
                  (unsigned long long)numbers);
            unnoted += more;
        }
        mb_message stored;
        agent_state state;
        if (!with.state || !port_state(&host, box[i], &stored)) continue;
        memcpy(&state, stored.body, sizeof state);
        counted += state.counted;
    }
    CHECK(!with.state || counted == written + unnoted, "%llu written, the states counted %llu", (unsigned long long)written,
          (unsigned long long)counted);
    CHECK(doubles <= in_hand_at_kills + producer_kills, "%llu doubles for %llu messages in hand at kills and %llu killed producers",
          (unsigned long long)doubles, (unsigned long long)in_hand_at_kills, (unsigned long long)producer_kills);
    CHECK(garbage == 0, "%llu messages were garbage", (unsigned long long)garbage);
    CHECK(with.stops || missed == 0, "%llu wake-ups were lost and found by the safety poll", (unsigned long long)missed);
    for (unsigned i = 0; i < processes; i++) {
        unsigned s = world_slot(i);
        cv_port successor;
        world_attach(&w, &successor, s, children[s].incarnation + 1);
        uint64_t used = successor.arena.used;
        for (unsigned k = 0; k < with.boxes; k++) {
            uint64_t ref = at_load(&cv_mailbox_at(&w.map, box[k])->state_ref);
            if (ref && cv_ref_arena(ref) == s) used -= cv_chunk_bytes(&successor.arena, ref);
        }
        CHECK(used == 0, "slot %u has %llu bytes in use that nothing refers to", s, (unsigned long long)used);
        world_forget(&successor);
    }
    printf("seconds %u kills %llu stops %llu written %llu doubles %llu redelivered %llu recognised %llu in_hand_at_kills %llu "
           "safety_poll %llu\n",
           with.seconds, (unsigned long long)kills, (unsigned long long)stops, (unsigned long long)written,
           (unsigned long long)doubles, (unsigned long long)b->redelivered, (unsigned long long)b->recognised,
           (unsigned long long)in_hand_at_kills, (unsigned long long)missed);
    return 0;
}
