/* Coverage-guided fuzzing of what is read before and while a process attaches: the header of each kind of segment, and,
 * where a header passes, every record, mailbox, lane and chunk that the bytes behind it seem to hold. libFuzzer.
 *
 * The memory is as large as the header says and not a byte larger (heap blocks, so AddressSanitizer sees the first byte
 * beyond): a size, count or offset that is believed too early is a crash here.
 *
 *   input = mailboxes (1), slots (1), flags (1), sizes of mail and arena (2 + 2), then, if flags say so, a segment's
 *           header; then damages to memory that would pass: what (1), which word (2), its value (8)
 */
#include <stdlib.h>

#include "world.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint8_t run_id[16] = "civitas harness";
static uint64_t digest;

static void *block(uint64_t size) {
    void *at = aligned_alloc(CV_PAGE, cv_align(size, CV_PAGE));
    EXPECT(at);
    memset(at, 0, size);
    return at;
}

static void touch(const void *bytes, uint64_t size) {
    for (uint64_t i = 0; i < size; i++) digest += ((const uint8_t *)bytes)[i];
}

static void header(uint8_t *at, uint64_t mapped, uint32_t kind, bool sealed) {
    cv_segment s;
    memcpy(&s, at, sizeof s);
    if (sealed) s.check = cv_segment_check(&s);
    memcpy(at, &s, sizeof s);
    const char *why = cv_segment_refuse(at, mapped, kind, run_id);
    if (why) {
        touch(why, strlen(why));
        return;
    }
    /* What passes must be safe to compute with. */
    EXPECT(s.slots >= 1 && s.slots <= CV_SLOTS_MAX && s.mailboxes >= s.slots && s.mailboxes <= CV_MAILBOXES_MAX);
    EXPECT(cv_directory_size(s.slots, s.mailboxes) < 1ull << 32 && cv_cells_size(s.mailboxes) < 1ull << 32);
    EXPECT(s.size_bytes == mapped && s.version == CV_LAYOUT_VERSION && s.kind == kind);
}

/* Everything that the bytes seem to hold. */
static void read_all(cv_run *run) {
    mb_message message;
    for (uint32_t i = 0; i < run->mailboxes; i++) {
        cv_mailbox *m = cv_mailbox_at(run, i);
        if (!m) continue;
        uint64_t refs[CV_HAND];
        touch(refs, 8ull * cv_hand_refs(m, refs));
        touch(m, cv_mailbox_head(run->slots));
        for (unsigned lane = 0; lane < CV_LANES; lane++) {
            cv_ring r;
            if (!cv_ring_of(run, i, m, lane, &r)) continue;
            EXPECT(mb_waiting(&r) <= r.mask + 1);
            for (uint64_t p = 0; p <= r.mask; p++) {
                uint64_t ref = cv_word_ref(at_load(mb_slot(&r, p)));
                if (mb_read(run, i, lane, mb_short(&r, p), ref, &message))
                    touch(message.body, (uint64_t)message.header.type_len + message.header.payload_len);
            }
        }
        for (unsigned e = 0; e < CV_HAND; e++) {
            uint64_t word = at_load(&m->hand[e].ref), meta = at_load(&m->hand[e].meta);
            if (mb_read(run, i, (unsigned)(word >> 40) & 3u, cv_meta_position(meta), cv_word_ref(word), &message))
                touch(message.body, (uint64_t)message.header.type_len + message.header.payload_len);
        }
        mb_is_closed(run, m, i);
        cv_busy_readers(m);
    }
}

static void format(cv_run *run, uint32_t mailboxes) {
    const uint64_t ring = 8ull << CV_RING_MIN_LOG2, head = cv_mailbox_head(run->slots), one = head + CV_LANES * ring;
    at_poke(cv_count(run), mailboxes);
    at_poke(cv_mail_end(run), run->mail_size);
    for (unsigned s = 0; s < run->slots; s++) at_poke((at_u64 *)(run->arena[s] + CV_ARENA_EXTENTS), ~0ull);
    for (uint32_t i = 0; i < mailboxes; i++) {
        uint64_t at = CV_PAGE + i * cv_align(one, CV_LINE);
        cv_record *record = cv_record_at(run, i);
        record->mail_at = at;
        record->mail_size = one;
        if (at + one > run->mail_size) continue;
        cv_mailbox *m = (cv_mailbox *)(run->mail + at);
        m->magic = CV_MAGIC ^ i, m->index = i, m->replicas = 1;
        for (unsigned lane = 0; lane < CV_LANES; lane++) {
            m->capacity[lane] = 8, m->ring_log2[lane] = CV_RING_MIN_LOG2;
            m->ring_at[lane] = (uint32_t)(head + lane * ring);
        }
        at_u64 *slot = (at_u64 *)((uint8_t *)m + m->ring_at[CV_LANE_NORMAL]);
        at_poke(slot, cv_word(0, CV_FULL, 0, cv_ref(0, CV_ARENA_DATA / CV_GRANULE)));
    }
    if (run->arena_size[0] < CV_ARENA_DATA + 4 * CV_GRANULE) return;
    cv_header *h = (cv_header *)(run->arena[0] + CV_ARENA_DATA);
    h->granules = 4, h->payload_len = 100, h->type_len = 4, h->lane = CV_LANE_NORMAL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 7) return 0;
    static cv_run run; /* large; the same for all inputs */
    memset(&run, 0, sizeof run);
    uint16_t mail_lines, arena_granules;
    unsigned flags = data[2];
    memcpy(&mail_lines, data + 3, 2);
    memcpy(&arena_granules, data + 5, 2);
    run.slots = 1 + data[1] % 3;
    run.mailboxes = run.slots + data[0] % 4;
    data += 7, size -= 7;
    run.seed = 0x5eed;
    run.directory_size = cv_directory_size(run.slots, run.mailboxes);
    run.mail_size = CV_PAGE + (mail_lines % 256) * (uint64_t)CV_LINE;
    run.directory = block(run.directory_size);
    run.mail = block(run.mail_size);
    for (unsigned s = 0; s < run.slots; s++) {
        run.arena_size[s] = CV_ARENA_DATA + (arena_granules % 64) * (uint64_t)CV_GRANULE;
        run.arena[s] = block(run.arena_size[s]);
    }

    if (flags & 1) {
        uint8_t page[CV_PAGE] = {0};
        uint32_t kind = CV_KIND_DIRECTORY + flags / 4 % 4;
        cv_segment_format(page, kind, run_id, run.mail_size, run.slots, run.mailboxes, 0);
        size_t n = size < sizeof(cv_segment) ? size : sizeof(cv_segment);
        for (size_t i = 0; i < n; i++) page[i] ^= data[i];
        data += n, size -= n;
        header(page, run.mail_size, kind, flags & 2);
    }

    format(&run, run.mailboxes);
    for (; size >= 11; data += 11, size -= 11) {
        uint16_t word;
        uint64_t value;
        memcpy(&word, data + 1, 2);
        memcpy(&value, data + 3, 8);
        uint8_t *at[] = {(uint8_t *)cv_record_at(&run, 0), run.mail + CV_PAGE, run.arena[0] + CV_ARENA_DATA,
                         run.directory + CV_DIR_COUNT, run.arena[0] + CV_ARENA_EXTENTS, run.directory + CV_DIR_SLOTS};
        uint64_t room[] = {run.mailboxes * CV_RECORD, run.mail_size - CV_PAGE, run.arena_size[0] - CV_ARENA_DATA,
                           CV_DIR_MAIL_END + 8 - CV_DIR_COUNT, 64, run.slots * cv_slot_stride(run.mailboxes)};
        unsigned where = data[0] % 6;
        if (room[where] >= 8) memcpy(at[where] + word % (room[where] / 8) * 8, &value, 8);
    }
    if (flags & 2 && run.arena_size[0] >= CV_ARENA_DATA + sizeof(cv_header)) { /* sealed, so that it is believed */
        cv_header *h = (cv_header *)(run.arena[0] + CV_ARENA_DATA);
        h->check = cv_header_check(&run, h);
    }
    read_all(&run);

    free(run.directory), free(run.mail);
    for (unsigned s = 0; s < run.slots; s++) free(run.arena[s]);
    return 0;
}
