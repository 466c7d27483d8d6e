/*
 * A mailbox changes hands: the one of an agent that is gone goes to one that comes.
 *
 * Protocol (LAYOUT.md, "A mailbox changes hands"; cv_retire, cv_reopen, port_send)
 *   Sender   knows the old agent's handle. In one go, under its GIL: compares the record's `reuse` with its handle's,
 *            looks at the slot, CAS EMPTY -> FULL. Between two of these it takes its probe, if there is one; before the
 *            compare it may hold still for as long as it likes.
 *   Host     closes (EMPTY -> MARK), takes out what waits, raises `reuse`, probes every live process, waits until each has
 *            taken the probe or is dead, and only then opens the lane behind the MARK, for the new agent.
 *   A new sender has looked the new agent up, and knows its handle.
 *
 * Bounds     Two senders of the old agent, SENDS sends each, one of the new one; one lane, of which the place at `tail` is
 *            the only one that matters: positions go on, so a slot is a state and a position. Kills and stops by -D.
 *
 * Checked    At the end (timeout): every message that was committed was committed by who meant the agent that reads it; the
 *            new agent is open unless somebody is stopped for good or the host is dead, and then its mailbox is closed to
 *            all; what the new sender was told was sent is there.
 * Not        Several lanes and what is in hand (lanes.pml, mailbox.pml: the host sees both empty before it begins); the word
 *            of the probe itself (an exchange, as every alarm bit); the wrap of `reuse`, which the host forbids.
 */

#ifndef SENDS
#define SENDS 2
#endif
#ifndef KILLS
#define KILLS 0                       /* of senders, at any instruction */
#endif
#ifndef HOST_KILLS
#define HOST_KILLS 0                  /* and a successor, after proof that all processes are dead */
#endif
#ifndef STOPS
#define STOPS 0                       /* one sender is stopped between its compare and its CAS, perhaps for good */
#endif

#define OLD 2                         /* senders 0 and 1 mean the old agent */
#define NEW 2                         /* sender 2 means the new one */

#define EMPTY 0
#define FULL  1
#define MARK  2

#define OPEN   0
#define CLOSED 1
#define FREE   2

byte state = EMPTY;                   /* of the slot at `position` */
byte position = 0;                    /* the tail; a word of another position never fits a CAS */
byte by = 0;                          /* who committed the message in it */
byte word = OPEN;
byte reuse = 0;
byte published = 0;                   /* the new agent's name can be found: the handle that it has then */
bool probe[2];
bool dead[3];
bool stopped[2];
bool host_dead = false;
byte taken_by_old = 0;                /* messages that the host took out at the close */
byte wrong = 0;                       /* messages of old senders that the new agent has got */
byte got = 0, sent = 0;
byte kills = KILLS, stops = STOPS, host_kills = HOST_KILLS;

/* Guards with `dead`: whoever is killed by the end of the host moves no more. */
inline publish(me, handle, outcome) {
    byte looked_at;
    bool same, vacant;
#ifdef MUTANT_NO_COMPARE
    same = true;
#else
    d_step { !dead[me] -> same = (reuse == handle) };
#endif
    if
    :: me < OLD && stops > 0 ->
       stops--; stopped[me] = true;
       if :: true -> stopped[me] = false :: false fi  /* it goes on, or never does */
    :: true
    fi;
    d_step { !dead[me] -> vacant = (state == EMPTY); looked_at = position };
    outcome = 1;                      /* refused */
    if
    :: same && vacant ->
       d_step {
           !dead[me] ->
           if
           :: state == EMPTY && position == looked_at -> state = FULL; by = me; outcome = 0
           :: else
           fi
       }
    :: else
    fi
}

proctype old_sender(byte me) {
    byte n = 0, outcome;
    do
    :: n < SENDS ->
       if :: kills > 0 -> kills--; dead[me] = true; goto over :: !dead[me] fi;
       publish(me, 0, outcome);
       n++
    :: probe[me] && !dead[me] -> probe[me] = false /* taken by its poll: it is in no publish now */
    :: n == SENDS && host_dead -> break
    :: n == SENDS && published > 0 && !probe[me] -> break
    od;
over: skip
}

proctype new_sender() {
    byte outcome;
    (published > 0);
    publish(NEW, published, outcome);
    if :: outcome == 0 -> sent++ :: else fi
}

#ifdef MUTANT_STOPPED_TAKEN_FOR_DEAD
#define SEEN(p) (dead[p] || stopped[p] || !probe[p])
#else
#define SEEN(p) (dead[p] || !probe[p])
#endif

/* The rest of it, from any state that a dead host may have left. `waits`: false when every process is known to be dead. */
inline take_over(waits) {
    if
    :: word == FREE || word == CLOSED ->
#ifdef MUTANT_PROBE_BEFORE_THE_NUMBER
       if
       :: waits -> probe[0] = true; probe[1] = true; SEEN(0); SEEN(1)
       :: else
       fi;
#endif
       word = FREE;
#ifndef MUTANT_NO_NUMBER
       reuse++;
#endif
#if !defined(MUTANT_NO_WAIT) && !defined(MUTANT_PROBE_BEFORE_THE_NUMBER)
       if
       :: waits -> probe[0] = true; probe[1] = true; SEEN(0); SEEN(1)
       :: else
       fi;
#endif
       if
       :: state == MARK ->
          d_step {
              state = EMPTY;
              position++
          }
       :: else
       fi;
       word = OPEN;
#ifdef MUTANT_NO_NUMBER
       published = 1
#else
       published = reuse
#endif
    :: else
    fi
}

proctype host() {
    /* close: the MARK behind what waits, which is taken out */
    do
    :: d_step { state == EMPTY -> state = MARK }; break
    :: d_step { state == FULL -> state = EMPTY; position++; taken_by_old++ }
    od;
    word = CLOSED;
    if
    :: host_kills > 0 -> host_kills--; host_dead = true
    :: true -> take_over(true)
    fi
}

/* All processes die with a host; its successor holds their locks before it begins. */
proctype successor() {
    (host_dead);
    dead[0] = true; dead[1] = true;
    take_over(false)
}

proctype reader() {
    (published > 0);
    do
    :: d_step { state == FULL -> if :: by < OLD -> wrong++ :: else -> got++ fi; state = EMPTY; position++ }
    :: timeout -> break
    od
}

proctype auditor() {
    (timeout);
    assert(wrong == 0);
    assert(got == sent);
    assert(published > 0 -> (word == OPEN && state == EMPTY) : (state == MARK && (stopped[0] || stopped[1])))
}

init {
    atomic {
        run old_sender(0); run old_sender(1); run new_sender(); run host();
        run reader();
#if HOST_KILLS > 0
        run successor();
#endif
        run auditor()
    }
}
