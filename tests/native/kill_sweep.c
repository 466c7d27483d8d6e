/* A kill at every instruction of every operation. A child is single-stepped through one operation; after every step that
 * has changed shared memory (between two of these all kills are the same) what must hold is checked: the host recovers,
 * a successor attaches, everything must be found.
 *
 * kill_sweep list | kill_sweep OPERATION [KILLS]
 *
 * The check runs on a copy of the memory while the child stands still, which is as good as dead: nothing else of it
 * would survive. With KILLS, that many children are really killed too, evenly spread over all steps.
 * Ends with 77 where ptrace is not permitted.
 */
#include "world.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

enum { HOST, SENDER, READER };
enum { STEPS_MAX = 2000000, SKIP = 77 };

static world w;
static cv_port host, sender, reader, other;
static unsigned elsewhere = READER + 1; /* slot of `other`, the last one of the run */
static const cv_set NOBODY, EVERYBODY = {{~0ull, ~0ull}};
static uint32_t box, second;
static mb_message in_hand;
static bool has_garbage; /* this operation's own */

/* --- what is there before, and what is found after ------------------------------------------------------------------- */

static void begin(uint32_t capacity, unsigned overflow, uint64_t first_lap) {
    world_make(&w, elsewhere + 1, elsewhere + 16, 4u << 20, 1u << 20);
    w.reply_capacity = 1; /* small rings: fewer instructions to step through */
    world_attach(&w, &host, HOST, 1);
    world_begin(&w, &host);
    w.first_lap = first_lap;
    box = world_mailbox(&w, &host, "box", capacity, overflow, cv_set_of(READER));
    second = world_mailbox(&w, &host, "second", 8, CV_BLOCK_SENDER, cv_set_of(elsewhere));
    world_attach(&w, &sender, SENDER, 1);
    world_attach(&w, &reader, READER, 1);
    world_attach(&w, &other, elsewhere, 1);
    EXPECT(world_send_number(&sender, second, 77) == PORT_SENT); /* must be unharmed by all of it */
}

static void send_numbers(uint64_t from, uint64_t to) {
    for (uint64_t n = from; n <= to; n++) EXPECT(world_send_number(&sender, box, n) == PORT_SENT);
}
static void take_one(void) { EXPECT(port_take(&reader, box, &in_hand) == 1); }

/* The host after the death of `slot`, and the slot's next process. */
static void succeed(cv_port *p, unsigned slot) {
    at_store(&cv_slot_at(&w.map, slot)->state, CV_SLOT_DEAD);
    cv_slot_recover(&host.run, slot);
    cv_ring_all(&host.run);
    world_forget(p);
    world_attach(&w, p, slot, p->run.incarnation + 1);
}

/* The next host: it repairs every slot, as ShmRunMemory._adopt does. */
static void new_host(void) {
    world_forget(&host);
    world_attach(&w, &host, HOST, host.run.incarnation + 1);
    cv_slot_recover(&host.run, HOST);
}

typedef struct {
    uint64_t number[16];
    unsigned deliveries[16], n;
} found;

/* Everything that comes out of the mailbox, as its reader gets it: what was in hand first. */
static found drain(cv_port *p, uint32_t mailbox) {
    found f = {.n = 0};
    cv_mailbox *m = cv_mailbox_at(&w.map, mailbox);
    uint64_t inherited = mb_in_hand_of(m, p->run.me);
    for (;;) {
        mb_message message;
        if (inherited) {
            unsigned entry = mb_oldest_in_hand(&w.map, m, mailbox, inherited);
            inherited &= ~(1ull << entry);
            EXPECT(mb_redeliver(&p->run, m, mailbox, entry, &message));
        } else if (port_take(p, mailbox, &message) != 1) {
            break;
        }
        CHECK(f.n < 16, "more came out than was put in");
        f.number[f.n] = world_number(&message);
        f.deliveries[f.n++] = message.deliveries;
        EXPECT(mb_release(&p->run, m, message.entry));
    }
    EXPECT(has_garbage || at_load(&cv_cell_at(&w.map, mailbox)->garbage) == 0);
    return f;
}
static bool is(const found *f, uint64_t from, uint64_t to) { /* from, from+1, … to, in this order, once each */
    for (unsigned i = 0; i < f->n; i++)
        if (f->number[i] != from + i) return false;
    return f->n == to + 1 - from;
}

/* After all: the mailboxes work, the neighbour is unharmed, all memory is free again for owners and successors. */
static void everything_works(void) {
    EXPECT(world_send_number(&sender, box, 500) == PORT_SENT);
    found f = drain(&reader, box);
    EXPECT(is(&f, 500, 500));
    f = drain(&other, second);
    EXPECT(is(&f, 77, 77));
    uint64_t state = at_load(&cv_mailbox_at(&w.map, box)->state_ref), log = at_load(&cv_mailbox_at(&w.map, box)->log_ref);
    cv_port *ports[] = {&sender, &reader, &other};
    for (unsigned i = 0; i < 3; i++) {
        cv_port *p = ports[i];
        uint64_t kept = state && cv_ref_arena(state) == p->run.me ? cv_chunk_bytes(&p->arena, state) : 0;
        kept += log && cv_ref_arena(log) == p->run.me ? cv_chunk_bytes(&p->arena, log) : 0;
        EXPECT(world_used(p) == kept);
        world_forget(p);
        world_attach(&w, p, p->run.me, p->run.incarnation + 1);
        EXPECT(p->arena.used == kept);
    }
}

/* --- the operations: what is before, what the child does, and what must hold after its death ------------------------- */
/* `after` returns whether the effect was found: once it is there for a k, it is there for every later one. */

static void publish_before(void) { begin(8, CV_BLOCK_SENDER, 0), send_numbers(1, 2); }
static void publish_wrap_before(void) {
    begin(8, CV_BLOCK_SENDER, 65535);
    for (uint64_t n = 0; n < 61; n++) {
        send_numbers(n, n);
        found f = drain(&reader, box);
        EXPECT(f.n == 1);
    }
    send_numbers(1, 2); /* positions 61 and 62 of the last lap; the act takes the last place before the wrap */
}
static void publish(void) { send_numbers(3, 3); }
static bool publish_after(void) {
    succeed(&sender, SENDER);
    found f = drain(&reader, box);
    bool committed = f.n == 3;
    EXPECT(is(&f, 1, committed ? 3 : 2));
    everything_works();
    return committed;
}

static void publish_large_before(void) { begin(8, CV_BLOCK_SENDER, 0); }
static void publish_large(void) {
    static uint64_t bytes[2100] = {3}; /* more than the largest size class */
    EXPECT(world_send(&other, box, bytes, sizeof bytes) == PORT_SENT); /* that arena has no memory yet */
}
static bool publish_large_after(void) {
    succeed(&other, elsewhere);
    found f = drain(&reader, box);
    EXPECT(f.n <= 1 && (!f.n || f.number[0] == 3));
    everything_works();
    return f.n == 1;
}

static void drop_before(void) { begin(2, CV_DROP_OLDEST, 0), send_numbers(1, 2); }
static bool drop_after(void) {
    succeed(&sender, SENDER);
    found f = drain(&reader, box);
    bool committed = f.n && f.number[f.n - 1] == 3;
    EXPECT(is(&f, 1, 2) || is(&f, 2, 2) || is(&f, 2, 3));
    everything_works();
    return committed;
}

static void drop_asked_before(void) {
    begin(2, CV_DROP_OLDEST, 0);
    uint64_t one = 1;
    port_post ask = {.mailbox = box, .sender = second, .lane = CV_LANE_NORMAL, .payload = &one, .payload_len = 8, .type = "",
                     .flags = CV_FLAG_ASK, .correlation = cv_correlation(elsewhere, 1, 9)};
    EXPECT(port_send(&other, &ask) == PORT_SENT);
    send_numbers(2, 2);
}
static bool drop_asked_after(void) {
    succeed(&sender, SENDER);
    mb_message told;
    bool is_told = port_take(&other, elsewhere, &told) == 1;
    EXPECT(!is_told || (told.header.correlation == cv_correlation(elsewhere, 1, 9) && (told.header.flags & CV_FLAG_FAILED) &&
                        told.header.type_len == 7 && !memcmp(told.body, CV_DROPPED, 7) && told.header.payload_len == 0));
    if (is_told) EXPECT(mb_release(&other.run, cv_mailbox_at(&w.map, elsewhere), told.entry));
    found f = drain(&reader, box);
    bool committed = f.n && f.number[f.n - 1] == 3;
    EXPECT(is(&f, 1, 2) || is(&f, 2, 2) || is(&f, 2, 3));
    EXPECT(!is_told || f.number[0] == 2); /* nobody is told who may still be answered */
    EXPECT(is_told || !committed);        /* told before the newer message is committed */
    everything_works();
    return committed;
}

static void latest_before(void) { begin(4, CV_LATEST, 0), send_numbers(1, 2); }
static bool latest_after(void) {
    succeed(&sender, SENDER);
    found f = drain(&reader, box);
    EXPECT(f.n == 0 || is(&f, 1, 2) || is(&f, 2, 2) || is(&f, 3, 3));
    everything_works();
    return f.n == 1 && f.number[0] == 3;
}

static void reply_before(void) {
    begin(8, CV_BLOCK_SENDER, 0);
    port_post ask = {.mailbox = box, .sender = second, .lane = CV_LANE_NORMAL, .payload = "12345678", .payload_len = 8, .type = "",
                     .flags = CV_FLAG_ASK, .correlation = cv_correlation(SENDER, 1, 1)};
    EXPECT(port_send(&sender, &ask) == PORT_SENT);
    take_one();
}
static void reply(void) {
    uint64_t answer = 42;
    port_post post = {.sender = box, .payload = &answer, .payload_len = 8, .type = ""};
    EXPECT(port_reply(&reader, &in_hand.header, &post) == PORT_SENT);
}
static bool reply_after(void) {
    succeed(&reader, READER);
    found f = drain(&sender, SENDER); /* its reply lane */
    EXPECT(f.n == 0 || is(&f, 42, 42));
    found again = drain(&reader, box); /* the ask is redelivered, and answered again */
    EXPECT(again.n == 1 && again.deliveries[0] == 2);
    everything_works();
    return f.n == 1;
}

static void take_before(void) { begin(8, CV_BLOCK_SENDER, 0), send_numbers(1, 3); }
static void take_wrap_before(void) { publish_wrap_before(), send_numbers(3, 3); }
static bool take_after(void) {
    succeed(&reader, READER);
    found f = drain(&reader, box);
    EXPECT(is(&f, 1, 3) && f.deliveries[0] <= 2 && f.deliveries[1] == 1 && f.deliveries[2] == 1);
    everything_works();
    return f.deliveries[0] == 2;
}

static void take_garbage_before(void) { /* of the first message the length has changed */
    take_before();
    cv_ring r = world_lane(&w, box, CV_LANE_NORMAL);
    uint64_t ref = cv_word_ref(at_load(mb_slot(&r, at_load(r.head))));
    ((cv_header *)cv_chunk_at(&w.map, ref, sizeof(cv_header)))->payload_len ^= 1;
    has_garbage = true;
}
static bool take_garbage_after(void) { /* put aside once, whoever dies over it; the next one comes */
    cv_mailbox *m = cv_mailbox_at(&w.map, box);
    succeed(&reader, READER);
    found f = drain(&reader, box);
    EXPECT(is(&f, 2, 3) && f.deliveries[0] <= 2 && f.deliveries[1] == 1);
    unsigned buried = 0;
    for (unsigned e = 0; e < CV_HAND; e++) buried += mb_discard(&host.run, m, e, NOBODY);
    EXPECT(buried == 1);
    everything_works();
    return f.deliveries[0] == 2;
}

static void release_before(void) { begin(8, CV_BLOCK_SENDER, 0), send_numbers(1, 2), take_one(); }
static void release(void) { EXPECT(mb_release(&reader.run, cv_mailbox_at(&w.map, box), in_hand.entry)); }
static bool release_after(void) {
    succeed(&reader, READER);
    found f = drain(&reader, box);
    EXPECT(is(&f, 1, 2) || is(&f, 2, 2));
    everything_works();
    return f.n == 1;
}

static void redeliver_before(void) { release_before(), succeed(&reader, READER); }
static void redeliver(void) {
    EXPECT(mb_redeliver(&reader.run, cv_mailbox_at(&w.map, box), box, in_hand.entry, &in_hand));
}
static bool redeliver_after(void) {
    succeed(&reader, READER);
    found f = drain(&reader, box);
    EXPECT(is(&f, 1, 2) && (f.deliveries[0] == 2 || f.deliveries[0] == 3));
    everything_works();
    return f.deliveries[0] == 3;
}

static void new_host(void);

/* What happens to a message in hand beside its release: each time one word, and what it says is found or not. */

static uint64_t meta_of(unsigned entry) { return at_load(&cv_mailbox_at(&w.map, box)->hand[entry].meta); }

static void bury(void) { EXPECT(mb_bury(&reader.run, cv_mailbox_at(&w.map, box), in_hand.entry)); }
static bool bury_after(void) { /* handed over again, or given up; never both, and its chunk is there until the host has it */
    cv_mailbox *m = cv_mailbox_at(&w.map, box);
    succeed(&reader, READER);
    bool buried = cv_meta_state(meta_of(in_hand.entry)) == CV_HAND_BURIED;
    mb_message message;
    found f = drain(&reader, box);
    EXPECT(buried ? is(&f, 2, 2) : is(&f, 1, 2));
    if (buried) {
        world_forget(&sender);
        world_attach(&w, &sender, SENDER, sender.run.incarnation + 1); /* its owner's successor keeps the chunk too */
        uint64_t word = at_load(&m->hand[in_hand.entry].ref);
        EXPECT(sender.arena.used == 2 * cv_chunk_bytes(&sender.arena, cv_word_ref(word))); /* this one, and 77 */
        EXPECT(mb_read(&w.map, box, CV_LANE_NORMAL, cv_meta_position(meta_of(in_hand.entry)), cv_word_ref(word), &message));
        EXPECT(world_number(&message) == 1);
        EXPECT(mb_discard(&host.run, m, in_hand.entry, NOBODY));
    }
    EXPECT(!mb_discard(&host.run, m, in_hand.entry, EVERYBODY)); /* nothing is there any more */
    everything_works();
    return buried;
}

static void discard_before(void) { release_before(), bury(); }
static void discard(void) { EXPECT(mb_discard(&host.run, cv_mailbox_at(&w.map, box), in_hand.entry, NOBODY)); }
static bool discard_after(void) {
    new_host();
    bool gone = cv_meta_state(meta_of(in_hand.entry)) == CV_HAND_FREE;
    if (!gone) discard();
    succeed(&reader, READER);
    found f = drain(&reader, box);
    EXPECT(is(&f, 2, 2));
    everything_works();
    return gone;
}

static void forgo(void) { EXPECT(mb_forgo(&reader.run, cv_mailbox_at(&w.map, box), in_hand.entry)); }
static bool forgo_after(void) { /* once it is marked nobody gets it again; before, its handler had not begun */
    cv_mailbox *m = cv_mailbox_at(&w.map, box);
    mb_message message = {0};
    succeed(&reader, READER);
    bool marked = meta_of(in_hand.entry) & CV_META_ONCE;
    EXPECT(mb_redeliver(&reader.run, m, box, in_hand.entry, &message) == !marked);
    if (!marked) EXPECT(message.deliveries == 2 && mb_release(&reader.run, m, in_hand.entry));
    else EXPECT(!message.garbage && mb_discard(&host.run, m, in_hand.entry, NOBODY));
    found f = drain(&reader, box);
    EXPECT(is(&f, 2, 2));
    everything_works();
    return marked;
}

static void judge_before(void) { release_before(), succeed(&reader, READER); }
static void judge(void) { EXPECT(mb_judge(cv_mailbox_at(&w.map, box), in_hand.entry, READER, 1, 2, true)); }
static bool judge_after(void) { /* counted once or not at all; all the rest of the word as it was */
    mb_message message = {0};
    new_host();
    uint64_t meta = meta_of(in_hand.entry);
    bool judged = cv_meta_strikes(meta) == 1;
    EXPECT(cv_meta_strikes(meta) <= 1 && cv_meta_kills(meta) == (judged ? 2 : 0));
    EXPECT(!!(meta & CV_META_ALONE) == judged && !!(meta & CV_META_WAITS) == judged);
    EXPECT(cv_meta_deliveries(meta) == 1 && cv_meta_reader(meta) == READER && cv_meta_state(meta) == CV_HAND_RUNNING);
    succeed(&reader, READER);
    EXPECT(mb_redeliver(&reader.run, cv_mailbox_at(&w.map, box), box, in_hand.entry, &message) && message.alone == judged);
    EXPECT(mb_release(&reader.run, cv_mailbox_at(&w.map, box), in_hand.entry));
    found f = drain(&reader, box);
    EXPECT(is(&f, 2, 2));
    everything_works();
    return judged;
}

static void begin_before(void) {
    judge_before(), judge();
    EXPECT(mb_redeliver(&reader.run, cv_mailbox_at(&w.map, box), box, in_hand.entry, &in_hand) && in_hand.alone);
}
static void begin_alone(void) { EXPECT(mb_begin(&reader.run, cv_mailbox_at(&w.map, box), in_hand.entry) == 2); }
static bool begin_after(void) { /* who has begun is counted, and a death may be its doing; who has not, neither */
    mb_message message = {0};
    succeed(&reader, READER);
    uint64_t meta = meta_of(in_hand.entry);
    bool begun = !(meta & CV_META_WAITS);
    EXPECT(cv_meta_deliveries(meta) == (begun ? 2 : 1) && cv_meta_strikes(meta) == 1 && meta & CV_META_ALONE);
    EXPECT(mb_redeliver(&reader.run, cv_mailbox_at(&w.map, box), box, in_hand.entry, &message) && message.alone);
    EXPECT(mb_begin(&reader.run, cv_mailbox_at(&w.map, box), in_hand.entry) == (begun ? 3u : 2u));
    EXPECT(mb_release(&reader.run, cv_mailbox_at(&w.map, box), in_hand.entry));
    found f = drain(&reader, box);
    EXPECT(is(&f, 2, 2));
    everything_works();
    return begun;
}

static void strike(void) { EXPECT(mb_strike(&reader.run, cv_mailbox_at(&w.map, box), in_hand.entry) == 1); }
static bool strike_after(void) {
    succeed(&reader, READER);
    uint64_t meta = meta_of(in_hand.entry);
    bool struck = cv_meta_strikes(meta) == 1;
    EXPECT(!!(meta & CV_META_WAITS) == struck && cv_meta_deliveries(meta) == 1);
    found f = drain(&reader, box);
    EXPECT(is(&f, 1, 2) && f.deliveries[0] == 2);
    everything_works();
    return struck;
}

static void park_before(void) { begin(8, CV_BLOCK_SENDER, 0); }
static void park(void) {
    uint32_t ready[64];
    uint64_t alarm;
    EXPECT(cv_park(&reader.run));
    cv_door_write(reader.run.door[READER]);
    cv_unpark(&reader.run);
    cv_collect(&reader.run, ready, 64, &alarm);
    EXPECT(cv_park(&reader.run));
}
static bool park_after(void) {
    uint32_t ready[64];
    uint64_t alarm;
    send_numbers(1, 1); /* rings for that sleep */
    succeed(&reader, READER);
    cv_collect(&reader.run, ready, 64, &alarm);
    EXPECT(alarm & CV_ALARM_SCAN);
    found f = drain(&reader, box);
    EXPECT(is(&f, 1, 1));
    world_bell_rang(&w, READER);
    EXPECT(cv_park(&reader.run));
    send_numbers(2, 2);
    EXPECT(world_bell_rang(&w, READER)); /* the successor's sleep is another one */
    f = drain(&reader, box);
    EXPECT(is(&f, 2, 2));
    everything_works();
    return true;
}

static void commit_before(void) {
    begin(8, CV_BLOCK_SENDER, 0), send_numbers(1, 2), take_one();
    EXPECT(port_commit_state(&reader, box, &in_hand.header, "state 1", 7) == PORT_SENT);
    release(), take_one();
}
static void commit(void) { EXPECT(port_commit_state(&reader, box, &in_hand.header, "state 2", 7) == PORT_SENT); }
static bool commit_after(void) {
    mb_message stored;
    succeed(&reader, READER);
    EXPECT(port_state(&reader, box, &stored) && stored.header.payload_len == 7);
    bool second_one = !memcmp(stored.body, "state 2", 7);
    EXPECT(second_one || !memcmp(stored.body, "state 1", 7));
    EXPECT(second_one == !memcmp(stored.header.id, in_hand.header.id, 16)); /* state and id by one word */
    found f = drain(&reader, box);
    EXPECT(is(&f, 2, 2) && f.deliveries[0] == 2);
    everything_works();
    return second_one;
}

/* A handler that sends two messages, in its first life or in a later one, and what came of it in the end. */

static bool receiver_goes_on; /* takes what was sent while the sender is dead: nothing of it is left in a slot */

static void handler_begins(cv_port *p) {
    cv_mailbox *m = cv_mailbox_at(&w.map, box);
    uint64_t mine = mb_in_hand_of(m, p->run.me);
    port_remember(p, box, m, true);
    if (mine) EXPECT(mb_redeliver(&p->run, m, box, (unsigned)__builtin_ctzll(mine), &in_hand));
    else EXPECT(port_take(p, box, &in_hand) == 1);
    port_begin(p, box, &in_hand, 1);
}
static int handler_sends(cv_port *p, uint64_t number) {
    port_post post = {.mailbox = second, .sender = box, .lane = CV_LANE_NORMAL, .payload = &number, .payload_len = 8,
                      .type = "", .cause = &in_hand.header};
    cv_effect *e = port_handler(p, &post);
    CHECK(e, "the handler's message is not known");
    return port_send_once(p, &post, e);
}
static void handler_ends(cv_port *p) {
    EXPECT(mb_release(&p->run, cv_mailbox_at(&w.map, box), in_hand.entry));
    port_end(p, box, in_hand.entry, 2);
}

static void sends_begin(uint64_t first_lap) {
    receiver_goes_on = false;
    begin(8, CV_BLOCK_SENDER, first_lap), send_numbers(1, 1), handler_begins(&reader);
}
static void sends_before(void) { sends_begin(0); }
static void sends_taken_before(void) { sends_begin(0), receiver_goes_on = true; }
static void sends_wrap_before(void) {
    sends_begin(65535);
    for (uint64_t n = 0; n < 62; n++) { /* 77 was the first: the second send is the first of the next lap */
        EXPECT(world_send_number(&other, second, n) == PORT_SENT);
        found f = drain(&other, second);
        EXPECT(f.n);
    }
    EXPECT(world_send_number(&sender, second, 77) == PORT_SENT);
    receiver_goes_on = true;
}
static void sends_growing_before(void) { /* the log is full but for one */
    sends_begin(0);
    for (uint64_t n = 0; n < CV_EFFECT_FIRST - 1; n++) {
        EXPECT(handler_sends(&reader, 1000 + n) == PORT_SENT);
        found f = drain(&other, second);
        EXPECT(f.n);
    }
    EXPECT(world_send_number(&sender, second, 77) == PORT_SENT);
}
static void sends_full_before(void) { /* one place is left */
    sends_begin(0);
    for (unsigned n = 0; n < 6; n++) EXPECT(world_send_number(&sender, second, 77) == PORT_SENT);
}
static void sends_again_before(void) { /* in its second life; the first has sent one of the two */
    sends_begin(0);
    EXPECT(handler_sends(&reader, 1) == PORT_SENT);
    succeed(&reader, READER);
    handler_begins(&reader);
}
static void sends_again_taken_before(void) { sends_again_before(), receiver_goes_on = true; }
static void sends(void) {
    EXPECT(handler_sends(&reader, 1) == PORT_SENT);
    EXPECT(handler_sends(&reader, 2) == PORT_SENT);
}
static void sends_beside(void) { /* another agent of this process sends after it, and to the same receiver */
    uint64_t number = 77;
    port_post post = {.mailbox = second, .sender = second, .lane = CV_LANE_NORMAL, .payload = &number, .payload_len = 8,
                      .type = ""};
    sends();
    post.number = ++reader.number;
    EXPECT(port_send(&reader, &post) == PORT_SENT);
}
static void sends_full(void) {
    EXPECT(handler_sends(&reader, 1) == PORT_SENT);
    EXPECT(handler_sends(&reader, 2) == PORT_FULL);
}
/* How often each of the two has come by now. */
static void count_sent(unsigned came[3]) {
    found f = drain(&other, second);
    for (unsigned i = 0; i < f.n; i++) {
        EXPECT(f.number[i] == 77 || f.number[i] == 1 || f.number[i] == 2);
        if (f.number[i] != 77) came[f.number[i]]++;
    }
}
static bool sends_after(void) {
    unsigned came[3] = {0, 0, 0};
    if (receiver_goes_on) count_sent(came);
    succeed(&reader, READER);
    count_sent(came);
    bool committed = came[2] == 1;
    EXPECT(came[1] <= 1 && came[2] <= came[1]);
    handler_begins(&reader);
    if (at_load(&cv_mailbox_at(&w.map, box)->log_count) >= CV_EFFECT_FIRST - 1) /* what the growing log began with */
        for (uint64_t n = 0; n < CV_EFFECT_FIRST - 1; n++) EXPECT(handler_sends(&reader, 1000 + n) == PORT_SENT);
    sends();
    count_sent(came);
    CHECK(came[1] == 1 && came[2] == 1, "the two sends came %u and %u times", came[1], came[2]);
    handler_ends(&reader);
    EXPECT(world_send_number(&sender, second, 77) == PORT_SENT);
    everything_works();
    return committed;
}
static bool sends_full_after(void) {
    sends_after();
    return true; /* the second never was, in no state */
}

/* A handler that saves after each send how far it came, and goes on from there; what it sends is all the same. */
enum { WALKS = 3 };
static void walks(void) {
    mb_message stored;
    uint8_t at = port_state(&reader, box, &stored) ? stored.body[0] : 0;
    while (at < WALKS) {
        EXPECT(handler_sends(&reader, 5) == PORT_SENT);
        at++;
        EXPECT(port_commit_state(&reader, box, NULL, &at, 1) == PORT_SENT);
    }
}
static bool walks_after(void) {
    succeed(&reader, READER);
    handler_begins(&reader);
    mb_message stored;
    bool walked = port_state(&reader, box, &stored) && stored.body[0] == WALKS;
    walks();
    found f = drain(&other, second);
    CHECK(f.n == 1 + WALKS, "%u steps came, not %u", f.n - 1, WALKS);
    for (unsigned i = 1; i <= WALKS; i++) EXPECT(f.number[i] == 5);
    handler_ends(&reader);
    EXPECT(world_send_number(&sender, second, 77) == PORT_SENT);
    everything_works();
    return walked;
}

/* The host repairs: the newest entry is open, and its message is in its slot (`is`), or nowhere (`is_not`). */
static void settle_before(bool published) {
    sends_begin(0);
    EXPECT(handler_sends(&reader, 1) == PORT_SENT);
    if (published) EXPECT(handler_sends(&reader, 2) == PORT_SENT);
    else {
        cv_effect *e = reader.effect[box];
        uint64_t number = 2;
        cv_effect_intend(e, cv_digest(cv_digest(second, "", 0), &number, 8), ++reader.number, second, CV_LANE_NORMAL, 12345);
    }
}
static void settle_is_before(void) { settle_before(true); }
static void settle_is_not_before(void) { settle_before(false); }
static void settle(void) {
    cv_slot_recover(&host.run, READER);
    cv_ring_all(&host.run);
}
static bool settle_after(void) {
    new_host();
    bool settled = !at_load(&cv_mailbox_at(&w.map, box)->open_number);
    sends_after();
    return settled;
}

static void attach_before(void) { begin(8, CV_BLOCK_SENDER, 0), send_numbers(1, 3), take_one(), world_forget(&sender); }
static void attach(void) { world_attach(&w, &sender, SENDER, 2); }
static bool attach_after(void) {
    memset(&sender.ledger, 0, sizeof sender.ledger);
    memset(&sender.arena, 0, sizeof sender.arena);
    sender.effect = NULL;
    succeed(&sender, SENDER);
    release();
    found f = drain(&reader, box);
    EXPECT(is(&f, 2, 3));
    everything_works();
    return true;
}

static void trim_before(void) {
    static uint8_t bytes[260000];
    begin(8, CV_BLOCK_SENDER, 0), send_numbers(1, 1);
    for (unsigned i = 0; i < 4; i++) EXPECT(world_send(&sender, second, bytes, sizeof bytes) == PORT_SENT);
    found f = drain(&other, second);
    EXPECT(f.n == 5);
    EXPECT(world_send_number(&sender, second, 77) == PORT_SENT);
}
static void trim(void) {
    cv_ledger_look_all(&sender.ledger);
    EXPECT(cv_arena_trim(&sender.arena, 0) > 0);
}
static bool trim_after(void) {
    static uint8_t bytes[260000];
    succeed(&sender, SENDER);
    found f = drain(&reader, box);
    EXPECT(is(&f, 1, 1));
    for (unsigned i = 0; i < 2; i++) EXPECT(world_send(&sender, box, bytes, sizeof bytes) == PORT_SENT); /* what was given back */
    f = drain(&reader, box);
    EXPECT(f.n == 2);
    everything_works();
    return true;
}

/* Announcements: of who waits for room, and of what a handler waits for. The dead wait for nothing. */

static void want_room_before(void) { begin(2, CV_BLOCK_SENDER, 0), send_numbers(1, 2); }
static void want_room(void) {
    EXPECT(world_send_number(&sender, box, 3) == PORT_FULL);
    EXPECT(port_want_room(&sender, box) == PORT_ROOM_LATER);
}
static bool want_room_after(void) {
    cv_mailbox *m = cv_mailbox_at(&w.map, box);
    bool announced = cv_set_has(cv_set_load(&m->waiters), SENDER);
    EXPECT(!announced || cv_set_has(cv_set_load(&m->wanting), SENDER)); /* the poll's bit first */
    succeed(&sender, SENDER);
    EXPECT(!cv_set_any(cv_set_load(&m->waiters)) && !cv_set_any(cv_set_load(&m->wanting)));
    found f = drain(&reader, box);
    EXPECT(is(&f, 1, 2));
    everything_works();
    return announced;
}

static void note_wait_before(void) { release_before(); }
static void note_wait(void) {
    cv_wait wait = {.id = 9, .on = second, .since_ns = 5, .seen_ns = 6, .type = "a question of some length"};
    cv_wait_note(&reader.run, box, &wait);
}
static bool note_wait_after(void) { /* all of it or nothing */
    cv_wait noted;
    bool is_noted = cv_wait_read(&host.run, box, &noted);
    if (is_noted) EXPECT(noted.id == 9 && noted.on == second && noted.since_ns == 5 && !strcmp(noted.type, "a question of some length"));
    succeed(&reader, READER);
    EXPECT(!cv_wait_read(&host.run, box, &noted));
    found f = drain(&reader, box);
    EXPECT(is(&f, 1, 2));
    everything_works();
    return is_noted;
}

/* The host's operations. */

static void close_before(void) { begin(8, CV_BLOCK_SENDER, 0), send_numbers(1, 2); }
static void close_all(void) { EXPECT(cv_close(&host.run, box)); }
static bool close_after(void) {
    new_host();
    bool complete = (at_load(&cv_record_at(&w.map, box)->word) & 0xff) == CV_AGENT_CLOSED;
    bool begun = mb_is_closed(&w.map, cv_mailbox_at(&w.map, box), box);
    EXPECT(begun || !complete);
    unsigned late = world_send_number(&sender, box, 3) == PORT_SENT; /* the lane may not have been reached */
    EXPECT(!late || !complete);
    EXPECT(cv_close(&host.run, box) && cv_close(&host.run, box));
    EXPECT(world_send_number(&sender, box, 4) == PORT_CLOSED);
    found f = drain(&reader, box);
    EXPECT(is(&f, 1, 2 + late));
    f = drain(&other, second);
    EXPECT(is(&f, 77, 77) && world_used(&sender) == 0);
    return begun;
}

static void recover_before(void) {
    begin(8, CV_BLOCK_SENDER, 0), send_numbers(1, 4), take_one();
    /* 1 is in hand. 2 is in hand and still in its slot, 3 is taken and not in hand, an entry is claimed: three deaths. */
    cv_ring r = world_lane(&w, box, CV_LANE_NORMAL);
    uint64_t head = at_load(r.head), full = at_load(mb_slot(&r, head));
    take_one();
    at_store(r.head, head);
    at_store(mb_slot(&r, head), cv_word(mb_lap(&r, head), CV_TAKEN, READER, cv_word_ref(full)));
    full = at_load(mb_slot(&r, head + 1));
    at_store(mb_slot(&r, head + 1), cv_word(mb_lap(&r, head + 1), CV_TAKEN, READER, cv_word_ref(full)));
    EXPECT(mb_claim(cv_mailbox_at(&w.map, box), READER) < CV_HAND);
}
static void recover(void) {
    cv_slot_recover(&host.run, READER);
    cv_ring_all(&host.run);
}
static bool recover_after(void) {
    new_host();
    succeed(&reader, READER);
    found f = drain(&reader, box);
    EXPECT(is(&f, 1, 4) && f.deliveries[0] == 2 && f.deliveries[1] == 2 && f.deliveries[2] == 1);
    EXPECT(!cv_set_any(cv_busy_readers(cv_mailbox_at(&w.map, box))));
    everything_works();
    return true;
}

/* A mailbox changes hands. */
static int send_under(uint32_t handle, uint64_t number) {
    port_post post = {.mailbox = cv_index(handle), .reuse = cv_reuse(handle), .sender = second, .lane = CV_LANE_NORMAL,
                      .payload = &number, .payload_len = sizeof number, .type = ""};
    return port_send(&sender, &post);
}
static void retire_before(void) {
    begin(8, CV_BLOCK_SENDER, 0), send_numbers(1, 2);
    found f = drain(&reader, box);
    EXPECT(is(&f, 1, 2) && cv_close(&host.run, box));
}
static void retire(void) { EXPECT(cv_retire(&host.run, box)); }
static int64_t reopen_as(const char *name) {
    const uint32_t capacities[CV_LANES] = {63, 63, 9};
    return cv_reopen(&host.run, box, name, strlen(name), capacities, CV_ERROR, 1);
}
/* What the next host does with it, and that it is the mailbox of one name and of nobody else. */
static void it_changes_hands(void) {
    new_host();
    uint64_t state = at_load(&cv_record_at(&w.map, box)->word) & 0xff;
    if (state != CV_AGENT_OPEN) EXPECT(cv_retire(&host.run, box) && reopen_as("new") >= 0);
    uint32_t handle = cv_find(&w.map, box, "new", 3);
    EXPECT(handle != UINT32_MAX && cv_index(handle) == box && cv_reuse(handle) > 0);
    EXPECT(cv_find(&w.map, box, "box", 3) == UINT32_MAX);
    EXPECT(send_under(box, 3) == PORT_CLOSED);
    cv_set_readers(&host.run, box, cv_set_of(READER), NOBODY);
    EXPECT(send_under(handle, 4) == PORT_SENT && send_under(handle, 5) == PORT_SENT);
    found f = drain(&reader, box);
    EXPECT(is(&f, 4, 5));
    f = drain(&other, second);
    EXPECT(is(&f, 77, 77) && world_used(&sender) == 0);
}
static bool retire_after(void) {
    bool refused = send_under(box, 3) == PORT_CLOSED && at_load(&cv_record_at(&w.map, box)->reuse) == 1;
    it_changes_hands();
    return refused;
}
static void reopen_before(void) { retire_before(), retire(); }
static void reopen(void) { EXPECT(reopen_as("new") == (int64_t)(box | 1u << CV_INDEX_BITS)); }
static bool reopen_after(void) {
    bool open = (at_load(&cv_record_at(&w.map, box)->word) & 0xff) == CV_AGENT_OPEN;
    EXPECT(open || cv_find(&w.map, box, "new", 3) == UINT32_MAX);
    it_changes_hands();
    return open;
}

static void add_before(void) { begin(8, CV_BLOCK_SENDER, 0), send_numbers(1, 1); }
static void add(void) { world_mailbox(&w, &host, "new", 1000, CV_BLOCK_SENDER, cv_set_of(READER)); }
static bool add_after(void) {
    uint32_t records = cv_records(&w.map);
    EXPECT(records == second + 1 || records == second + 2);
    new_host();
    if (records == second + 1) add();
    uint32_t added = second + 1, more = world_mailbox(&w, &host, "more", 64, CV_BLOCK_SENDER, cv_set_of(READER));
    EXPECT(more == added + 1 && !memcmp(cv_record_at(&w.map, added)->name, "new", 3));
    uint32_t both[] = {added, more};
    for (unsigned i = 0; i < 2; i++) {
        cv_set_readers(&host.run, both[i], cv_set_of(READER), NOBODY);
        EXPECT(world_send_number(&sender, both[i], 9) == PORT_SENT);
        found f = drain(&reader, both[i]);
        EXPECT(is(&f, 9, 9));
    }
    found f = drain(&reader, box);
    EXPECT(is(&f, 1, 1));
    everything_works();
    return records > second + 1;
}

static void readers_before(void) { release_before(), at_store(&cv_slot_at(&w.map, READER)->state, CV_SLOT_DEAD); }
static void readers_far_before(void) { elsewhere = 64, readers_before(); } /* in the other word: two stores */
static void readers(void) { cv_set_readers(&host.run, box, cv_set_of(elsewhere), cv_set_of(READER)); }
static bool readers_after(void) {
    new_host();
    cv_set now = cv_set_load(&cv_mailbox_at(&w.map, box)->readers);
    bool moved = cv_set_has(now, elsewhere);
    EXPECT(!moved || !cv_set_has(now, READER)); /* the lower word first: nobody for a moment, who will scan */
    readers();
    found f = drain(&other, box);
    EXPECT(is(&f, 1, 2) && f.deliveries[0] == 2);
    everything_works();
    return moved;
}

static const struct {
    const char *name;
    void (*before)(void), (*act)(void);
    bool (*after)(void);
} OPERATIONS[] = {
    {"publish", publish_before, publish, publish_after},
    {"publish_before_the_wrap", publish_wrap_before, publish, publish_after},
    {"publish_large", publish_large_before, publish_large, publish_large_after},
    {"publish_drop_oldest", drop_before, publish, drop_after},
    {"publish_drops_a_question", drop_asked_before, publish, drop_asked_after},
    {"publish_latest", latest_before, publish, latest_after},
    {"reply", reply_before, reply, reply_after},
    {"take", take_before, take_one, take_after},
    {"take_before_the_wrap", take_wrap_before, take_one, take_after},
    {"take_garbage", take_garbage_before, take_one, take_garbage_after},
    {"release", release_before, release, release_after},
    {"redeliver", redeliver_before, redeliver, redeliver_after},
    {"bury", release_before, bury, bury_after},
    {"discard", discard_before, discard, discard_after},
    {"forgo", release_before, forgo, forgo_after},
    {"judge", judge_before, judge, judge_after},
    {"begin", begin_before, begin_alone, begin_after},
    {"strike", release_before, strike, strike_after},
    {"park", park_before, park, park_after},
    {"commit_state", commit_before, commit, commit_after},
    {"sends", sends_before, sends, sends_after},
    {"sends_that_are_taken", sends_taken_before, sends, sends_after},
    {"sends_beside_another_agent", sends_taken_before, sends_beside, sends_after},
    {"sends_before_the_wrap", sends_wrap_before, sends, sends_after},
    {"sends_with_a_growing_log", sends_growing_before, sends, sends_after},
    {"sends_into_the_last_place", sends_full_before, sends_full, sends_full_after},
    {"sends_again", sends_again_before, sends, sends_after},
    {"sends_again_that_are_taken", sends_again_taken_before, sends, sends_after},
    {"sends_and_saves", sends_before, walks, walks_after},
    {"settle_what_was_published", settle_is_before, settle, settle_after},
    {"settle_what_was_not", settle_is_not_before, settle, settle_after},
    {"attach", attach_before, attach, attach_after},
    {"trim", trim_before, trim, trim_after},
    {"want_room", want_room_before, want_room, want_room_after},
    {"note_wait", note_wait_before, note_wait, note_wait_after},
    {"close", close_before, close_all, close_after},
    {"retire", retire_before, retire, retire_after},
    {"reopen", reopen_before, reopen, reopen_after},
    {"recover", recover_before, recover, recover_after},
    {"directory_add", add_before, add, add_after},
    {"set_readers", readers_before, readers, readers_after},
    {"set_readers_into_the_other_word", readers_far_before, readers, readers_after},
};

/* --- stepping -------------------------------------------------------------------------------------------------------- */

static pid_t fork_to_act(void (*act)(void)) {
    pid_t pid = fork();
    CHECK(pid >= 0, "no process");
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL)) _exit(SKIP);
        kill(getpid(), SIGSTOP);
        act();
        kill(getpid(), SIGSTOP);
        _exit(0);
    }
    int status;
    EXPECT(waitpid(pid, &status, 0) == pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == SKIP) {
        puts("ptrace is not permitted here");
        exit(SKIP);
    }
    CHECK(WIFSTOPPED(status), "the child did not stop");
    return pid;
}

/* One instruction. False: the operation has ended. */
static bool step(pid_t pid) {
    int status;
    if (ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL)) {
        puts("single steps are not permitted here");
        exit(SKIP);
    }
    EXPECT(waitpid(pid, &status, 0) == pid);
    CHECK(WIFSTOPPED(status), "the child ended in the middle of the operation: %#x", status);
    if (WSTOPSIG(status) == SIGSTOP) return false;
    CHECK(WSTOPSIG(status) == SIGTRAP, "the child was stopped by signal %d", WSTOPSIG(status));
    return true;
}

static void kill_child(pid_t pid) {
    int status;
    kill(pid, SIGKILL);
    do EXPECT(waitpid(pid, &status, 0) == pid);
    while (!WIFSIGNALED(status));
}

/* --- shared memory, all that a death leaves ---------------------------------------------------------------------------- */

typedef struct {
    uint8_t *at;
    uint64_t size;
} part;

enum { PARTS = 4 + 2 * 65 };

/* What the operations of this file can touch. */
static void parts(part p[PARTS]) {
    cv_run *run = &w.map;
    EXPECT(3 + 2 * run->slots < PARTS);
    memset(p, 0, PARTS * sizeof *p);
    p[0] = (part){run->directory, run->directory_size};
    p[1] = (part){run->cells, run->cells_size};
    p[2] = (part){run->mail, at_load(cv_mail_end(run))};
    for (unsigned s = 0; s < run->slots; s++) {
        bool backed = at_load((at_u64 *)(run->arena[s] + CV_ARENA_EXTENTS)) & 1;
        p[3 + 2 * s] = (part){run->arena[s] + CV_ARENA_EXTENTS, 64};
        p[4 + 2 * s] = (part){run->arena[s] + CV_BLOCK, backed ? 16384 : 0};
    }
    uint64_t log = at_load(&cv_mailbox_at(run, box)->log_ref);
    p[PARTS - 1] = (part){log ? cv_chunk_at(run, log, 256) : NULL, log ? 256 : 0};
}

/* Whether it is other than at the last call. */
static bool memory_changed(void) {
    static uint8_t last[PARTS][1u << 20];
    static uint64_t sizes[PARTS];
    part now[PARTS];
    bool changed = false;
    parts(now);
    for (unsigned i = 0; i < PARTS; i++) {
        EXPECT(now[i].size <= sizeof last[i]);
        if (sizes[i] == now[i].size && (!now[i].size || !memcmp(last[i], now[i].at, now[i].size))) continue;
        changed = true;
        sizes[i] = now[i].size;
        memcpy(last[i], now[i].at, now[i].size);
    }
    return changed;
}

static void copy_segment(uint8_t *at, uint64_t size, int fd) {
    int copy = memfd_create("civitas-harness", MFD_CLOEXEC);
    EXPECT(copy >= 0 && ftruncate(copy, (off_t)size) == 0);
    uint8_t *to = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, copy, 0);
    EXPECT(to != MAP_FAILED);
    for (uint64_t i = 0; i < size; i += CV_PAGE) /* a hole reads as zeros; it is written nowhere, so it stays one */
        for (uint64_t k = 0; k < CV_PAGE; k += 8)
            if (*(uint64_t *)(at + i + k)) {
                memcpy(to + i, at + i, CV_PAGE);
                break;
            }
    EXPECT(mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, copy, 0) == at);
    if (fd >= 0) EXPECT(dup2(copy, fd) == fd);
}

/* From here on this process has memory and doorbells of its own, as they were. */
static void copy_world(void) {
    cv_run *run = &w.map;
    copy_segment(run->directory, run->directory_size, -1);
    copy_segment(run->cells, run->cells_size, -1);
    copy_segment(run->mail, run->mail_size, w.mail_fd);
    for (unsigned s = 0; s < run->slots; s++) {
        if (s > READER && s != elsewhere) continue; /* nobody's */
        copy_segment(run->arena[s], run->arena_size[s], w.arena_fd[s]);
        struct pollfd door = {.fd = run->door[s], .events = POLLIN};
        int bell = eventfd(poll(&door, 1, 0) == 1, EFD_NONBLOCK);
        EXPECT(bell >= 0 && dup2(bell, run->door[s]) == run->door[s]);
    }
}

/* What `after` finds when the child dies here. */
static bool check_a_copy(bool (*after)(void)) {
    enum { FOUND = 10, NOT_FOUND = 11 };
    int status;
    pid_t pid = fork();
    EXPECT(pid >= 0);
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        copy_world();
        _exit(after() ? FOUND : NOT_FOUND);
    }
    EXPECT(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == FOUND || WEXITSTATUS(status) == NOT_FOUND), "the check ended with %#x",
          status);
    return WEXITSTATUS(status) == FOUND;
}

/* --------------------------------------------------------------------------------------------------------------------- */

static void forget_all(void) {
    cv_port *ports[] = {&host, &sender, &reader, &other};
    for (unsigned i = 0; i < 4; i++)
        if (ports[i]->arena.block) world_forget(ports[i]);
    world_end(&w);
}

/* Two runs of one operation differ by a few instructions: the clock is read in a loop. */
enum { STEPS_OFF = 300 };

static uint32_t really_kill(unsigned o, uint32_t steps, uint32_t most) {
    uint32_t kills = 0, found_at = 0, stride = steps / most ? steps / most : 1;
    for (uint32_t k = stride; k <= steps; k += stride, kills++) {
        OPERATIONS[o].before();
        pid_t pid = fork_to_act(OPERATIONS[o].act);
        for (uint32_t i = 0; i < k && step(pid); i++) {}
        kill_child(pid);
        bool found = OPERATIONS[o].after();
        if (found && !found_at) found_at = k;
        CHECK(found || !found_at || k < found_at + STEPS_OFF, "the effect was there after step %u and is not after step %u",
              found_at, k);
        forget_all();
    }
    return kills;
}

int main(int argc, char **argv) {
    const unsigned count = sizeof OPERATIONS / sizeof *OPERATIONS;
    if (argc < 2 || !strcmp(argv[1], "list")) {
        for (unsigned i = 0; i < count; i++) puts(OPERATIONS[i].name);
        return 0;
    }
    unsigned o = 0, most = argc > 2 ? (unsigned)atoi(argv[2]) : 0;
    while (o < count && strcmp(OPERATIONS[o].name, argv[1])) o++;
    CHECK(o < count, "no operation %s", argv[1]);

    uint32_t steps = 0, states = 0;
    bool found = false;
    OPERATIONS[o].before();
    memory_changed();
    pid_t pid = fork_to_act(OPERATIONS[o].act);
    while (step(pid)) {
        CHECK(++steps < STEPS_MAX, "the operation does not end");
        if (!memory_changed()) continue;
        states++;
        bool is_found = check_a_copy(OPERATIONS[o].after);
        CHECK(is_found || !found, "the effect was there before and is not after step %u", steps);
        found = is_found;
    }
    CHECK(states, "the operation changed nothing");
    CHECK(check_a_copy(OPERATIONS[o].after), "the effect of the complete operation is not found");
    kill_child(pid);
    forget_all();
    uint32_t kills = most ? really_kill(o, steps, most) : 0;
    printf("%s: instructions %u states %u kills %u\n", argv[1], steps, states, kills);
    return 0;
}
