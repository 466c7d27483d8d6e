/*
 * A message is given up: note, burial, letter, discard; or it is convicted after a death of its reader.
 *
 * Protocol (LAYOUT.md, behind "In-hand entry")
 *   Reader    its handler has failed for good: the note, with the traceback, goes into the lane of `_dead_letters` (without
 *             room: no note) -> the entry becomes BURIED -> the host is told. Redelivers what is RUNNING, never what is
 *             BURIED.
 *   Host      collects, whenever it was told, after each death and now and then: reads what is BURIED, then takes all
 *             notes into its hand, then stores letter and note in one transaction (a message has one letter: the later
 *             replaces the former), then discards the entry, then releases the note. Nothing is buried: notes are let go
 *             whose message is in nobody's hand any more. What runs is read first there and what is buried second, so
 *             that a message on its way from the one to the other is seen.
 *             After the death of the reader it may convict what was in hand: the letter first, then the discard.
 *   Next host after the death of the host, which ends all: a message in hand that has a letter is discarded. Then it collects;
 *             notes that the dead host had in hand are taken anew.
 *   Owner     frees the chunk of a message that left its slot when no entry, BURIED ones included, names it.
 *
 * Bounds     Two messages, one entry, so the second is in hand when the first has left it; one place for notes. Kills of
 *            the reader and of the host by -D; a handler may end well or badly, and a death may convict or not.
 *
 * Checked    At the end (timeout) each message was either released by its reader or has exactly one letter, with its note
 *            if one was committed before the burial; nothing is in hand and no note is left. No handler runs a message
 *            that has a letter. Nobody reads a chunk that was freed; each was freed.
 * Not        The way from slot to hand (mailbox.pml); several mailboxes and more notes than a hand can hold. Garbage: its id
 *            cannot be believed, so it gets a new letter each time somebody dies between letter and discard. A letter that
 *            somebody replays or drops. A full disk: the store is then the host's memory and dies with it.
 */

#ifndef READER_KILLS
#define READER_KILLS 0
#endif
#ifndef HOST_KILLS
#define HOST_KILLS 0
#endif
#define MESSAGES 2
#define NOTES 3                       /* note chunks; more are never on their way at once */
#define NONE 3                        /* no message */

mtype = { FREE, RUNNING, BURIED, LANE, HELD };

/* ---- shared memory ---- */
mtype entry = FREE;
byte entry_msg = NONE;
byte next_slot;                       /* messages from here on are still in their slots */
mtype note[NOTES] = FREE;             /* FREE, in the lane, or in the host's hand */
byte note_msg[NOTES] = NONE;

/* ---- on disk ---- */
byte letters[MESSAGES];               /* how many */
bit has_note[MESSAGES];               /* … and whether the last one has the reader's note */

/* ---- the host's own ---- */
bit known[NOTES];                     /* notes that it has read */
bit told;

/* ---- what an outside observer knows ---- */
bit reader_dead, host_died;
bit buried_with_note[MESSAGES], released[MESSAGES], freed[MESSAGES];
byte reader_kills = READER_KILLS, host_kills = HOST_KILLS;

#define IN_LANE (note[0] == LANE || note[1] == LANE || note[2] == LANE)
#define A_FREE_NOTE (note[0] == FREE -> 0 : (note[1] == FREE -> 1 : 2))

/* ---- reader ---- */
#define READER_DIES \
    :: d_step { host_died || reader_kills > 0 -> if :: host_died :: else -> reader_kills-- fi; reader_dead = 1; \
                m = NONE; n = 0; noted = 0 } goto gone
#define R(step) if :: d_step { step } READER_DIES fi

proctype reader() {
    byte m = NONE, n;
    bit noted;
    goto take;

gone:
    !reader_dead;
    if                                                  /* what a dead reader had in hand comes first */
    :: d_step { entry == RUNNING -> m = entry_msg } goto handler
#ifdef MUTANT_BURIED_IS_HANDED_OVER
    :: d_step { entry == BURIED -> entry = RUNNING; m = entry_msg } goto handler
#endif
    :: d_step { entry != RUNNING -> skip }
    READER_DIES
    fi;

take:
    if
    :: d_step { entry == FREE && next_slot < MESSAGES -> m = next_slot; next_slot++; entry = RUNNING; entry_msg = m }
    READER_DIES
    fi;

handler:
    R(assert(letters[m] == 0 && !freed[m] && !released[m]));
    if
    :: d_step { assert(entry == RUNNING && entry_msg == m); released[m] = 1; entry = FREE; entry_msg = NONE; m = NONE } goto take
    :: skip                                             /* it failed */
    READER_DIES
    fi;
#ifdef MUTANT_BURIED_BEFORE_ITS_NOTE
    R(buried_with_note[m] = !IN_LANE; entry = BURIED);
#endif
    if
    :: d_step { !IN_LANE -> n = A_FREE_NOTE; assert(note[n] == FREE); note[n] = LANE; note_msg[n] = m; n = 0; noted = 1 }
    :: d_step { IN_LANE -> skip }                       /* no room: the letter is worth more than its note */
    READER_DIES
    fi;
#ifndef MUTANT_BURIED_BEFORE_ITS_NOTE
    R(assert(entry == RUNNING && entry_msg == m); buried_with_note[m] = noted; entry = BURIED);   /* SYNC POINT: given up */
#endif
    R(told = 1; m = NONE; noted = 0);
    goto take
}

/* ---- the owner of the chunks ---- */
#ifdef MUTANT_OWNER_FORGETS_THE_BURIED
#define NAMED(m) (entry == RUNNING && entry_msg == (m))
#else
#define NAMED(m) (entry != FREE && entry_msg == (m))
#endif
proctype owner() {
    do
    :: d_step { next_slot > 0 && !freed[0] && !NAMED(0) -> freed[0] = 1 }
    :: d_step { next_slot > 1 && !freed[1] && !NAMED(1) -> freed[1] = 1 }
    od
}

/* ---- host ---- */
#define HOST_DIES \
    :: d_step { host_kills > 0 -> host_kills--; host_died = 1; known[0] = 0; known[1] = 0; known[2] = 0; told = 0; \
                seen = NONE; runs = NONE; n = 0; convicts = 0 } goto next_host
#define H(step) if :: d_step { step } HOST_DIES fi
#define KNOWN_OF(m) (known[0] && note_msg[0] == (m) || known[1] && note_msg[1] == (m) || known[2] && note_msg[2] == (m))
#define LET_GO(k) note[k] = FREE; note_msg[k] = NONE; known[k] = 0
#define OUTDATED(k, m) if :: known[k] && note_msg[k] == (m) -> LET_GO(k) :: else fi
#define STALE(k) (note[k] == HELD && !(entry != FREE && entry_msg == note_msg[k]))
#define UNREAD(k) (note[k] == LANE || note[k] == HELD && !known[k])
#ifdef MUTANT_STALE_NOTES_KEPT
#define WORTH_A_LOOK (entry == BURIED || UNREAD(0) || UNREAD(1) || UNREAD(2))
#else
#define WORTH_A_LOOK (entry == BURIED || UNREAD(0) || UNREAD(1) || UNREAD(2) || STALE(0) || STALE(1) || STALE(2))
#endif
#ifdef MUTANT_A_LETTER_EACH_TIME
#define STORE(m, noted) letters[m]++; has_note[m] = noted
#else
#define STORE(m, noted) letters[m] = 1; has_note[m] = noted
#endif
#define DISCARD(m) if :: entry != FREE && entry_msg == (m) -> entry = FREE; entry_msg = NONE :: else assert(false) fi

proctype host() {
    byte seen = NONE, runs = NONE, n;
    bit convicts;

watch:
    if
    :: d_step { told -> told = 0 } goto collect
    :: d_step { WORTH_A_LOOK -> skip } goto collect     /* the watcher's own look: somebody died before it could tell */
    :: d_step { reader_dead -> skip }
    HOST_DIES
    fi;

    /* the court, over what the dead reader had in hand */
    if
    :: d_step { entry == RUNNING -> assert(!freed[entry_msg]); seen = entry_msg; convicts = 1 }
    :: skip
    HOST_DIES
    fi;
    if
    :: !convicts -> goto judged
    :: else
    fi;
#ifdef MUTANT_DISCARDED_BEFORE_IT_IS_STORED
    H(DISCARD(seen));
    H(STORE(seen, 0));
#else
    H(STORE(seen, 0));
    H(DISCARD(seen));
#endif
    H(OUTDATED(0, seen); OUTDATED(1, seen); OUTDATED(2, seen));
judged:
    H(reader_dead = 0; seen = NONE; convicts = 0);
    /* falls through: what it had given up itself */

collect:
#ifdef MUTANT_NOTES_BEFORE_ENTRIES
    skip;
#else
    H(seen = (entry == BURIED -> entry_msg : NONE); assert(seen == NONE || !freed[seen]));
#endif
notes:
    if
    :: d_step { UNREAD(n) -> note[n] = HELD;
                if                                      /* the later note of a message replaces the former */
                :: n != 0 && known[0] && note_msg[0] == note_msg[n] -> LET_GO(0)
                :: n != 1 && known[1] && note_msg[1] == note_msg[n] -> LET_GO(1)
                :: n != 2 && known[2] && note_msg[2] == note_msg[n] -> LET_GO(2)
                :: else
                fi;
                known[n] = 1; n++ }
    :: d_step { !UNREAD(n) -> n++ }
    HOST_DIES
    fi;
    if
    :: n < NOTES -> goto notes
    :: else -> n = 0
    fi;
#ifdef MUTANT_NOTES_BEFORE_ENTRIES
    H(seen = (entry == BURIED -> entry_msg : NONE); assert(seen == NONE || !freed[seen]));
#endif
    if
    :: seen == NONE -> goto stale
    :: else
    fi;
#ifdef MUTANT_DISCARDED_BEFORE_IT_IS_STORED
    H(DISCARD(seen));
    H(STORE(seen, KNOWN_OF(seen)));
#else
    H(STORE(seen, KNOWN_OF(seen)));
#ifdef MUTANT_NOTE_RELEASED_BEFORE_THE_DISCARD
    H(OUTDATED(0, seen); OUTDATED(1, seen); OUTDATED(2, seen));
#endif
    H(DISCARD(seen));
#endif
    H(OUTDATED(0, seen); OUTDATED(1, seen); OUTDATED(2, seen); seen = NONE);
    goto collect;

stale:
#ifndef MUTANT_STALE_NOTES_KEPT
#ifdef MUTANT_STALE_UNLESS_IT_RUNS
    H(runs = (entry == RUNNING -> entry_msg : NONE));
#elif defined(MUTANT_STALE_BY_WHAT_IS_BURIED_THEN_RUNS)
    H(seen = (entry == BURIED -> entry_msg : NONE));
    H(runs = (entry == RUNNING -> entry_msg : NONE));
#else
    H(runs = (entry == RUNNING -> entry_msg : NONE));
    H(seen = (entry == BURIED -> entry_msg : NONE));
#endif
    do
    :: d_step { n < NOTES -> if :: known[n] && note_msg[n] != runs && note_msg[n] != seen -> LET_GO(n) :: else fi; n++ }
    :: n == NOTES -> n = 0; runs = NONE; seen = NONE; break
    HOST_DIES
    od;
#endif
    goto watch;

next_host:
    if :: d_step { reader_dead -> host_died = 0 } fi;
#ifndef MUTANT_NOT_SETTLED
    H(if :: entry == RUNNING && letters[entry_msg] > 0 -> entry = FREE; entry_msg = NONE :: else fi);
#endif
    goto judged
}

/* ---- nothing can move any more: is it right that nothing moves? ---- */
proctype auditor() {
    timeout;
    d_step {
        assert(entry == FREE && next_slot == MESSAGES && freed[0] && freed[1]);
        assert(note[0] == FREE && note[1] == FREE && note[2] == FREE);
        assert(released[0] + letters[0] == 1 && released[1] + letters[1] == 1);
        assert(!letters[0] || has_note[0] || !buried_with_note[0]);
        assert(!letters[1] || has_note[1] || !buried_with_note[1])
    }
}

init { atomic { run reader(); run owner(); run host(); run auditor() } }
