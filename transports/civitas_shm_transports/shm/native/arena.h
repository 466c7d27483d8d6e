/* The allocator of this process's own arena: nobody else writes there, so it needs no atomics but for the map of
 * extents that readers check. Runs under the GIL from allocation to publish.
 *
 * Shape: blocks of 64 KiB. A small chunk comes from a block of its size class (a stack of free granules for each
 * class, last freed first: warm cache lines); a larger one takes a run of whole blocks. What is free is known only
 * here, in private memory; a successor rebuilds it from the references it finds in the mailboxes (cv_arena_adopt).
 *
 * Memory is asked of the kernel in extents of 1 MiB before it is touched (a full /dev/shm is an outcome here, never
 * SIGBUS) and given back, by punching holes, in cv_arena_trim.
 */
#ifndef CV_ARENA_H
#define CV_ARENA_H

#ifndef _GNU_SOURCE
#error "compile with -D_GNU_SOURCE: fallocate"
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#include "run.h"

/* Sizes in granules of 64 bytes: at most a quarter is lost to rounding. The last fits a block four times. */
static const uint16_t CV_CLASS[] = {2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128,
                                    160, 192, 256};
#define CV_CLASSES ((unsigned)(sizeof CV_CLASS / sizeof *CV_CLASS))
#define CV_CLASS_MAX 256u

enum { CV_BLOCK_FREE = 0, CV_BLOCK_SMALL = 1, CV_BLOCK_RUN = 2, CV_BLOCK_REST = 3, CV_BLOCK_LOST = 4 };

typedef struct {
    uint8_t kind;
    uint8_t size_class;
    uint16_t live;    /* chunks in use of a small block */
    uint32_t run;     /* blocks in a run */
} cv_block;

typedef struct {
    uint32_t *at;
    uint32_t n, room;
} cv_stack;

typedef struct {
    cv_run *run;
    int fd;
    uint64_t used, limit;   /* bytes in chunks; the most they may take */
    uint64_t backed;        /* bytes that the kernel has given */
    uint32_t blocks, hint;  /* blocks in the arena; where to look for a free one first */
    cv_block *block;
    cv_stack free[CV_CLASSES];
    uint8_t class_of[CV_CLASS_MAX + 1];
    int last_errno;         /* why the kernel gave no more; 0 = it did */
} cv_arena;

/* Block b covers bytes [b, b+1) * CV_BLOCK of the segment. Block 0 holds the header, so it is never used. */
static inline int cv_arena_init(cv_arena *a, cv_run *run, int fd) {
    memset(a, 0, sizeof *a);
    a->run = run;
    a->fd = fd;
    uint64_t size = run->arena_size[run->me];
    a->blocks = (uint32_t)(size / CV_BLOCK);
    a->limit = size - CV_BLOCK;
    a->block = calloc(a->blocks, sizeof *a->block);
    if (!a->block) return -1;
    a->block[0].kind = CV_BLOCK_LOST;
    for (unsigned c = 0, g = 0; g <= CV_CLASS_MAX; g++) {
        if (g > CV_CLASS[c]) c++;
        a->class_of[g] = (uint8_t)c;
    }
    a->hint = 1;
    return 0;
}

static inline void cv_arena_free_all(cv_arena *a) {
    for (unsigned c = 0; c < CV_CLASSES; c++) free(a->free[c].at);
    free(a->block);
    memset(a, 0, sizeof *a);
}

static inline bool cv_push(cv_stack *s, uint32_t granule) {
    if (s->n == s->room) {
        uint32_t room = s->room ? 2 * s->room : 256;
        uint32_t *at = realloc(s->at, room * sizeof *at);
        if (!at) return false;
        s->at = at;
        s->room = room;
    }
    s->at[s->n++] = granule;
    return true;
}

static inline at_u64 *cv_extent_word(cv_arena *a, uint64_t extent) {
    return (at_u64 *)(a->run->arena[a->run->me] + CV_ARENA_EXTENTS) + extent / 64;
}

/* Whether any extent has memory. Without, there is no chunk in this arena, so nothing that refers to one either. */
static inline bool cv_arena_has_memory(cv_arena *a) {
    uint64_t extents = (a->run->arena_size[a->run->me] + CV_EXTENT - 1) / CV_EXTENT;
    for (uint64_t e = 0; e < extents; e += 64)
        if (at_peek(cv_extent_word(a, e))) return true;
    return false;
}

/* Make sure that blocks [first, first+n) are backed by memory. */
static inline bool cv_back(cv_arena *a, uint32_t first, uint32_t n) {
    for (uint64_t e = first / CV_EXTENT_BLOCKS; e <= (first + n - 1) / CV_EXTENT_BLOCKS; e++) {
        at_u64 *word = cv_extent_word(a, e);
        if (at_peek(word) >> (e % 64) & 1) continue;
        uint64_t at = e * CV_EXTENT, size = a->run->arena_size[a->run->me] - at;
        if (size > CV_EXTENT) size = CV_EXTENT;
        int rc;
        do { rc = fallocate(a->fd, 0, (off_t)at, (off_t)size) ? errno : 0; } while (rc == EINTR);
        if (rc) {
            a->last_errno = rc;
            return false;
        }
        a->last_errno = 0;
        a->backed += size;
        at_release(word, at_peek(word) | 1ull << (e % 64));
    }
    return true;
}

/* First fit for `n` free blocks in a row, from the hint on, then from the start. 0 = none. */
static inline uint32_t cv_find_blocks(cv_arena *a, uint32_t n) {
    for (int pass = 0; pass < 2; pass++) {
        uint32_t from = pass ? 1 : a->hint, row = 0;
        for (uint32_t b = from; b < a->blocks; b++) {
            row = a->block[b].kind == CV_BLOCK_FREE ? row + 1 : 0;
            if (row == n) {
                a->hint = pass || n == 1 ? b + 1 : a->hint;
                return b + 1 - n;
            }
        }
    }
    return 0;
}

/* Small blocks without a live chunk become free blocks again; their granules leave the stacks. */
static inline void cv_arena_sweep(cv_arena *a) {
    for (unsigned c = 0; c < CV_CLASSES; c++) {
        uint32_t keep = 0;
        for (uint32_t i = 0; i < a->free[c].n; i++) {
            uint32_t granule = a->free[c].at[i];
            if (a->block[granule / CV_BLOCK_GRANULES].live) a->free[c].at[keep++] = granule;
        }
        a->free[c].n = keep;
    }
    for (uint32_t b = 1; b < a->blocks; b++)
        if (a->block[b].kind == CV_BLOCK_SMALL && !a->block[b].live) a->block[b].kind = CV_BLOCK_FREE;
    a->hint = 1;
}

static inline uint64_t cv_class_bytes(const cv_arena *a, uint64_t granules) {
    if (granules > CV_CLASS_MAX) return cv_align(granules * CV_GRANULE, CV_BLOCK);
    return (uint64_t)CV_CLASS[a->class_of[granules]] * CV_GRANULE;
}

/* `n` free blocks in a row among those that the kernel has given memory for already. 0 = none. */
static inline uint32_t cv_find_backed(cv_arena *a, uint32_t n) {
    for (uint32_t b = 1, row = 0; b < a->blocks; b++) {
        uint64_t e = b / CV_EXTENT_BLOCKS;
        bool backed = at_peek(cv_extent_word(a, e)) >> (e % 64) & 1;
        row = backed && a->block[b].kind == CV_BLOCK_FREE ? row + 1 : 0;
        if (row == n) return b + 1 - n;
    }
    return 0;
}

/* `n` free blocks in a row, backed by memory; where the kernel refuses more, what it has given must do. 0 = none now. */
static inline uint32_t cv_get_blocks(cv_arena *a, uint32_t n) {
    a->last_errno = 0;
    uint32_t b = cv_find_blocks(a, n);
    if (!b) {
        cv_arena_sweep(a);
        if (!(b = cv_find_blocks(a, n))) return 0;
    }
    if (cv_back(a, b, n)) return b;
    if ((b = cv_find_backed(a, n))) return b;
    cv_arena_sweep(a);
    return cv_find_backed(a, n);
}

static inline bool cv_refill(cv_arena *a, unsigned c) {
    uint32_t b = cv_get_blocks(a, 1);
    if (!b) return false;
    uint32_t size = CV_CLASS[c], count = CV_BLOCK_GRANULES / size;
    a->block[b] = (cv_block){.kind = CV_BLOCK_SMALL, .size_class = (uint8_t)c};
    for (uint32_t i = count; i-- > 0;)
        if (!cv_push(&a->free[c], b * CV_BLOCK_GRANULES + i * size)) return i + 1 < count;
    return true;
}

/* `bytes` of room up to `limit` used in all. 0 = none now (a->last_errno tells whether the kernel refused). */
static inline uint64_t cv_alloc(cv_arena *a, uint64_t bytes, uint64_t limit) {
    uint64_t granules = (bytes + CV_GRANULE - 1) / CV_GRANULE, take = cv_class_bytes(a, granules);
    if (a->used + take > limit) {
        a->last_errno = 0;
        return 0;
    }
    if (granules <= CV_CLASS_MAX) {
        unsigned c = a->class_of[granules];
        if (!a->free[c].n && !cv_refill(a, c)) return 0;
        uint32_t granule = a->free[c].at[--a->free[c].n];
        a->block[granule / CV_BLOCK_GRANULES].live++;
        a->used += take;
        return cv_ref(a->run->me, granule);
    }
    uint32_t n = (uint32_t)(take / CV_BLOCK), b = cv_get_blocks(a, n);
    if (!b) return 0;
    for (uint32_t i = 0; i < n; i++) a->block[b + i] = (cv_block){.kind = i ? CV_BLOCK_REST : CV_BLOCK_RUN, .run = n};
    a->used += take;
    return cv_ref(a->run->me, (uint64_t)b * CV_BLOCK_GRANULES);
}

static inline void cv_free(cv_arena *a, uint64_t ref) {
    uint64_t granule = cv_ref_granule(ref);
    uint32_t b = (uint32_t)(granule / CV_BLOCK_GRANULES);
    cv_block *block = &a->block[b];
    if (block->kind == CV_BLOCK_RUN) {
        uint32_t n = block->run;
        for (uint32_t i = 0; i < n; i++) a->block[b + i].kind = CV_BLOCK_FREE;
        a->used -= (uint64_t)n * CV_BLOCK;
        if (b < a->hint) a->hint = b;
    } else if (block->kind == CV_BLOCK_SMALL && block->live) {
        block->live--;
        a->used -= (uint64_t)CV_CLASS[block->size_class] * CV_GRANULE;
        cv_push(&a->free[block->size_class], (uint32_t)granule); /* out of memory: this chunk is lost, no more */
    }
}

/* Bytes that `ref` takes, as this allocator knows it. */
static inline uint64_t cv_chunk_bytes(const cv_arena *a, uint64_t ref) {
    const cv_block *block = &a->block[cv_ref_granule(ref) / CV_BLOCK_GRANULES];
    return block->kind == CV_BLOCK_RUN ? (uint64_t)block->run * CV_BLOCK
                                       : (uint64_t)CV_CLASS[block->size_class] * CV_GRANULE;
}

/* Give extents without a chunk back to the kernel, but for `keep` bytes. Returns the bytes given back. */
static inline uint64_t cv_arena_trim(cv_arena *a, uint64_t keep) {
    uint64_t given = 0, size = a->run->arena_size[a->run->me];
    cv_arena_sweep(a);
    for (uint64_t e = size / CV_EXTENT; e-- > 1 && a->backed > keep;) { /* extent 0 has the header */
        at_u64 *word = cv_extent_word(a, e);
        if (!(at_peek(word) >> (e % 64) & 1)) continue;
        bool empty = true;
        for (uint32_t b = 0; b < CV_EXTENT_BLOCKS && empty; b++)
            empty = a->block[e * CV_EXTENT_BLOCKS + b].kind == CV_BLOCK_FREE;
        if (!empty) continue;
        at_store(word, at_peek(word) & ~(1ull << (e % 64)));
        if (fallocate(a->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(e * CV_EXTENT), CV_EXTENT) == 0) {
            a->backed -= CV_EXTENT;
            given += CV_EXTENT;
        } else {
            at_store(word, at_peek(word) | 1ull << (e % 64));
        }
    }
    return given;
}

/* A successor found `ref` in a mailbox, a chunk of `granules` that checks out there: it is in use. False: it does not
 * fit what was found before, so one of the two is damaged; the block is left alone for the life of this process. */
static inline bool cv_arena_adopt(cv_arena *a, uint64_t ref, uint64_t granules) {
    uint64_t granule = cv_ref_granule(ref);
    uint64_t b = granule / CV_BLOCK_GRANULES;
    if (b == 0 || b >= a->blocks) return false;
    cv_block *block = &a->block[b];
    if (granules > CV_CLASS_MAX) {
        uint64_t n = cv_align(granules * CV_GRANULE, CV_BLOCK) / CV_BLOCK;
        if (granule % CV_BLOCK_GRANULES || b + n > a->blocks) goto lost;
        for (uint64_t i = 0; i < n; i++)
            if (a->block[b + i].kind != CV_BLOCK_FREE) goto lost;
        for (uint64_t i = 0; i < n; i++)
            a->block[b + i] = (cv_block){.kind = i ? CV_BLOCK_REST : CV_BLOCK_RUN, .run = (uint32_t)n};
        a->used += n * CV_BLOCK;
        return true;
    }
    if (granules < 2 || (block->kind != CV_BLOCK_FREE && block->kind != CV_BLOCK_SMALL)) goto lost;
    unsigned c = a->class_of[granules];
    if (block->kind == CV_BLOCK_SMALL && block->size_class != c) goto lost;
    if (granule % CV_BLOCK_GRANULES % CV_CLASS[c]) goto lost;
    block->kind = CV_BLOCK_SMALL;
    block->size_class = (uint8_t)c;
    block->live++;
    a->used += (uint64_t)CV_CLASS[c] * CV_GRANULE;
    return true;
lost:
    block->kind = CV_BLOCK_LOST;
    return false;
}

/* After all cv_arena_adopt: put the rest of the small blocks on the stacks. `adopted` has a bit for each granule. */
static inline void cv_arena_settle(cv_arena *a, const uint64_t *adopted) {
    for (uint32_t b = 1; b < a->blocks; b++) {
        if (a->block[b].kind != CV_BLOCK_SMALL) continue;
        uint32_t size = CV_CLASS[a->block[b].size_class];
        for (uint32_t i = 0; i < CV_BLOCK_GRANULES / size; i++) {
            uint64_t granule = (uint64_t)b * CV_BLOCK_GRANULES + i * size;
            if (!(adopted[granule / 64] >> (granule % 64) & 1))
                cv_push(&a->free[a->block[b].size_class], (uint32_t)granule);
        }
    }
    uint64_t extents = a->run->arena_size[a->run->me] / CV_EXTENT;
    for (uint64_t e = 0; e < extents; e++)
        if (at_peek(cv_extent_word(a, e)) >> (e % 64) & 1) a->backed += CV_EXTENT;
}

#endif
