/*
 * An agent ends for good in a process that lives on, with a message in hand: its handler was cut off, or heeds no
 * cancellation and goes on behind its agent's back.
 *
 * Protocol (LAYOUT.md, "In hand")
 *   Agent     ends -> its `listening` bit is taken away -> the host is told.
 *   Handler   ends whenever it likes, or never: entry read -> released, by CAS, if it still is its process's.
 *   Host      told, or the process is dead and that proved: lanes closed -> each entry whose reader does not listen any
 *             more becomes its own, by CAS -> letter (or answer) -> released. A host that is killed takes its
 *             processes with it; the next one finds the entry and does the same.
 *   Owner     of the chunk: frees it when no entry names it.
 *
 * Bounds     One message, one entry; KILLS of the process, HOST_KILLS.
 *
 * Checked    At the end the entry is free, so the mailbox can go to another agent, and the message was handled or has a
 *            letter: one of the two. No chunk is read after it was freed, and nothing is taken from an agent that has not
 *            ended. No endless cycle (-DNP).
 * Not        The lanes (lanes.pml), what the letter needs (burial.pml), replicas that go on (recovery.pml, the heir).
 */

#ifndef KILLS
#define KILLS 0
#endif
#ifndef HOST_KILLS
#define HOST_KILLS 0
#endif

#define FREE 0
#define THEIRS 1
#define HOSTS 2

/* ---- shared memory ---- */
byte entry = THEIRS;
bit listening = 1, freed, letter;

/* ---- what an outside observer knows ---- */
bit told, ended, dead, handled, done;
byte kills = KILLS, host_kills = HOST_KILLS;

#define DIES :: d_step { kills > 0 && !dead -> kills--; dead = 1 }
#define GONE :: dead -> goto gone

proctype agent() {
#ifdef MUTANT_TOLD_BEFORE_IT_LEFT
    if :: d_step { !dead -> ended = 1; told = 1 } GONE fi;
    if :: d_step { !dead -> listening = 0 } GONE fi;
#else
    if :: d_step { !dead -> ended = 1; listening = 0 } DIES GONE fi;
    if :: d_step { !dead -> told = 1 } DIES GONE fi;
#endif
gone:
    skip
}

proctype handler() {
    byte seen;

    if :: d_step { !dead -> seen = entry } :: skip -> goto gone /* it never ends */ DIES goto gone GONE fi;
    if
    :: seen != THEIRS -> goto gone
    :: seen == THEIRS -> seen = 0
    fi;
#ifdef MUTANT_RELEASED_BY_STORE
    if :: d_step { !dead -> entry = FREE; handled = 1 } GONE fi;
#else
    if
    :: d_step { !dead && entry == THEIRS -> entry = FREE; handled = 1 }
    :: d_step { !dead && entry != THEIRS -> skip }
    GONE
    fi;
#endif
gone:
    skip
}

#define HOST_DIES :: d_step { host_kills > 0 -> host_kills--; dead = 1 } goto again
#define H(step) if :: d_step { step } HOST_DIES fi

proctype host() {
again:
#ifdef MUTANT_NOT_WAITED_FOR
    H(skip);
#else
    if :: (told || dead) -> skip HOST_DIES fi;
#endif
#ifdef MUTANT_LEFT_IN_HAND
    if
    :: d_step { entry == THEIRS && dead -> entry = HOSTS }
    :: d_step { entry != THEIRS || !dead -> skip }
    HOST_DIES
    fi;
#elif defined(MUTANT_NOT_WAITED_FOR)
    if
    :: d_step { entry == THEIRS -> assert(ended || dead); entry = HOSTS }
    :: d_step { entry != THEIRS -> skip }
    HOST_DIES
    fi;
#else
    if
    :: d_step { entry == THEIRS && (dead || !listening) -> assert(ended || dead); entry = HOSTS }
    :: d_step { entry != THEIRS || !(dead || !listening) -> skip }
    HOST_DIES
    fi;
#endif
    if
    :: entry == HOSTS -> skip
    :: entry != HOSTS -> goto out
    fi;
    H(assert(!freed); letter = 1);
    H(entry = FREE);
out:
    done = 1
}

proctype owner() {
    entry == FREE;
    freed = 1
}

/* ---- nothing can move any more: is it right that nothing moves? ---- */
proctype auditor() {
    timeout;
    assert(done && entry == FREE);
    assert(letter + handled == 1)
}

init {
    atomic { run agent(); run handler(); run host(); run owner(); run auditor() }
}
