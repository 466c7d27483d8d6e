/* Loaded before everything else (LD_PRELOAD): all reads of the wall clock in this process see CLOCK_STEP_FILE's first
 * word, a step in seconds, added. The monotonic clocks are left alone. The second word counts reads that saw a step. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static struct { _Atomic int64_t step_s; _Atomic uint64_t reads; } *shared;

__attribute__((constructor)) static void attach(void) {
    const char *path = getenv("CLOCK_STEP_FILE");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) abort(); /* a test that believes that it steps a clock must not go on without */
    void *at = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) abort();
    close(fd);
    shared = at;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int rc = (int)syscall(SYS_clock_gettime, clock, at);
    if (rc == 0 && shared && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE || clock == CLOCK_TAI)) {
        int64_t step_s = atomic_load(&shared->step_s);
        at->tv_sec += step_s;
        if (step_s) atomic_fetch_add(&shared->reads, 1);
    }
    return rc;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    (void)zone;
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
