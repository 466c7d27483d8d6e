/* Every word of shared memory that belongs to one mailbox, set to hostile values: its record, its header, hints, in-hand
 * entries (one runs, one waits, one is buried) and slots, the headers of chunks (a message that waits, those in hand, the
 * state, the log of sends), the map of extents, its reader's process slot, its cell with what its handler waits for. First
 * one word at a time, then several at once by chance. README.md has the table: word, who checks it, who damages it.
 *
 * hostile_words [SEED [ROUNDS]]
 *
 * For each: senders, reader, host, observers and successors go about their work. It ends with 0 when none of them
 * crashed (run it under AddressSanitizer), none looped (a watchdog of ten seconds for each), the mailbox beside it lost,
 * doubled and changed nothing, and every damaged chunk was counted as garbage and not handed over.
 */
#include "waits.h"
#include "world.h"

#include <signal.h>
#include <sys/time.h>

enum { HOST, SENDER, READER, OTHER, SLOTS };
enum { TAKES_MAX = 4096, CHUNKS = 4 }; /* of messages 1 to 4: one runs, one waits, one is buried, one is in its slot */

static world w;
static cv_port host, sender, reader, other;
static uint32_t hurt, outbox, beside;
static uint64_t *words[16384];
static uint32_t n_words, chunk_from, state_from, state_to;
static char what[128];

static void too_long(int signal_number) {
    (void)signal_number;
    if (write(2, "FAILED: loops: ", 15) < 0 || write(2, what, strlen(what)) < 0 || write(2, "\n", 1) < 0) abort();
    abort();
}
static void watch(unsigned seconds) {
    struct itimerval timer = {.it_value = {.tv_sec = seconds}};
    EXPECT(setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

/* --- the memory, and back to it ------------------------------------------------------------------------------------- */

static struct {
    uint8_t *at;
    uint64_t size;
    uint8_t *copy;
} kept[3 + 2 * SLOTS];

static void keep(unsigned i, uint8_t *at, uint64_t size) {
    kept[i].at = at;
    kept[i].size = size;
    kept[i].copy = malloc(size);
    EXPECT(kept[i].copy);
    memcpy(kept[i].copy, at, size);
}
static void keep_all(void) {
    cv_run *run = &w.map;
    keep(0, run->directory, run->directory_size);
    keep(1, run->cells, run->cells_size);
    keep(2, run->mail, at_load(cv_mail_end(run)));
    for (unsigned s = 0; s < SLOTS; s++) {
        bool backed = at_load((at_u64 *)(run->arena[s] + CV_ARENA_EXTENTS)) & 1;
        keep(3 + 2 * s, run->arena[s] + CV_ARENA_EXTENTS, CV_ARENA_DATA - CV_ARENA_EXTENTS);
        keep(4 + 2 * s, run->arena[s] + CV_BLOCK, backed ? 4 * CV_BLOCK : 0);
    }
}
static void restore_all(void) {
    for (unsigned i = 0; i < sizeof kept / sizeof *kept; i++) memcpy(kept[i].at, kept[i].copy, kept[i].size);
}

static void add_words(void *at, uint64_t size) {
    for (uint64_t i = 0; i < size; i += 8) words[n_words++] = (uint64_t *)((uint8_t *)at + i);
}

static void attach_all(uint64_t incarnation) {
    world_attach(&w, &host, HOST, incarnation);
    world_attach(&w, &sender, SENDER, incarnation);
    world_attach(&w, &reader, READER, incarnation);
    world_attach(&w, &other, OTHER, incarnation);
}
static void forget_all(void) {
    world_forget(&host), world_forget(&sender), world_forget(&reader), world_forget(&other);
}

/* A handler of the message in hand sends what its earlier life has sent, and more. */
static void handler_sends(cv_port *p, const mb_message *message) {
    port_begin(p, hurt, message, 1);
    for (uint64_t n = 1; n <= 20; n++) { /* the log grows */
        port_post post = {.mailbox = outbox, .sender = hurt, .lane = CV_LANE_NORMAL, .payload = &n, .payload_len = 8,
                          .type = "t", .type_len = 1, .cause = &message->header};
        cv_effect *e = port_handler(p, &post);
        if (e) port_send_once(p, &post, e);
    }
}

static void prepare(void) {
    world_make(&w, SLOTS, 64, 2u << 20, 1u << 20);
    w.reply_capacity = 1;
    attach_all(1);
    world_begin(&w, &host);
    w.first_lap = 65535;
    hurt = world_mailbox(&w, &host, "hurt", 8, CV_BLOCK_SENDER, cv_set_of(READER));
    outbox = world_mailbox(&w, &host, "outbox", 63, CV_BLOCK_SENDER, cv_set_of(OTHER));
    beside = world_mailbox(&w, &host, "beside", 8, CV_BLOCK_SENDER, cv_set_of(READER));
    mb_message m;
    for (uint64_t n = 1; n <= 6; n++) EXPECT(world_send_number(&sender, hurt, n) == PORT_SENT);
    mb_message waits, buried;
    EXPECT(port_take(&reader, hurt, &m) == 1 && port_take(&reader, hurt, &waits) == 1 && port_take(&reader, hurt, &buried) == 1);
    cv_wait wait = {.id = 7, .on = beside, .since_ns = 1, .seen_ns = 2, .type = "t"};
    cv_wait_note(&reader.run, hurt, &wait);
    EXPECT(mb_strike(&reader.run, cv_mailbox_at(&w.map, hurt), waits.entry) == 1);
    EXPECT(mb_bury(&reader.run, cv_mailbox_at(&w.map, hurt), buried.entry));
    EXPECT(port_commit_state(&reader, hurt, &m.header, "state", 5) == PORT_SENT);
    port_remember(&reader, hurt, cv_mailbox_at(&w.map, hurt), true);
    handler_sends(&reader, &m);
    const mb_message m_hurt = m;
    EXPECT(at_load(&cv_mailbox_at(&w.map, hurt)->log_count) == 20);
    for (uint64_t n = 1; n <= 3; n++) EXPECT(world_send_number(&other, beside, n) == PORT_SENT);
    EXPECT(port_take(&reader, beside, &m) == 1);

    cv_ring r = world_lane(&w, hurt, CV_LANE_NORMAL);
    cv_mailbox *box = cv_mailbox_at(&w.map, hurt);
    add_words(cv_record_at(&w.map, hurt), sizeof(cv_record));
    add_words(box, cv_record_at(&w.map, hurt)->mail_size);
    add_words(cv_slot_at(&w.map, READER), cv_slot_stride(w.map.mailboxes));
    add_words(cv_cell_at(&w.map, hurt), sizeof(cv_cell));
    add_words(w.map.arena[SENDER] + CV_ARENA_EXTENTS, 64);
    const uint64_t chunks[CHUNKS] = {m_hurt.ref, waits.ref, buried.ref, cv_word_ref(at_load(mb_slot(&r, at_load(r.head))))};
    chunk_from = n_words;
    for (unsigned i = 0; i < CHUNKS; i++) add_words(w.map.arena[SENDER] + cv_ref_granule(chunks[i]) * CV_GRANULE, sizeof(cv_header));
    state_from = n_words;
    add_words(w.map.arena[READER] + cv_ref_granule(at_load(&box->state_ref)) * CV_GRANULE, sizeof(cv_header));
    state_to = n_words;
    uint64_t log = at_load(&box->log_ref);
    add_words(w.map.arena[READER] + cv_ref_granule(log) * CV_GRANULE, sizeof(cv_header) + 20 * 8);
    forget_all();
    keep_all();
}

/* --- everybody at work -------------------------------------------------------------------------------------------------- */

static uint64_t numbers[TAKES_MAX];

/* All that comes out, in hand of a predecessor first; how many. */
static unsigned drain(uint32_t mailbox) {
    unsigned n = 0;
    cv_mailbox *m = cv_mailbox_at(&w.map, mailbox);
    for (uint64_t inherited = m ? mb_in_hand_of(m, READER) : 0; m;) {
        mb_message message = {.garbage = false};
        if (inherited) {
            unsigned entry = mb_oldest_in_hand(&w.map, m, mailbox, inherited);
            EXPECT(inherited >> entry & 1);
            inherited &= ~(1ull << entry);
            if (!mb_redeliver(&reader.run, m, mailbox, entry, &message)) continue;
        } else if (port_take(&reader, mailbox, &message) != 1) {
            break;
        }
        CHECK(n < TAKES_MAX, "messages without end: %s", what);
        uint64_t bytes = 0; /* all of a message is read: type, payload */
        for (uint32_t i = 0; i < message.header.type_len + message.header.payload_len; i++) bytes += message.body[i];
        numbers[n++] = bytes == ~0ull ? 0 : world_number(&message);
        mb_release(&reader.run, m, message.entry);
    }
    return n;
}

/* The successor's handler of what is in hand. Its process dies in the middle; the host settles what it left. */
static void handler_runs_again(void) {
    cv_mailbox *m = cv_mailbox_at(&w.map, hurt);
    mb_message message = {.garbage = false};
    if (!m) return;
    port_remember(&reader, hurt, m, true);
    for (uint64_t mine = mb_in_hand_of(m, READER); mine; mine &= mine - 1)
        if (mb_redeliver(&reader.run, m, hurt, (unsigned)__builtin_ctzll(mine), &message)) handler_sends(&reader, &message);
    cv_slot_recover(&host.run, READER);
}

/* The court and the dead letters, over whatever is in hand; entries that cannot be, too. */
static void host_judges(void) {
    cv_mailbox *m = cv_mailbox_at(&w.map, hurt);
    mb_message letter;
    cv_wait wait;
    cv_wait_read(&host.run, hurt, &wait);
    for (unsigned e = 0; m && e < CV_HAND + 2; e++) {
        unsigned entry = e < CV_HAND ? e : e == CV_HAND ? CV_HAND : ~0u;
        mb_judge(m, entry, READER, e & 1, e & 2, e & 4);
        mb_begin(&reader.run, m, entry);
        if (e & 1) mb_strike(&reader.run, m, entry);
        if (e & 2) mb_forgo(&reader.run, m, entry);
        if (e & 4) mb_bury(&reader.run, m, entry);
        if (entry < CV_HAND && cv_meta_state(at_load(&m->hand[entry].meta)) == CV_HAND_BURIED) {
            uint64_t meta = at_load(&m->hand[entry].meta), word = at_load(&m->hand[entry].ref), bytes = 0;
            if (mb_read(&w.map, hurt, (unsigned)(word >> 40) & 3u, cv_meta_position(meta), cv_word_ref(word), &letter))
                for (uint32_t i = 0; i < letter.header.type_len + letter.header.payload_len; i++) bytes += letter.body[i];
            EXPECT(bytes != ~0ull);
        }
        mb_discard(&host.run, m, entry, cv_set_of(READER));
        EXPECT(!mb_discard(&host.run, m, entry, cv_set_of(READER))); /* once only */
    }
    cv_wait_note(&reader.run, hurt, &(cv_wait){.id = 8, .on = beside});
    EXPECT(cv_wait_read(&host.run, hurt, &wait) && wait.id == 8);
    cv_wait_clear(&reader.run, hurt);
}

static void observe(uint32_t mailbox) {
    cv_mailbox *m = cv_mailbox_at(&w.map, mailbox);
    uint64_t refs[CV_HAND];
    mb_message message;
    port_state(&host, mailbox, &message);
    if (!m) return;
    cv_hand_refs(m, refs);
    cv_busy_readers(m);
    mb_is_closed(&w.map, m, mailbox);
    for (unsigned lane = 0; lane < CV_LANES; lane++) {
        cv_ring r;
        if (cv_ring_of(&w.map, mailbox, m, lane, &r)) EXPECT(mb_waiting(&r) <= r.mask + 1);
    }
    for (unsigned e = 0; e < CV_HAND; e++)
        mb_read(&w.map, mailbox, CV_LANE_NORMAL, cv_meta_position(at_load(&m->hand[e].meta)),
                cv_word_ref(at_load(&m->hand[e].ref)), &message);
}

static bool courts; /* every second time: what is in hand goes to the dead letters instead of its reader */

static void everybody_works(void) {
    courts = !courts;
    uint32_t ready[256];
    uint64_t alarm, n = 9;
    attach_all(2); /* successors of all: each reads every mailbox */
    observe(hurt);
    handler_runs_again();
    for (unsigned lane = 0; lane < CV_LANES; lane++) {
        port_post post = {.mailbox = hurt, .lane = lane, .payload = &n, .payload_len = 8, .type = "t", .type_len = 1};
        for (unsigned i = 0; i < 12; i++) port_send(&sender, &post);
    }
    port_want_room(&sender, hurt);
    cv_park(&reader.run);
    cv_collect(&reader.run, ready, 256, &alarm);
    cv_rise(&reader.run);
    if (courts) host_judges();
    drain(hurt);
    port_commit_state(&reader, hurt, NULL, "another", 7);
    cv_ledger_look_all(&sender.ledger);
    cv_slot_recover(&host.run, READER);
    cv_slot_recover(&host.run, SENDER);
    cv_ring_all(&host.run);
    cv_safety_poll(&host.run);
    cv_safety_poll(&host.run);
    cv_set_readers(&host.run, hurt, cv_set_of(OTHER), cv_set_of(READER));
    cv_set_readers(&host.run, hurt, cv_set_of(READER), cv_set_of(OTHER));
    for (unsigned i = 0; i < 80; i++) world_send_number(&other, hurt, i);
    drain(hurt);
    observe(hurt);
    cv_close(&host.run, hurt);
    drain(hurt);
    cv_ledger_look_all(&sender.ledger);
    cv_ledger_look_all(&other.ledger);
    cv_arena_trim(&sender.arena, 0);
}

static void the_mailbox_beside_is_unharmed(void) {
    EXPECT(world_send_number(&other, beside, 4) == PORT_SENT);
    unsigned n = drain(beside);
    CHECK(n == 4, "the mailbox beside gave %u of 4 messages: %s", n, what);
    for (unsigned i = 0; i < 4; i++)
        CHECK(numbers[i] == i + 1, "the mailbox beside gave %llu as number %u: %s", (unsigned long long)numbers[i], i + 1, what);
    CHECK(at_load(&cv_cell_at(&w.map, beside)->garbage) == 0, "the mailbox beside had garbage: %s", what);
    cv_ledger_look_all(&other.ledger);
    CHECK(other.ledger.account[beside]->bytes == 0, "memory of the mailbox beside was not given back: %s", what);
}

/* Neither handed over nor taken for a letter; all others come. */
static void damaged_message_is_garbage(unsigned number) {
    attach_all(2);
    mb_message message;
    unsigned n = drain(hurt), expected = 0;
    for (unsigned i = 1; i <= 6; i++) {
        if (i == number || i == 3) continue;
        CHECK(expected < n && numbers[expected] == i, "message %u did not come, message %u damaged: %s", i, number, what);
        expected++;
    }
    CHECK(n == expected, "%u messages came instead of %u, the damaged one too? %s", n, expected, what);
    CHECK(at_load(&cv_cell_at(&w.map, hurt)->garbage) == (number == 4), "garbage was not counted: %s", what);
    cv_mailbox *m = cv_mailbox_at(&w.map, hurt);
    unsigned letters = 0, unsound = 0;
    for (unsigned e = 0; e < CV_HAND; e++) {
        uint64_t meta = at_load(&m->hand[e].meta), word = at_load(&m->hand[e].ref);
        if (cv_meta_state(meta) != CV_HAND_BURIED) continue;
        letters++;
        unsound += !mb_read(&w.map, hurt, (unsigned)(word >> 40) & 3u, cv_meta_position(meta), cv_word_ref(word), &message);
    }
    CHECK(letters == (number == 3 ? 1 : 2) && unsound == 1, "%u letters, %u unsound: %s", letters, unsound, what);
    forget_all();
}

static void damaged_state_is_none(void) {
    mb_message stored;
    attach_all(2);
    CHECK(!port_state(&reader, hurt, &stored), "a damaged state was handed out: %s", what);
    forget_all();
}

static void work_and_restore(void) {
    everybody_works();
    the_mailbox_beside_is_unharmed();
    forget_all();
    restore_all();
}

static uint64_t random_word(uint64_t *luck) { return (uint64_t)dice(luck, 1u << 31) << 33 ^ dice(luck, 1u << 31); }

int main(int argc, char **argv) {
    uint64_t luck = argc > 1 ? strtoull(argv[1], NULL, 10) : 1, tried = 0, rounds = argc > 2 ? strtoull(argv[2], NULL, 10) : 3000;
    signal(SIGALRM, too_long);
    prepare();
    attach_all(2);
    handler_runs_again();
    CHECK(at_load(&cv_cell_at(&w.map, hurt)->replay_dropped) == 20, "an undamaged log is not recalled");
    forget_all();
    restore_all();
    for (uint32_t i = 0; i < n_words; i++) {
        uint64_t was = *words[i], random = random_word(&luck);
        const uint64_t values[] = {0, ~0ull, 1ull << 63, (1ull << 63) - 1, was + 1, was - 1, was ^ 1ull << dice(&luck, 64),
                                   was ^ 1ull << 32, was ^ 1ull << 39, was ^ 1ull << 40, was ^ 1ull << 46, was ^ 1ull << 47, was ^ 1ull << 48, was << 32, was >> 8,
                                   random, random & 0xffff, was ^ 0xff};
        for (unsigned v = 0; v < sizeof values / sizeof *values; v++) {
            if (values[v] == was) continue;
            snprintf(what, sizeof what, "word %u of %u, %#llx instead of %#llx", i, n_words, (unsigned long long)values[v],
                     (unsigned long long)was);
            watch(10);
            if (i >= chunk_from && i < state_to) {
                *words[i] = values[v];
                if (i < state_from) damaged_message_is_garbage(1 + (i - chunk_from) / (sizeof(cv_header) / 8));
                else damaged_state_is_none();
                restore_all();
            }
            *words[i] = values[v];
            work_and_restore();
            tried++;
        }
    }
    for (uint64_t round = 0; round < rounds; round++) {
        snprintf(what, sizeof what, "round %llu", (unsigned long long)round);
        watch(10);
        for (unsigned n = 2 + dice(&luck, 8); n; n--) {
            uint64_t *word = words[dice(&luck, n_words)];
            *word = dice(&luck, 2) ? *word ^ 1ull << dice(&luck, 64) : dice(&luck, 2) ? random_word(&luck) : random_word(&luck) >> 48;
        }
        work_and_restore();
        tried++;
    }
    watch(0);
    for (unsigned i = 0; i < sizeof kept / sizeof *kept; i++) free(kept[i].copy);
    world_end(&w);
    printf("%u words, %llu hostile values\n", n_words, (unsigned long long)tried);
    return 0;
}
