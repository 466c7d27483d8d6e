/*
 * Wake-up: ready bits, park_seq and the doorbell, between senders and one receiving process.
 *
 * Protocol (DESIGN.md 2.4)
 *   Sender    publish -> ready bit (load the word's bit, then the summary's bit: both seen set, nothing to do; else
 *             or the word, then or the summary) -> load park_seq -> ring if it is odd and not rung yet for this
 *             value.
 *   Receiver  exchange the summary for 0 -> for the word it names exchange the word for 0 -> drain the mailboxes it
 *             names; the scan-all bit of the summary means: drain every mailbox. Nothing there: park_seq odd ->
 *             re-check of the summary -> sleep. The doorbell's callback adds one only if park_seq is odd; it may
 *             also run for a stale doorbell while the receiver is awake.
 *             A successor adds one to park_seq if it is odd, never resets it, and drains every mailbox first.
 *   Host      on the death of a sender: scan-all bit, then the doorbell.
 *
 * Bounds     One receiver, MAILBOXES = 2 in one word, two senders with a few messages each to mailboxes chosen
 *            freely; x86-TSO with an explicit store buffer per process (one pending store each; locked operations
 *            wait until it is empty). Kills and stops by -D (README.md).
 *
 * Checked    At the end (timeout) every message whose sender finished its wake-up, or died, was drained. A
 *            *stopped* sender (SIGSTOP: no death, so no host) may delay its own last message, never anyone else's.
 *            No endless cycle (-DNP).
 * Not        Which process reads a mailbox (route.pml); the spin before parking; budgets; the safety poll, which is
 *            there for the stopped sender's own message. Weaker memory than TSO: the C code uses seq_cst for all
 *            four accesses.
 */

#define SENDERS   2
#define MAILBOXES 2
#ifndef MESSAGES
#define MESSAGES 2                    /* of sender 0 */
#endif
#ifndef MESSAGES_1
#define MESSAGES_1 1                  /* of sender 1 */
#endif
#define QUOTA(p) (p == 0 -> MESSAGES : MESSAGES_1)
#ifndef SENDER_KILLS
#define SENDER_KILLS 0
#endif
#ifndef SENDER_STOPS
#define SENDER_STOPS 0
#endif
#ifndef RECEIVER_KILLS
#define RECEIVER_KILLS 0
#endif

#define SCAN_ALL 1                    /* bits of the summary */
#define WORD_0   2
#define BIT(m) (1 << (m))

/* ---- shared memory and the doorbell ---- */
byte box[MAILBOXES];                  /* messages published so far */
byte seen[MAILBOXES];                 /* of these, drained so far: the mailbox's head */
byte summary, word;
byte park_seq;                        /* odd: parked */
bit doorbell;

/* ---- store buffers: 0 empty, else the mailbox of the pending publish + 1; the pending park_seq + 1 ---- */
#ifdef MUTANT_RELEASE_ONLY_COMMIT
byte pending_publish[SENDERS];
#define FLUSHED(p) (pending_publish[p] == 0)
#else
#define FLUSHED(p) true
#endif
#if defined(MUTANT_RELEASE_ONLY_PARK) || defined(UNPARK_BY_RELEASE)
byte pending_park;
#define PARK_FLUSHED (pending_park == 0)
#else
#define PARK_FLUSHED true
#endif

/* ---- what an outside observer knows ---- */
#if SENDER_STOPS > 0
byte mine[SENDERS];                   /* the place in its mailbox of the message that a sender is sending */
byte promised[MAILBOXES];             /* the wake-up of this many was finished: drained, or a lost wake-up */
#define PUBLISH box[m]++; mine[me] = box[m]
#define PROMISE if :: promised[m] < mine[me] -> promised[m] = mine[me] :: else fi; mine[me] = 0
#else
#define PUBLISH box[m]++
#define PROMISE skip
#endif
byte senders_left = SENDERS;
byte deaths;
byte sender_kills = SENDER_KILLS, sender_stops = SENDER_STOPS, receiver_kills = RECEIVER_KILLS;

/* ---- sender ---- */
#define SENDER_FAULTS \
    :: d_step { sender_kills > 0 && FLUSHED(me) && k < QUOTA(me) -> \
                sender_kills--; senders_left--; deaths++; k = 0; m = 0; odd = 0; last_rung = 0 } goto out \
    :: d_step { sender_stops > 0 && FLUSHED(me) && k < QUOTA(me) -> \
                sender_stops--; senders_left--; k = 0; m = 0; odd = 0; last_rung = 0 } goto out
#define S(step) if :: d_step { step } SENDER_FAULTS fi
#define S_LOCKED(step) if :: d_step { FLUSHED(me) -> step } SENDER_FAULTS fi

proctype sender(byte me) {
    byte k, m, odd, last_rung;

next:
    if
    :: d_step { k == QUOTA(me) -> k = 0; last_rung = 0; senders_left-- } goto out
#if defined(MUTANT_BIT_BEFORE_PUBLISH) || defined(MUTANT_RELEASE_ONLY_COMMIT)
    :: d_step { k < QUOTA(me) -> m = 0 }
    :: d_step { k < QUOTA(me) -> m = 1 }
#else
    :: d_step { k < QUOTA(me) -> m = 0; PUBLISH }                     /* SYNC POINT: commit, seq_cst */
    :: d_step { k < QUOTA(me) -> m = 1; PUBLISH }
#endif
    SENDER_FAULTS
    fi;
#ifdef MUTANT_BIT_BEFORE_PUBLISH
    S_LOCKED(word = word | BIT(m));
    S_LOCKED(summary = summary | WORD_0);
    S(PUBLISH);
#else
#ifdef MUTANT_RELEASE_ONLY_COMMIT
    if
    :: d_step { FLUSHED(me) -> pending_publish[me] = m + 1 }
    SENDER_FAULTS
    fi;
#endif
#ifdef SUMMARY_LOADED_FIRST
    if
    :: d_step { summary & WORD_0 -> skip }
    :: d_step { !(summary & WORD_0) -> skip } goto set
    SENDER_FAULTS
    fi;
    if
    :: d_step { word & BIT(m) -> skip } goto look
    :: d_step { !(word & BIT(m)) -> skip }
    SENDER_FAULTS
    fi;
#else
    if
    :: d_step { word & BIT(m) -> skip }
    :: d_step { !(word & BIT(m)) -> skip } goto set
    SENDER_FAULTS
    fi;
    if
    :: d_step { summary & WORD_0 -> skip } goto look
#ifdef SKIP_EACH
    :: d_step { !(summary & WORD_0) -> skip } goto set_summary
#else
    :: d_step { !(summary & WORD_0) -> skip }
#endif
    SENDER_FAULTS
    fi;
#endif
set:
#ifdef MUTANT_SUMMARY_SET_FIRST
    S_LOCKED(summary = summary | WORD_0);
    S_LOCKED(word = word | BIT(m));
#else
    S_LOCKED(word = word | BIT(m));
#ifdef SKIP_EACH
    if
    :: d_step { summary & WORD_0 -> skip } goto look
    :: d_step { !(summary & WORD_0) -> skip }
    SENDER_FAULTS
    fi;
set_summary:
#endif
    S_LOCKED(summary = summary | WORD_0);
#endif
look:
#endif
    S(odd = park_seq);                                                /* SYNC POINT: park_seq, seq_cst */
    S(if
      :: odd % 2 == 1 && odd != last_rung -> doorbell = 1; last_rung = odd
      :: else
      fi;
      PROMISE; m = 0; odd = 0; k++);                                  /* send() has returned */
    goto next;
out:
    skip
}

/* ---- receiver ---- */
#define RECEIVER_DIES \
    :: d_step { receiver_kills > 0 && PARK_FLUSHED -> receiver_kills--; s = 0; w = 0; m = 0 } goto attach
#define R(step) if :: d_step { step } RECEIVER_DIES fi
#define R_LOCKED(step) if :: d_step { PARK_FLUSHED -> step } RECEIVER_DIES fi

#ifdef MUTANT_BOOLEAN_PARK
#define PARK   park_seq = 1
#define UNPARK park_seq = 0
#else
#define PARK   park_seq++
#define UNPARK park_seq++
#endif
#ifdef UNPARK_BY_RELEASE
#define DO_UNPARK R_LOCKED(pending_park = park_seq + 2)
#else
#define DO_UNPARK R_LOCKED(UNPARK)
#endif

proctype receiver() {
    byte s, w, m;
    goto awake;

attach:
#ifdef MUTANT_PARK_SEQ_RESET
    R(park_seq = 0);
#else
    R(if :: park_seq % 2 == 1 -> UNPARK :: else fi);
#endif
#ifndef MUTANT_SUCCESSOR_TRUSTS_BITS
    goto look_at_all;
#endif

awake:
    if
    :: d_step { doorbell && PARK_FLUSHED -> doorbell = 0;             /* stale: the callback runs while awake */
#ifdef MUTANT_BLIND_INCREMENT
                park_seq++ } goto awake
#else
                assert(park_seq % 2 == 0) } goto awake
#endif
    :: d_step { PARK_FLUSHED -> s = summary; summary = 0 }
    RECEIVER_DIES
    fi;
    if
    :: s == 0 -> goto park
    :: s & SCAN_ALL -> s = 0; goto look_at_all
    :: s == WORD_0 -> s = 0
    fi;
#ifdef MUTANT_BIT_CLEARED_AFTER_DRAIN
    R(w = word);
#else
    R_LOCKED(w = word; word = 0);                                     /* cleared before the mailbox is read */
#endif
    do
    :: d_step { m < MAILBOXES && (w & BIT(m)) -> seen[m] = box[m]; m++ }
    :: d_step { m < MAILBOXES && !(w & BIT(m)) -> m++ }
    :: d_step { m == MAILBOXES -> m = 0 } break
    RECEIVER_DIES
    od;
#ifdef MUTANT_BIT_CLEARED_AFTER_DRAIN
    R_LOCKED(word = word & ~w);
#endif
    w = 0;
    goto awake;

look_at_all:
    do
    :: d_step { m < MAILBOXES -> seen[m] = box[m]; m++ }
    :: d_step { m == MAILBOXES -> m = 0 } goto awake
    RECEIVER_DIES
    od;

park:
#ifdef MUTANT_RELEASE_ONLY_PARK
    R_LOCKED(pending_park = park_seq + 2);
#else
    R_LOCKED(PARK);                                                   /* SYNC POINT: park_seq, seq_cst */
#endif
#ifndef MUTANT_NO_RECHECK
    if
    :: d_step { summary == 0 -> skip }
    :: d_step { summary != 0 -> skip } goto unpark
    RECEIVER_DIES
    fi;
#endif
    if                                                                /* asleep in epoll */
    :: d_step { doorbell && PARK_FLUSHED -> doorbell = 0 }
    RECEIVER_DIES
    fi;
unpark:
    DO_UNPARK;
    goto awake
}

#if defined(MUTANT_RELEASE_ONLY_COMMIT) || defined(MUTANT_RELEASE_ONLY_PARK) || defined(UNPARK_BY_RELEASE)
proctype store_buffers() {
    do
#ifdef MUTANT_RELEASE_ONLY_COMMIT
    :: d_step { pending_publish[0] != 0 -> box[pending_publish[0] - 1]++; pending_publish[0] = 0 }
    :: d_step { pending_publish[1] != 0 -> box[pending_publish[1] - 1]++; pending_publish[1] = 0 }
#else
    :: d_step { pending_park != 0 -> park_seq = pending_park - 1; pending_park = 0 }
#endif
    od
}
#endif

/* ---- host: learns of a sender's death by pidfd ---- */
proctype host() {
#ifdef MUTANT_NOBODY_RINGS
    skip
#else
again:
    deaths > 0;
    deaths--;
#ifndef MUTANT_DOORBELL_WITHOUT_FULL_LOOK
    summary = summary | SCAN_ALL;
#endif
    doorbell = 1;
    goto again
#endif
}

/* ---- nothing can move any more: is it right that nothing moves? ---- */
proctype auditor() {
    byte m;
    timeout;
    assert(senders_left == 0);
    for (m : 0 .. MAILBOXES - 1) {
#if SENDER_STOPS > 0
        assert(seen[m] >= promised[m])
#else
        assert(seen[m] == box[m])
#endif
    }
}

init {
    atomic {
        run sender(0); run sender(1); run receiver(); run host(); run auditor();
#if defined(MUTANT_RELEASE_ONLY_COMMIT) || defined(MUTANT_RELEASE_ONLY_PARK) || defined(UNPARK_BY_RELEASE)
        run store_buffers()
#endif
    }
}
