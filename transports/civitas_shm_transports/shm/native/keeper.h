/* A keeper: what lets a process be dead at once, however much memory it has.
 *
 * The end of a process is seen (pidfd, its sockets) when the kernel has unmapped its memory: 2 ms for an interpreter with
 * our modules, 100 ms and more for a gigabyte, and all that time nobody may take its place. A keeper is a second task on
 * the same memory that sleeps; so the memory is not the process's to unmap any more. Its keeper does it, a moment after
 * the death (CV_KEEPER_LINGER_NS), when the successor is at work: at once it would take the core that the successor needs.
 *
 * Guarantees:
 * - a keeper runs no code but what stands here: it shares the memory and nothing else, has no descriptors (so it keeps
 *   no socket, lock or doorbell of the dead) and takes no signal but SIGKILL and SIGSTOP;
 * - it ends that moment after the main thread of its process, whatever that dies of. One that somebody has stopped is
 *   killed by the host, and after the host's death found by its marks like all that a process leaves;
 * - where none can be had (a limit on processes, a sandbox, another processor) a death takes what it takes without one.
 * Whoever exec's keeps the old memory until it ends; nobody here does.
 *
 * In the keeper nothing of the C library is called: its thread-local words (errno) are those of the main thread, which
 * runs on meanwhile.
 */
#ifndef CV_KEEPER_H
#define CV_KEEPER_H

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define CV_KEEPER_STACK 16384u
#define CV_KEEPER_LINGER_NS 20000000
#define CV_KEEPER_SIGNAL SIGUSR1 /* of its parent's death; blocked, and waited for */

#if defined(__x86_64__) || defined(__aarch64__)
static inline long cv_raw_call(long number, long a, long b, long c, long d) {
#ifdef __x86_64__
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
#else
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
#endif
}

typedef struct { pid_t process, parent; } cv_kept; /* whose memory it keeps, and who has to replace it */

/* Its whole life. */
__attribute__((no_sanitize("address", "thread", "undefined"))) static int cv_keeper_life(void *argument) {
    const cv_kept kept = *(const cv_kept *)argument;
    const struct { int32_t priority; } none = {0};
    const struct { int64_t s, ns; } linger = {0, CV_KEEPER_LINGER_NS};
    const uint64_t awaited = 1ull << (CV_KEEPER_SIGNAL - 1);
    cv_raw_call(SYS_prctl, PR_SET_PDEATHSIG, CV_KEEPER_SIGNAL, 0, 0);
    cv_raw_call(SYS_prctl, PR_SET_NAME, (long)"civ-keeper", 0, 0);
    cv_raw_call(SYS_close_range, 0, (long)~0u, 0, 0);
    /* Looked at after the signal was asked for: a death before that is not told. The signal may also be somebody's. */
    while (cv_raw_call(SYS_getppid, 0, 0, 0, 0) == kept.process)
        cv_raw_call(SYS_rt_sigtimedwait, (long)&awaited, 0, 0, sizeof awaited);
    if (cv_raw_call(SYS_getppid, 0, 0, 0, 0) == kept.parent) {
        cv_raw_call(SYS_sched_setscheduler, 0, SCHED_IDLE, (long)&none, 0); /* unmapping gives way to everything */
        cv_raw_call(SYS_nanosleep, (long)&linger, 0, 0, 0);
    } /* else that is gone too: nobody takes this place, and whoever adopts the run wants all of them gone. Not as idle
       * either, and not from the beginning: who has become that may never be anything else again. */
    cv_raw_call(SYS_exit_group, 0, 0, 0, 0);
    return 0;
}

/* Called by the main thread of a process, once. Pid of its keeper, -1 with errno where none can be had. */
static inline pid_t cv_keep_memory(void) {
    sigset_t all, before;
    cv_kept *kept;
    uint8_t *stack = mmap(NULL, CV_KEEPER_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED) return -1;
    kept = (cv_kept *)stack; /* at the far end of it */
    kept->process = getpid();
    kept->parent = getppid();
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before); /* which the keeper keeps */
    int why = 0;
    pid_t keeper = clone(cv_keeper_life, stack + CV_KEEPER_STACK, CLONE_VM, kept);
    if (keeper < 0) why = errno;
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (keeper < 0) {
        munmap(stack, CV_KEEPER_STACK);
        errno = why;
    }
    return keeper;
}
#else
static inline pid_t cv_keep_memory(void) {
    errno = ENOSYS;
    return -1;
}
#endif
#endif
