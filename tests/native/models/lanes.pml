/*
 * Three lanes of one mailbox: which lane a take serves, and how a mailbox is closed.
 *
 * Protocol (DESIGN.md 2.3)
 *   Each lane is a ring as in mailbox.pml. A take looks at control, then priority, then normal, from the top each
 *   time. Closing publishes a MARK at `tail` of every lane, by the same CAS as a message. `tail` is never helped
 *   past a MARK: a sender that meets it is told "closed". The reader leaves when it stands at the MARK of all
 *   three lanes. A remover that is killed is repeated from the start.
 *
 * Bounds     N = 2 slots per lane, laps modulo 4, positions start one lap before the wrap of the lap; one sender
 *            per lane; messages and kills of reader, senders and remover by -D (README.md).
 *
 * Checked    No take from a lane while a lane above it holds a message that was committed before the take began.
 *            Nothing is committed after the MARK; one MARK per lane; order within a lane; at the end (timeout)
 *            every sender is done, refused or dead, the mailbox is closed, and everything committed was handled.
 *            No endless cycle (-DNP).
 * Not        In-hand entries and their recovery (mailbox.pml): here the entry and the release are one step. What a
 *            sender does after MARK(moved). A remover that finds a lane full and nobody who reads (it then reads
 *            itself).
 */

#define N     2
#define LAPS  4
#define START ((LAPS - 1) * N)

#ifndef CONTROL_MESSAGES
#define CONTROL_MESSAGES 1
#endif
#ifndef PRIORITY_MESSAGES
#define PRIORITY_MESSAGES 1
#endif
#ifndef NORMAL_MESSAGES
#define NORMAL_MESSAGES 1
#endif
#ifndef READER_KILLS
#define READER_KILLS 0
#endif
#ifndef SENDER_KILLS
#define SENDER_KILLS 0
#endif
#ifndef REMOVER_KILLS
#define REMOVER_KILLS 0
#endif

#define CONTROL  0
#define PRIORITY 1
#define NORMAL   2
#define LANES    3

#define EMPTY 0
#define FULL  1
#define TAKEN 2
#define MARK  3
#define WORD(lap, state, ref) (((lap) << 5) | ((state) << 3) | (ref))
#define LAP(w)   ((w) >> 5)
#define STATE(w) (((w) >> 3) & 3)
#define REF(w)   ((w) & 7)
#define TURN(position) (((position) / N) % LAPS)
#define NEXT_TURN(position) ((TURN(position) + 1) % LAPS)
#define SAME_LAP(w, position) (LAP(w) == TURN(position))
#define LAP_BEFORE(w, position) ((LAP(w) + 1) % LAPS == TURN(position))
#define AT(l, position) lane[l].slot[(position) % N]

typedef ring {
    byte slot[N];
    byte head;
    byte tail
}

ring lane[LANES];
byte hand_lane, hand_ref;             /* the entry in hand; ref 0: none */
#ifdef MUTANT_CLOSED_FLAG
bit closed_flag;                      /* in the directory, not in the ring */
#endif

/* ---- what an outside observer knows ---- */
byte committed[LANES], handled[LANES], waiting_then[LANES];
byte marks[LANES];
byte senders_left = LANES;
bit reader_left, remover_done;
byte reader_kills = READER_KILLS, sender_kills = SENDER_KILLS, remover_kills = REMOVER_KILLS;

#define WAITING(l) (FULL_AT(l, lane[l].head) + FULL_AT(l, lane[l].head + 1))
#define FULL_AT(l, p) (SAME_LAP(AT(l, p), p) && STATE(AT(l, p)) == FULL)

#define HELP_HEAD(l, seen) if :: lane[l].head == seen -> lane[l].head = seen + 1 :: else fi
#define HELP_TAIL(l, seen) if :: lane[l].tail == seen -> lane[l].tail = seen + 1 :: else fi

/* ---- sender ---- */
#define QUOTA(l) (l == NORMAL -> NORMAL_MESSAGES : (l == PRIORITY -> PRIORITY_MESSAGES : CONTROL_MESSAGES))
#define SENDER_DIES :: d_step { sender_kills > 0 -> sender_kills--; senders_left--; k = 0; t = 0; s = 0 } goto out
#define S(step) if :: d_step { step } SENDER_DIES fi

proctype sender(byte me) {
    byte k, t, s;

load_tail:
    if
    :: d_step { k == QUOTA(me) -> k = 0; senders_left-- } goto out
#ifdef MUTANT_CLOSED_FLAG
    :: d_step { k < QUOTA(me) && closed_flag -> k = 0; senders_left-- } goto out
    :: d_step { k < QUOTA(me) && !closed_flag -> t = lane[me].tail }
#else
    :: d_step { k < QUOTA(me) -> t = lane[me].tail }
#endif
    SENDER_DIES
    fi;
    S(s = AT(me, t));
    if
    :: d_step { SAME_LAP(s, t) && STATE(s) == EMPTY && AT(me, t) == s ->
                assert(marks[me] == 0);
                k++;
                AT(me, t) = WORD(TURN(t), FULL, k);
                committed[me]++ }
    :: d_step { SAME_LAP(s, t) && STATE(s) == EMPTY && AT(me, t) != s -> t = 0; s = 0 } goto load_tail
#ifndef MUTANT_HELP_PAST_MARK
    :: d_step { SAME_LAP(s, t) && STATE(s) == MARK -> k = 0; t = 0; s = 0; senders_left-- } goto out      /* "closed" */
    :: d_step { SAME_LAP(s, t) && STATE(s) != EMPTY && STATE(s) != MARK -> skip }
#else
    :: d_step { SAME_LAP(s, t) && STATE(s) != EMPTY -> skip }
#endif
    :: d_step { !SAME_LAP(s, t) && !LAP_BEFORE(s, t) -> skip }
    :: d_step { LAP_BEFORE(s, t) && (AT(me, t) != s || lane[me].tail != t) -> t = 0; s = 0 } goto load_tail
    SENDER_DIES
    fi;
    S(HELP_TAIL(me, t); t = 0; s = 0);
    goto load_tail;
out:
    skip
}

/* ---- reader ---- */
#ifdef MUTANT_NORMAL_FIRST
#define FIRST NORMAL
#define HAS_NEXT(l) (l > 0)
#define NEXT(l) l--
#else
#define FIRST CONTROL
#define HAS_NEXT(l) (l < LANES - 1)
#define NEXT(l) l++
#endif

#define READER_DIES :: d_step { reader_kills > 0 -> reader_kills--; l = FIRST; h = 0; s = 0 } goto attach
#define R(step) if :: d_step { step } READER_DIES fi

/* Something that a scan would act on; the wait of an idle reader, without its idle turns. */
#define AT_MARK(l) (SAME_LAP(AT(l, lane[l].head), lane[l].head) && STATE(AT(l, lane[l].head)) == MARK)
#define MOVES(l) (FULL_AT(l, lane[l].head) || !SAME_LAP(AT(l, lane[l].head), lane[l].head))
#ifdef MUTANT_CLOSED_FLAG
#define MAY_LEAVE (closed_flag && !MOVES(CONTROL) && !MOVES(PRIORITY) && !MOVES(NORMAL))
#elif defined(MUTANT_LEAVES_AT_FIRST_MARK)
#define MAY_LEAVE (AT_MARK(CONTROL) || AT_MARK(PRIORITY) || AT_MARK(NORMAL))
#elif defined(MUTANT_MARK_IN_ONE_LANE)
#define MAY_LEAVE (AT_MARK(CONTROL) && !MOVES(PRIORITY) && !MOVES(NORMAL))
#else
#define MAY_LEAVE (AT_MARK(CONTROL) && AT_MARK(PRIORITY) && AT_MARK(NORMAL))
#endif
#define WORK (MOVES(CONTROL) || MOVES(PRIORITY) || MOVES(NORMAL) || MAY_LEAVE)

inline note_what_waits() {
    waiting_then[CONTROL] = WAITING(CONTROL);
    waiting_then[PRIORITY] = WAITING(PRIORITY)
}

proctype reader() {
    byte l = FIRST, h, s;
    goto scan;

attach:
    if
    :: d_step { l < LANES && STATE(AT(l, lane[l].head)) == TAKEN ->
                s = AT(l, lane[l].head); AT(l, lane[l].head) = WORD(LAP(s), FULL, REF(s));
                s = 0; l = FIRST } goto attach
    :: d_step { STATE(AT(l, lane[l].head)) != TAKEN && HAS_NEXT(l) -> NEXT(l) } goto attach
    :: d_step { STATE(AT(l, lane[l].head)) != TAKEN && !HAS_NEXT(l) -> l = FIRST }
    READER_DIES
    fi;
    if
    :: hand_ref != 0 -> goto handle
    :: hand_ref == 0 -> goto scan
    fi;

scan:
    if
    :: d_step { WORK -> note_what_waits() }
    READER_DIES
    fi;
again:
    if
    :: d_step { MAY_LEAVE -> reader_left = 1; waiting_then[CONTROL] = 0; waiting_then[PRIORITY] = 0; l = 0 } goto out
    :: d_step { !MAY_LEAVE -> h = lane[l].head }
    READER_DIES
    fi;
    R(s = AT(l, h));
    if
    :: d_step { SAME_LAP(s, h) && STATE(s) == FULL && AT(l, h) == s ->
                AT(l, h) = WORD(LAP(s), TAKEN, REF(s));
                assert(l == CONTROL || waiting_then[CONTROL] == 0);
                assert(l != NORMAL || waiting_then[PRIORITY] == 0);
                waiting_then[CONTROL] = 0; waiting_then[PRIORITY] = 0 }
    :: d_step { !SAME_LAP(s, h) -> HELP_HEAD(l, h); h = 0; s = 0 } goto again
    :: d_step { SAME_LAP(s, h) && STATE(s) != FULL && HAS_NEXT(l) -> NEXT(l); h = 0; s = 0 } goto again
    :: d_step { SAME_LAP(s, h) && STATE(s) != FULL && !HAS_NEXT(l) -> l = FIRST; h = 0; s = 0 } goto scan
    READER_DIES
    fi;
    R(hand_lane = l; hand_ref = REF(s); AT(l, h) = WORD(NEXT_TURN(h), EMPTY, 0));
    R(HELP_HEAD(l, h); h = 0; s = 0
#ifndef MUTANT_STAYS_IN_LANE
      ; l = FIRST
#endif
     );
handle:
    R(if
      :: hand_ref > handled[hand_lane] -> assert(hand_ref == handled[hand_lane] + 1); handled[hand_lane]++
      :: else                                                        /* delivered again after a kill */
      fi);
    R(hand_ref = 0; hand_lane = 0);
    goto scan;
out:
    skip
}

/* ---- remover: the host takes the agent away ---- */
#define REMOVER_DIES :: d_step { remover_kills > 0 -> remover_kills--; l = CONTROL; t = 0; s = 0 } goto load_tail

proctype remover() {
    byte l = CONTROL, t, s;
#ifdef MUTANT_CLOSED_FLAG
    d_step { closed_flag = 1; remover_done = 1 }
#else
load_tail:
    if
    :: d_step { t = lane[l].tail }
    REMOVER_DIES
    fi;
    if
    :: d_step { s = AT(l, t) }
    REMOVER_DIES
    fi;
    if
    :: d_step { SAME_LAP(s, t) && STATE(s) == EMPTY &&
#ifdef MUTANT_MARK_BY_STORE
                true ->
#else
                AT(l, t) == s ->
#endif
                AT(l, t) = WORD(TURN(t), MARK, 0); marks[l]++; assert(marks[l] == 1); t = 0; s = 0 }
#ifndef MUTANT_MARK_BY_STORE
    :: d_step { SAME_LAP(s, t) && STATE(s) == EMPTY && AT(l, t) != s -> t = 0; s = 0 } goto load_tail
#endif
    :: d_step { SAME_LAP(s, t) && STATE(s) == MARK -> t = 0; s = 0 }                /* by a remover before me */
    :: d_step { (SAME_LAP(s, t) && (STATE(s) == FULL || STATE(s) == TAKEN)) || (!SAME_LAP(s, t) && !LAP_BEFORE(s, t)) ->
                HELP_TAIL(l, t); t = 0; s = 0 } goto load_tail
    :: d_step { LAP_BEFORE(s, t) && (AT(l, t) != s || lane[l].tail != t) -> t = 0; s = 0 } goto load_tail
    REMOVER_DIES
    fi;
    if
#ifdef MUTANT_MARK_IN_ONE_LANE
    :: d_step { remover_done = 1 }
#else
    :: d_step { l < LANES - 1 -> l++ } goto load_tail
    :: d_step { l == LANES - 1 -> remover_done = 1; l = 0 }
#endif
    REMOVER_DIES
    fi
#endif
}

/* ---- nothing can move any more: is it right that nothing moves? ---- */
proctype auditor() {
    byte l;
    timeout;
    assert(senders_left == 0 && remover_done && reader_left);
    for (l : 0 .. LANES - 1) {
        assert(handled[l] == committed[l])
    }
}

init {
    byte i, l;
    d_step {
        for (l : 0 .. LANES - 1) {
            lane[l].head = START;
            lane[l].tail = START;
            for (i : 0 .. N - 1) {
                lane[l].slot[i] = WORD(TURN(START + i), EMPTY, 0)
            }
        }
        i = 0; l = 0
    }
    atomic {
        run sender(CONTROL); run sender(PRIORITY); run sender(NORMAL);
        run reader(); run remover(); run auditor()
    }
}
