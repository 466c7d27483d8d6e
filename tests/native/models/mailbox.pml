/*
 * One lane of a mailbox: publish, take, in-hand entry, release, recovery after a death, reclaiming of chunks.
 *
 * Protocol (DESIGN.md 2.2 and 2.3)
 *   A slot is one word lap | state | reader | ref. `head` and `tail` are hints; the truth is in the slots.
 *   Publish   one CAS EMPTY(lap) -> FULL(lap, ref) at `tail`, then help `tail` on. A slot of this lap that is not
 *             EMPTY, or of a later lap, means "help tail"; only the lap before means full. A capacity (-DCAPACITY)
 *             is a count apart from the ring: full when tail - head has reached it and `head` cannot be helped on.
 *             A `tail` outside [head, head+N] is replaced by `head`. Where the ring alone decides, `head` must be
 *             helped first: released slots behind a lagging `head` let `tail` run past head+N, rightly. With a
 *             capacity of at most N it cannot, and -DTAIL_REPLACED_BLINDLY, which is what mb_publish does, is right
 *             too.
 *   Take      CAS FULL -> TAKEN(me); only now read the chunk; in-hand ref, then the in-hand word (position,
 *             deliveries); slot -> EMPTY(lap+1); help `head`; handler; clear the in-hand word.
 *   Recovery  by the successor, which may itself be killed: TAKEN(dead) -> EMPTY(lap+1) where the in-hand word
 *             names this position, else -> FULL again; then the entry in hand is delivered again, then new
 *             messages.
 *   Reclaim   the owner frees a chunk when first the slot, then every in-hand word, no longer holds it.
 *   Drop      (drop_oldest, -DDROP) a producer that finds no room CASes the FULL slot at `head` to EMPTY(lap+1),
 *             never a TAKEN one. (latest, -DLATEST) it does so before it publishes, until nothing is FULL there.
 *
 * Bounds     N = 2 slots, laps modulo 4, positions start two laps before the wrap of the lap; producers, messages,
 *            readers and kills by -D (README.md). A killed producer stays dead; a killed reader has a successor of
 *            the same index.
 *
 * Checked    Every assert below. Waits are written as guards ("until what I read has changed"), so whatever cannot
 *            go on is a timeout, and the auditor asserts there that all producers are done or dead, and that every
 *            committed message was handled (or dropped by policy). Per-sender order of first deliveries with one
 *            reader. A message runs again only for a kill inside its handler. No read of a freed chunk; every
 *            handled chunk is freed. The non-progress search (-DNP) finds no cycle at all: nobody spins for ever.
 * Not        Weak memory: each access to a slot, head or tail is a seq_cst operation, and the in-hand words are
 *            published before the slot by the release order of stores. Wake-up (wake.pml), waiting for room
 *            (room.pml), lanes and closing (lanes.pml). A producer that sleeps for a whole turn of the lap between
 *            load and CAS (2^16 laps). Several in-hand entries per reader.
 */

#define N    2
#define LAPS 4
#define START ((LAPS - 2) * N)
#ifndef PRODUCERS
#define PRODUCERS 2
#endif
#ifndef PER_PRODUCER
#define PER_PRODUCER 3
#endif
#ifndef READERS
#define READERS 1
#endif
#ifndef PRODUCER_KILLS
#define PRODUCER_KILLS 0
#endif
#ifndef READER_KILLS
#define READER_KILLS 0
#endif
#ifndef TAIL_AT_START
#define TAIL_AT_START START
#endif

#ifdef LATEST
#define DROP                          /* and finding no room all the same, it makes some as drop_oldest does */
#endif

#ifdef CAPACITY
#define ROOM CAPACITY                 /* at most so many messages wait; the ring has at least as many slots */
#define PLACES CAPACITY
#else
#define ROOM (N + 1)                  /* the ring alone decides */
#define PLACES N
#endif
#define MESSAGES (PRODUCERS * PER_PRODUCER)

/* ---- words ---- */
#define EMPTY 0
#define FULL  1
#define TAKEN 2
#define WORD(lap, state, reader, ref) (((lap) << 8) | ((state) << 6) | ((reader) << 4) | (ref))
#define LAP(w)    ((w) >> 8)
#define STATE(w)  (((w) >> 6) & 3)
#define READER(w) (((w) >> 4) & 3)
#define REF(w)    ((w) & 15)
#define TURN(position) (((position) / N) % LAPS)             /* the lap as a word stores it */
#define NEXT_TURN(position) ((TURN(position) + 1) % LAPS)
#define AT(position) slot[(position) % N]
#ifdef MUTANT_UNTRUNCATED_LAP
#define SAME_LAP(w, position) (LAP(w) == (position) / N)
#define LAP_BEFORE(w, position) (LAP(w) + 1 == (position) / N)
#else
#define SAME_LAP(w, position) (LAP(w) == TURN(position))
#define LAP_BEFORE(w, position) ((LAP(w) + 1) % LAPS == TURN(position))
#endif

#define FULL_AT(p)  (SAME_LAP(AT(p), p) && STATE(AT(p)) == FULL)
#define TAKEN_AT(p) (SAME_LAP(AT(p), p) && STATE(AT(p)) == TAKEN)

#ifdef MUTANT_NO_READER_IN_TAKEN
#define TAKER(r) 0
#else
#define TAKER(r) (r)
#endif

/* ---- shared memory ---- */
short slot[N];
byte head = START;
byte tail = TAIL_AT_START;
byte hand_ref[READERS];
byte hand_position[READERS];          /* 0: nothing in hand */
byte hand_deliveries[READERS];

/* ---- what an outside observer knows ---- */
byte producers_left = PRODUCERS;      /* neither done nor dead */
byte readers_left = READERS;
byte committed, handled, dropped;     /* handled counts first deliveries */
byte runs[MESSAGES + 1];              /* handler starts, by ref */
byte next_seq[PRODUCERS];
byte reruns, reruns_owed;             /* owed: kills inside a handler */
byte producer_kills = PRODUCER_KILLS;
byte reader_kills = READER_KILLS;
#ifdef RECLAIM
byte chunk_position[MESSAGES + 1];    /* in the chunk's header, written before the publish */
bit freed[MESSAGES + 1];
byte freed_count;
#define CHUNK_IS_MINE(m) assert(!freed[m])
#else
#define CHUNK_IS_MINE(m) skip
#endif

#define SENDER(m) (((m) - 1) / PER_PRODUCER)
#define SEQ(m)    (((m) - 1) % PER_PRODUCER)

/* Hints are moved by one CAS, and never past what is committed. */
#define HELP_HEAD(seen) if :: head == seen -> head = seen + 1; assert(head <= START + committed) :: else fi
#define HELP_TAIL(seen) if :: tail == seen -> tail = seen + 1; assert(tail <= START + committed) :: else fi

inline run_handler(m, me) {
    CHUNK_IS_MINE(m);
    runs[m]++;
    assert(hand_deliveries[me] >= runs[m]);      /* the poison limit never counts too few */
    if
    :: runs[m] == 1 ->
        handled++;
#if READERS == 1
#if defined(DROP) || defined(AT_MOST_ONCE)
        assert(SEQ(m) >= next_seq[SENDER(m)]);
#else
        assert(SEQ(m) == next_seq[SENDER(m)]);
#endif
        next_seq[SENDER(m)] = SEQ(m) + 1
#endif
    :: else -> reruns++
    fi;
    assert(reruns <= reruns_owed)
}

/* ---- producer ---- */
#define PRODUCER_DIES \
    :: d_step { producer_kills > 0 -> producer_kills--; producers_left--; k = 0; t = 0; h = 0; s = 0 } goto out
#define P(step) if :: d_step { step } PRODUCER_DIES fi

proctype producer(byte me) {
    byte k, t, h;
    short s;

#ifdef LATEST
next:                                               /* what waits goes first; the code does so once for a message */
    if
    :: d_step { k == PER_PRODUCER -> k = 0; producers_left-- } goto out
    :: d_step { k < PER_PRODUCER -> h = head }
    PRODUCER_DIES
    fi;
    P(s = AT(h));
    if
    :: d_step { SAME_LAP(s, h) && STATE(s) == FULL && AT(h) == s ->
                AT(h) = WORD(NEXT_TURN(h), EMPTY, 0, 0); dropped++; s = 0 }
    :: d_step { SAME_LAP(s, h) && STATE(s) == FULL && AT(h) != s -> s = 0; h = 0 } goto load_tail
    :: d_step { SAME_LAP(s, h) && STATE(s) != FULL -> s = 0; h = 0 } goto load_tail
    :: d_step { !SAME_LAP(s, h) -> s = 0 }
    PRODUCER_DIES
    fi;
    P(HELP_HEAD(h); h = 0);
    goto next;
#else
next:
#endif
load_tail:
    if
    :: d_step { k == PER_PRODUCER -> k = 0; producers_left-- } goto out
#ifdef MUTANT_CLAIM_THEN_WRITE
    :: d_step { k < PER_PRODUCER && !LAP_BEFORE(slot[tail % N], tail) -> t = tail; tail++ }
    PRODUCER_DIES
    fi;
    P(AT(t) = WORD(TURN(t), FULL, 0, me * PER_PRODUCER + k + 1); committed++; k++; t = 0);
    goto load_tail;
#else
    :: d_step { k < PER_PRODUCER -> t = tail }
    PRODUCER_DIES
    fi;
#endif
    P(h = head);
    if
    :: d_step { t >= h && t <= h + N && t - h < ROOM -> s = AT(t) }
    :: d_step { t >= h && t <= h + N && t - h >= ROOM -> s = AT(h) } goto no_room
    :: d_step { !(t >= h && t <= h + N) -> s = AT(h) } goto outside
    PRODUCER_DIES
    fi;
    if
    :: d_step { SAME_LAP(s, t) && STATE(s) == EMPTY &&
#ifdef MUTANT_PUBLISH_BY_STORE
                true ->
#else
                AT(t) == s ->
#endif
                AT(t) = WORD(TURN(t), FULL, 0, me * PER_PRODUCER + k + 1);
#ifdef RECLAIM
                chunk_position[me * PER_PRODUCER + k + 1] = t;
#endif
                committed++; k++; s = 0; h = 0;                           /* SYNC POINT: the message is committed */
                assert(FULL_AT(head) + FULL_AT(head + 1) <= ROOM) }
#ifndef MUTANT_PUBLISH_BY_STORE
    :: d_step { SAME_LAP(s, t) && STATE(s) == EMPTY && AT(t) != s -> s = 0; h = 0 }
#endif
    :: d_step { SAME_LAP(s, t) && STATE(s) != EMPTY -> s = 0; h = 0 }
    :: d_step { LAP_BEFORE(s, t) -> skip } goto ring_full
    :: d_step { !SAME_LAP(s, t) && !LAP_BEFORE(s, t) -> skip }
#ifdef MUTANT_TAIL_RELOAD
                                                              goto reload
#endif
    PRODUCER_DIES
    fi;
help_tail:
    P(HELP_TAIL(t); t = 0; s = 0; h = 0);
    goto next;

no_room:                                            /* by count: full unless `head` lags behind */
    if
    :: d_step { !SAME_LAP(s, h) -> HELP_HEAD(h); t = 0; s = 0; h = 0 } goto load_tail
#ifdef DROP
    :: d_step { SAME_LAP(s, h) -> s = 0 } goto ring_full
#else
    :: d_step { SAME_LAP(s, h) && (AT(h) != s || tail != t || head != h) -> t = 0; s = 0; h = 0 } goto load_tail
#endif
    PRODUCER_DIES
    fi;

outside:
    if
#ifndef TAIL_REPLACED_BLINDLY
    :: d_step { !SAME_LAP(s, h) -> HELP_HEAD(h); t = 0; s = 0; h = 0 }
    :: d_step { SAME_LAP(s, h) -> if :: tail == t -> tail = h :: else fi; t = 0; s = 0; h = 0 }
#else
    :: d_step { if :: tail == t -> tail = h :: else fi; t = 0; s = 0; h = 0 }
#endif
    PRODUCER_DIES
    fi;
    goto load_tail;

ring_full:
#ifdef DROP
    P(s = AT(h));
    if
    :: d_step { SAME_LAP(s, h) && STATE(s) == FULL && AT(h) == s ->
                AT(h) = WORD(NEXT_TURN(h), EMPTY, 0, 0); dropped++; s = 0 }
#ifdef MUTANT_DROP_TAKEN
    :: d_step { SAME_LAP(s, h) && STATE(s) == TAKEN && AT(h) == s -> AT(h) = WORD(NEXT_TURN(h), EMPTY, 0, 0); s = 0 }
#else
    :: d_step { SAME_LAP(s, h) && STATE(s) == TAKEN -> k++; t = 0; s = 0; h = 0 } goto next       /* as `error` */
#endif
    :: d_step { SAME_LAP(s, h) && STATE(s) != EMPTY && AT(h) != s -> t = 0; s = 0; h = 0 } goto load_tail
    :: d_step { SAME_LAP(s, h) && STATE(s) == EMPTY -> t = 0; s = 0; h = 0 } goto load_tail
    :: d_step { !SAME_LAP(s, h) -> s = 0 }
    PRODUCER_DIES
    fi;
    P(HELP_HEAD(h); t = 0; h = 0);
    goto load_tail;
#endif

reload:
    if                                              /* of use once a word that was read has changed */
    :: d_step { AT(t) != s || tail != t || head != h -> t = 0; s = 0; h = 0 } goto load_tail
    PRODUCER_DIES
    fi;
out:
    skip
}

/* ---- reader ---- */
#ifdef READER_STAYS_DEAD
#define SUCCESSOR readers_left--; goto out
#else
#define SUCCESSOR goto attach
#endif
#define READER_DIES \
    :: d_step { reader_kills > 0 -> reader_kills--; position = 0; h = 0; s = 0 } SUCCESSOR
#define READER_DIES_IN_HANDLER \
    :: d_step { reader_kills > 0 -> reader_kills--; reruns_owed++; position = 0; h = 0; s = 0 } SUCCESSOR
#define R(step) if :: d_step { step } READER_DIES fi

/* A scan from `head` would find something to do: the wait of an idle reader, without its idle turns. */
#define WORK (FULL_AT(head) || !SAME_LAP(AT(head), head) || (TAKEN_AT(head) && FULL_AT(head + 1)))

proctype reader(byte me) {
    byte position, h;
    short s;
    goto scan;

attach:                                             /* the successor: proof of death of its predecessor is given */
    if
    :: d_step { position < N ->
                s = slot[position];
                if
                :: STATE(s) == TAKEN && READER(s) == TAKER(me) ->
                    /* load of the word, load of the in-hand word, CAS: nobody else writes either */
                    if
#ifdef MUTANT_RECOVERY_IGNORES_HAND
                    :: false -> skip
#else
                    :: hand_position[me] && hand_position[me] % N == position && TURN(hand_position[me]) == LAP(s) ->
                        slot[position] = WORD((LAP(s) + 1) % LAPS, EMPTY, 0, 0)
#endif
#ifdef MUTANT_RECOVERY_ALWAYS_RELEASES
                    :: else -> slot[position] = WORD((LAP(s) + 1) % LAPS, EMPTY, 0, 0)
#else
                    :: else -> slot[position] = WORD(LAP(s), FULL, 0, REF(s))
#endif
                    fi
                :: else
                fi;
                s = 0;
                position++ } goto attach
    :: d_step { position == N && hand_position[me] != 0 -> position = 0;
#ifndef MUTANT_DELIVERY_COUNTED_AFTER
                hand_deliveries[me]++
#endif
              }
#ifdef MUTANT_NEW_BEFORE_HAND
              goto scan
#else
              goto handle
#endif
    :: d_step { position == N && hand_position[me] == 0 -> position = 0 }
    READER_DIES
    fi;

scan:
    if
    :: d_step { WORK -> h = head; position = head }
#ifdef MUTANT_NEW_BEFORE_HAND
    :: d_step { !WORK && hand_position[me] != 0 -> skip } goto handle
#endif
    READER_DIES
    fi;

look:
    R(s = AT(position));
    if
    :: d_step { SAME_LAP(s, position) && STATE(s) == FULL &&
#ifdef MUTANT_TAKE_BY_STORE
                true ->
#else
                AT(position) == s ->
#endif
                AT(position) = WORD(LAP(s), TAKEN, TAKER(me), REF(s)); h = 0 }
#ifndef MUTANT_TAKE_BY_STORE
    :: d_step { SAME_LAP(s, position) && STATE(s) == FULL && AT(position) != s -> position = 0; h = 0; s = 0 } goto scan
#endif
#ifdef MUTANT_READ_BEFORE_TAKE
    :: d_step { SAME_LAP(s, position) && STATE(s) == FULL -> CHUNK_IS_MINE(REF(s)) }
       goto taken_late
#endif
    :: d_step { SAME_LAP(s, position) && STATE(s) == TAKEN && position + 1 < h + N -> position++; s = 0 } goto look
    :: d_step { SAME_LAP(s, position) && (STATE(s) == EMPTY || STATE(s) == TAKEN && position + 1 == h + N) ->
                position = 0; h = 0; s = 0 } goto scan
    :: d_step { !SAME_LAP(s, position) ->
                if :: position == h -> HELP_HEAD(h) :: else fi; position = 0; h = 0; s = 0 } goto scan
    READER_DIES
    fi;

taken:
#ifdef MUTANT_HEAD_BEFORE_RELEASE
    R(HELP_HEAD(position));
#endif
#ifdef MUTANT_RELEASE_BEFORE_HAND
    R(AT(position) = WORD(NEXT_TURN(position), EMPTY, 0, 0));
#endif
#ifdef MUTANT_HAND_WORD_BEFORE_REF
    R(hand_position[me] = position; hand_deliveries[me] = 1);
    R(CHUNK_IS_MINE(REF(s)); hand_ref[me] = REF(s); s = 0);
#else
    R(CHUNK_IS_MINE(REF(s)); hand_ref[me] = REF(s); s = 0);
    R(hand_position[me] = position; hand_deliveries[me] = 1);
#endif
#ifndef MUTANT_RELEASE_BEFORE_HAND
    R(AT(position) = WORD(NEXT_TURN(position), EMPTY, 0, 0));
#endif
    R(HELP_HEAD(position); position = 0);

handle:
#if defined(AT_MOST_ONCE) || defined(MUTANT_CLEAR_BEFORE_HANDLER)
    R(s = hand_ref[me]; hand_position[me] = 0);
    R(run_handler(s, me); s = 0; hand_ref[me] = 0; hand_deliveries[me] = 0);
#else
    R(run_handler(hand_ref[me], me));
    if
    :: d_step { hand_position[me] = 0; hand_ref[me] = 0; hand_deliveries[me] = 0 }
    READER_DIES_IN_HANDLER
    fi;
#endif
    goto scan;

#ifdef MUTANT_READ_BEFORE_TAKE
taken_late:
    if
    :: d_step { AT(position) == s -> AT(position) = WORD(LAP(s), TAKEN, TAKER(me), REF(s)); h = 0 } goto taken
    :: d_step { AT(position) != s -> position = 0; h = 0; s = 0 } goto scan
    READER_DIES
    fi;
#endif
out:
    skip
}

#ifdef RECLAIM
/* ---- the owner of the chunks: its private list is every committed chunk that it has not freed ---- */
#define SLOT_HOLDS(m) (TURN(chunk_position[m]) == LAP(AT(chunk_position[m])) && STATE(AT(chunk_position[m])) != EMPTY \
                       && REF(AT(chunk_position[m])) == (m))
#define HAND_HOLDS(r, m) (hand_position[r] != 0 && hand_position[r] == chunk_position[m])

#ifdef MUTANT_HAND_BEFORE_SLOT
#define FIRST_LOOK(m) :: d_step { m <= MESSAGES && chunk_position[m] && !freed[m] && !HAND_HOLDS(0, m) -> chunk = m }
#else
#define FIRST_LOOK(m) :: d_step { m <= MESSAGES && chunk_position[m] && !freed[m] && !SLOT_HOLDS(m) -> chunk = m }
#endif

proctype owner() {
    byte chunk, r;
again:
    if                                              /* a look that ends with "keep" changes nothing: left out */
    FIRST_LOOK(1)
    FIRST_LOOK(2)
#if MESSAGES > 2
    FIRST_LOOK(3)
#endif
#if MESSAGES > 3
    FIRST_LOOK(4)
#endif
    fi;
#ifdef MUTANT_HAND_BEFORE_SLOT
    if
    :: d_step { !SLOT_HOLDS(chunk) -> freed[chunk] = 1; freed_count++; chunk = 0 }
    :: d_step { SLOT_HOLDS(chunk) -> chunk = 0 }
    fi;
#else
    do
    :: d_step { r < READERS && !HAND_HOLDS(r, chunk) -> r++ }
    :: d_step { r < READERS && HAND_HOLDS(r, chunk) -> r = 0; chunk = 0 } break
    :: d_step { r == READERS -> freed[chunk] = 1; freed_count++; r = 0; chunk = 0 } break
    od;
#endif
    goto again
}
#endif
/* ---- nothing can move any more: is it right that nothing moves? ---- */
proctype auditor() {
    timeout;
#ifdef READER_STAYS_DEAD
    if
    :: producers_left > 0 -> assert((STATE(slot[0]) != EMPTY) + (STATE(slot[1]) != EMPTY) >= PLACES)   /* full */
    :: else -> assert(readers_left == 0 || handled == committed)
    fi;
#else
    assert(producers_left == 0);
#ifdef AT_MOST_ONCE
    assert(reruns == 0 && committed - handled <= READER_KILLS);
#else
    assert(handled + dropped == committed);
#endif
#endif
#ifdef RECLAIM
    assert(freed_count == committed);
#endif
}

init {
    atomic {
        slot[0] = WORD(TURN(START), EMPTY, 0, 0);
        slot[1] = WORD(TURN(START + 1), EMPTY, 0, 0);
        run producer(0);
        run reader(0);
#if PRODUCERS == 2
        run producer(1);
#endif
#if READERS == 2
        run reader(1);
#endif
#ifdef RECLAIM
        run owner();
#endif
        run auditor()
    }
}
