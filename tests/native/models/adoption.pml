/*
 * Who has a run, and what is left of one: made, adopted, swept and removed by hosts that may be killed before every step.
 *
 * Protocol (segments.py, memory.py `create`, DESIGN.md 2.1)
 *   Take      open the run's `lock`, making it; lock it; then the name must still lead to the inode that was locked.
 *   Look      at run.json. None: make a run. One: wait until no process of an earlier host has its slot's lock, by taking all
 *             of these, and keep them until the slots are marked as nobody's. Then the segments: not all there and no sign
 *             that it was ever complete: sweep it and make another. All there: --resume adopts; without it a run that has
 *             messages is refused, and one without is swept.
 *   Make      run.json, with the names -> segments -> the first mailboxes -> the mark `made`. Who adopts marks too.
 *   Remove    the mark -> segments -> run.json -> `lock` -> let go of it.
 *   Worker    is given a slot by its host, which notes that before it spawns -> takes the slot's lock -> looks whether the
 *             slot is still its own -> maps, works. Killed by the kernel a while after its host.
 *
 * Bounds     Two people who start and resume runs of one name for as long as they are killed (-DKILLS) or refused, one worker
 *            each, two segments, one message. -DUPGRADE: person 1 has a version that cannot read run.json. -DFILES: the
 *            segments lie in the run directory, so without run.json and mark nothing tells of them.
 *
 * Checked    Never two hosts live. No worker works in a run that another host has. No message goes with a sweep. A run that
 *            can be read is refused only for messages. At the end (timeout) whatever is left of runs is spoken of by
 *            run.json.
 * Not        What is repaired in memory (recovery.pml, burial.pml, change.pml). `gc`, which does what `create` does before it
 *            sweeps. The directory itself: it is made again when somebody has removed it in between. Damage from outside,
 *            reboots, --fresh. The order of files in a directory that is removed, with -DFILES: whatever is left there
 *            goes with the next removal.
 */

#ifndef KILLS
#define KILLS 1
#endif
#define PEOPLE 2
#define INODES 8
#define RUNS 5
#define SEGMENTS 2

/* ---- files and locks ---- */
byte lock_name;                       /* inode that the name leads to, 0: none */
byte inodes;
byte holder[INODES + 1];              /* of the lock of an inode: 1 + person */
byte json;                            /* run that run.json speaks of, 0: none */
bit made;
byte segments[RUNS + 1];              /* of a run, how many are there */
byte run_ids;
bit slot_lock;
byte slot_of;                         /* in the run's memory: 1 + person whose worker the slot is, 0: nobody's */

/* ---- what an outside observer knows ---- */
bit message[RUNS + 1];                /* committed, and not handled */
bit was_sent;
bit live[PEOPLE];
byte run_of[PEOPLE];                  /* of the live one, and of the worker */
mtype = { NONE, SPAWNED, LOCKED, WORKS };
mtype worker[PEOPLE] = NONE;
byte kills = KILLS;

/* ---- workers ---- */
#define KILLED_BY_THE_KERNEL :: d_step { !live[me] -> worker[me] = NONE; if :: mine -> slot_lock = 0 :: else fi; mine = 0 } goto idle
#define W(step) if :: d_step { step } KILLED_BY_THE_KERNEL fi
#define NOBODY_ELSE_HAS_IT assert(!(live[1 - me] && run_of[1 - me] == run_of[me]))

proctype work(byte me) {
    bit mine;
idle:
    worker[me] == SPAWNED;
    if
    :: d_step { !slot_lock -> slot_lock = 1; mine = 1; worker[me] = LOCKED }
    :: d_step { slot_lock -> worker[me] = NONE } goto idle
    KILLED_BY_THE_KERNEL
    fi;
#ifndef MUTANT_SLOT_NOT_LOOKED_AT
    if
    :: d_step { slot_of == 1 + me -> skip }
    :: d_step { slot_of != 1 + me -> slot_lock = 0; mine = 0; worker[me] = NONE } goto idle
    KILLED_BY_THE_KERNEL
    fi;
#endif
    W(NOBODY_ELSE_HAS_IT; worker[me] = WORKS);
    do
    :: d_step { !was_sent -> NOBODY_ELSE_HAS_IT; was_sent = 1; message[run_of[me]] = 1 }
    :: d_step { message[run_of[me]] -> NOBODY_ELSE_HAS_IT; message[run_of[me]] = 0 }
    KILLED_BY_THE_KERNEL
    od
}

/* ---- people ---- */
#define DIES \
    :: d_step { kills > 0 -> kills--; if :: holder[fd] == 1 + me -> holder[fd] = 0 :: else fi; \
                if :: locks -> slot_lock = 0 :: else fi; live[me] = 0; fd = 0; locks = 0; r = 0; sweeps = 0 } goto start
#define P(step) if :: d_step { step } DIES fi
#define LET_GO holder[fd] = 0; fd = 0; r = 0; if :: locks -> slot_lock = 0 :: else fi; locks = 0
#ifdef FILES
#define NAMES_TELL(r) false
#else
#define NAMES_TELL(r) (segments[r] > 0)
#endif
#ifdef UPGRADE
#define CANNOT_READ (me == 1)
#else
#define CANNOT_READ false
#endif

proctype person(byte me) {
    byte fd, r;
    bit locks, sweeps, resume;

start:
    if                                                  /* not while somebody visibly has it: he is told so, and waits */
    :: d_step { worker[me] == NONE && (lock_name == 0 || holder[lock_name] == 0) ->
                if :: lock_name == 0 -> inodes++; assert(inodes <= INODES); lock_name = inodes :: else fi; fd = lock_name }
    fi;
    if
    :: d_step { holder[fd] == 0 -> holder[fd] = 1 + me }
    :: d_step { holder[fd] != 0 -> fd = 0 } goto start
    DIES
    fi;
#ifndef MUTANT_INODE_NOT_COMPARED
    if
    :: d_step { lock_name == fd -> skip }
    :: d_step { lock_name != fd -> LET_GO } goto start
    DIES
    fi;
#endif
    if
    :: d_step { json == 0 -> assert(!made) } goto make
    :: d_step { json != 0 -> r = json }
    DIES
    fi;
#ifndef MUTANT_SLOTS_NOT_WAITED_FOR
    P(!slot_lock -> slot_lock = 1; locks = 1);
#endif
#ifdef MUTANT_SLOTS_LET_GO_AT_ONCE
    P(slot_lock = 0; locks = 0);
#endif
    if
    :: d_step { CANNOT_READ && (made || NAMES_TELL(r)) -> LET_GO } goto out      /* refused: messages may wait */
    :: d_step { CANNOT_READ && !(made || NAMES_TELL(r)) -> skip } goto remove
    :: d_step { !CANNOT_READ && segments[r] < SEGMENTS -> assert(!made) } goto remove
    :: d_step { !CANNOT_READ && segments[r] == SEGMENTS -> skip }
    DIES
    fi;
    P(slot_of = 0);                                     /* and all the other repairs */
    P(if :: locks -> slot_lock = 0 :: else fi; locks = 0);
    if
    :: d_step { resume = 1 }
    :: d_step { resume = 0 }
    fi;
    if
    :: d_step { resume -> resume = 0 }
    :: d_step { !resume && message[r] -> LET_GO } goto out
    :: d_step { !resume && !message[r] -> skip } goto remove
    DIES
    fi;
#ifndef MUTANT_WHO_ADOPTS_LEAVES_NO_MARK
    P(made = 1);
#endif
    goto alive;

make:
#ifdef MUTANT_MARKED_FIRST
    P(made = 1);
#endif
#ifdef MUTANT_SEGMENTS_BEFORE_THEIR_NAMES_ARE_NOTED
    P(run_ids++; assert(run_ids <= RUNS); r = run_ids; segments[r]++);
    P(segments[r]++);
    P(json = r);
#else
    P(run_ids++; assert(run_ids <= RUNS); r = run_ids; json = r);
    P(segments[r]++);
    P(segments[r]++);
#endif
    P(slot_of = 0; made = 1);

alive:
    P(assert(!live[1 - me]); live[me] = 1; run_of[me] = r);
    P(slot_of = 1 + me; worker[me] = SPAWNED);          /* the slot is noted before the spawn */
    if                                                  /* it ends in order: its worker first */
    :: d_step { live[me] = 0; assert(json == r) }
    DIES
    fi;
    if
    :: d_step { worker[me] == NONE -> skip }
    DIES
    fi;
    if
    :: d_step { message[r] -> LET_GO } goto out         /* it is kept, with its messages */
    :: d_step { !message[r] -> skip }
    DIES
    fi;
    P(sweeps = 1);

remove:
#ifdef MUTANT_LOCK_REMOVED_FIRST
    P(lock_name = 0);
#endif
#ifdef MUTANT_NAMES_REMOVED_FIRST
    P(json = 0);
#endif
#ifndef MUTANT_MARK_REMOVED_LAST
    P(made = 0);
#endif
    do
    :: d_step { segments[r] > 0 -> assert(!message[r]); segments[r]-- }
    :: d_step { segments[r] == 0 -> skip } break
    DIES
    od;
#ifndef MUTANT_NAMES_REMOVED_FIRST
    P(json = 0);
#endif
#ifdef MUTANT_MARK_REMOVED_LAST
    P(made = 0);
#endif
#ifndef MUTANT_LOCK_REMOVED_FIRST
    P(lock_name = 0);
#endif
    if
    :: d_step { sweeps -> LET_GO; sweeps = 0 } goto out
    :: d_step { !sweeps -> LET_GO } goto start          /* the run that it came to begin */
    DIES
    fi;
out:
    skip
}

/* ---- nothing can move any more: is it right that nothing moves? ---- */
#define SPOKEN_OF(r) assert(segments[r] == 0 || json == (r)); assert(!message[r] || (segments[r] == SEGMENTS && made))

proctype auditor() {
    timeout;
    d_step {
        assert(!live[0] && !live[1] && !slot_lock);
        SPOKEN_OF(1); SPOKEN_OF(2); SPOKEN_OF(3); SPOKEN_OF(4); SPOKEN_OF(5)
    }
}

init { atomic { run person(0); run person(1); run work(0); run work(1); run auditor() } }
