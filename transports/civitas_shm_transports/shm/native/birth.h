/* A fork whose child belongs to the caller's parent, at the price of one copy of the page tables.
 *
 * A process that is to outlive who forked it needs somebody in between, who forks it and ends: so it becomes a child of
 * the next subreaper above. With two forks in a row the page tables are copied twice, and both copies pay a fault for
 * each page that is touched then. Here the one in between is a vfork: it runs on the caller's own memory, while the caller
 * waits, and does nothing but fork and end.
 *
 * Guarantees: on return in the caller the one in between runs nothing any more and is about to be gone (who ignores
 * SIGCHLD has nothing to reap); signals wait until both are back in their own memory. Nothing is left of a fork that failed.
 */
#ifndef CV_BIRTH_H
#define CV_BIRTH_H

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/types.h>
#include <unistd.h>

typedef struct {
    bool is_new;   /* this is the new process */
    pid_t between; /* pid of the one that forked it: until that is gone, the parent of the new process */
    int error;     /* errno; 0: it was born */
} cv_birth;

static inline cv_birth cv_fork_away(void) {
    volatile cv_birth birth = {false, 0, 0}; /* written by the one in between: its memory is ours */
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    pid_t between = vfork();
    if (between == 0) {
        birth.between = getpid();
        pid_t born = fork();
        if (born != 0) {
            if (born < 0) birth.error = errno;
            _exit(0);
        }
        birth.is_new = true; /* and this is a copy */
    } else if (between < 0) {
        birth.error = errno;
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    return birth;
}
#endif
