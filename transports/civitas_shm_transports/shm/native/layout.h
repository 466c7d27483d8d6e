/* The format: every offset, every word, who writes it. No algorithm here. LAYOUT.md draws the same with reasons.
 *
 * Rules of this file: offsets are computed, so the padding rule is visible; relations between constants are asserted;
 * whatever changes a byte here raises CV_LAYOUT_VERSION, and attach refuses another version.
 */
#ifndef CV_LAYOUT_H
#define CV_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "sets.h"

#define CV_MAGIC 0x314d485353495643ull /* "CVISSHM1" read as little endian */
#define CV_LAYOUT_VERSION 3u

#define CV_LINE 128u  /* two cache lines: Intel fetches them in pairs */
#define CV_PAGE 4096u
#define CV_GRANULE 64u
#define CV_MAILBOXES_MAX 16384u /* four summary words */
#define CV_HAND 64u            /* messages in hand of one mailbox at once, all readers together */
#define CV_REPLICAS_MAX CV_HAND /* readers of one mailbox: each has one message in hand */
#define CV_LANES 3u            /* control, priority, normal */
#define CV_LANE_CONTROL 0u
#define CV_LANE_PRIORITY 1u
#define CV_LANE_NORMAL 2u
#define CV_RING_MIN_LOG2 6u
#define CV_RING_MAX_LOG2 16u   /* a position modulo lap width x ring must fit 32 bits of an in-hand entry */
#define CV_CONTROL_LOG2 6u
#define CV_NAME_MAX 183u       /* bytes of UTF-8 */

#define CV_BLOCK (64u << 10)   /* what one size class takes at once */
#define CV_EXTENT (1u << 20)   /* what is asked of the kernel at once */
#define CV_BLOCK_GRANULES (CV_BLOCK / CV_GRANULE)
#define CV_EXTENT_BLOCKS (CV_EXTENT / CV_BLOCK)

enum { CV_KIND_DIRECTORY = 1, CV_KIND_CELLS = 2, CV_KIND_MAIL = 3, CV_KIND_ARENA = 4 };

/* --- every segment starts so; written once by the host before anybody attaches ------------------------------- */
typedef struct {
    uint64_t magic;
    uint32_t version;
    uint32_t kind;
    uint8_t run_id[16];
    uint64_t size_bytes;
    uint32_t slots;
    uint32_t mailboxes;
    uint32_t owner; /* slot of an arena's writer */
    uint32_t reserved;
    uint64_t check; /* cv_mix of all bytes above */
} cv_segment;

/* --- directory segment ------------------------------------------------------------------------------------------
 * page 0            cv_segment, then at CV_DIR_COUNT the number of records (host writes, release)
 * CV_DIR_SLOTS      slot table, cv_slot_stride(mailboxes) bytes each
 * after it          records, CV_RECORD bytes each
 */
#define CV_DIR_COUNT 512u
#define CV_DIR_MAIL_END 640u /* bytes of the mail segment that are laid out; host only */
#define CV_DIR_SLOTS CV_PAGE

typedef struct {
    /* line 0: parity of sleep. Odd = parked. Only the slot's process adds to it; never reset, not by a successor.
     * numbers: up to here the numbers of sends are set aside; a successor begins above (effect.h). */
    at_u64 park_seq;
    at_u64 numbers;
    uint8_t pad0[CV_LINE - 16];
    /* line 1: CV_ALARM_* bits; anybody sets, the slot's process exchanges. */
    at_u64 alarm;
    uint8_t pad1[CV_LINE - 8];
    /* line 2: incarnation of the process (host writes before the spawn), its life state and pid (for people). */
    at_u64 incarnation;
    at_u64 state;
    at_u64 pid;
    at_u64 missed; /* wake-ups that only the host's safety poll found */
    at_u64 wants_memory; /* 1: the slot's process waits for memory; it alone writes it, and the host after its death */
    uint8_t pad2[CV_LINE - 40];
    /* line 3: bit w = bitmap word w may be non-zero. Setter: anybody. The bitmap follows at once, so that its first 256
     * mailboxes lie on the same cache line: a message that wakes nobody then moves one line, not two. */
    at_u64 summary[4];
    /* then: bitmap, one bit for each mailbox */
} cv_slot;
_Static_assert(sizeof(cv_slot) == 3 * CV_LINE + 32, "three lines and the summary");

#define CV_ALARM_SCAN 1u /* look at every mailbox: somebody died, or bits may be lost */
#define CV_ALARM_ROOM 2u /* a mailbox you waited for may have room */
#define CV_ALARM_PROBE 4u /* the host asks whether the loop turns: taking it is the answer */

#define CV_SLOT_FREE 0u
#define CV_SLOT_LIVE 1u
#define CV_SLOT_DEAD 2u

static inline uint64_t cv_align(uint64_t value, uint64_t to) { return (value + to - 1) & ~(to - 1); }
static inline uint64_t cv_slot_stride(uint32_t mailboxes) {
    return cv_align(sizeof(cv_slot) + cv_align(mailboxes, 64) / 8, CV_LINE);
}

#define CV_RECORD 256u
typedef struct {
    at_u64 word;     /* CV_AGENT_* state (8 bits) | incarnation << 8, of the last start ordered; host only, never back */
    uint64_t mail_at; /* offset of the mailbox in the mail segment */
    uint64_t mail_size;
    uint32_t capacity[CV_LANES];
    uint8_t ring_log2[CV_LANES];
    uint8_t overflow;
    uint32_t replicas;
    uint32_t pad;
    at_u64 reuse; /* how often the record was given up for another agent: the upper part of its handle; host only */
    uint8_t reserved[12];
    uint8_t name_len;
    char name[CV_NAME_MAX];
} cv_record;
_Static_assert(sizeof(cv_record) == CV_RECORD, "a record is 256 bytes");

enum { CV_AGENT_OPEN = 1, CV_AGENT_CLOSED = 2, CV_AGENT_FREE = 3 }; /* FREE: kept for another agent, see cv_retire */

/* A mailbox as everybody names it outside of native/: index 14 | reuse 18. So a name that was looked up before the mailbox
 * went to another agent fits nothing any more. */
#define CV_INDEX_BITS 14u
#define CV_REUSE_MAX ((1u << (32 - CV_INDEX_BITS)) - 2) /* one below what SENDER_PROGRAM has */
_Static_assert(CV_MAILBOXES_MAX <= 1u << CV_INDEX_BITS, "an index fits a handle");
static inline uint32_t cv_index(uint32_t handle) { return handle & ((1u << CV_INDEX_BITS) - 1); }
static inline uint32_t cv_reuse(uint32_t handle) { return handle >> CV_INDEX_BITS; }

#define CV_INCARNATION_MAX ((1ull << 56) - 1)
static inline uint64_t cv_agent_word(uint64_t state, uint64_t incarnation) { return state | incarnation << 8; }
static inline uint64_t cv_agent_incarnation(uint64_t word) { return word >> 8; }
enum { CV_BLOCK_SENDER = 0, CV_ERROR = 1, CV_DROP_OLDEST = 2, CV_LATEST = 3 };

/* --- mail segment: mailboxes one after the other, from CV_PAGE on ------------------------------------------- */
typedef struct {
    /* line 0: written once, before the record is counted */
    uint64_t magic; /* CV_MAGIC ^ index */
    uint32_t index;
    uint32_t overflow;
    uint32_t capacity[CV_LANES];
    uint32_t ring_log2[CV_LANES];
    uint32_t ring_at[CV_LANES]; /* bytes from the start of this struct */
    uint32_t replicas;
    uint8_t pad0[CV_LINE - 56];
    /* line 1, sets of processes: who reads (host only); whose agent is up and listens (each its own bit; the host clears it
     * after its death). The second only tells the safety poll whether a sleeper should be awake. */
    cv_shared_set readers;
    cv_shared_set listening;
    uint8_t pad1[CV_LINE - 16 * CV_SET_WORDS];
    /* line 2: who waits for room here; each sets its own bit, readers exchange. wanting: the same, but set and cleared by
     * each process for itself alone: with it the host's safety poll finds those whom a reader that was stopped after the
     * exchange has not told. */
    cv_shared_set waiters;
    cv_shared_set wanting;
    uint8_t pad2[CV_LINE - 16 * CV_SET_WORDS];
    /* line 3: chunk of the committed state (ref, 0 = none); the reader's process only. hand_high: one more than the
     * highest in-hand entry ever used, so that owners need not look at all 64. */
    at_u64 state_ref;
    at_u64 hand_high;
    uint8_t pad3[CV_LINE - 16];
    /* line 4: what the handler of the message in hand has sent, see effect.h; the reader's process, or the host after its
     * death. The log's chunk and how many of its entries count; whose it is; the newest entry's index, number and way. */
    at_u64 log_ref;
    at_u64 log_count;
    at_u64 log_key;
    at_u64 open_index;
    at_u64 open_number;
    at_u64 open_to;
    uint8_t pad4[CV_LINE - 48];
    /* each lane: tail and head on lines of their own; hints, anyone may help them forward */
    struct {
        at_u64 tail;
        uint8_t pad_tail[CV_LINE - 8];
        at_u64 head;
        uint8_t pad_head[CV_LINE - 8];
    } lane[CV_LANES];
    /* what is in hand: see cv_hand_* below; the reader named in `meta`, or the host after proof of its death */
    struct {
        at_u64 ref;
        at_u64 meta;
    } hand[CV_HAND];
    /* then: taken_from, a word for each slot of the run: the highest number of that process's sends that was taken here:
     * evidence for its successor; readers */
    at_u64 taken_from[];
    /* then, from cv_mailbox_head(slots) on: rings of slot words, control, priority, normal */
} cv_mailbox;
_Static_assert(sizeof(cv_mailbox) == 5 * CV_LINE + CV_LANES * 2 * CV_LINE + CV_HAND * 16, "computed, not typed");
_Static_assert(sizeof(cv_mailbox) == offsetof(cv_mailbox, taken_from), "the words follow at once");
static inline uint64_t cv_mailbox_head(uint32_t slots) { return sizeof(cv_mailbox) + cv_align(8ull * slots, CV_LINE); }

/* slot word:  63      48 47  46 45   39 38            0
 *            +----------+------+-------+---------------+
 *            |   lap    | state| reader|      ref      |
 *            +----------+------+-------+---------------+
 * lap = position >> ring_log2, modulo 2^16. A FULL word of the lap that a reader expects *is* the commit. */
enum { CV_EMPTY = 0, CV_FULL = 1, CV_TAKEN = 2, CV_MARK = 3 };
#define CV_LAP_MASK 0xffffull
#define CV_REF_MASK ((1ull << 39) - 1)

static inline uint64_t cv_word(uint64_t lap, unsigned state, unsigned reader, uint64_t ref) {
    return (lap & CV_LAP_MASK) << 48 | (uint64_t)state << 46 | (uint64_t)reader << 39 | (ref & CV_REF_MASK);
}
static inline uint64_t cv_word_lap(uint64_t word) { return word >> 48; }
static inline unsigned cv_word_state(uint64_t word) { return (unsigned)(word >> 46) & 3u; }
static inline unsigned cv_word_reader(uint64_t word) { return (unsigned)(word >> 39) & 127u; }
static inline uint64_t cv_word_ref(uint64_t word) { return word & CV_REF_MASK; }
/* How many laps a word is ahead (> 0) or behind (< 0) of the lap of a position, modulo the lap's width. */
static inline int cv_lap_ahead(uint64_t word, uint64_t lap) { return (int16_t)(uint16_t)(cv_word_lap(word) - lap); }

/* ref: arena (slot of its owner) 38..32 | granule 31..0; 0 = none, because granule 0 is the segment's header */
static inline uint64_t cv_ref(unsigned arena, uint64_t granule) { return (uint64_t)arena << 32 | granule; }
static inline unsigned cv_ref_arena(uint64_t ref) { return (unsigned)(ref >> 32) & 127u; }
static inline uint64_t cv_ref_granule(uint64_t ref) { return ref & 0xffffffffull; }
_Static_assert(CV_SLOTS_MAX == 128, "a slot's number has 7 bits in slot words, refs, in-hand entries and correlations");

/* the way of an open send: mailbox 14, from bit 42 on | lane 2, from bit 40 on | ref 39 */
static inline uint64_t cv_open_to(uint32_t mailbox, unsigned lane, uint64_t ref) {
    return (uint64_t)mailbox << 42 | (uint64_t)(lane & 3u) << 40 | (ref & CV_REF_MASK);
}
static inline uint32_t cv_open_mailbox(uint64_t to) { return (uint32_t)(to >> 42); }
static inline unsigned cv_open_lane(uint64_t to) { return (unsigned)(to >> 40) & 3u; }
static inline uint64_t cv_open_ref(uint64_t to) { return to & CV_REF_MASK; }

/* in-hand entry: ref word = ref | lane << 40; meta word:
 *
 *  63   60 59     56 55 54 53    47   46    45     44   43        32 31            0
 * +-------+---------+-----+--------+-------+-------+------+------------+---------------+
 * | kills | strikes |state| reader | alone | waits | once | deliveries |   position    |
 * +-------+---------+-----+--------+-------+-------+------+------------+---------------+
 * FREE -> CLAIMED -> RUNNING -> FREE: the reader. RUNNING -> BURIED: the reader, or the host after proof of its death.
 * BURIED -> FREE: the host, after the letter is stored. The counters saturate. */
enum { CV_HAND_FREE = 0, CV_HAND_CLAIMED = 1, CV_HAND_RUNNING = 2, CV_HAND_BURIED = 3 };
#define CV_DELIVERIES_MAX 0xfffu
#define CV_STRIKES_MAX 15u
#define CV_META_ONCE (1ull << 44)  /* at-most-once: its handler has begun, so nobody may get it again */
#define CV_META_WAITS (1ull << 45) /* in hand, and no handler runs it: a death now is not its doing */
#define CV_META_ALONE (1ull << 46) /* suspected of a death: its handler begins when no other in its process runs */
#define CV_META_STATE (3ull << 54)
static inline uint64_t cv_meta(uint64_t position, unsigned deliveries, unsigned reader, unsigned state) {
    return (position & 0xffffffffull) | (uint64_t)(deliveries & CV_DELIVERIES_MAX) << 32 | (uint64_t)reader << 47 |
           (uint64_t)state << 54;
}
static inline uint32_t cv_meta_position(uint64_t meta) { return (uint32_t)meta; }
static inline unsigned cv_meta_deliveries(uint64_t meta) { return (unsigned)(meta >> 32) & CV_DELIVERIES_MAX; }
static inline unsigned cv_meta_reader(uint64_t meta) { return (unsigned)(meta >> 47) & 127u; }
static inline unsigned cv_meta_state(uint64_t meta) { return (unsigned)(meta >> 54) & 3u; }
static inline unsigned cv_meta_strikes(uint64_t meta) { return (unsigned)(meta >> 56) & 15u; }
static inline unsigned cv_meta_kills(uint64_t meta) { return (unsigned)(meta >> 60); }
/* The same word with one part changed. */
static inline uint64_t cv_meta_moved(uint64_t meta, unsigned reader) {
    return (meta & ~(127ull << 47)) | (uint64_t)(reader & 127u) << 47;
}
static inline uint64_t cv_meta_in(uint64_t meta, unsigned state) { return (meta & ~CV_META_STATE) | (uint64_t)state << 54; }
static inline uint64_t cv_meta_delivered(uint64_t meta) {
    return cv_meta_deliveries(meta) < CV_DELIVERIES_MAX ? meta + (1ull << 32) : meta;
}
static inline uint64_t cv_meta_struck(uint64_t meta, unsigned strikes, unsigned kills) {
    uint64_t s = cv_meta_strikes(meta) + (uint64_t)strikes, k = cv_meta_kills(meta) + (uint64_t)kills;
    if (s > CV_STRIKES_MAX) s = CV_STRIKES_MAX;
    if (k > CV_STRIKES_MAX) k = CV_STRIKES_MAX;
    return (meta & ~(0xffull << 56)) | s << 56 | k << 60;
}

/* --- arena segment: header, map of extents, then chunks ------------------------------------------------------ */
#define CV_ARENA_EXTENTS 4096u  /* bitmap: bit e = extent e is backed by memory; the owner writes, readers check */
#define CV_ARENA_DATA (16u << 10)
#define CV_ARENA_EXTENTS_MAX ((CV_ARENA_DATA - CV_ARENA_EXTENTS) * 8ull)
_Static_assert(CV_ARENA_EXTENTS_MAX * CV_EXTENT / CV_GRANULE <= 1ull << 32, "a granule's number has 32 bits in a ref");

#define CV_DROPPED "dropped" /* type of the failed reply to a question that was dropped by policy */

/* chunk = this header, type bytes, payload; position and check are the last stores before the publish */
typedef struct {
    uint64_t check;
    uint32_t granules;
    uint32_t payload_len;
    uint16_t type_len;
    uint8_t codec;
    uint8_t flags;
    uint32_t mailbox;
    uint32_t position; /* modulo 2^32: lap width x ring at most */
    uint8_t lane;
    uint8_t attempt;
    uint16_t hops;
    uint8_t id[16];
    uint32_t sender;
    int32_t priority;
    uint64_t correlation; /* slot 7 | incarnation 17 | counter 40; 0 = nobody waits */
    uint64_t deadline_ns;
    uint64_t time_ns;
    uint8_t trace_id[16];
    uint8_t span_id[8];
    uint8_t parent_span_id[8];
    uint32_t seq;   /* of a stream: chunk 1, 2 … of the answer; of the question CV_STREAM | first credits; 0 = none */
    uint32_t asker; /* of a reply: mailbox of the agent that asked, so that its cell can be cleared */
    uint64_t number; /* of this process's sends from handlers, counted up; 0 = none (effect.h) */
} cv_header;
_Static_assert(sizeof(cv_header) == 128, "two granules; civitas_shm/messages.py HEADER is the same");
_Static_assert(offsetof(cv_header, id) == 32 && offsetof(cv_header, trace_id) == 80, "messages.py reads these alone");

/* REPEATED: the handler that sent it had run before, so it may have come before. */
/* The reader field of a FULL word: somebody waits for the answer. A FULL word has no reader. */
enum { CV_ASKS = 1 };
enum { CV_FLAG_ASK = 1, CV_FLAG_REPLY = 2, CV_FLAG_FAILED = 4, CV_FLAG_REPEATED = 8,
       CV_FLAG_MORTAL = 16, /* deadline_ns is the end of its own life, not of an asker's patience */
       CV_FLAG_FOREIGN = 32 /* from an agent of another host: behind the type stand its name and, u16, the name's length */ };
#define CV_STREAM (1u << 31) /* in `seq` of a question: it wants a stream; messages.py STREAM_BIT is the same */
#define CV_LANE_STATE 3u /* in `lane` of a chunk that holds committed state instead of a message */
#define CV_LANE_LOG 4u   /* … that holds what a handler has sent: digests, 8 bytes each */

#define CV_INCARNATION_MASK 0x1ffffull
static inline uint64_t cv_correlation(unsigned slot, uint64_t incarnation, uint64_t counter) {
    return (uint64_t)slot << 57 | (incarnation & CV_INCARNATION_MASK) << 40 | (counter & ((1ull << 40) - 1));
}
static inline unsigned cv_correlation_slot(uint64_t c) { return (unsigned)(c >> 57); }
static inline uint64_t cv_correlation_incarnation(uint64_t c) { return c >> 40 & CV_INCARNATION_MASK; }

/* --- cells: numbers that anyone may read; relaxed stores by the process that runs the agent ------------------ */
#define CV_HISTOGRAM 32u
#define CV_WAIT_TYPE 64u /* bytes of a message type in a cell; what is longer is cut */
enum { CV_WAIT_ASK = 0, CV_WAIT_ROOM = 1 };
typedef struct {
    at_u64 handled, sent, redelivered, dropped, garbage;
    at_u64 busy_since_ns;
    at_u64 asking;        /* 1 + mailbox whose reply is awaited, 0 = none */
    at_u64 wants_room_in; /* 1 + mailbox, 0 = none */
    at_u64 bytes_in, bytes_out;
    at_u64 replay_dropped;  /* sends that an earlier life of a handler had committed */
    at_u64 replay_diverged; /* sends that differ from all of an earlier life */
    at_u64 not_remembered;  /* sends beyond what is remembered for one message */
    at_u64 suspended_ns;    /* CLOCK_REALTIME when its agent was suspended, 0 = it is not; a copy of what its state says */
    at_u64 reserved[2];
    at_u64 histogram[CV_HISTOGRAM]; /* handlers that took less than 2^i microseconds */
    /* What the handler itself waits for: native/waits.h. On a line of its own, because it is written only by those who
     * wait long. id 0: nothing, or it is being written. */
    struct {
        at_u64 id;       /* correlation of an ask, number of a wait for room */
        at_u64 on;       /* mailbox (32) | CV_WAIT_* << 32 */
        at_u64 since_ns, seen_ns; /* CLOCK_MONOTONIC */
        at_u64 type[CV_WAIT_TYPE / 8];
        at_u64 reserved[4];
    } wait;
} cv_cell;
#define CV_CELL 512u
_Static_assert(sizeof(cv_cell) == CV_CELL, "four line pairs");

/* 64-bit mixing (multiply, fold the high half in); good enough to tell garbage from a header, not against forgers. */
static inline uint64_t cv_mix1(uint64_t h, uint64_t v) {
    __uint128_t product = (__uint128_t)(h ^ v ^ 0xa0761d6478bd642full) * 0x9e3779b97f4a7c15ull;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

#endif
