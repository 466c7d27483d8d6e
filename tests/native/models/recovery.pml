/*
 * After a death: what is repaired, what is judged, who inherits; the host dies over it and the next one does it again.
 *
 * Protocol (DESIGN.md 2.3, 3; LAYOUT.md "Dying in between")
 *   Reader    woken by its ready bit or its alarm. With the alarm it notes what it has in hand and has not taken itself:
 *             a dead reader's. That is handed over first (one store: counted, no longer waiting), then what is FULL:
 *             TAKEN(me) -> an entry claimed -> RUNNING -> slot EMPTY -> whoever waits for room told -> handler -> FREE.
 *             A handler waits too, and the process polls meanwhile.
 *   Host      after proof of death, for one process after the other: slots (TAKEN of the dead is EMPTY where its entry is
 *             in hand, else FULL again), entries (CLAIMED is FREE again), its announcements for room are taken back, all
 *             are alarmed; then its entries are judged, one store each (whatever the verdict, it waits now). Last either a
 *             successor of the same slot is started, or the entries are moved to another reader (replicas), one CAS each,
 *             the readers word is stored, and all are alarmed again.
 *   Next host after the death of the host, which ends all: waits for all of them, then the same for every process, with a
 *             verdict that counts nothing; then everybody is started anew.
 *   Waiter    a sender that found no room: its two bits, another look, asleep until its alarm.
 *
 * Bounds     Two messages, two readers, two entries. Both messages are there at the start; -DWAITER: the ring has one place,
 *            and the second is sent when it is free. Kills of readers, of the waiter and of the host by -D.
 *
 * Checked    Nobody handles what another handles; a message runs again only for a death of its handler's process, and has
 *            had its delivery counted; never more strikes than deaths in which it ran, and as many when no host died. At
 *            the end (timeout) every committed message was released once, nothing is in hand, the waiter has had its room
 *            or is dead, and a poll for the untold finds nobody.
 * Not        Laps, hints, the order of one sender and the owner's reclaim (mailbox.pml); the gap between the last look and
 *            sleep (wake.pml) and between the two bits of a waiter (room.pml): here looking and falling asleep is one step.
 *            What becomes of a convicted message (burial.pml); how the next host knows that all are dead (adoption.pml).
 *            Several handlers at once in one process: who waits and who runs is per entry here too, but at most one runs.
 */

#ifndef READER_KILLS
#define READER_KILLS 0
#endif
#ifndef WAITER_KILLS
#define WAITER_KILLS 0
#endif
#ifndef HOST_KILLS
#define HOST_KILLS 0
#endif
#define MESSAGES 2
#ifdef WAITER
#define PLACES 1                      /* one message is there; the other is sent when its place is free */
#define PROCESSES 3                   /* two readers and the one that waits for room */
#else
#define PLACES 2
#define PROCESSES 2
#endif
#define SENDER 2

/* ---- shared memory and doorbells ---- */
mtype = { EMPTY, FULL, TAKEN, FREE, CLAIMED, RUNNING };
mtype slot[PLACES] = FULL;
byte slot_reader[PLACES], slot_msg[PLACES];
mtype hand[MESSAGES] = FREE;
byte hand_reader[MESSAGES], hand_msg[MESSAGES], hand_deliveries[MESSAGES], hand_strikes[MESSAGES];
bit hand_waits[MESSAGES];
byte readers = 3;                     /* of the mailbox: a bit each */
bit ready[2], alarm[PROCESSES];
bit waiters, wanting;                 /* of process 2 */

/* ---- the host's own ---- */
#define STARTING 0                    /* nobody has that slot: an order for a process is about to be carried out */
#define LIVE     1
#define DIED     2                    /* the kernel knows */
#define DEAD     3                    /* the host has repaired what it left */
byte life[PROCESSES] = LIVE;

/* ---- what an outside observer knows ---- */
bit host_died;                        /* its processes follow it */
bit running[MESSAGES];
byte runs[MESSAGES], released[MESSAGES];
byte owed[MESSAGES];                  /* deaths inside its handler */
byte guilty[MESSAGES];                /* deaths, but for the host's, in which it was in hand and did not wait */
byte committed = PLACES;
byte reader_kills = READER_KILLS, waiter_kills = WAITER_KILLS, host_kills = HOST_KILLS;

#define MINE(e, r) (hand[e] == RUNNING && hand_reader[e] == (r))
#define ALL(what) what(0) what(1)      /* messages, entries */

/* ---- readers ---- */
#define BLAME(e) if :: MINE(e, me) && !hand_waits[e] -> guilty[hand_msg[e]]++ :: else fi;
#define STOPPED(k) if :: k == m && inside -> running[k] = 0; owed[k]++ :: else fi;
#define FORGET ALL(STOPPED) life[me] = DIED; mine = 0; m = 0; e = 0; at = 0; w = 0; inside = 0; told = 0
#define READER_DIES \
    :: d_step { host_died -> FORGET } goto gone \
    :: d_step { reader_kills > 0 && !host_died -> reader_kills--; ALL(BLAME) FORGET } goto gone
#define R(step) if :: d_step { step } READER_DIES fi

#define INHERITED(k) if :: MINE(k, me) && !(inside && k == e) -> mine = mine | (1 << k) :: else fi;
#define LOWEST(set) ((set) & 1 -> 0 : 1)
#define OLDEST_FULL (slot[0] == FULL -> 0 : PLACES - 1)
#define ANY_FULL (slot[0] == FULL || slot[PLACES - 1] == FULL)

proctype reader(byte me) {
    byte mine, m, e, at;
    bit w, inside, told;
    goto listen;

gone:
    if :: d_step { life[me] == STARTING -> life[me] = LIVE } fi;
listen:
    R(ALL(INHERITED));

look:
    if
    :: d_step { alarm[me] -> alarm[me] = 0; ALL(INHERITED) } goto look
    :: d_step { mine != 0 -> e = LOWEST(mine); mine = mine & ~(1 << e);
                if
                :: MINE(e, me) -> m = hand_msg[e]; hand_deliveries[e]++; hand_waits[e] = 0; told = 1;
                   assert(HOST_KILLS > 0 || hand_strikes[e] == guilty[m])       /* the court has sat */
                :: else -> e = 0
                fi }
    :: d_step { mine == 0 && ANY_FULL -> at = OLDEST_FULL; m = slot_msg[at]; slot[at] = TAKEN; slot_reader[at] = me }
       goto taken
    :: d_step { mine == 0 && !ANY_FULL -> ready[me] = 0 } goto asleep
    READER_DIES
    fi;
    if
    :: told -> told = 0; goto handler
    :: else -> goto look
    fi;

asleep:
    if
    :: d_step { alarm[me] -> alarm[me] = 0; ALL(INHERITED) } goto look
    :: d_step { ready[me] -> ready[me] = 0 } goto look
    READER_DIES
    fi;

taken:
    R(e = (hand[0] == FREE -> 0 : 1); assert(hand[e] == FREE); hand[e] = CLAIMED; hand_reader[e] = me);
    R(hand[e] = RUNNING; hand_msg[e] = m; hand_deliveries[e] = 1; hand_waits[e] = 0; hand_strikes[e] = 0);
    R(slot[at] = EMPTY; slot_msg[at] = 0; slot_reader[at] = 0; at = 0);
#ifdef WAITER
    R(w = waiters; waiters = 0);
    R(if :: w -> alarm[SENDER] = 1 :: else fi; w = 0);
#endif

handler:
    R(assert(!running[m]); running[m] = 1; inside = 1; runs[m]++;
      assert(runs[m] <= 1 + owed[m]); assert(hand_deliveries[e] >= runs[m]));
handling:
    if
    :: d_step { alarm[me] -> alarm[me] = 0; ALL(INHERITED) } goto handling
    :: d_step { assert(MINE(e, me) && hand_msg[e] == m && !hand_waits[e]);
                hand[e] = FREE; hand_msg[e] = 0; hand_deliveries[e] = 0; hand_strikes[e] = 0; hand_reader[e] = 0;
                running[m] = 0; released[m]++; assert(released[m] == 1); m = 0; e = 0; inside = 0 } goto look
    READER_DIES
    fi
}

/* ---- a sender with one message more than there is room for ---- */
#define WAITER_DIES \
    :: d_step { host_died || waiter_kills > 0 -> if :: host_died :: else -> waiter_kills-- fi; life[SENDER] = DIED } goto out
#define S(step) if :: d_step { step } WAITER_DIES fi
#define PUBLISHED :: d_step { slot[0] == EMPTY -> slot[0] = FULL; slot_msg[0] = 1; committed++ } goto sent
#define NO_ROOM (slot[0] != EMPTY)

proctype waiter() {
#ifdef WAITER
    byte to;
again:
    if
    PUBLISHED
    :: NO_ROOM -> skip
    WAITER_DIES
    fi;
    S(wanting = 1);
    S(waiters = 1);
    if                                                  /* look again */
    PUBLISHED
    :: NO_ROOM -> skip
    WAITER_DIES
    fi;
    if                                                  /* asleep */
    :: d_step { alarm[SENDER] -> alarm[SENDER] = 0; wanting = 0 } goto again
    WAITER_DIES
    fi;
sent:
    S(to = readers);
    S(if :: to & 1 -> ready[0] = 1 :: else fi; if :: to & 2 -> ready[1] = 1 :: else fi; to = 0);
    S(wanting = 0);
idle:
    if
    :: d_step { alarm[SENDER] -> alarm[SENDER] = 0 } goto idle
    WAITER_DIES
    fi;
out:
#endif
    skip
}

/* ---- host ---- */
#define ORDERS_DIE if :: life[0] == STARTING -> life[0] = DIED :: else fi; if :: life[1] == STARTING -> life[1] = DIED :: else fi;
#define HOST_DIES :: d_step { host_kills > 0 -> host_kills--; host_died = 1; ORDERS_DIE d = 0; i = 0; one = 0 } goto next_host
#define H(step) if :: d_step { step } HOST_DIES fi
#define RING(p) alarm[p] = 1;
#ifdef WAITER
#define NO_WAITER_LIVES (life[SENDER] != LIVE)
#else
#define NO_WAITER_LIVES true
#endif
#define IS_READER(p) (p < 2)

#define IN_HAND(k) (MINE(k, d) && hand_msg[k] == slot_msg[i])
#define SOMEWHERE_IN_HAND (IN_HAND(0) || IN_HAND(1))
#define RUNS_IN_IT ((MINE(0, d) && !hand_waits[0]) + (MINE(1, d) && !hand_waits[1]))
#ifdef WAITER
#define RING_ALL RING(0) RING(1) RING(SENDER)
#else
#define RING_ALL RING(0) RING(1)
#endif
#ifdef MUTANT_RECOVERY_ALWAYS_FILLS
#define FINISHED false
#else
#define FINISHED SOMEWHERE_IN_HAND
#endif

proctype host() {
    byte d, i;
    bit one, adopts;

watch:
    if
    :: d_step { life[0] == DIED -> d = 0 }
    :: d_step { life[1] == DIED -> d = 1 }
#ifdef WAITER
    :: d_step { life[2] == DIED -> d = 2 }
#endif
#ifdef MUTANT_NO_PROOF
    :: d_step { life[0] == LIVE && reader_kills > 0 -> reader_kills--; d = 0 }    /* it did not answer for a while */
#endif
    HOST_DIES
    fi;

recover:
#ifdef MUTANT_MOVED_BEFORE_REPAIRED
    H(if :: IS_READER(d) && !adopts -> readers = 3 - (1 << d);
            if :: MINE(0, d) -> hand_reader[0] = 1 - d :: else fi; if :: MINE(1, d) -> hand_reader[1] = 1 - d :: else fi
         :: else
         fi);
#endif
    do
    :: d_step { i < PLACES && slot[i] == TAKEN && slot_reader[i] == d && FINISHED ->
                slot[i] = EMPTY; slot_msg[i] = 0; slot_reader[i] = 0; i++ }
    :: d_step { i < PLACES && slot[i] == TAKEN && slot_reader[i] == d && !FINISHED -> slot[i] = FULL; slot_reader[i] = 0; i++ }
    :: d_step { i < PLACES && !(slot[i] == TAKEN && slot_reader[i] == d) -> i++ }
    :: i == PLACES -> i = 0; break
    HOST_DIES
    od;
#ifndef MUTANT_CLAIMED_LEFT
    do
    :: d_step { i < MESSAGES -> if :: hand[i] == CLAIMED && hand_reader[i] == d -> hand[i] = FREE; hand_reader[i] = 0
                                   :: else fi; i++ }
    :: i == MESSAGES -> i = 0; break
    HOST_DIES
    od;
#endif
#ifdef WAITER
#ifndef MUTANT_WANTING_OF_THE_DEAD_LEFT
    H(if :: d == SENDER -> waiters = 0; wanting = 0 :: else fi);
#endif
#endif
#ifdef MUTANT_READERS_ALARMED_ONLY
    H(alarm[0] = 1; alarm[1] = 1);
#else
    H(RING_ALL);
#endif
#ifdef MUTANT_SUCCESSOR_BEFORE_THE_VERDICT
    H(if :: IS_READER(d) && !adopts -> life[d] = STARTING :: else fi);
#endif

    /* the court: one snapshot of what was in hand, then one store for each */
#ifdef MUTANT_NEXT_HOST_BLAMES
    H(one = (RUNS_IN_IT == 1));
#else
    H(one = (!adopts && RUNS_IN_IT == 1));
#endif
    do
    :: d_step { i < MESSAGES && MINE(i, d) ->
                if
                :: one && !hand_waits[i] -> hand_strikes[i]++; assert(hand_strikes[i] <= guilty[hand_msg[i]])
                :: else
                fi;
#ifndef MUTANT_VERDICT_WITHOUT_WAITS
                hand_waits[i] = 1;
#endif
                i++ }
    :: d_step { i < MESSAGES && !MINE(i, d) -> i++ }
    :: i == MESSAGES -> i = 0; one = 0; break
    HOST_DIES
    od;
    if
    :: adopts -> goto adopted
    :: else
    fi;
    if
    :: d_step { !IS_READER(d) -> life[d] = DEAD; d = 0 } goto watch
#ifndef MUTANT_SUCCESSOR_BEFORE_THE_VERDICT
    :: d_step { IS_READER(d) -> life[d] = STARTING; d = 0 } goto watch
#else
    :: d_step { IS_READER(d) -> d = 0 } goto watch
#endif
    :: d_step { IS_READER(d) && readers == 3 -> skip }                /* it is given up; the other reader inherits */
    HOST_DIES
    fi;
    do
    :: d_step { i < MESSAGES -> if :: MINE(i, d) -> hand_reader[i] = 1 - d :: else fi; i++ }
    :: i == MESSAGES -> i = 0; break
    HOST_DIES
    od;
    H(readers = 3 - (1 << d));
#ifndef MUTANT_HEIR_NOT_ALARMED
    H(RING_ALL);
#endif
    H(life[d] = DEAD; d = 0);
    goto watch;

next_host:                                              /* proof of death: it has the lock of every slot */
    if :: d_step { life[0] != LIVE && life[1] != LIVE && NO_WAITER_LIVES -> host_died = 0; adopts = 1 } fi;
    goto recover;
adopted:
    if
    :: d_step { d + 1 < PROCESSES -> d++ } goto recover
    :: d_step { d + 1 == PROCESSES -> d = 0; readers = 3 }
    HOST_DIES
    fi;
#ifdef WAITER
    H(life[2] = DEAD);
#endif
    H(adopts = 0; life[0] = STARTING; life[1] = STARTING);
    goto watch
}

/* ---- nothing can move any more: is it right that nothing moves? ---- */
#define UNTOLD (wanting && (!NO_ROOM || !waiters))
#define GONE_THROUGH(k) assert(k >= committed || released[k] == 1);
#define NOT_IN_HAND(k) assert(hand[k] == FREE);

proctype auditor() {
    timeout;
    d_step {
        ALL(GONE_THROUGH)
        ALL(NOT_IN_HAND)
        assert(slot[0] == EMPTY && slot[PLACES - 1] == EMPTY);
#ifdef WAITER
        assert(!UNTOLD);
        assert(life[SENDER] == DEAD || committed == MESSAGES)
#endif
    }
}

init {
    d_step { slot_msg[PLACES - 1] = PLACES - 1 }
    atomic { run reader(0); run reader(1); run waiter(); run host(); run auditor() }
}
