/* The floor: what two processes on two cores can do at all with 64 bytes in shared memory, with nothing around it.
 *
 *   floor CPU_A CPU_B round_trip N    a word on a cache line says "yours"; both sides spin; copy in, copy out
 *   floor CPU_A CPU_B one_way    N    a single-producer ring of 1024 places; copy in, copy out; ends when all were read
 *
 * Prints JSON: the median and the tail in nanoseconds, and messages per second. Linux, C11. Times include one reading
 * of the clock per round trip (some 25 ns).
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAYLOAD_BYTES = 64, RING_PLACES = 1024 };

struct lane {
    alignas(64) _Atomic uint64_t turn; /* written by the sender: how many messages it has published */
    alignas(64) unsigned char data[PAYLOAD_BYTES];
};

struct shared {
    struct lane there, back;
    alignas(64) _Atomic uint64_t head; /* written by the reader of the ring */
    alignas(64) _Atomic uint64_t tail; /* written by its writer */
    alignas(64) unsigned char ring[RING_PLACES][PAYLOAD_BYTES];
};

static void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) {
        perror("sched_setaffinity");
        exit(1);
    }
}

static void put(struct lane *lane, uint64_t turn, const unsigned char *data) {
    memcpy(lane->data, data, PAYLOAD_BYTES);
    atomic_store_explicit(&lane->turn, turn, memory_order_release);
}

static void get(struct lane *lane, uint64_t turn, unsigned char *data) {
    while (atomic_load_explicit(&lane->turn, memory_order_acquire) != turn) pause_cpu();
    memcpy(data, lane->data, PAYLOAD_BYTES);
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void round_trip_peer(struct shared *s, uint64_t n) {
    unsigned char data[PAYLOAD_BYTES];
    for (uint64_t i = 1; i <= n; i++) {
        get(&s->there, i, data);
        put(&s->back, i, data);
    }
}

static void round_trip(struct shared *s, uint64_t n) {
    unsigned char data[PAYLOAD_BYTES] = {0};
    uint32_t *ns = malloc(n * sizeof *ns);
    if (ns == NULL) exit(1);
    uint64_t start = now_ns(), before = start;
    for (uint64_t i = 1; i <= n; i++) {
        data[0] = (unsigned char)i;
        put(&s->there, i, data);
        get(&s->back, i, data);
        uint64_t after = now_ns();
        ns[i - 1] = (uint32_t)(after - before);
        before = after;
    }
    double seconds = (double)(before - start) / 1e9;
    qsort(ns, n, sizeof *ns, by_size);
    printf("{\"n\": %llu, \"p50_us\": %.4f, \"p99_us\": %.4f, \"p999_us\": %.4f, \"per_s\": %.1f}\n",
           (unsigned long long)n, ns[n / 2] / 1e3, ns[n * 99 / 100] / 1e3, ns[n * 999 / 1000] / 1e3, (double)n / seconds);
    free(ns);
}

static void one_way_peer(struct shared *s, uint64_t n) {
    unsigned char data[PAYLOAD_BYTES];
    volatile unsigned char seen = 0;
    for (uint64_t i = 0; i < n; i++) {
        while (atomic_load_explicit(&s->tail, memory_order_acquire) <= i) pause_cpu();
        memcpy(data, s->ring[i % RING_PLACES], PAYLOAD_BYTES);
        seen = data[0];
        atomic_store_explicit(&s->head, i + 1, memory_order_release);
    }
    (void)seen;
}

static void one_way(struct shared *s, uint64_t n) {
    unsigned char data[PAYLOAD_BYTES] = {0};
    uint64_t start = now_ns(), head = 0;
    for (uint64_t i = 0; i < n; i++) {
        while (i - head >= RING_PLACES) {
            head = atomic_load_explicit(&s->head, memory_order_acquire);
            if (i - head >= RING_PLACES) pause_cpu();
        }
        data[0] = (unsigned char)i;
        memcpy(s->ring[i % RING_PLACES], data, PAYLOAD_BYTES);
        atomic_store_explicit(&s->tail, i + 1, memory_order_release);
    }
    while (atomic_load_explicit(&s->head, memory_order_acquire) != n) pause_cpu();
    double seconds = (double)(now_ns() - start) / 1e9;
    printf("{\"n\": %llu, \"per_s\": %.1f}\n", (unsigned long long)n, (double)n / seconds);
}

int main(int argc, char **argv) {
    long long n = argc == 5 ? atoll(argv[4]) : 0;
    int both_ways = argc == 5 && strcmp(argv[3], "round_trip") == 0;
    if (n < 1 || (!both_ways && strcmp(argv[3], "one_way") != 0)) {
        fprintf(stderr, "usage: floor CPU_A CPU_B round_trip|one_way N\n");
        return 2;
    }
    struct shared *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (s == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    pid_t child = fork();
    if (child < 0) {
        perror("fork");
        return 1;
    }
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a spinning orphan would hold a core for ever */
        pin(atoi(argv[2]));
        if (both_ways) round_trip_peer(s, (uint64_t)n);
        else one_way_peer(s, (uint64_t)n);
        return 0;
    }
    pin(atoi(argv[1]));
    if (both_ways) round_trip(s, (uint64_t)n);
    else one_way(s, (uint64_t)n);
    return waitpid(child, NULL, 0) == child ? 0 : 1;
}
