/* Cases of the native core, one process, no luck involved: each builds the state that a death, a stop or a damaged word
 * leaves behind, word by word, and says what must hold then. `mailbox_cases` lists them, `mailbox_cases NAME` runs one.
 */
#include "world.h"

static world w;
static cv_port host, sender, reader, other;
static uint32_t box;
enum { HOST, SENDER, READER = 63, OTHER, SLOTS }; /* readers in both words of a set of processes */

static void begin(uint32_t capacity, unsigned overflow, cv_set readers) {
    world_make(&w, SLOTS, 256, 4u << 20, 4u << 20);
    world_attach(&w, &host, HOST, 1);
    world_begin(&w, &host);
    world_attach(&w, &sender, SENDER, 1);
    world_attach(&w, &reader, READER, 1);
    world_attach(&w, &other, OTHER, 1);
    box = world_mailbox(&w, &host, "box", capacity, overflow, readers);
}
#define ONE cv_set_of(READER)
#define BOTH world_pair(READER, OTHER)

static uint64_t take_number(cv_port *p, mb_message *m) {
    EXPECT(port_take(p, box, m) == 1);
    return world_number(m);
}
static void handle(cv_port *p, uint64_t number) {
    mb_message m;
    uint64_t got = take_number(p, &m);
    CHECK(got == number, "handled %llu, expected %llu", (unsigned long long)got, (unsigned long long)number);
    EXPECT(mb_release(&p->run, cv_mailbox_at(&p->run, box), m.entry));
}

/* What a producer leaves that is killed, or stopped, right after its CAS: committed, tail not helped, nobody told. */
static void commit_and_die(cv_port *p, uint32_t mailbox, uint64_t number) {
    port_post post = {.mailbox = mailbox, .lane = CV_LANE_NORMAL, .payload = &number, .payload_len = 8, .type = "n",
                      .type_len = 1};
    cv_header *h;
    int outcome;
    cv_ring r = world_lane(&w, mailbox, CV_LANE_NORMAL);
    uint64_t ref = port_chunk(p, &post, &h, &outcome), tail = at_load(r.head);
    EXPECT(ref);
    while (cv_word_state(at_load(mb_slot(&r, tail))) != CV_EMPTY) tail++; /* where a fresh look at the hints leads */
    mb_seal(&p->run, &r, h, tail);
    at_u64 *slot = mb_slot(&r, tail);
    EXPECT(at_cas(slot, at_load(slot), cv_word(mb_lap(&r, tail), CV_FULL, 0, ref)));
    cv_ledger_note(&p->ledger, mailbox, CV_LANE_NORMAL, tail, ref);
}

/* --- hints ------------------------------------------------------------------------------------------------------- */

static void tail_left_behind_head_does_not_stop_senders(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    commit_and_die(&sender, box, 1);
    handle(&reader, 1); /* head is past tail now */
    for (uint64_t n = 2; n < 10; n++) EXPECT(world_send_number(&sender, box, n) == PORT_SENT);
    EXPECT(world_send_number(&sender, box, 10) == PORT_FULL);
    for (uint64_t n = 2; n < 10; n++) handle(&reader, n);
}
static void producer_stopped_before_helping_stops_nobody(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    commit_and_die(&other, box, 1);
    EXPECT(world_send_number(&sender, box, 2) == PORT_SENT);
    handle(&reader, 1);
    handle(&reader, 2);
}
static void tail_left_behind_head_does_not_stop_closing(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    commit_and_die(&sender, box, 1);
    handle(&reader, 1);
    cv_ring r = world_lane(&w, box, CV_LANE_NORMAL);
    commit_and_die(&other, box, 2);
    EXPECT(mb_close_lane(&r));
    EXPECT(world_send_number(&sender, box, 3) == PORT_CLOSED);
}
static void message_of_a_producer_that_died_before_helping_is_counted(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    commit_and_die(&sender, box, 1);
    cv_ring r = world_lane(&w, box, CV_LANE_NORMAL);
    EXPECT(mb_waiting(&r) == 1);
}
static void damaged_tail_does_not_stop_senders(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    cv_ring r = world_lane(&w, box, CV_LANE_NORMAL);
    const uint64_t hostile[] = {0, 1, 8, 63, 64, 65, 1u << 20, ~0ull, 1ull << 63};
    for (unsigned i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        at_store(r.tail, at_load(r.head) + hostile[i]);
        int outcome = world_send_number(&sender, box, i);
        for (unsigned n = 0; outcome == PORT_SENT && n < 16; n++) outcome = world_send_number(&sender, box, i);
        EXPECT(outcome == PORT_FULL);
        mb_message m; /* whatever it filled, the next round begins from an empty lane */
        while (port_take(&reader, box, &m) == 1) EXPECT(mb_release(&reader.run, cv_mailbox_at(&w.map, box), m.entry));
        EXPECT(mb_waiting(&r) == 0);
    }
}

static void lane_of_no_places_is_damaged_and_costs_a_sender_no_patience(void) {
    begin(8, CV_DROP_OLDEST, ONE);
    cv_mailbox_at(&w.map, box)->capacity[CV_LANE_NORMAL] = 0;
    EXPECT(world_send_number(&sender, box, 1) == PORT_CLOSED);
}

/* --- wake-up ------------------------------------------------------------------------------------------------------- */

static void safety_poll_finds_what_a_stopped_producer_left(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    cv_set_join(&cv_mailbox_at(&w.map, box)->listening, READER);
    EXPECT(cv_park(&reader.run));
    commit_and_die(&sender, box, 1);
    EXPECT(cv_safety_poll(&host.run) == 0); /* seen once: may be on its way */
    EXPECT(cv_safety_poll(&host.run) == 1);
    EXPECT(world_bell_rang(&w, READER));
}
static void safety_poll_finds_a_reply_that_a_stopped_producer_left(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    EXPECT(cv_park(&other.run));
    commit_and_die(&sender, OTHER, 1); /* the reply lane of that slot */
    EXPECT(cv_safety_poll(&host.run) == 0);
    EXPECT(cv_safety_poll(&host.run) == 1);
    EXPECT(world_bell_rang(&w, OTHER));
}
static void safety_poll_finds_who_waits_for_room_and_was_not_told(void) {
    begin(1, CV_BLOCK_SENDER, ONE);
    cv_mailbox *m = cv_mailbox_at(&w.map, box);
    mb_message taken;
    uint32_t ready[256];
    uint64_t alarm;
    EXPECT(world_send_number(&sender, box, 1) == PORT_SENT);
    EXPECT(world_send_number(&sender, box, 2) == PORT_FULL);
    EXPECT(port_want_room(&sender, box) == PORT_ROOM_LATER);
    cv_collect(&sender.run, ready, 256, &alarm);
    EXPECT(cv_park(&sender.run));
    for (unsigned poll = 0; poll < 3; poll++) EXPECT(cv_safety_poll(&host.run) == 0); /* there is no room: let it sleep */
    EXPECT(at_xchg(&m->waiters.word[SENDER / 64], 0) != 0); /* what a reader does last before it is stopped in mb_tell_waiters */
    EXPECT(port_take(&reader, box, &taken) == 1);
    EXPECT(cv_safety_poll(&host.run) == 0); /* seen once: may be on its way */
    EXPECT(cv_safety_poll(&host.run) == 1);
    EXPECT(world_bell_rang(&w, SENDER));
    cv_unpark(&sender.run);
    cv_collect(&sender.run, ready, 256, &alarm);
    EXPECT(alarm & CV_ALARM_ROOM);
    mb_told(&sender.run);
    EXPECT(!cv_set_any(cv_set_load(&m->wanting)));
    EXPECT(world_send_number(&sender, box, 2) == PORT_SENT);
    EXPECT(cv_park(&sender.run));
    for (unsigned poll = 0; poll < 3; poll++) EXPECT(cv_safety_poll(&host.run) == 0);
}
static void waiters_and_readers_of_both_words_are_told(void) {
    begin(1, CV_BLOCK_SENDER, BOTH);
    cv_port *waiters[] = {&sender, &other};
    mb_message taken;
    uint32_t ready[256];
    uint64_t alarm;
    EXPECT(cv_park(&reader.run) && cv_park(&other.run));
    EXPECT(world_send_number(&sender, box, 1) == PORT_SENT);
    EXPECT(world_bell_rang(&w, READER) && world_bell_rang(&w, OTHER));
    cv_collect(&other.run, ready, 256, &alarm);
    for (unsigned i = 0; i < 2; i++) {
        EXPECT(world_send_number(waiters[i], box, 2) == PORT_FULL);
        EXPECT(port_want_room(waiters[i], box) == PORT_ROOM_LATER);
    }
    EXPECT(port_take(&reader, box, &taken) == 1);
    for (unsigned i = 0; i < 2; i++) {
        cv_collect(&waiters[i]->run, ready, 256, &alarm);
        EXPECT(alarm & CV_ALARM_ROOM);
    }
    EXPECT(!cv_set_any(cv_set_load(&cv_mailbox_at(&w.map, box)->waiters)));
    mb_wait(&other.run, cv_mailbox_at(&w.map, box)); /* alone in its word */
    EXPECT(mb_release(&reader.run, cv_mailbox_at(&w.map, box), taken.entry));
    cv_collect(&other.run, ready, 256, &alarm);
    EXPECT(alarm & CV_ALARM_ROOM);
}
static void safety_poll_finds_room_that_a_reader_made_before_it_was_stopped(void) {
    begin(1, CV_BLOCK_SENDER, ONE);
    cv_mailbox *m = cv_mailbox_at(&w.map, box);
    mb_message taken;
    uint32_t ready[256];
    uint64_t alarm;
    EXPECT(world_send_number(&sender, box, 1) == PORT_SENT);
    EXPECT(port_take(&reader, box, &taken) == 1);
    EXPECT(world_send_number(&sender, box, 2) == PORT_SENT);
    EXPECT(world_send_number(&sender, box, 3) == PORT_FULL);
    EXPECT(port_want_room(&sender, box) == PORT_ROOM_LATER);
    cv_collect(&sender.run, ready, 256, &alarm);
    EXPECT(cv_park(&sender.run));
    uint64_t waiters = at_xchg(&m->waiters.word[SENDER / 64], 0);
    EXPECT(port_take(&reader, box, &taken) == 1); /* tells nobody: as if stopped before it looked at `waiters` */
    at_store(&m->waiters.word[SENDER / 64], waiters);
    EXPECT(cv_safety_poll(&host.run) == 0);
    EXPECT(cv_safety_poll(&host.run) == 1);
    EXPECT(world_bell_rang(&w, SENDER));
}
static void probe_is_answered_by_a_poll_and_is_no_alarm(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    uint32_t ready[256];
    uint64_t alarm;
    cv_collect(&reader.run, ready, 256, &alarm);
    EXPECT(cv_park(&reader.run));
    cv_probe(&host.run, READER);
    EXPECT(world_bell_rang(&w, READER));
    EXPECT(cv_probe_open(&host.run, READER));
    cv_unpark(&reader.run);
    EXPECT(cv_collect(&reader.run, ready, 256, &alarm) == 0 && alarm == 0);
    EXPECT(!cv_probe_open(&host.run, READER));
    EXPECT(cv_park(&reader.run));
}
static void wait_that_is_being_written_is_left_out(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    cv_wait wait = {.id = 7, .on = 3 | (uint64_t)CV_WAIT_ROOM << 32, .since_ns = 10, .seen_ns = 20, .type = "work"}, seen;
    EXPECT(!cv_wait_read(&host.run, box, &seen));
    cv_wait_note(&sender.run, box, &wait);
    EXPECT(cv_wait_read(&host.run, box, &seen));
    EXPECT(seen.id == 7 && cv_wait_target(&seen) == 3 && cv_wait_kind(&seen) == CV_WAIT_ROOM && !strcmp(seen.type, "work"));
    EXPECT(seen.since_ns == 10 && seen.seen_ns == 20);
    wait.seen_ns = 30;
    cv_wait_note(&sender.run, box, &wait);
    EXPECT(cv_wait_read(&host.run, box, &seen) && seen.seen_ns == 30);
    at_store(&cv_cell_at(&w.map, box)->wait.id, 0); /* stopped before the last store */
    EXPECT(!cv_wait_read(&host.run, box, &seen));
    cv_wait_note(&sender.run, box, &wait);
    at_store(&cv_cell_at(&w.map, box)->wait.on, ~0ull); /* damaged: no such mailbox */
    EXPECT(!cv_wait_read(&host.run, box, &seen));
}
static void safety_poll_wakes_an_idle_replica_beside_a_busy_one(void) {
    begin(8, CV_BLOCK_SENDER, BOTH);
    mb_message m;
    cv_set_store(&cv_mailbox_at(&w.map, box)->listening, BOTH);
    EXPECT(world_send_number(&sender, box, 1) == PORT_SENT);
    EXPECT(take_number(&reader, &m) == 1); /* busy for long */
    uint32_t ready[256];
    uint64_t alarm;
    cv_collect(&other.run, ready, 256, &alarm);
    EXPECT(cv_park(&other.run));
    commit_and_die(&sender, box, 2);
    EXPECT(cv_safety_poll(&host.run) == 0);
    EXPECT(cv_safety_poll(&host.run) == 1);
    EXPECT(world_bell_rang(&w, OTHER));
}
static void safety_poll_leaves_an_idle_run_alone(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    cv_set_join(&cv_mailbox_at(&w.map, box)->listening, READER);
    EXPECT(world_send_number(&sender, box, 1) == PORT_SENT);
    handle(&reader, 1);
    uint32_t ready[256];
    uint64_t alarm;
    cv_collect(&reader.run, ready, 256, &alarm);
    EXPECT(cv_park(&reader.run));
    for (int i = 0; i < 3; i++) EXPECT(cv_safety_poll(&host.run) == 0);
}
static void what_was_announced_before_the_park_word_keeps_its_reader_awake(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    cv_set_join(&cv_mailbox_at(&w.map, box)->listening, READER);
    EXPECT(world_send_number(&sender, box, 1) == PORT_SENT);
    EXPECT(!world_bell_rang(&w, READER)); /* the sender saw it awake: nobody will wake it */
    EXPECT(!cv_park(&reader.run));
}
static void successor_of_a_sleeper_is_rung_again(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    EXPECT(cv_park(&reader.run));
    EXPECT(world_send_number(&sender, box, 1) == PORT_SENT);
    EXPECT(world_bell_rang(&w, READER)); /* heard, and killed before the park word was made even */
    world_forget(&reader);
    world_attach(&w, &reader, READER, 2);
    handle(&reader, 1);
    uint32_t ready[256];
    uint64_t alarm;
    cv_collect(&reader.run, ready, 256, &alarm);
    EXPECT(cv_park(&reader.run));
    EXPECT(world_send_number(&sender, box, 2) == PORT_SENT);
    EXPECT(world_bell_rang(&w, READER));
}
static void many_ready_mailboxes_all_have_their_turn(void) {
    world_make(&w, SLOTS, 4096, 4u << 20, 64u << 20);
    world_attach(&w, &host, HOST, 1);
    world_attach(&w, &reader, READER, 1);
    bool seen[4096] = {false};
    uint32_t ready[256], left = 4000;
    uint64_t alarm;
    for (unsigned round = 0; left && round < 64; round++) {
        for (uint32_t i = 0; i < 4000; i++) cv_notify_one(&host.run, i, READER); /* all of them are flooded */
        uint32_t n = cv_collect(&reader.run, ready, 256, &alarm);
        for (uint32_t i = 0; i < n; i++) {
            left -= !seen[ready[i]];
            seen[ready[i]] = true;
        }
    }
    CHECK(!left, "%u of 4000 mailboxes were never announced", left);
}

/* --- room ------------------------------------------------------------------------------------------------------------ */

static bool told_of_room(cv_port *p) {
    uint32_t ready[256];
    uint64_t alarm;
    cv_collect(&p->run, ready, 256, &alarm);
    return alarm & CV_ALARM_ROOM;
}
static void removing_garbage_tells_those_who_wait_for_room(void) {
    begin(1, CV_BLOCK_SENDER, ONE);
    EXPECT(world_send_number(&sender, box, 1) == PORT_SENT);
    EXPECT(world_send_number(&sender, box, 2) == PORT_FULL);
    EXPECT(!port_want_room(&sender, box));
    cv_ring r = world_lane(&w, box, CV_LANE_NORMAL);
    at_u64 *slot = mb_slot(&r, at_load(r.head));
    at_store(slot, cv_word(cv_word_lap(at_load(slot)), CV_FULL, 0, CV_REF_MASK));
    mb_message m;
    EXPECT(port_take(&reader, box, &m) == 0);
    EXPECT(told_of_room(&sender));
    EXPECT(world_send_number(&sender, box, 2) == PORT_SENT);
}
static void waiter_is_told_of_a_place(void) {
    begin(1, CV_BLOCK_SENDER, ONE);
    mb_message m;
    EXPECT(world_send_number(&sender, box, 1) == PORT_SENT);
    EXPECT(port_want_room(&sender, box) == PORT_ROOM_LATER);
    EXPECT(take_number(&reader, &m) == 1);
    EXPECT(told_of_room(&sender)); /* the place is free while the handler runs */
    EXPECT(port_want_room(&sender, box) == PORT_ROOM_NOW);
}
static const uint64_t LARGE = 400u << 10;
static void *large(void) {
    static uint8_t bytes[400u << 10];
    return bytes;
}
static void memory_that_came_free_before_the_announcement_is_seen(void) {
    begin(64, CV_BLOCK_SENDER, ONE);
    uint32_t boxes[] = {box, world_mailbox(&w, &host, "second", 64, CV_BLOCK_SENDER, ONE)};
    mb_message m;
    for (unsigned i = 0; i < 2; i++)
        while (world_send(&sender, boxes[i], large(), LARGE) == PORT_SENT) {}
    EXPECT(world_send(&sender, box, large(), LARGE) == PORT_NO_MEMORY);
    for (unsigned i = 0; i < 2; i++)
        while (port_take(&reader, boxes[i], &m) == 1)
            EXPECT(mb_release(&reader.run, cv_mailbox_at(&w.map, boxes[i]), m.entry));
    EXPECT(port_want_room(&sender, box)); /* nobody will tell: all of it is finished */
}
static void waiting_for_memory_is_no_busy_loop(void) {
    begin(64, CV_BLOCK_SENDER, ONE);
    mb_message m;
    while (world_send(&sender, box, large(), LARGE) == PORT_SENT) {}
    EXPECT(!port_want_room(&sender, box)); /* places there are, bytes there are not */
    EXPECT(port_take(&reader, box, &m) == 1);
    told_of_room(&sender); /* of a place */
    EXPECT(world_send(&sender, box, large(), LARGE) == PORT_NO_MEMORY);
    EXPECT(!port_want_room(&sender, box));
    EXPECT(mb_release(&reader.run, cv_mailbox_at(&w.map, box), m.entry));
    EXPECT(told_of_room(&sender));
    EXPECT(world_send(&sender, box, large(), LARGE) == PORT_SENT);
}
static void one_full_lane_does_not_hide_the_room_in_another(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    uint64_t n = 0;
    port_post post = {.mailbox = box, .lane = CV_LANE_PRIORITY, .payload = &n, .payload_len = 8, .type = "", .type_len = 0};
    while (port_send(&sender, &post) == PORT_SENT) {}
    while (world_send_number(&sender, box, n) == PORT_SENT) {}
    EXPECT(!port_want_room(&sender, box));
}

/* --- overflow policies ------------------------------------------------------------------------------------------------ */

static uint64_t dropped(void) { return at_load(&cv_cell_at(&w.map, box)->dropped); }

static void drop_oldest_drops_one_for_one(void) {
    begin(4, CV_DROP_OLDEST, ONE);
    for (uint64_t n = 0; n < 100; n++) EXPECT(world_send_number(&sender, box, n) == PORT_SENT);
    EXPECT(dropped() == 96);
    for (uint64_t n = 96; n < 100; n++) handle(&reader, n);
    EXPECT(world_used(&sender) == 0);
}
static void drop_oldest_drops_nothing_behind_a_message_that_is_being_taken(void) {
    begin(4, CV_DROP_OLDEST, ONE);
    for (uint64_t n = 0; n < 4; n++) EXPECT(world_send_number(&sender, box, n) == PORT_SENT);
    cv_ring r = world_lane(&w, box, CV_LANE_NORMAL);
    at_u64 *slot = mb_slot(&r, at_load(r.head));
    uint64_t full = at_load(slot);
    at_store(slot, cv_word(cv_word_lap(full), CV_TAKEN, OTHER, cv_word_ref(full))); /* stopped right there */
    EXPECT(world_send_number(&sender, box, 4) == PORT_FULL);
    EXPECT(dropped() == 0);
    at_store(slot, full);
    for (uint64_t n = 0; n < 4; n++) handle(&reader, n);
}
static void latest_keeps_the_newest_only(void) {
    begin(4, CV_LATEST, ONE);
    for (uint64_t n = 0; n < 50; n++) EXPECT(world_send_number(&sender, box, n) == PORT_SENT);
    EXPECT(dropped() == 49);
    handle(&reader, 49);
    mb_message m;
    EXPECT(port_take(&reader, box, &m) == 0);
    EXPECT(world_used(&sender) == 0);
}
static void message_in_hand_is_never_dropped(void) {
    begin(1, CV_DROP_OLDEST, ONE);
    mb_message m;
    EXPECT(world_send_number(&sender, box, 1) == PORT_SENT);
    EXPECT(take_number(&reader, &m) == 1);
    for (uint64_t n = 2; n < 200; n++) EXPECT(world_send_number(&sender, box, n) == PORT_SENT);
    EXPECT(world_number(&m) == 1); /* its chunk was not used again */
    EXPECT(mb_release(&reader.run, cv_mailbox_at(&w.map, box), m.entry));
    handle(&reader, 199);
}

/* --- successors ---------------------------------------------------------------------------------------------------------- */

static void redelivery_keeps_its_order_where_positions_wrap(void) {
    memset(&w, 0, sizeof w);
    world_make(&w, SLOTS, 256, 4u << 20, 4u << 20);
    w.first_lap = 65534;
    world_attach(&w, &host, HOST, 1);
    world_begin(&w, &host);
    world_attach(&w, &sender, SENDER, 1);
    world_attach(&w, &reader, READER, 1);
    box = world_mailbox(&w, &host, "box", 8, CV_BLOCK_SENDER, ONE);
    mb_message m;
    for (uint64_t n = 0; n < 126; n++) { /* up to two before the wrap */
        EXPECT(world_send_number(&sender, box, n) == PORT_SENT);
        handle(&reader, n);
    }
    for (uint64_t n = 126; n < 130; n++) {
        EXPECT(world_send_number(&sender, box, n) == PORT_SENT);
        EXPECT(take_number(&reader, &m) == n);
    }
    world_forget(&reader);
    EXPECT(cv_slot_recover(&host.run, READER) == 0);
    world_attach(&w, &reader, READER, 2);
    cv_mailbox *at = cv_mailbox_at(&w.map, box);
    uint64_t entries = mb_in_hand_of(at, READER);
    EXPECT(__builtin_popcountll(entries) == 4);
    for (uint64_t n = 126; n < 130; n++) {
        unsigned entry = mb_oldest_in_hand(&w.map, at, box, entries);
        entries &= ~(1ull << entry);
        EXPECT(mb_redeliver(&reader.run, at, box, entry, &m));
        CHECK(world_number(&m) == n && m.deliveries == 2, "redelivered %llu instead of %llu",
              (unsigned long long)world_number(&m), (unsigned long long)n);
    }
}
static void foreign_reference_costs_no_other_mailbox_its_message(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    uint32_t hurt = world_mailbox(&w, &host, "hurt", 8, CV_BLOCK_SENDER, ONE);
    EXPECT(world_send_number(&sender, hurt, 7) == PORT_SENT);
    EXPECT(world_send_number(&sender, box, 1) == PORT_SENT);
    cv_ring r = world_lane(&w, box, CV_LANE_NORMAL), bad = world_lane(&w, hurt, CV_LANE_NORMAL);
    uint64_t ref = cv_word_ref(at_load(mb_slot(&r, at_load(r.head))));
    at_u64 *slot = mb_slot(&bad, at_load(bad.head));
    at_store(slot, cv_word(cv_word_lap(at_load(slot)), CV_FULL, 0, ref)); /* refers to the other mailbox's message */
    at_u64 *second = mb_slot(&bad, at_load(bad.head) + 1);
    at_store(second, cv_word(cv_word_lap(at_load(second)), CV_FULL, 0, ref)); /* twice */
    world_forget(&sender);
    world_attach(&w, &sender, SENDER, 2);
    mb_message m;
    EXPECT(port_take(&reader, hurt, &m) == 0); /* garbage, both */
    EXPECT(at_load(&cv_cell_at(&w.map, hurt)->garbage) == 2);
    EXPECT(world_used(&sender) > 0); /* both of these are finished; the message in the other mailbox is not */
    for (uint64_t n = 2; n < 8; n++) EXPECT(world_send_number(&sender, box, n) == PORT_SENT);
    for (uint64_t n = 1; n < 8; n++) handle(&reader, n);
    EXPECT(world_used(&sender) == 0);
}
static void reference_left_in_a_claimed_entry_takes_no_memory_from_a_successor(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    mb_message m;
    EXPECT(world_send_number(&sender, box, 1) == PORT_SENT);
    EXPECT(take_number(&reader, &m) == 1);
    cv_mailbox *at = cv_mailbox_at(&w.map, box);
    EXPECT(mb_release(&reader.run, at, m.entry)); /* `ref` stays in the entry */
    at_store(&at->hand[m.entry].meta, cv_meta(0, 0, READER, CV_HAND_CLAIMED));
    world_forget(&sender);
    world_attach(&w, &sender, SENDER, 2);
    EXPECT(sender.arena.used == 0);
}
static void recovery_counts_what_its_producer_had_not(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    commit_and_die(&sender, box, 1);
    world_forget(&sender);
    EXPECT(cv_slot_recover(&host.run, SENDER) == 0);
    cv_ring r = world_lane(&w, box, CV_LANE_NORMAL);
    EXPECT(at_load(r.tail) - at_load(r.head) == 1);
}
static void half_closed_mailbox_reads_as_closed(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    EXPECT(!mb_is_closed(&w.map, cv_mailbox_at(&w.map, box), box));
    cv_ring r = world_lane(&w, box, CV_LANE_CONTROL);
    EXPECT(mb_close_lane(&r)); /* and the host is killed */
    EXPECT(mb_is_closed(&w.map, cv_mailbox_at(&w.map, box), box));
}

/* --- arena ------------------------------------------------------------------------------------------------------------- */

static void state_larger_than_can_be_committed_twice_is_too_large(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    uint8_t *bytes = calloc(1, 4u << 20);
    uint64_t size = 64u << 10;
    while (port_commit_state(&reader, box, NULL, bytes, size) == PORT_SENT)
        if ((size += 64u << 10) > 4u << 20) die("a state larger than the arena was committed");
    EXPECT(port_commit_state(&reader, box, NULL, bytes, size) == PORT_TOO_LARGE); /* for ever, so not NO_MEMORY */
    free(bytes);
}
static void stores_and_trims_give_all_memory_back(void) {
    begin(64, CV_BLOCK_SENDER, ONE);
    for (unsigned n = 0; n < 200; n++) {
        world_send(&sender, box, large(), n * 1999 % LARGE);
        mb_message m;
        if (n % 3) continue;
        while (port_take(&reader, box, &m) == 1) EXPECT(mb_release(&reader.run, cv_mailbox_at(&w.map, box), m.entry));
    }
    mb_message m;
    while (port_take(&reader, box, &m) == 1) EXPECT(mb_release(&reader.run, cv_mailbox_at(&w.map, box), m.entry));
    EXPECT(world_used(&sender) == 0);
    EXPECT(cv_arena_trim(&sender.arena, 0) > 0);
    EXPECT(sender.arena.backed == CV_EXTENT); /* the one with the header */
}

/* ------------------------------------------------------------------------------------------------------------------------- */

/* --- what a handler has sent --------------------------------------------------------------------------------------- */

/* What earlier calls leave on the stack: a reference into the arena of OTHER, everywhere. */
__attribute__((noinline)) static void litter(void) {
    volatile uint64_t stack[4096];
    for (unsigned i = 0; i < 4096; i++) stack[i] = cv_ref(OTHER, 12345);
    EXPECT(stack[17] == cv_ref(OTHER, 12345));
}
__attribute__((noinline)) static void begin_again(cv_port *p, const mb_message *message) { port_begin(p, box, message, 1); }

static int handler_sends(cv_port *p, const mb_message *message, uint32_t to, uint64_t number) {
    port_post post = {.mailbox = to, .sender = box, .lane = CV_LANE_NORMAL, .payload = &number, .payload_len = 8, .type = "",
                      .cause = &message->header};
    cv_effect *e = port_handler(p, &post);
    EXPECT(e);
    return port_send_once(p, &post, e);
}
static void log_of_another_process_is_read_and_never_written(void) {
    begin(8, CV_BLOCK_SENDER, ONE);
    cv_mailbox *m = cv_mailbox_at(&w.map, box);
    uint32_t sink = world_mailbox(&w, &host, "sink", 64, CV_BLOCK_SENDER, cv_set_of(SENDER));
    EXPECT(world_send_number(&sender, box, 7) == PORT_SENT);
    port_remember(&reader, box, m, true);
    mb_message message;
    EXPECT(take_number(&reader, &message) == 7);
    port_begin(&reader, box, &message, 1);
    for (uint64_t n = 0; n < 3; n++) EXPECT(handler_sends(&reader, &message, sink, n) == PORT_SENT);
    world_forget(&reader);
    cv_slot_recover(&host.run, READER);
    cv_set_readers(&host.run, box, cv_set_of(OTHER), ONE);
    port_remember(&other, box, m, true);
    EXPECT(mb_redeliver(&other.run, m, box, message.entry, &message));
    litter();
    begin_again(&other, &message);
    EXPECT(other.effect[box]->entries == 3 && !other.effect[box]->log);
    for (uint64_t n = 0; n < 4; n++) EXPECT(handler_sends(&other, &message, sink, n) == PORT_SENT);
    EXPECT(cv_ref_arena(at_load(&m->log_ref)) == OTHER);
    cv_ring r = world_lane(&w, sink, CV_LANE_NORMAL);
    EXPECT(mb_waiting(&r) == 4);
}

#define CASE(name) {#name, name}
static const struct {
    const char *name;
    void (*run)(void);
} CASES[] = {
    CASE(tail_left_behind_head_does_not_stop_senders),
    CASE(producer_stopped_before_helping_stops_nobody),
    CASE(tail_left_behind_head_does_not_stop_closing),
    CASE(message_of_a_producer_that_died_before_helping_is_counted),
    CASE(damaged_tail_does_not_stop_senders),
    CASE(lane_of_no_places_is_damaged_and_costs_a_sender_no_patience),
    CASE(safety_poll_finds_what_a_stopped_producer_left),
    CASE(safety_poll_finds_a_reply_that_a_stopped_producer_left),
    CASE(safety_poll_finds_who_waits_for_room_and_was_not_told),
    CASE(waiters_and_readers_of_both_words_are_told),
    CASE(safety_poll_finds_room_that_a_reader_made_before_it_was_stopped),
    CASE(probe_is_answered_by_a_poll_and_is_no_alarm),
    CASE(wait_that_is_being_written_is_left_out),
    CASE(safety_poll_wakes_an_idle_replica_beside_a_busy_one),
    CASE(safety_poll_leaves_an_idle_run_alone),
    CASE(what_was_announced_before_the_park_word_keeps_its_reader_awake),
    CASE(successor_of_a_sleeper_is_rung_again),
    CASE(many_ready_mailboxes_all_have_their_turn),
    CASE(waiter_is_told_of_a_place),
    CASE(removing_garbage_tells_those_who_wait_for_room),
    CASE(memory_that_came_free_before_the_announcement_is_seen),
    CASE(waiting_for_memory_is_no_busy_loop),
    CASE(one_full_lane_does_not_hide_the_room_in_another),
    CASE(drop_oldest_drops_one_for_one),
    CASE(drop_oldest_drops_nothing_behind_a_message_that_is_being_taken),
    CASE(latest_keeps_the_newest_only),
    CASE(message_in_hand_is_never_dropped),
    CASE(redelivery_keeps_its_order_where_positions_wrap),
    CASE(foreign_reference_costs_no_other_mailbox_its_message),
    CASE(reference_left_in_a_claimed_entry_takes_no_memory_from_a_successor),
    CASE(recovery_counts_what_its_producer_had_not),
    CASE(half_closed_mailbox_reads_as_closed),
    CASE(state_larger_than_can_be_committed_twice_is_too_large),
    CASE(stores_and_trims_give_all_memory_back),
    CASE(log_of_another_process_is_read_and_never_written),
};

int main(int argc, char **argv) {
    for (unsigned i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        if (argc < 2) {
            puts(CASES[i].name);
        } else if (!strcmp(argv[1], CASES[i].name)) {
            CASES[i].run();
            return 0;
        }
    }
    if (argc > 1) die("no case %s", argv[1]);
    return 0;
}
