/*
 * A host, or the owner of an arena, is killed while it changes the structure of a run; its successor goes on. Three changes,
 * which share no word and are explored one by one.
 *
 * Protocol
 *   -DADD      A mailbox is added (`cv_directory_add`): its place is behind that of the last record that is counted -> memory
 *              is asked of the kernel -> the end of what is backed is stored -> mailbox and record are filled -> the count,
 *              which publishes both. Who sends counts first, then reads record and end, then touches.
 *   -DEXTENT   An extent of an arena (`cv_back`, `cv_arena_trim`): memory is asked for -> its bit is set -> a chunk is written
 *              there and published. Given back: no chunk is there -> its bit is cleared -> the hole is punched. Who reads a
 *              chunk looks at the bit first. A successor finds what is in use by what mailboxes refer to.
 *   -DEND      A mailbox is given up (`close_mailbox`, `finish_closing`): a MARK in each lane -> the record says closed -> the
 *              host takes what waits and what dead readers had in hand, one after the other: in hand -> letter -> released.
 *              The next host finishes that for every mailbox that is closed or has a MARK anywhere.
 *
 * Bounds      ADD: two mailboxes, one message. EXTENT: one extent, one chunk at a time. END: two lanes, one sender each, one
 *             message each; the reader had one in hand. Kills by -D.
 *
 * Checked     ADD: nothing is touched that is not backed, no half-made mailbox is used, none that has a message is filled
 *             anew, mailboxes lie one behind the other. EXTENT: nothing is touched that is not backed, and what was published
 *             is read as it was written. END: at the end (timeout) every committed message was handled or has a letter, never
 *             both, and none waits where nobody reads; a mailbox that goes on accepts in all lanes.
 * Not         /dev/shm that is full: both wait for it by an error before anything is changed. A damaged reference that leads
 *             into an extent which is given back between the look at the bit and the read: it reads zeros (who only looks at
 *             what others have in hand has it copied by the kernel, `mb_look`). How a lane is closed while others send
 *             (lanes.pml), which slot holds what (mailbox.pml).
 */

#ifndef KILLS
#define KILLS 1
#endif
byte kills = KILLS;

#ifdef ADD
#define BOXES 2
mtype = { RAW, HALF, COMPLETE };
byte backed, end_word, count;         /* places: all by the host alone */
mtype box[BOXES] = RAW, record[BOXES] = RAW;
byte place[BOXES];                    /* in the record */
bit message[BOXES], sent;

#define HOST_DIES :: d_step { kills > 0 -> kills--; n = 0; at = 0 } goto again
#define H(step) if :: d_step { step } HOST_DIES fi

proctype host() {
    byte n, at;
again:
    if
    :: count == BOXES -> goto out
    :: d_step { count < BOXES -> n = count;
#ifdef MUTANT_PLACE_BEHIND_THE_END
                at = end_word }                         /* as if that were where the last mailbox ends */
#else
                at = (n == 0 -> 0 : place[n - 1] + 1) }
#endif
    HOST_DIES
    fi;
#ifdef MUTANT_END_BEFORE_ITS_MEMORY
    H(end_word = (at + 1 > end_word -> at + 1 : end_word));
    H(backed = (at + 1 > backed -> at + 1 : backed));
#else
    H(backed = (at + 1 > backed -> at + 1 : backed));
    H(end_word = (at + 1 > end_word -> at + 1 : end_word));
#endif
#ifdef MUTANT_COUNTED_BEFORE_IT_IS_FILLED
    H(place[n] = at; record[n] = COMPLETE);
    H(count = n + 1);
#endif
    H(assert(at < backed && at < BOXES && !message[at]); box[at] = HALF);
    H(box[at] = COMPLETE);
#ifndef MUTANT_COUNTED_BEFORE_IT_IS_FILLED
    H(record[n] = HALF);
    H(place[n] = at; record[n] = COMPLETE);
    H(count = n + 1);                                   /* SYNC POINT: record complete */
#endif
    H(n = 0; at = 0);
    goto again;
out:
    skip
}

proctype sender() {
    byte i;
    if
    :: d_step { count > 0 -> i = 0 }
    :: d_step { count > 1 -> i = 1 }
    fi;
    d_step { assert(record[i] == COMPLETE && place[i] < end_word) };
    d_step { assert(place[i] < backed && box[place[i]] == COMPLETE); message[place[i]] = 1; sent = 1 }
}

/* Who merely looks: all that is backed as the end says, be it counted or not. */
proctype observer() {
    byte e;
    e = end_word;
    assert(e <= backed)
}

proctype auditor() {
    timeout;
    d_step {
        assert(count == BOXES && sent && message[0] + message[1] == 1);
        assert(place[0] == 0 && place[1] == 1 && box[0] == COMPLETE && box[1] == COMPLETE)
    }
}
init { atomic { run host(); run sender(); run observer(); run auditor() } }
#endif

#ifdef EXTENT
bit backed, map_bit, written, slot, hand, owner_dead;
byte sent_n, read_n;
#define MESSAGES 2

#define OWNER_DIES :: d_step { kills > 0 -> kills--; uses = 0 } goto attach
#define O(step) if :: d_step { step } OWNER_DIES fi

proctype owner() {
    bit uses;                                           /* its private knowledge: the chunk is in use */
attach:
#ifdef MUTANT_REBUILT_FROM_SLOTS_ALONE
    O(uses = slot);
#else
    O(uses = slot || hand);                             /* one reading: mailbox.pml has the order of the two */
#endif
work:
    if
    :: d_step { !uses && sent_n < MESSAGES -> skip } goto send
    :: d_step { uses && !slot && !hand -> uses = 0 } goto work
    :: d_step { !uses && map_bit -> skip } goto trim
    :: d_step { sent_n == MESSAGES && !uses && !map_bit -> skip } goto out
    OWNER_DIES
    fi;
send:
#ifdef MUTANT_BIT_BEFORE_ITS_MEMORY
    O(map_bit = 1);
    O(backed = 1);
#else
    if
    :: d_step { map_bit -> skip }
    :: d_step { !map_bit -> backed = 1 }
    OWNER_DIES
    fi;
    O(map_bit = 1);                                     /* SYNC POINT: extent backed */
#endif
    O(assert(backed); uses = 1; written = 1);
    O(slot = 1; sent_n++);
    goto work;
trim:
#ifdef MUTANT_HOLE_BEFORE_ITS_BIT
    O(backed = 0; written = 0);
    O(map_bit = 0);
#else
    O(map_bit = 0);
    O(backed = 0; written = 0);
#endif
    goto work;
out:
    skip
}

proctype reader() {
    do
    :: d_step { slot -> hand = 1 };
        slot = 0;
        d_step { assert(map_bit) };                     /* else it would be taken for garbage */
        d_step { assert(backed && written) };
        d_step { read_n++; hand = 0 }
    od
}

/* Who looks at chunks that it has a reference of, whoever these belong to by now. */
proctype observer() {
    do
    :: d_step { map_bit -> assert(backed) }
    od
}

proctype auditor() {
    timeout;
    d_step { assert(read_n == MESSAGES && sent_n == MESSAGES && !slot && !hand) }
}
init { atomic { run owner(); run reader(); run observer(); run auditor() } }
#endif

#ifdef END
#define LANES 2
#define MESSAGES 3                    /* one of each sender, and one that a dead reader had in hand */
bit mark[LANES], closed;
bit waits[MESSAGES], hand[MESSAGES], letter[MESSAGES], handled[MESSAGES], committed[MESSAGES];
bit gives_up;                         /* the tree has said so; a new host learns of it only from what was begun */
byte senders_left = LANES;
bit read_again;                       /* the mailbox goes on: a reader works there */

proctype sender(byte lane) {
    if
    :: d_step { !mark[lane] -> waits[lane] = 1; committed[lane] = 1 }
    :: d_step { mark[lane] -> skip }                    /* refused */
    fi;
    senders_left--
}

#define HOST_DIES :: d_step { kills > 0 -> kills--; gives_up = 0; read_again = 0 } goto next_host
#define H(step) if :: d_step { step } HOST_DIES fi
#define ONE_MORE(m) :: d_step { waits[m] -> waits[m] = 0; hand[m] = 1 }
#ifdef MUTANT_NEXT_HOST_GOES_BY_THE_RECORD
#define ITS_END_WAS_BEGUN closed
#else
#define ITS_END_WAS_BEGUN (closed || mark[0] || mark[1])
#endif

proctype host() {
    byte m;
    d_step { hand[2] = 1; committed[2] = 1 };
    H(gives_up = 1);
end_it:
    H(mark[0] = 1);
    H(mark[1] = 1);
    H(closed = 1);
drain:
    if
    :: d_step { hand[0] -> m = 0 }
    :: d_step { hand[1] -> m = 1 }
    :: d_step { hand[2] -> m = 2 }
    :: d_step { !hand[0] && !hand[1] && !hand[2] && (waits[0] || waits[1]) -> skip } goto more
    :: d_step { !hand[0] && !hand[1] && !hand[2] && !waits[0] && !waits[1] -> skip } goto out
    HOST_DIES
    fi;
#ifdef MUTANT_RELEASED_BEFORE_ITS_LETTER
    H(hand[m] = 0);
    H(letter[m] = 1);
#else
    H(letter[m] = 1);
    H(hand[m] = 0);
#endif
    goto drain;
more:
    if
    ONE_MORE(0)
    ONE_MORE(1)
    HOST_DIES
    fi;
    goto drain;

next_host:
    if
    :: d_step { ITS_END_WAS_BEGUN -> gives_up = 1 }
    :: d_step { !ITS_END_WAS_BEGUN -> read_again = 1 } goto out
    HOST_DIES
    fi;
    if                                                  /* what has its letter is let go: burial.pml */
    :: d_step { hand[0] && letter[0] -> hand[0] = 0 }
    :: d_step { hand[1] && letter[1] -> hand[1] = 0 }
    :: d_step { hand[2] && letter[2] -> hand[2] = 0 }
    :: d_step { !(hand[0] && letter[0]) && !(hand[1] && letter[1]) && !(hand[2] && letter[2]) -> skip }
    HOST_DIES
    fi;
    goto end_it;
out:
    skip
}

#define HANDLE(m) :: d_step { read_again && (waits[m] || hand[m]) -> waits[m] = 0; hand[m] = 0; handled[m] = 1 }
proctype reader() {
    do
    HANDLE(0)
    HANDLE(1)
    HANDLE(2)
    od
}

#define SETTLED(m) assert(!waits[m] && !hand[m] && handled[m] + letter[m] == committed[m])
proctype auditor() {
    timeout;
    d_step { assert(senders_left == 0 && !(read_again && (mark[0] || mark[1]))); SETTLED(0); SETTLED(1); SETTLED(2) }
}
init { atomic { run sender(0); run sender(1); run host(); run reader(); run auditor() } }
#endif
