/* Coverage-guided fuzzing of every reader of shared words: records, mailbox headers, hints, slots, in-hand entries, logs
 * of sends, process slots, cells, the map of extents, chunks and their headers. libFuzzer (clang -fsanitize=fuzzer).
 *
 * It stands on hostile_words.c: the same small run, the same people at work, the same promises. There words are hostile
 * one at a time, or by chance; here an input is a program of damages and of operations between them, and the fuzzer keeps
 * those that reach new branches.
 *
 *   input = steps of 4 to 12 bytes: operation (1; from COURT on: what becomes of a message in hand), argument (1), word (2),
 *           and for a damage its value (8)
 *
 * A step whose operation is below DAMAGES changes a word; others are one operation of one process. At the end everybody
 * works; nothing may crash (AddressSanitizer), loop (-timeout), or harm the mailbox beside.
 */
#define main hostile_words
#include "hostile_words.c"
#undef main

#include "effect.h"
#include "waits.h"

enum { SET, FLIP, SMALL, COPY_WORD, SHIFT, NEAR, DAMAGES };
enum { SEND = DAMAGES, SEND_OTHER, SEND_REMEMBERED, TAKE, RELEASE, REDELIVER, STATE, LOOK, ROOM, COLLECT, DEATH, READERS, REPLY,
       WAITS, CLOSE, OBSERVE, REATTACH, OPERATIONS };

/* Behind COURT, modulo their number; `argument` is the entry, and a few that cannot be. */
enum { COURT = 0xf0, JUDGE = 0, BEGIN, STRIKE, FORGO, BURY, DISCARD, LETTER, FAR_DISCARD, CASES };

static mb_message in_hand;
static bool holds;

static void restart(void) {
    forget_all();
    attach_all(2);
    holds = false;
    cv_mailbox *m = cv_mailbox_at(&w.map, hurt);
    if (m) port_remember(&reader, hurt, m, true);
}

static void damage(unsigned how, uint32_t word, uint64_t value) {
    uint64_t *at = words[word % n_words];
    switch (how) {
    case SET: *at = value; break;
    case FLIP: *at ^= 1ull << (value & 63); break;
    case SMALL: *at = value & 0xff; break;
    case COPY_WORD: *at = *words[value % n_words]; break;
    case SHIFT: *at = value & 1 ? *at << (value >> 1 & 63) : *at >> (value >> 1 & 63); break;
    default: *at += (value & 0xff) - 128; break;
    }
}

static void take_one(void) {
    mb_message message;
    if (holds || port_take(&reader, hurt, &message) != 1) return;
    in_hand = message;
    holds = true;
    if (reader.effect[hurt]) cv_effect_begin(&reader.ledger, hurt, reader.effect[hurt], &message);
    port_begin(&reader, hurt, &message, 1);
}

static void send_as_handler(uint64_t number) {
    port_post post = {.mailbox = beside, .sender = hurt, .lane = CV_LANE_NORMAL, .payload = &number, .payload_len = 8,
                      .type = "t", .type_len = 1, .cause = holds ? &in_hand.header : NULL};
    post.mailbox = hurt; /* to itself: the mailbox beside must stay as it is */
    cv_effect *e = port_handler(&reader, &post);
    if (e && number & 1)
        port_send_once(&reader, &post, e);
    else if (e)
        port_ask_once(&reader, &post, e);
}

static void operate(unsigned operation, unsigned argument, uint16_t word) {
    uint32_t ready[64];
    uint64_t alarm, number = word;
    cv_mailbox *m = cv_mailbox_at(&w.map, hurt);
    cv_wait wait = {.id = argument, .on = word, .since_ns = 1, .seen_ns = 2};
    port_post post = {.mailbox = hurt, .lane = argument % CV_LANES, .payload = &number, .payload_len = 8, .type = "t", .type_len = 1};
    switch (operation) {
    case SEND: port_send(&sender, &post); break;
    case SEND_OTHER: port_send(&other, &post); break;
    case SEND_REMEMBERED: send_as_handler(number); break;
    case TAKE: take_one(); break;
    case RELEASE:
        if (holds && m) mb_release(&reader.run, m, in_hand.entry);
        if (holds) port_end(&reader, hurt, in_hand.entry, 2);
        holds = false;
        break;
    case REDELIVER:
        if (m && !holds && mb_redeliver(&reader.run, m, hurt, argument % CV_HAND, &in_hand)) {
            holds = true;
            if (reader.effect[hurt]) cv_effect_begin(&reader.ledger, hurt, reader.effect[hurt], &in_hand);
        }
        break;
    case STATE: port_commit_state(&reader, hurt, holds && argument & 1 ? &in_hand.header : NULL, "state", argument % 6); break;
    case LOOK: cv_ledger_look_all(argument & 1 ? &sender.ledger : &other.ledger); break;
    case ROOM: port_want_room(&sender, hurt); mb_told(&sender.run); break;
    case COLLECT:
        cv_park(&reader.run);
        cv_collect(&reader.run, ready, 64, &alarm);
        cv_rise(&reader.run);
        break;
    case DEATH:
        cv_slot_recover(&host.run, argument & 1 ? READER : SENDER);
        cv_ring_all(&host.run);
        break;
    case READERS: cv_set_readers(&host.run, hurt, (cv_set){{word & 0xf}}, (cv_set){{argument & 0xf}}); break;
    case REPLY:
        if (holds) port_reply(&reader, &in_hand.header, &post);
        break;
    case WAITS:
        cv_wait_note(&reader.run, hurt, &wait);
        cv_wait_read(&host.run, hurt, &wait);
        break;
    case CLOSE: cv_close(&host.run, hurt); break;
    case OBSERVE: observe(hurt); cv_safety_poll(&host.run); break;
    default: restart(); break;
    }
}

static void decide(unsigned what_now, unsigned entry, uint16_t word) {
    cv_mailbox *m = cv_mailbox_at(&w.map, hurt);
    mb_message message;
    if (!m) return;
    switch (what_now % CASES) {
    case JUDGE: mb_judge(m, entry, READER, word & 15, word >> 4 & 15, word >> 8 & 1); break;
    case BEGIN: mb_begin(&reader.run, m, entry); break;
    case STRIKE: mb_strike(&reader.run, m, entry); break;
    case FORGO: mb_forgo(&reader.run, m, entry); break;
    case BURY: mb_bury(&reader.run, m, entry); break;
    case DISCARD: mb_discard(&host.run, m, entry, (cv_set){{word}}); break;
    case LETTER: /* as the host reads it, state or not */
        if (entry < CV_HAND) {
            uint64_t ref = at_load(&m->hand[entry].ref), bytes = 0;
            if (mb_read(&w.map, hurt, (unsigned)(ref >> 40) & 3u, cv_meta_position(at_load(&m->hand[entry].meta)),
                        cv_word_ref(ref), &message))
                for (uint32_t i = 0; i < message.header.type_len + message.header.payload_len; i++) bytes += message.body[i];
            EXPECT(bytes != ~0ull);
        }
        break;
    default: mb_discard(&host.run, m, entry, (cv_set){{~0ull, ~0ull}}); break;
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv, (void)hostile_words;
    prepare();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    restart();
    for (size_t at = 0, steps = 0; at + 4 <= size && steps < 64; steps++) {
        unsigned operation = data[at] % OPERATIONS;
        uint16_t word;
        uint64_t value;
        memcpy(&word, data + at + 2, 2);
        if (data[at] >= COURT) {
            decide(data[at] - COURT, data[at + 1] == 255 ? ~0u : data[at + 1] % (CV_HAND + 1), word);
            at += 4;
            continue;
        }
        if (operation >= DAMAGES) {
            operate(operation, data[at + 1], word);
            at += 4;
            continue;
        }
        if (at + 12 > size) break;
        memcpy(&value, data + at + 4, 8);
        damage(operation, word, value);
        at += 12;
    }
    snprintf(what, sizeof what, "an input of %zu bytes", size);
    forget_all();
    work_and_restore();
    return 0;
}
