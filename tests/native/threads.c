/* Threads on shared mailboxes, each with a port of its own over one mapping, so that ThreadSanitizer sees every access:
 * P producers, C consumers, small rings that wrap their laps, waiting for room with park and doorbell, asks and replies.
 *
 * threads producers=3 consumers=2 boxes=3 messages=20000 capacity=5 policy=block replicas=0
 *
 * It ends with 0 when: every message that was sent was handled once or dropped by policy, none twice, none changed;
 * in order per sender and mailbox with one reader; every ask was answered once; the safety poll, which finds lost
 * wake-ups, found none; all memory of all arenas is free again, for their owners and for successors.
 */
#include "world.h"

#include <pthread.h>

enum { PRODUCERS_MAX = 16, CONSUMERS_MAX = 16, BOXES_MAX = 64, ASKS_MAX = 100, KEEP = 3 };
#define POLL_US 500000     /* a sleeper that was rung has this long to wake on a busy machine */

static struct {
    unsigned producers, consumers, boxes, capacity, policy, replicas, watchdog_s;
    uint64_t messages;
} with = {.producers = 3, .consumers = 2, .boxes = 3, .capacity = 5, .watchdog_s = 100, .messages = 20000};

static world w;
static cv_port host, ports[CV_SLOTS_MAX];
static uint32_t box[BOXES_MAX];
static _Atomic uint8_t *handled[PRODUCERS_MAX]; /* by message number */
static _Atomic uint64_t sent, refused, total_handled;
static _Atomic bool stop;

typedef struct {
    uint32_t producer, box;
    uint64_t number;    /* of this producer */
    uint64_t in_box;    /* of this producer in this mailbox, from 1 */
    uint32_t fill_size; /* bytes of (uint8_t)number that follow */
    uint32_t ask;
} body;

/* --- producers -------------------------------------------------------------------------------------------------- */

typedef struct {
    unsigned slot, index;
    uint64_t asked, answered, in_box[BOXES_MAX];
} producer;

static void collect_replies(cv_port *p, producer *me) {
    mb_message m;
    while (port_take(p, p->run.me, &m) == 1) {
        CHECK(m.header.flags & CV_FLAG_REPLY, "slot %u got something that is no reply", p->run.me);
        me->answered++;
        EXPECT(mb_release(&p->run, cv_mailbox_at(&p->run, p->run.me), m.entry));
    }
}

static void wait_a_while(cv_port *p, producer *me) {
    uint32_t ready[256];
    uint64_t alarm;
    world_wait(p, ready, 256, &alarm);
    collect_replies(p, me); /* whatever it was, replies take places */
}

static void *produce(void *argument) {
    producer *me = argument;
    cv_port *p = &ports[me->slot];
    uint64_t luck = me->slot;
    static const uint32_t SIZES[] = {0, 1, 40, 200, 1000, 9000, 70000};
    uint8_t *bytes = malloc(sizeof(body) + 70000);
    for (uint64_t number = 0; number < with.messages; number++) {
        unsigned b = dice(&luck, with.boxes);
        body *at = (body *)bytes;
        /* Large ones are rare: they exist to run out of memory, small ones to run out of places. */
        *at = (body){.producer = me->index, .box = b, .number = number, .in_box = ++me->in_box[b],
                     .fill_size = SIZES[dice(&luck, dice(&luck, 16) ? 4 : 7)]};
        memset(at + 1, (uint8_t)number, at->fill_size);
        port_post post = {.mailbox = box[b], .sender = box[0], .lane = CV_LANE_NORMAL, .payload = bytes,
                          .payload_len = sizeof *at + at->fill_size, .type = "t", .type_len = 1};
        if (with.policy == CV_BLOCK_SENDER && dice(&luck, 8) == 0 && me->asked - me->answered < ASKS_MAX) {
            post.flags = CV_FLAG_ASK;
            post.correlation = cv_correlation(p->run.me, p->run.incarnation, ++me->asked);
            at->ask = 1;
        }
        int outcome;
        while ((outcome = port_send(p, &post)) != PORT_SENT) {
            CHECK(outcome == PORT_FULL || outcome == PORT_NO_MEMORY, "a post ended with %d", outcome);
            if (with.policy != CV_BLOCK_SENDER && outcome == PORT_FULL) break;
            int room = port_want_room(p, box[b]);
            CHECK(room != PORT_ROOM_NEVER, "memory will never be there");
            if (room == PORT_ROOM_LATER) wait_a_while(p, me);
        }
        if (outcome == PORT_SENT) {
            atomic_fetch_add(&sent, 1);
        } else {
            atomic_fetch_add(&refused, 1);
            me->in_box[b]--;
        }
        if (number % 64 == 0) collect_replies(p, me);
    }
    while (me->answered < me->asked) wait_a_while(p, me);
    free(bytes);
    return NULL;
}

/* --- consumers ---------------------------------------------------------------------------------------------------- */

typedef struct {
    unsigned slot;
    uint64_t boxes; /* bit b: reads box b */
    uint64_t last[BOXES_MAX][PRODUCERS_MAX], luck;
} consumer;

static void handle(cv_port *p, consumer *me, unsigned b, const mb_message *m) {
    body at;
    EXPECT(m->header.payload_len >= sizeof at);
    const uint8_t *bytes = m->body + m->header.type_len;
    memcpy(&at, bytes, sizeof at);
    CHECK(at.producer < with.producers && at.number < with.messages && at.box == b &&
              m->header.payload_len == sizeof at + at.fill_size,
          "box %u: a message that nobody sent", b);
    for (uint32_t i = 0; i < at.fill_size; i++)
        CHECK(bytes[sizeof at + i] == (uint8_t)at.number, "box %u: byte %u of message %llu of producer %u is changed", b, i,
              (unsigned long long)at.number, at.producer);
    CHECK(atomic_fetch_add(&handled[at.producer][at.number], 1) == 0, "message %llu of producer %u came twice",
          (unsigned long long)at.number, at.producer);
    if (!with.replicas) {
        uint64_t *last = &me->last[b][at.producer];
        bool in_order = with.policy == CV_BLOCK_SENDER ? at.in_box == *last + 1 : at.in_box > *last;
        CHECK(in_order, "box %u, producer %u: %llu after %llu", b, at.producer, (unsigned long long)at.in_box,
              (unsigned long long)*last);
        *last = at.in_box;
    }
    if (at.ask) {
        port_post reply = {.sender = box[b], .payload = "yes", .payload_len = 3, .type = "r", .type_len = 1};
        EXPECT(port_reply(p, &m->header, &reply) == PORT_SENT);
    }
    atomic_fetch_add(&total_handled, 1);
}

/* Some stay in hand while the next ones come, and are released in any order. */
static void drain(cv_port *p, consumer *me, unsigned b) {
    cv_mailbox *m = cv_mailbox_at(&p->run, box[b]);
    mb_message message;
    unsigned kept[KEEP], n = 0;
    while (port_take(p, box[b], &message) == 1) {
        port_begin(p, box[b], &message, cv_now_ns(CLOCK_MONOTONIC));
        handle(p, me, b, &message);
        kept[n++] = message.entry;
        while (n == KEEP || (n && dice(&me->luck, 2))) {
            unsigned which = dice(&me->luck, n);
            EXPECT(mb_release(&p->run, m, kept[which]));
            port_end(p, box[b], kept[which], cv_now_ns(CLOCK_MONOTONIC));
            kept[which] = kept[--n];
        }
    }
    while (n) EXPECT(mb_release(&p->run, m, kept[--n]));
}

static void *consume(void *argument) {
    consumer *me = argument;
    cv_port *p = &ports[me->slot];
    uint32_t ready[256];
    uint64_t alarm;
    for (unsigned b = 0; b < with.boxes; b++)
        if (me->boxes >> b & 1) cv_set_join(&cv_mailbox_at(&p->run, box[b])->listening, me->slot);
    while (!atomic_load(&stop)) {
        uint32_t n = world_wait(p, ready, 256, &alarm);
        for (unsigned b = 0; b < with.boxes; b++) {
            bool announced = alarm & CV_ALARM_SCAN;
            for (uint32_t i = 0; i < n; i++) announced |= ready[i] == box[b];
            if (announced && me->boxes >> b & 1) drain(p, me, b);
        }
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------------------------------------ */

static void settings(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        CHECK(value, "%s is not of the form name=value", argv[i]);
        *value++ = 0;
        unsigned number = (unsigned)strtoul(value, NULL, 10);
        if (!strcmp(argv[i], "producers")) with.producers = number;
        else if (!strcmp(argv[i], "consumers")) with.consumers = number;
        else if (!strcmp(argv[i], "boxes")) with.boxes = number;
        else if (!strcmp(argv[i], "messages")) with.messages = number;
        else if (!strcmp(argv[i], "capacity")) with.capacity = number;
        else if (!strcmp(argv[i], "replicas")) with.replicas = number;
        else if (!strcmp(argv[i], "watchdog_s")) with.watchdog_s = number;
        else if (!strcmp(argv[i], "policy"))
            with.policy = !strcmp(value, "block") ? CV_BLOCK_SENDER : !strcmp(value, "drop_oldest") ? CV_DROP_OLDEST : CV_LATEST;
        else die("no setting %s", argv[i]);
    }
    EXPECT(with.producers <= PRODUCERS_MAX && with.consumers <= CONSUMERS_MAX && with.boxes <= BOXES_MAX);
}

static uint64_t dropped(void) {
    uint64_t n = 0;
    for (unsigned b = 0; b < with.boxes; b++) n += at_load(&cv_cell_at(&w.map, box[b])->dropped);
    return n;
}

int main(int argc, char **argv) {
    settings(argc, argv);
    alarm(with.watchdog_s);
    unsigned processes = with.consumers + with.producers, missed = 0;
    world_make(&w, world_slots(processes), 256, 2u << 20, 8u << 20);
    world_attach(&w, &host, 0, 1);
    world_begin(&w, &host);
    w.first_lap = 65534;
    static consumer consumers[CONSUMERS_MAX];
    static producer producers[PRODUCERS_MAX];
    pthread_t threads[CONSUMERS_MAX + PRODUCERS_MAX];
    for (unsigned b = 0; b < with.boxes; b++) {
        char name[16];
        snprintf(name, sizeof name, "box%u", b);
        cv_set readers = cv_set_of(world_slot(b % with.consumers));
        for (unsigned c = 0; with.replicas && c < with.consumers; c++) cv_set_add(&readers, world_slot(c));
        box[b] = world_mailbox(&w, &host, name, with.capacity, with.policy, readers);
        for (unsigned c = 0; c < with.consumers; c++)
            if (with.replicas || b % with.consumers == c) consumers[c].boxes |= 1ull << b;
    }
    for (unsigned i = 0; i < processes; i++) world_attach(&w, &ports[world_slot(i)], world_slot(i), 1);
    for (unsigned c = 0; c < with.consumers; c++) {
        consumers[c].slot = world_slot(c);
        EXPECT(pthread_create(&threads[c], NULL, consume, &consumers[c]) == 0);
    }
    for (unsigned i = 0; i < with.producers; i++) {
        handled[i] = calloc(with.messages, 1);
        producers[i] = (producer){.slot = world_slot(with.consumers + i), .index = i};
        EXPECT(pthread_create(&threads[with.consumers + i], NULL, produce, &producers[i]) == 0);
    }
    uint64_t all = with.producers * with.messages;
    for (unsigned turn = 0; atomic_load(&total_handled) + dropped() + atomic_load(&refused) < all; turn++) {
        usleep(1000);
        if (turn % (POLL_US / 1000) == 0) missed += cv_safety_poll(&host.run);
    }
    for (unsigned i = 0; i < with.producers; i++) pthread_join(threads[with.consumers + i], NULL);
    atomic_store(&stop, true);
    cv_ring_all(&host.run);
    for (unsigned c = 0; c < with.consumers; c++) pthread_join(threads[c], NULL);

    CHECK(missed == 0, "%u wake-ups were lost and found by the safety poll", missed);
    CHECK(total_handled + dropped() == sent, "%llu sent, %llu handled, %llu dropped", (unsigned long long)sent,
          (unsigned long long)total_handled, (unsigned long long)dropped());
    uint64_t garbage = 0;
    for (unsigned b = 0; b < with.boxes; b++) garbage += at_load(&cv_cell_at(&w.map, box[b])->garbage);
    CHECK(garbage == 0, "%llu messages were garbage", (unsigned long long)garbage);
    for (unsigned i = 0; i < processes; i++) {
        unsigned s = world_slot(i);
        CHECK(world_used(&ports[s]) == 0, "slot %u has %llu bytes in use", s, (unsigned long long)ports[s].arena.used);
        world_forget(&ports[s]);
        world_attach(&w, &ports[s], s, 2);
        CHECK(ports[s].arena.used == 0, "the successor of slot %u found %llu bytes in use", s,
              (unsigned long long)ports[s].arena.used);
        world_forget(&ports[s]);
    }
    for (unsigned i = 0; i < with.producers; i++) free(handled[i]);
    world_forget(&host);
    world_end(&w);
    printf("sent %llu handled %llu dropped %llu refused %llu\n", (unsigned long long)sent,
           (unsigned long long)total_handled, (unsigned long long)(sent - total_handled), (unsigned long long)refused);
    return 0;
}
