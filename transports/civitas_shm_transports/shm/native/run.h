/* One process's view of a run: where the segments are mapped, and the checks that make a pointer of a number.
 *
 * Rules of this file: a number that came from shared memory becomes a pointer only here, after its bounds were checked
 * on a private copy; NULL means "does not check out", never a crash.
 */
#ifndef CV_RUN_H
#define CV_RUN_H

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "layout.h"

typedef struct {
    uint8_t *directory, *cells, *mail;
    uint64_t directory_size, cells_size, mail_size;
    uint8_t *arena[CV_SLOTS_MAX]; /* own: read and write; others: read only */
    uint64_t arena_size[CV_SLOTS_MAX];
    int door[CV_SLOTS_MAX]; /* eventfds, made and kept by the host */
    uint32_t slots, mailboxes;
    unsigned me;
    uint64_t incarnation;
    uint64_t seed; /* of header checks: mixed from the run id */
    uint64_t rung[CV_SLOTS_MAX]; /* park_seq for which this process has already rung that slot's doorbell */
    uint32_t look_from; /* word of the ready bitmap where the next look begins */
    uint64_t wants[CV_MAILBOXES_MAX / 64]; /* mailboxes where this process's `wanting` bit is set */
    uint64_t polled[CV_SLOTS_MAX]; /* host: park_seq that its last safety poll saw beside work; 0 = none */
} cv_run;

static inline uint64_t cv_bytes_mix(uint64_t h, const void *bytes, size_t words) {
    uint64_t v;
    for (size_t i = 0; i < words; i++) {
        memcpy(&v, (const uint8_t *)bytes + 8 * i, 8);
        h = cv_mix1(h, v);
    }
    return h;
}

static inline uint64_t cv_segment_check(const cv_segment *s) {
    return cv_bytes_mix(CV_MAGIC, s, offsetof(cv_segment, check) / 8);
}
_Static_assert(offsetof(cv_segment, check) % 8 == 0, "checked in words");

static inline void cv_segment_format(uint8_t *at, uint32_t kind, const uint8_t run_id[16], uint64_t size, uint32_t slots,
                                     uint32_t mailboxes, uint32_t owner) {
    cv_segment s = {.magic = CV_MAGIC, .version = CV_LAYOUT_VERSION, .kind = kind, .size_bytes = size,
                    .slots = slots, .mailboxes = mailboxes, .owner = owner};
    memcpy(s.run_id, run_id, 16);
    s.check = cv_segment_check(&s);
    memcpy(at, &s, sizeof s);
}

/* NULL when the segment may be used, else the reason. */
static inline const char *cv_segment_refuse(const uint8_t *at, uint64_t mapped, uint32_t kind, const uint8_t *run_id) {
    cv_segment s;
    if (mapped < CV_PAGE) return "it is smaller than a header";
    memcpy(&s, at, sizeof s);
    if (s.magic != CV_MAGIC) return "it is no civitas_shm segment (magic)";
    if (s.version != CV_LAYOUT_VERSION) return "it has another layout version; use the version that made it";
    if (s.check != cv_segment_check(&s)) return "its header is damaged (checksum)";
    if (s.kind != kind) return "it is a segment of another kind";
    if (kind == CV_KIND_ARENA && mapped > CV_ARENA_EXTENTS_MAX * CV_EXTENT) return "it is larger than its map of extents";
    if (s.size_bytes != mapped) return "its size is not the one in its header";
    if (s.slots == 0 || s.slots > CV_SLOTS_MAX || s.mailboxes < s.slots || s.mailboxes > CV_MAILBOXES_MAX)
        return "its header has impossible counts";
    if (run_id && memcmp(s.run_id, run_id, 16)) return "it belongs to another run";
    return NULL;
}

static inline uint64_t cv_directory_size(uint32_t slots, uint32_t mailboxes) {
    return cv_align(CV_DIR_SLOTS + slots * cv_slot_stride(mailboxes) + (uint64_t)mailboxes * CV_RECORD, CV_PAGE);
}
static inline uint64_t cv_cells_size(uint32_t mailboxes) {
    return cv_align(CV_PAGE + (uint64_t)mailboxes * CV_CELL, CV_PAGE);
}

static inline cv_slot *cv_slot_at(const cv_run *run, unsigned slot) {
    return (cv_slot *)(run->directory + CV_DIR_SLOTS + slot * cv_slot_stride(run->mailboxes));
}
static inline at_u64 *cv_slot_bits(const cv_run *run, unsigned slot) {
    return (at_u64 *)((uint8_t *)cv_slot_at(run, slot) + sizeof(cv_slot));
}
static inline uint32_t cv_bit_words(const cv_run *run) { return (run->mailboxes + 63) / 64; }

static inline at_u64 *cv_count(const cv_run *run) { return (at_u64 *)(run->directory + CV_DIR_COUNT); }
static inline cv_record *cv_record_at(const cv_run *run, uint32_t index) {
    return (cv_record *)(run->directory + CV_DIR_SLOTS + run->slots * cv_slot_stride(run->mailboxes) +
                         (uint64_t)index * CV_RECORD);
}
/* Records that may be read. SYNC POINT "record complete": pairs with cv_directory_add. */
static inline uint32_t cv_records(const cv_run *run) {
    uint64_t n = at_acquire(cv_count(run));
    return n > run->mailboxes ? run->mailboxes : (uint32_t)n;
}

static inline cv_cell *cv_cell_at(const cv_run *run, uint32_t index) {
    return (cv_cell *)(run->cells + CV_PAGE + (uint64_t)index * CV_CELL);
}

/* Bytes of the mail segment that are laid out and backed by memory. The host writes it before it counts a record there. */
static inline at_u64 *cv_mail_end(const cv_run *run) { return (at_u64 *)(run->directory + CV_DIR_MAIL_END); }

/* The handle of a record as it is now, and whether one that somebody has kept still is the record's. */
static inline uint32_t cv_handle(const cv_run *run, uint32_t index) {
    return index | (uint32_t)at_load(&cv_record_at(run, index)->reuse) << CV_INDEX_BITS;
}
static inline bool cv_is_current(const cv_run *run, uint32_t handle) {
    uint32_t index = cv_index(handle);
    return index < run->mailboxes && cv_handle(run, index) == handle; /* of a damaged word the part that a handle has */
}

/* A mailbox, or NULL when its record or header does not check out. */
static inline cv_mailbox *cv_mailbox_at(const cv_run *run, uint32_t index) {
    if (index >= cv_records(run)) return NULL;
    cv_record *r = cv_record_at(run, index);
    uint64_t at = r->mail_at, size = r->mail_size;
    if (at < CV_PAGE || at % CV_LINE || size < cv_mailbox_head(run->slots) || size > run->mail_size || at > run->mail_size - size ||
        at + size > at_acquire(cv_mail_end(run)))
        return NULL;
    cv_mailbox *m = (cv_mailbox *)(run->mail + at);
    if (m->magic != (CV_MAGIC ^ index) || m->index != index) return NULL;
    return m;
}

/* A lane of a mailbox as private values: what every algorithm works with, so that a changed header cannot move it. */
typedef struct {
    at_u64 *tail, *head, *ring;
    uint64_t mask;
    unsigned log2;
    uint64_t capacity;
} cv_ring;

static inline bool cv_ring_of(const cv_run *run, uint32_t index, cv_mailbox *m, unsigned lane, cv_ring *ring) {
    cv_record *r = cv_record_at(run, index);
    unsigned log2 = m->ring_log2[lane];
    uint64_t at = m->ring_at[lane], size = r->mail_size, left = run->mail_size - (uint64_t)((uint8_t *)m - run->mail);
    if (size > left) size = left; /* changed since cv_mailbox_at looked */
    uint32_t capacity = m->capacity[lane];
    if (!capacity || log2 < CV_RING_MIN_LOG2 || log2 > CV_RING_MAX_LOG2 || at % 8 || at < cv_mailbox_head(run->slots) ||
        at + (8ull << log2) > size)
        return false;
    ring->tail = &m->lane[lane].tail;
    ring->head = &m->lane[lane].head;
    ring->ring = (at_u64 *)((uint8_t *)m + at);
    ring->mask = (1ull << log2) - 1;
    ring->log2 = log2;
    ring->capacity = capacity;
    return true;
}

/* --- chunks of any arena, as readers see them ------------------------------------------------------------------ */

/* `size` bytes at `ref`, or NULL: unknown arena, outside it, or in an extent that is not backed by memory. */
static inline uint8_t *cv_chunk_at(const cv_run *run, uint64_t ref, uint64_t size) {
    unsigned arena = cv_ref_arena(ref);
    if (arena >= run->slots || !run->arena[arena]) return NULL;
    uint64_t at = cv_ref_granule(ref) * CV_GRANULE;
    if (at < CV_ARENA_DATA || size > run->arena_size[arena] || at > run->arena_size[arena] - size) return NULL;
    at_u64 *map = (at_u64 *)(run->arena[arena] + CV_ARENA_EXTENTS);
    for (uint64_t e = at / CV_EXTENT; e <= (at + size - 1) / CV_EXTENT; e++)
        if (!(at_acquire(&map[e / 64]) >> (e % 64) & 1)) return NULL;
    return run->arena[arena] + at;
}

/* A copy of bytes whose owner may be freeing them just now, their memory too: what is not there any more is an error here
 * and no signal. One system call. The caller proves afterwards that the chunk was whole all the time. */
static inline bool cv_copy(const cv_run *run, uint64_t ref, uint64_t offset, uint64_t size, void *out) {
    uint8_t *at = cv_chunk_at(run, ref, offset + size);
    struct iovec there = {.iov_base = at + offset, .iov_len = size}, here = {.iov_base = out, .iov_len = size};
    if (!at) return false;
    ssize_t copied = process_vm_readv(getpid(), &here, 1, &there, 1, 0);
    if (copied < 0 && (errno == EPERM || errno == ENOSYS)) memcpy(out, at + offset, copied = (ssize_t)size); /* a sandbox */
    return copied == (ssize_t)size;
}
static inline bool cv_glance(const cv_run *run, uint64_t ref, cv_header *out) {
    return cv_copy(run, ref, 0, sizeof *out, out);
}

/* Begin to fetch a chunk's first lines, which another core has written. Of an unchecked ref: a prefetch cannot fault. */
static inline void cv_prefetch(const cv_run *run, uint64_t ref) {
    uintptr_t at = (uintptr_t)run->arena[cv_ref_arena(ref)] + cv_ref_granule(ref) * CV_GRANULE;
    for (unsigned line = 0; line < 3; line++) __builtin_prefetch((const void *)(at + line * CV_GRANULE));
}

/* Check of a header: seeded with the run, so that a chunk of another run, mailbox or position does not pass. */
static inline uint64_t cv_header_check(const cv_run *run, const cv_header *h) {
    return cv_bytes_mix(run->seed, (const uint8_t *)h + 8, (sizeof *h - 8) / 8);
}

#endif
