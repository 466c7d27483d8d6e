/*
 * Waiting for room in a full mailbox, and being told of it.
 *
 * Protocol (DESIGN.md 2.3)
 *   Sender   finds the ring full: or its bit into the mailbox's `waiters`; look again; then sleep. Its process
 *            sleeps as in wake.pml: parked, re-check of its own words, sleep until the doorbell. Woken with its
 *            room bit or its scan-all bit set, it tries the send again from the start.
 *   Reader   releases the slot (seq_cst), looks at `waiters`, exchanges it for 0, and for each bit: sets that
 *            process's room bit, then rings if it is parked. TWO_WORDS: the senders' bits lie in two words of
 *            `waiters`, each looked at and exchanged for itself.
 *            A reader that is stopped between the exchange and the bell (READER_STOPS; nobody notices) has taken the
 *            senders' bits with it. So each sender keeps a second bit, `wanting`, that it alone sets, before the first
 *            one, and clears, when it was told.
 *   Poll     of the host: who sleeps unrung though it was told, or with its second bit beside room or without its
 *            first one, is rung.
 *   Host     on the death of a reader or sender: first repair what the dead left (a TAKEN slot), telling nobody;
 *            then the scan-all bit of every process, then its doorbell.
 *
 * Bounds     A ring of one slot, two senders with MESSAGES messages each, x86-TSO: the release goes through the
 *            reader's store buffer (explicit; a locked operation waits until it is empty). Kills by -D
 *            (README.md).
 *
 * Checked    At the end (timeout) every sender is done or dead and the slot is free: nobody sleeps beside free
 *            space. No endless cycle (-DNP).
 * Not        The reader's own wake-up and `park_seq` as a sequence (wake.pml); slots, laps, in-hand entries
 *            (mailbox.pml); fairness among waiters: whoever comes first gets the place. Deadlines.
 */

#define SENDERS 2
#ifndef MESSAGES
#define MESSAGES 2
#endif
#ifndef MESSAGES_1
#define MESSAGES_1 MESSAGES            /* of the second sender */
#endif
#ifndef READER_KILLS
#define READER_KILLS 0
#endif
#ifndef SENDER_KILLS
#define SENDER_KILLS 0
#endif
#ifdef READER_STOPS
#define READERS 2                     /* replicas: one is stopped, the other goes on */
#else
#define READERS 1
#define READER_STOPS 0
#endif

#define EMPTY 0
#define FULL  1
#define TAKEN 2

#ifdef TWO_WORDS
#define WORDS 2
#define WORD(p) (p)                   /* one bit in each */
#define BIT(p) 1
#define MINE(p) (p == word)
#define NEXT_WORD told
#else
#define WORDS 1
#define WORD(p) 0
#define BIT(p) (1 << (p))
#define MINE(p) true
#define NEXT_WORD take
#endif

/* ---- shared memory and doorbells ---- */
byte slot = EMPTY;
byte waiters[WORDS];
bit wanting[SENDERS], room[SENDERS], scan_all[SENDERS], parked[SENDERS], doorbell[SENDERS];

/* ---- the reader's store buffer: one release of the slot that others cannot see yet ---- */
bit buffered;

/* ---- what an outside observer knows ---- */
byte senders_left = SENDERS;
byte deaths;
bit reader_dead;                      /* until its slots are repaired; its successor starts then */
byte reader_kills = READER_KILLS, sender_kills = SENDER_KILLS, reader_stops = READER_STOPS;

/* ---- sender ---- */
#define SENDER_DIES :: d_step { sender_kills > 0 -> sender_kills--; senders_left--; deaths++; k = 0 } goto out
#define S(step) if :: d_step { step } SENDER_DIES fi
#define QUOTA (me == 0 -> MESSAGES : MESSAGES_1)

proctype sender(byte me) {
    byte k;

try:
    if
    :: d_step { k == QUOTA -> k = 0; senders_left-- } goto out
    :: d_step { k < QUOTA && slot == EMPTY -> slot = FULL; k++ } goto try            /* the CAS of the publish */
    :: d_step { k < QUOTA && slot != EMPTY -> skip }
    SENDER_DIES
    fi;
    S(wanting[me] = 1);
#ifdef MUTANT_WAITERS_BY_STORE
    S(waiters[WORD(me)] = BIT(me));
#else
    S(waiters[WORD(me)] = waiters[WORD(me)] | BIT(me));
#endif
#ifndef MUTANT_NO_LOOK_AGAIN
    if                                                  /* look again */
    :: d_step { slot == EMPTY -> slot = FULL; k++ } goto try
    :: d_step { slot != EMPTY -> skip }
    SENDER_DIES
    fi;
#endif

park:
    S(parked[me] = 1);
#ifndef MUTANT_NO_RECHECK
    if
    :: d_step { room[me] || scan_all[me] -> parked[me] = 0 } goto woken
    :: d_step { !room[me] && !scan_all[me] -> skip }
    SENDER_DIES
    fi;
#endif
    if                                                  /* asleep */
    :: d_step { doorbell[me] -> doorbell[me] = 0 }
    SENDER_DIES
    fi;
    S(parked[me] = 0);
woken:
    if
    :: d_step { room[me] || scan_all[me] -> room[me] = 0; scan_all[me] = 0; wanting[me] = 0 } goto try
    :: d_step { !room[me] && !scan_all[me] -> skip } goto park
    SENDER_DIES
    fi;
out:
    skip
}

/* ---- reader ---- */
#define READER_DIES :: d_step { reader_kills > 0 && !buffered -> \
                         reader_kills--; deaths++; reader_dead = 1; w = 0; i = 0; word = 0; early = 0 } goto attach \
                    :: d_step { reader_stops > 0 && !buffered -> reader_stops--; w = 0; i = 0; word = 0; early = 0 } goto stopped
#define R(step) if :: d_step { step } READER_DIES fi

proctype reader() {
    byte w, i, word, early;

attach:
    !reader_dead;

take:
    if
    :: d_step { slot == FULL && !buffered -> slot = TAKEN }       /* CAS: a locked operation */
    READER_DIES
    fi;

#ifdef MUTANT_WAITERS_BEFORE_RELEASE
    R(w = waiters[0]);
    R(slot = EMPTY);
    goto looked;
#elif defined(MUTANT_RELEASE_STORE_ONLY)
    R(buffered = 1);                                    /* seen by others when the buffer drains */
#elif defined(MUTANT_SECOND_WORD_BEFORE_RELEASE)
    R(early = waiters[1]);
    R(slot = EMPTY);
#else
    R(slot = EMPTY);
#endif
look:
#ifdef MUTANT_SECOND_WORD_BEFORE_RELEASE
    R(w = (word -> early : waiters[0]));
#else
    R(w = waiters[word]);
#endif
looked:
    if
#ifdef MUTANT_SECOND_WORD_WITH_THE_FIRST
    :: w == 0 -> goto all_told
#else
    :: w == 0 -> goto NEXT_WORD
#endif
    :: w != 0
    fi;
#ifdef MUTANT_CLEAR_WAITERS_LAST
    skip;
#else
    if
    :: d_step { !buffered -> w = waiters[word]; waiters[word] = 0 }         /* exchange: a locked operation */
    READER_DIES
    fi;
#endif
    do
    :: d_step { i < SENDERS && !(MINE(i) && (w & BIT(i))) -> i++ }
#ifdef MUTANT_RING_BEFORE_ROOM_BIT
    :: i < SENDERS && MINE(i) && (w & BIT(i)) ->
        R(if :: parked[i] -> doorbell[i] = 1 :: else fi);
        R(room[i] = 1; i++)
#else
    :: d_step { i < SENDERS && MINE(i) && (w & BIT(i)) -> room[i] = 1 }
        R(if :: parked[i] -> doorbell[i] = 1 :: else fi; i++)
#endif
    :: i == SENDERS -> i = 0; break
    READER_DIES
    od;
#ifdef MUTANT_CLEAR_WAITERS_LAST
    R(waiters[word] = 0);
#endif
#ifdef TWO_WORDS
told:
    if
    :: d_step { word == 0 -> word++; w = 0 } goto look
    :: d_step { word == 1 -> skip }
    fi;
#ifdef MUTANT_SECOND_WORD_WITH_THE_FIRST
all_told:
    skip;
#endif
    d_step { w = 0; word = 0; early = 0 }
#else
    w = 0;
#endif
    goto take;
stopped:
    skip
}

proctype store_buffer() {
    do
    :: d_step { buffered -> buffered = 0; slot = EMPTY }
    od
}

/* ---- host: learns of deaths by pidfd ---- */
#define REPAIR d_step { if :: reader_dead && slot == TAKEN -> slot = EMPTY :: else fi; reader_dead = 0 }

proctype host() {
#ifdef MUTANT_NOBODY_RINGS
    skip
#else
    byte i;
again:
    deaths > 0;
#ifndef MUTANT_DOORBELL_BEFORE_REPAIR
    REPAIR;
#endif
    do
    :: i < SENDERS ->
#ifndef MUTANT_DOORBELL_WITHOUT_FULL_LOOK
        scan_all[i] = 1;
#endif
        d_step { doorbell[i] = 1; i++ }
    :: d_step { i == SENDERS -> i = 0; deaths-- } break
    od;
#ifdef MUTANT_DOORBELL_BEFORE_REPAIR
    skip;
    REPAIR;
#endif
    goto again
#endif
}

/* ---- the host's safety poll. Rung but not awake yet is no miss: in the code, the same sleep in two polls ---- */
#ifdef MUTANT_POLL_GOES_BY_BITS_ALONE
#define ROOM_HERE false
#else
#define ROOM_HERE (slot == EMPTY)     /* stopped after the release, before the exchange: both bits are there */
#endif
#define UNTOLD(i) (parked[i] && !doorbell[i] && (room[i] || (wanting[i] && (ROOM_HERE || !(waiters[WORD(i)] & BIT(i))))))

proctype poll() {
#if READER_STOPS > 0 && !defined(MUTANT_POLL_BLIND_TO_ROOM)
    do
    :: d_step { UNTOLD(0) -> room[0] = 1; doorbell[0] = 1 }
    :: d_step { UNTOLD(1) -> room[1] = 1; doorbell[1] = 1 }
    od
#else
    skip
#endif
}

/* ---- nothing can move any more: is it right that nothing moves? ---- */
proctype auditor() {
    timeout;
    assert(senders_left == 0 || (READER_STOPS && slot == TAKEN));  /* by the stopped one, which alone can release it */
    assert(slot == EMPTY || (READER_STOPS && slot == TAKEN))
}

init {
    atomic {
        run sender(0); run sender(1); run reader(); run store_buffer(); run host(); run poll(); run auditor();
        if :: READERS == 2 -> run reader() :: else fi
    }
}
