/*
 * The net effect of a crash: a handler's sends, each once, however often its process dies.
 *
 * Protocol (LAYOUT.md, "What a handler has sent")
 *   Sender   handles one message. Before each publish it writes an intent beside that message: the digest into the log,
 *            which entry is open, the number of the send and where to, then the count that makes it valid. The publish
 *            is one CAS. When it finds no room, it takes the count back. Handed its message again, it drops a send for
 *            each entry of the same digest that is left, and appends what is new.
 *   Reader   taken -> the send's number into its evidence word, never downwards -> in hand -> slot emptied -> released.
 *   Host     after the death of the sender: is the newest entry open? Then the slots first, the evidence second; no
 *            sign in either: the publish never was, and the count is taken back. The record is closed.
 *            After the death of a reader: a half-taken slot is finished if in hand, else FULL again.
 *
 * Bounds     Two sends, one to each of two lanes of one slot, FILLERS messages of other processes that use the same
 *            slots, one or two readers (two: replicas). Kills by -D. Numbers count up from 1.
 *            OTHER_AGENT: another agent of the sender's process sends into lane 0, with numbers too: before this one's
 *            message comes again, and once more at any time.
 *            EQUAL: both sends have the same digest. REORDER: every second life sends in the other order.
 *            RESUME: later lives send only what the life before had not begun to send.
 *
 * Checked    At the end (timeout) both sends have been released exactly once (RESUME: at least once).
 * Not        Positions, laps, capacity (mailbox.pml), the growth of the log, digests that collide, drop_oldest: a send
 *            that was dropped by policy leaves no evidence and is sent again.
 */

#ifndef SENDER_KILLS
#define SENDER_KILLS 1
#endif
#ifndef READER_KILLS
#define READER_KILLS 0
#endif
#ifndef HOST_KILLS
#define HOST_KILLS 0
#endif
#ifndef READERS
#define READERS 1
#endif
#ifndef FILLERS
#define FILLERS 1
#endif
#define LANES 2
#define SENDS 2

#define EMPTY 0
#define FULL  1
#define TAKEN 2
#define FILLER 2                     /* content of a message that is none of the handler's sends */

#ifdef EQUAL
#define DIGEST(k) 0
#else
#define DIGEST(k) (k)
#endif

/* ---- shared memory ---- */
byte slot[LANES] = EMPTY, slot_n[LANES], slot_what[LANES], slot_reader[LANES];
byte evidence;                       /* highest number of this sender's that was taken */
byte hand_n[READERS], hand_what[READERS];
bit hand[READERS];
byte entry[6];                       /* the log: digests */
byte entries;                        /* how many count */
byte open_index, open_n, open_lane;
byte numbers;                        /* numbers given out: survives the process, as the reserved block does */

/* ---- what an outside observer knows ---- */
byte released[SENDS];
byte begun;                          /* sends that some life has begun: what a resuming handler remembers */
bit sender_dead, sender_done, reader_dead[READERS];
byte sender_kills = SENDER_KILLS, reader_kills = READER_KILLS, host_kills = HOST_KILLS;
byte fillers_left = FILLERS, others_left = 1;

#define SENDER_DIES :: d_step { sender_kills > 0 -> sender_kills--; sender_dead = 1; n = 0; k = 0; lane = 0; c = 0 } goto out
#define S(step) if :: d_step { step } SENDER_DIES fi

proctype sender(byte life) {
    byte left[SENDS];                /* entries of each digest that no send of this life has met yet */
    byte k, n, lane, c, turn;

    d_step {
        k = 0;
        do
        :: k < entries -> left[entry[k]]++; k++
        :: else -> break
        od;
        k = 0;
        turn = 0
    }
#ifdef OTHER_AGENT
    S(numbers++; n = numbers);
    if
    :: d_step { slot[0] == EMPTY -> slot[0] = FULL; slot_n[0] = n; slot_what[0] = FILLER; n = 0 }
    SENDER_DIES
    fi;
#endif
#ifdef RESUME
    S(turn = begun);
#endif
next:
#ifdef OTHER_AGENT
    if                                                       /* the other agent's turn: its publish is one step here */
    :: d_step { others_left > 0 && slot[0] == EMPTY -> others_left--; numbers++; slot[0] = FULL; slot_n[0] = numbers;
                slot_what[0] = FILLER }
    :: d_step { skip }
    fi;
#endif
    if
    :: d_step { turn == SENDS -> sender_done = 1 } goto out
    :: d_step { turn < SENDS -> k = turn;
#ifdef REORDER
        if
        :: life & 1 -> k = SENDS - 1 - turn
        :: else
        fi;
#endif
        lane = k }
    SENDER_DIES
    fi;
#ifdef MUTANT_DROPS_WHATEVER_WAS_SENT
    if
    :: d_step { left[DIGEST(k)] > 0 -> turn++ } goto next
#else
    if
    :: d_step { left[DIGEST(k)] > 0 -> left[DIGEST(k)]--; turn++ } goto next
#endif
    :: d_step { left[DIGEST(k)] == 0 -> skip }
    SENDER_DIES
    fi;
try:
    S(numbers++; n = numbers; c = entries; entry[c] = DIGEST(k));
#ifndef MUTANT_NOTE_AFTER
#ifndef MUTANT_INDEX_LAST
    S(open_index = c);
#endif
    S(open_n = n);
    S(open_lane = lane);
#ifdef MUTANT_INDEX_LAST
    S(open_index = c);
#endif
    S(entries = c + 1);
#endif
    if
    :: d_step { slot[lane] == EMPTY -> slot[lane] = FULL; slot_n[lane] = n; slot_what[lane] = k;
                begun = (turn + 1 > begun -> turn + 1 : begun) }
    :: d_step { slot[lane] != EMPTY -> skip } goto no_room
    SENDER_DIES
    fi;
#ifdef MUTANT_NOTE_AFTER
    S(entries = c + 1; open_n = 0);
#endif
    S(turn++);
    goto next;

no_room:
#ifndef MUTANT_NO_WAY_BACK
    S(entries = c);
#endif
    if
    :: d_step { slot[lane] == EMPTY -> skip } goto try
    SENDER_DIES
    fi;

out: skip
}

/* Messages of other processes, which have no number for this sender's evidence. */
proctype filler() {
    do
    :: d_step { fillers_left > 0 && slot[0] == EMPTY -> slot[0] = FULL; slot_n[0] = 0; slot_what[0] = FILLER; fillers_left-- }
    :: fillers_left == 0 -> break
    od
}

#define READER_DIES :: d_step { reader_kills > 0 -> reader_kills--; reader_dead[me] = 1; n = 0; what = 0; lane = 0; seen = 0 } goto out
#define R(step) if :: d_step { step } READER_DIES fi

proctype reader(byte me) {
    byte lane, n, what, seen;

    if
    :: d_step { hand[me] -> n = hand_n[me]; what = hand_what[me] } goto handled
    :: d_step { !hand[me] -> skip }
    fi;
again:
    if                                                       /* lane 1 is served first: numbers come out of order */
    :: d_step { slot[1] == FULL -> lane = 1; slot[1] = TAKEN; slot_reader[1] = me }
    :: d_step { slot[1] != FULL && slot[0] == FULL -> lane = 0; slot[0] = TAKEN; slot_reader[0] = me }
    READER_DIES
    fi;
    R(n = slot_n[lane]; what = slot_what[lane]);
#ifdef MUTANT_EVIDENCE_AFTER_EMPTY
    R(hand_n[me] = n; hand_what[me] = what; hand[me] = 1);
    R(slot[lane] = EMPTY; slot_n[lane] = 0);
#endif
raise:
    R(seen = evidence);
#ifdef MUTANT_EVIDENCE_OVERWRITTEN
    if
    :: d_step { n > 0 -> evidence = n }
    :: d_step { n == 0 -> skip }
    READER_DIES
    fi;
#else
    if
#ifdef MUTANT_RAISED_BY_STORE
    :: d_step { n > seen -> evidence = n }
#else
    :: d_step { n > seen && evidence == seen -> evidence = n } /* CAS */
    :: d_step { n > seen && evidence != seen -> skip } goto raise
#endif
    :: d_step { n <= seen -> skip }
    READER_DIES
    fi;
#endif
#ifndef MUTANT_EVIDENCE_AFTER_EMPTY
    R(hand_n[me] = n; hand_what[me] = what; hand[me] = 1);
    R(slot[lane] = EMPTY; slot_n[lane] = 0);
#endif
handled:
    if
    :: d_step { hand[me] = 0; hand_n[me] = 0; hand_what[me] = 0;
        if
        :: what != FILLER -> released[what]++
        :: else
        fi;
        n = 0; what = 0; lane = 0; seen = 0 } goto again
    READER_DIES
    fi;

out: skip
}

#define HOST_DIES :: d_step { host_kills > 0 -> host_kills--; found = 0; k = 0 } goto watch
#define H(step) if :: d_step { step } HOST_DIES fi

active proctype host() {
    bit found;
    byte k, lives = 1;

    atomic {
        run sender(0);
        run filler();
        k = 0;
        do
        :: k < READERS -> run reader(k); k++
        :: else -> k = 0; break
        od
    }
watch:
    if
    :: d_step { sender_dead -> found = 0 }
    :: d_step { reader_dead[0] -> k = 0 } goto repair
#if READERS == 2
    :: d_step { reader_dead[1] -> k = 1 } goto repair
#endif
    fi;

    /* Is the newest entry open, and if so, was it published? */
    if
    :: d_step { open_n > 0 && entries > 0 && open_index == entries - 1 -> found = 0 }
    :: d_step { !(open_n > 0 && entries > 0 && open_index == entries - 1) -> skip } goto close
    HOST_DIES
    fi;
#ifdef MUTANT_INTENT_IS_PROOF
    found = 1;
#endif
#ifdef MUTANT_EVIDENCE_OF_THIS_NUMBER_ALONE
#define TAKEN_ALREADY (evidence == open_n)
#else
#define TAKEN_ALREADY (evidence >= open_n)
#endif
#ifdef MUTANT_EVIDENCE_FIRST
    H(found = (found || TAKEN_ALREADY));
#endif
    H(found = (found || (slot[open_lane] != EMPTY && slot_n[open_lane] == open_n)));
#ifndef MUTANT_NO_EVIDENCE
#ifndef MUTANT_EVIDENCE_FIRST
    H(found = (found || TAKEN_ALREADY));
#endif
#endif
    if
    :: d_step { !found -> entries-- }
    :: d_step { found -> skip }
    HOST_DIES
    fi;
close:
    H(open_n = 0);
    atomic { found = 0; sender_dead = 0; run sender(lives); lives++ }
    goto watch;

repair:
    if
    :: d_step { slot[0] == TAKEN && slot_reader[0] == k && hand[k] -> slot[0] = EMPTY; slot_n[0] = 0 }
    :: d_step { slot[0] == TAKEN && slot_reader[0] == k && !hand[k] -> slot[0] = FULL }
    :: d_step { !(slot[0] == TAKEN && slot_reader[0] == k) -> skip }
    HOST_DIES
    fi;
    if
    :: d_step { slot[1] == TAKEN && slot_reader[1] == k && hand[k] -> slot[1] = EMPTY; slot_n[1] = 0 }
    :: d_step { slot[1] == TAKEN && slot_reader[1] == k && !hand[k] -> slot[1] = FULL }
    :: d_step { !(slot[1] == TAKEN && slot_reader[1] == k) -> skip }
    HOST_DIES
    fi;
    atomic { reader_dead[k] = 0; run reader(k); k = 0 }
    goto watch
}

active proctype auditor() {
    timeout;
    assert(sender_done);
    assert(slot[0] == EMPTY && slot[1] == EMPTY);
#ifdef RESUME
    assert(released[0] >= 1 && released[1] >= 1);
#else
    assert(released[0] == 1 && released[1] == 1)
#endif
}
