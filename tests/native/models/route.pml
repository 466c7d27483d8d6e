/*
 * A mailbox changes the process that reads it: restart into another process, live move, with the host killed in
 * between.
 *
 * Protocol (DESIGN.md 2.3, 2.4)
 *   Sender    publish -> load the mailbox's readers word (after the publish, each time anew) -> set the ready bit
 *             of the process it names -> ring that process if it is parked.
 *   Host      live move: tell the old reader to let go and wait until it has; death: proof of death is given. Then
 *             store the readers word, and only then tell the new reader to attach, which scans. A host that is
 *             killed is followed by one that does the whole move again.
 *            TWO_WORDS: the processes' bits lie in two words, stored and loaded one after the other, so a sender may
 *            see nobody, or both.
 *   Process   takes its bits (exchange) and drains the mailbox if it is attached to it; nothing there: parked ->
 *             re-check -> sleep. Attached is what it was told, never what the readers word says: between letting
 *             go and the store of the readers word that word still names the old reader.
 *
 * Bounds     Two processes, one mailbox, MOVES moves (0 -> 1 -> 0), senders and messages by -D; kills of a reader
 *            and of the host by -D (README.md). One ready bit and one command word per process.
 *
 * Checked    At the end (timeout) every published message was drained, the move is done, and all senders are done:
 *            no wake-up is lost on the way to a new reader. At no time do two live processes drain the mailbox.
 *            No endless cycle (-DNP).
 * Not        Store buffers and park_seq as a sequence (wake.pml); what the old reader had in hand and its TAKEN
 *            slot (mailbox.pml). Several readers at once (replicas): there each of them is rung.
 */

#define PROCESSES 2
#ifndef SENDERS
#define SENDERS 1
#endif
#ifndef MESSAGES
#define MESSAGES 2
#endif
#ifndef MOVES
#define MOVES 1
#endif
#ifndef READER_KILLS
#define READER_KILLS 0
#endif
#ifndef HOST_KILLS
#define HOST_KILLS 0
#endif

#ifdef TWO_WORDS
#define WORDS 2
#define WORD(p) (p)                   /* one bit in each */
#define BIT(p) 1
#else
#define WORDS 1
#define WORD(p) 0
#define BIT(p) (1 << (p))
#endif
#define READS(p) (readers[WORD(p)] & BIT(p))
#define IN_WORD(v, p) (WORD(p) == v -> BIT(p) : 0)

/* ---- shared memory and doorbells ---- */
byte box, seen;                       /* published; drained */
byte readers[WORDS];                  /* the set of processes that read the mailbox: one, but for the instants of a move */
bit ready[PROCESSES], parked[PROCESSES], doorbell[PROCESSES];
byte command[PROCESSES];              /* host -> process, on the control connection; cleared when it has been done */
#define LET_GO 1
#define ATTACH 2

/* ---- what an outside observer knows ---- */
byte senders_left = SENDERS;
byte moves_left = MOVES;
byte draining;                        /* processes inside a drain of this mailbox */
bit dead[PROCESSES];
byte reader_kills = READER_KILLS, host_kills = HOST_KILLS;

#ifdef TWO_WORDS
#define CLEAR_ROUTE r[0] = 0; r[1] = 0
#else
#define CLEAR_ROUTE r[0] = 0
#endif

proctype sender() {
    byte k, r[WORDS], p;

#ifdef MUTANT_ROUTE_CACHED
    r[0] = readers[0];
#endif
next:
    if
    :: d_step { k == MESSAGES -> k = 0; CLEAR_ROUTE; senders_left-- } goto out
    :: k < MESSAGES
    fi;
#ifdef MUTANT_ROUTE_READ_BEFORE_PUBLISH
    r[0] = readers[0];
    box++;
#elif defined(MUTANT_SECOND_WORD_BEFORE_PUBLISH)
    r[1] = readers[1];
    box++;
    r[0] = readers[0];
#elif defined(MUTANT_ROUTE_CACHED)
    box++;
#else
    box++;
    r[0] = readers[0];
#ifdef TWO_WORDS
    r[1] = readers[1];
#endif
#endif
    do
    :: d_step { p < PROCESSES && !(r[WORD(p)] & BIT(p)) -> p++ }
    :: p < PROCESSES && (r[WORD(p)] & BIT(p)) ->
        ready[p] = 1;
        d_step { if :: parked[p] -> doorbell[p] = 1 :: else fi; p++ }
    :: d_step { p == PROCESSES -> p = 0; k++
#ifndef MUTANT_ROUTE_CACHED
                ; CLEAR_ROUTE
#endif
              } break
    od;
    goto next;
out:
    skip
}

/* ---- a process that may be the reader ---- */
#define DIES :: d_step { reader_kills > 0 && attached -> \
                         reader_kills--; dead[me] = 1; draining = draining - mine; mine = 0; b = 0; attached = 0 } \
                goto gone
#define R(step) if :: d_step { step } DIES fi

#ifdef MUTANT_GOES_BY_READERS_WORD
#define MAY_DRAIN READS(me)
#else
#define MAY_DRAIN attached
#endif

proctype process(byte me) {
    byte b, mine;
    bit attached = (me == 0);

awake:
    if                                              /* commands are done between two drains, never inside one */
    :: d_step { command[me] == LET_GO -> attached = 0; command[me] = 0 } goto awake
#ifdef MUTANT_NO_FIRST_SCAN
    :: d_step { command[me] == ATTACH -> attached = 1; command[me] = 0 } goto awake
#else
    :: d_step { command[me] == ATTACH -> attached = 1; command[me] = 0; b = 1 }
#endif
    :: d_step { command[me] == 0 -> b = ready[me]; ready[me] = 0 }
    DIES
    fi;
    if
    :: b == 0 -> goto park
    :: b != 0 -> b = 0
    fi;
    if
    :: d_step { MAY_DRAIN -> mine = 1; draining++; assert(draining <= 1) }
    :: d_step { !MAY_DRAIN -> skip } goto awake
    DIES
    fi;
    R(seen = box);
    R(mine = 0; draining--);
    goto awake;

park:
    R(parked[me] = 1);
    if
    :: d_step { !ready[me] && command[me] == 0 -> skip }
    :: d_step { ready[me] || command[me] != 0 -> parked[me] = 0 } goto awake
    DIES
    fi;
    if
    :: d_step { doorbell[me] -> doorbell[me] = 0 }
    DIES
    fi;
    R(parked[me] = 0);
    goto awake;
gone:
    skip
}

/* ---- host ---- */
#define OLD ((MOVES - moves_left) % 2)
#define NEW (1 - OLD)
#define HOST_DIES :: d_step { host_kills > 0 -> host_kills-- } goto move
#define H(step) if :: d_step { step } HOST_DIES fi

proctype host() {
move:
    if
    :: moves_left == 0 -> goto out
    :: moves_left > 0
    fi;
#ifndef MUTANT_MOVE_WITHOUT_LETTING_GO
    if
    :: d_step { !dead[OLD] && READS(OLD) -> command[OLD] = LET_GO }
    :: d_step { dead[OLD] || !READS(OLD) -> skip } goto route
    HOST_DIES
    fi;
    H(doorbell[OLD] = 1);
    if
    :: d_step { command[OLD] == 0 || dead[OLD] -> skip }
    HOST_DIES
    fi;
#endif
route:
#ifdef MUTANT_SCAN_BEFORE_ROUTE
    H(command[NEW] = ATTACH);
    H(doorbell[NEW] = 1);
    H(readers[0] = IN_WORD(0, NEW));
#else
    H(readers[0] = IN_WORD(0, NEW));                                  /* SYNC POINT: the new reader */
#if defined(TWO_WORDS) && !defined(MUTANT_SCAN_BETWEEN_WORDS)
    H(readers[1] = IN_WORD(1, NEW));
#endif
    H(command[NEW] = ATTACH);
    H(doorbell[NEW] = 1);
#ifdef MUTANT_SCAN_BETWEEN_WORDS
    H(readers[1] = IN_WORD(1, NEW));
#endif
#endif
    H(moves_left--);
    goto move;
out:
    skip
}

/* ---- nothing can move any more: is it right that nothing moves? ---- */
proctype auditor() {
    timeout;
    assert(senders_left == 0 && moves_left == 0);
    assert(READS(MOVES % 2) && !READS(1 - MOVES % 2));
    assert(dead[MOVES % 2] || seen == box)
}

init {
    atomic {
        readers[WORD(0)] = BIT(0);
#if SENDERS > 1
        run sender();
#endif
        run sender(); run process(0); run process(1); run host(); run auditor()
    }
}
