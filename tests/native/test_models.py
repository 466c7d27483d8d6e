"""The shared-memory protocols, explored by spin: the right ones hold, each mutant is caught.

Rules of this file:

- A case is one exhaustive search of one model with one set of macros. A search that was cut short (depth, memory)
  proves nothing and fails the test, whatever it found.
- A protocol counts as right only if the search also reached every statement of the model's auditor, so that "no error"
  cannot mean "nothing was looked at".
- A mutant is one step of the protocol left out or swapped. It must be caught: a model that cannot see a known mistake
  is no evidence. Every `MUTANT_` macro of every model has a case.
- `Search.SAFETY` looks for violated assertions, `Search.CYCLES` for executions that never end (pan's non-progress
  cycles; the models have no progress labels, so any cycle is one).

What each model says, its bounds and the size of its state space: models/README.md.
"""

from __future__ import annotations

import enum
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.native

MODELS = Path(__file__).parent / "models"

# Far deeper than the deepest search (a few hundred steps); a search that goes beyond fails the test.
DEPTH_MAX_STEPS = 20_000
# The largest search needs about 250 MB; beyond this pan stops and the test fails, instead of filling the machine.
MEMORY_MAX_MB = 1500
# Watchdog only: each search takes seconds.
WATCHDOG_S = 300


class Search(enum.Enum):
    """What pan is built to look for: an assertion that fails, or an execution that never ends."""

    SAFETY = "safety"
    CYCLES = "cycles"


@dataclass(frozen=True)
class Case:
    model: str
    claim: str
    macros: str = ""
    search: Search = Search.SAFETY

    def __str__(self) -> str:
        return f"{self.model}-{self.claim}"


@dataclass(frozen=True)
class Outcome:
    """What pan printed at the end of one search."""

    errors: int
    states: int
    complete: bool
    auditor_fully_reached: bool
    report: str


BOTH_KILLED = "-DREADER_KILLS=1 -DHOST_KILLS=1"
ONE_PRODUCER = "-DPRODUCERS=1 -DPER_PRODUCER=4 -DREADER_KILLS=1"
REPLICAS_KILLED = "-DPRODUCERS=1 -DPER_PRODUCER=3 -DREADERS=2 -DREADER_KILLS=1 -DPRODUCER_KILLS=1"

RIGHT = [
    # --- one lane of a mailbox ---
    Case("mailbox", "two_producers_one_killed", "-DPRODUCER_KILLS=1"),
    Case("mailbox", "two_producers_reader_killed", "-DREADER_KILLS=1"),
    Case("mailbox", "producer_and_reader_killed", "-DPER_PRODUCER=2 -DPRODUCER_KILLS=1 -DREADER_KILLS=1"),
    Case("mailbox", "reader_killed_three_times", "-DPRODUCERS=1 -DPER_PRODUCER=6 -DREADER_KILLS=3"),
    Case(
        "mailbox",
        "dead_reader_blocks_nobody_while_there_is_room",
        "-DPER_PRODUCER=2 -DREADER_STAYS_DEAD -DREADER_KILLS=1 -DPRODUCER_KILLS=1",
    ),
    Case("mailbox", "capacity_of_one", "-DCAPACITY=1 -DPER_PRODUCER=2 -DPRODUCER_KILLS=1 -DREADER_KILLS=1"),
    Case(
        "mailbox",
        "capacity_of_the_ring_tail_replaced_at_once",
        "-DCAPACITY=2 -DTAIL_REPLACED_BLINDLY -DPER_PRODUCER=2 -DPRODUCER_KILLS=1 -DREADER_KILLS=1 -DTAIL_AT_START=100",
    ),
    Case("mailbox", "tail_hint_far_ahead", "-DPRODUCER_KILLS=1 -DTAIL_AT_START=100"),
    Case("mailbox", "tail_hint_far_behind", "-DPRODUCER_KILLS=1 -DTAIL_AT_START=0"),
    Case("mailbox", "at_most_once", "-DPRODUCERS=1 -DPER_PRODUCER=5 -DREADER_KILLS=2 -DAT_MOST_ONCE"),
    Case("mailbox", "two_readers_killed_twice", "-DPRODUCERS=1 -DREADERS=2 -DREADER_KILLS=2"),
    Case("mailbox", "two_producers_two_readers", "-DPER_PRODUCER=2 -DREADERS=2"),
    Case("mailbox", "reclaim", "-DPRODUCERS=1 -DPER_PRODUCER=4 -DRECLAIM -DREADER_KILLS=2"),
    Case("mailbox", "reclaim_two_readers", "-DPRODUCERS=1 -DREADERS=2 -DRECLAIM -DREADER_KILLS=1"),
    Case("mailbox", "drop_oldest", "-DPER_PRODUCER=2 -DDROP -DPRODUCER_KILLS=1 -DREADER_KILLS=1"),
    Case("mailbox", "drop_oldest_reclaim", "-DPRODUCERS=1 -DPER_PRODUCER=4 -DDROP -DRECLAIM -DREADER_KILLS=1"),
    Case("mailbox", "drop_oldest_replicas", f"-DDROP {REPLICAS_KILLED}"),
    Case("mailbox", "latest_reclaim", "-DPRODUCERS=1 -DPER_PRODUCER=4 -DLATEST -DRECLAIM -DREADER_KILLS=1"),
    Case("mailbox", "latest_replicas", f"-DLATEST {REPLICAS_KILLED}"),
    Case("mailbox", "nobody_spins", "-DPER_PRODUCER=2 -DPRODUCER_KILLS=1 -DREADER_KILLS=1", Search.CYCLES),
    Case(
        "mailbox",
        "nobody_spins_at_a_dead_reader",
        "-DPER_PRODUCER=2 -DREADER_STAYS_DEAD -DREADER_KILLS=1",
        Search.CYCLES,
    ),
    Case(
        "mailbox",
        "nobody_spins_at_a_dead_reader_capacity_of_the_ring",
        "-DCAPACITY=2 -DTAIL_REPLACED_BLINDLY -DPER_PRODUCER=2 -DREADER_STAYS_DEAD -DREADER_KILLS=1",
        Search.CYCLES,
    ),
    Case("mailbox", "nobody_spins_two_readers", "-DPRODUCERS=1 -DREADERS=2 -DREADER_KILLS=1", Search.CYCLES),
    Case("mailbox", "nobody_spins_tail_hint_far_ahead", "-DPER_PRODUCER=2 -DTAIL_AT_START=100", Search.CYCLES),
    # --- lanes and closing ---
    Case("lanes", "one_message_in_each", ""),
    Case("lanes", "two_normal_messages_one_control", "-DNORMAL_MESSAGES=2 -DPRIORITY_MESSAGES=0"),
    Case("lanes", "reader_killed", "-DREADER_KILLS=1 -DPRIORITY_MESSAGES=0"),
    Case("lanes", "sender_killed", "-DSENDER_KILLS=1 -DPRIORITY_MESSAGES=0"),
    Case("lanes", "remover_killed", "-DREMOVER_KILLS=1 -DCONTROL_MESSAGES=0"),
    Case(
        "lanes",
        "all_three_killed",
        "-DSENDER_KILLS=1 -DREMOVER_KILLS=1 -DREADER_KILLS=1 -DPRIORITY_MESSAGES=0 -DCONTROL_MESSAGES=0",
    ),
    Case("lanes", "nobody_spins", "-DPRIORITY_MESSAGES=0", Search.CYCLES),
    # --- a mailbox changes hands ---
    Case("reuse", "two_sends_each", ""),
    Case("reuse", "senders_killed", "-DKILLS=2 -DSENDS=1"),
    Case("reuse", "host_killed", "-DHOST_KILLS=1 -DKILLS=1 -DSENDS=1"),
    Case("reuse", "sender_stopped", "-DSTOPS=1 -DSENDS=1"),
    # --- an agent ends with a message in hand ---
    Case("leaving", "process_and_host_killed", "-DKILLS=1 -DHOST_KILLS=2"),
    Case("leaving", "nobody_spins", "-DKILLS=1 -DHOST_KILLS=1", Search.CYCLES),
    # --- waiting for room ---
    Case("room", "two_messages_each", "-DMESSAGES=2"),
    Case("room", "reader_killed", "-DMESSAGES=1 -DREADER_KILLS=1"),
    Case("room", "sender_killed", "-DMESSAGES=2 -DSENDER_KILLS=1"),
    Case("room", "replica_stopped", "-DMESSAGES=2 -DMESSAGES_1=1 -DREADER_STOPS=1"),
    Case("room", "nobody_spins_at_a_stopped_replica", "-DMESSAGES=1 -DREADER_STOPS=1", Search.CYCLES),
    Case("room", "nobody_spins", "-DMESSAGES=1 -DREADER_KILLS=1", Search.CYCLES),
    Case("room", "two_words", "-DTWO_WORDS -DMESSAGES=2"),
    Case("room", "two_words_reader_killed", "-DTWO_WORDS -DMESSAGES=2 -DMESSAGES_1=1 -DREADER_KILLS=1"),
    Case("room", "two_words_replica_stopped", "-DTWO_WORDS -DMESSAGES=1 -DREADER_STOPS=1"),
    # --- wake-up ---
    Case("wake", "three_messages", ""),
    Case("wake", "three_messages_sender_stopped", "-DSENDER_STOPS=1"),
    Case("wake", "sender_killed", "-DSENDER_KILLS=1 -DMESSAGES=1"),
    Case("wake", "receiver_killed", "-DRECEIVER_KILLS=1 -DMESSAGES=3 -DMESSAGES_1=0"),
    Case("wake", "sender_and_receiver_killed", "-DMESSAGES=1 -DSENDER_KILLS=1 -DRECEIVER_KILLS=1"),
    Case("wake", "each_bit_skipped_on_its_own", "-DSKIP_EACH"),
    Case("wake", "leaving_the_park_may_be_a_release_store", "-DUNPARK_BY_RELEASE"),
    Case("wake", "summary_loaded_first_holds_while_nobody_is_stopped", "-DSUMMARY_LOADED_FIRST"),
    Case("wake", "nobody_spins", "-DMESSAGES=1 -DSENDER_KILLS=1", Search.CYCLES),
    # --- the reader changes ---
    Case("route", "moved_there_and_back", "-DMOVES=2 -DMESSAGES=3"),
    Case("route", "two_senders", "-DSENDERS=2 -DMESSAGES=1"),
    Case("route", "reader_and_host_killed", "-DREADER_KILLS=1 -DHOST_KILLS=1"),
    Case("route", "host_killed_moved_back", "-DMOVES=2 -DMESSAGES=1 -DHOST_KILLS=1"),
    Case("route", "nobody_spins", "-DREADER_KILLS=1", Search.CYCLES),
    Case("route", "two_words_moved_there_and_back", "-DTWO_WORDS -DMOVES=2 -DMESSAGES=2"),
    Case("route", "two_words_reader_and_host_killed", "-DTWO_WORDS -DMESSAGES=1 -DREADER_KILLS=1 -DHOST_KILLS=1"),
    Case("route", "two_words_host_killed_moved_back", "-DTWO_WORDS -DMOVES=2 -DMESSAGES=1 -DHOST_KILLS=1"),
    # --- what a handler has sent ---
    Case("effect", "sender_killed_twice", "-DSENDER_KILLS=2"),
    Case("effect", "another_agent_of_the_process_sends_too", "-DSENDER_KILLS=2 -DOTHER_AGENT"),
    Case("effect", "two_equal_sends", "-DSENDER_KILLS=2 -DEQUAL"),
    Case("effect", "sends_in_another_order", "-DSENDER_KILLS=2 -DREORDER"),
    Case("effect", "a_handler_that_goes_on_loses_nothing", "-DSENDER_KILLS=2 -DRESUME"),
    Case("effect", "sender_reader_and_host_killed", "-DREADER_KILLS=1 -DHOST_KILLS=1"),
    Case("effect", "host_killed_twice", "-DHOST_KILLS=2 -DOTHER_AGENT -DFILLERS=0"),
    Case("effect", "replicas_receive", "-DREADERS=2"),
    Case("effect", "nobody_spins", "-DFILLERS=0", Search.CYCLES),
    # --- after a death: repair, verdict, heir; the next host ---
    Case("recovery", "two_readers_killed", "-DREADER_KILLS=2"),
    Case("recovery", "reader_and_host_killed", "-DREADER_KILLS=1 -DHOST_KILLS=1"),
    Case("recovery", "reader_killed_while_one_waits_for_room", "-DWAITER -DREADER_KILLS=1"),
    Case("recovery", "the_one_that_waits_for_room_and_the_host_killed", "-DWAITER -DWAITER_KILLS=1 -DHOST_KILLS=1"),
    Case("recovery", "nobody_spins", "-DREADER_KILLS=1", Search.CYCLES),
    # --- given up ---
    Case("burial", "reader_killed_twice", "-DREADER_KILLS=2"),
    Case("burial", "reader_and_host_killed", BOTH_KILLED),
    Case("burial", "nobody_spins", BOTH_KILLED, Search.CYCLES),
    # --- structural changes, one by one ---
    Case("change", "mailbox_added", "-DADD -DKILLS=2"),
    Case("change", "extent_backed_and_given_back", "-DEXTENT -DKILLS=2"),
    Case("change", "mailbox_given_up", "-DEND -DKILLS=2"),
    # --- whose a run is, and what is left of one ---
    Case("adoption", "hosts_killed_twice", "-DKILLS=2"),
    Case("adoption", "nobody_spins", "", Search.CYCLES),
    Case("adoption", "another_version_and_segments_without_names", "-DKILLS=2 -DUPGRADE -DFILES"),
]


MUTANTS = [
    # --- one lane of a mailbox: publish ---
    Case(
        "mailbox",
        "tail_reloaded_at_a_later_lap",
        "-DMUTANT_TAIL_RELOAD -DPER_PRODUCER=2 -DREADER_STAYS_DEAD -DREADER_KILLS=1 -DPRODUCER_KILLS=1",
    ),
    Case(
        "mailbox",
        "tail_replaced_before_head_is_helped",
        "-DTAIL_REPLACED_BLINDLY -DPER_PRODUCER=2 -DREADER_STAYS_DEAD -DREADER_KILLS=1",
        Search.CYCLES,
    ),
    Case("mailbox", "wrapped_lap_compared_untruncated", "-DMUTANT_UNTRUNCATED_LAP"),
    Case("mailbox", "publish_by_store", "-DMUTANT_PUBLISH_BY_STORE"),
    Case("mailbox", "claim_then_write", "-DMUTANT_CLAIM_THEN_WRITE -DPRODUCER_KILLS=1"),
    # --- take, in hand, recovery ---
    Case("mailbox", "take_by_store", "-DMUTANT_TAKE_BY_STORE -DPRODUCERS=1 -DREADERS=2"),
    Case("mailbox", "head_before_release", f"-DMUTANT_HEAD_BEFORE_RELEASE {ONE_PRODUCER}"),
    Case("mailbox", "release_before_hand", f"-DMUTANT_RELEASE_BEFORE_HAND {ONE_PRODUCER}"),
    Case("mailbox", "release_before_hand_use_after_free", f"-DMUTANT_RELEASE_BEFORE_HAND -DRECLAIM {ONE_PRODUCER}"),
    Case("mailbox", "hand_word_before_its_ref", f"-DMUTANT_HAND_WORD_BEFORE_REF {ONE_PRODUCER}"),
    Case("mailbox", "cleared_before_the_handler", f"-DMUTANT_CLEAR_BEFORE_HANDLER {ONE_PRODUCER}"),
    Case("mailbox", "delivery_counted_after_the_handler", f"-DMUTANT_DELIVERY_COUNTED_AFTER {ONE_PRODUCER}"),
    Case("mailbox", "recovery_ignores_hand", f"-DMUTANT_RECOVERY_IGNORES_HAND {ONE_PRODUCER}"),
    Case("mailbox", "recovery_always_releases", f"-DMUTANT_RECOVERY_ALWAYS_RELEASES {ONE_PRODUCER}"),
    Case("mailbox", "new_messages_before_hand", f"-DMUTANT_NEW_BEFORE_HAND {ONE_PRODUCER}"),
    Case("mailbox", "no_reader_in_taken", "-DMUTANT_NO_READER_IN_TAKEN -DPRODUCERS=1 -DREADERS=2 -DREADER_KILLS=1"),
    # --- reclaim and drop_oldest ---
    Case("mailbox", "hand_looked_at_before_slot", f"-DMUTANT_HAND_BEFORE_SLOT -DRECLAIM {ONE_PRODUCER}"),
    Case("mailbox", "read_before_take", f"-DMUTANT_READ_BEFORE_TAKE -DRECLAIM -DDROP {ONE_PRODUCER}"),
    Case("mailbox", "drop_of_a_taken_slot", f"-DMUTANT_DROP_TAKEN -DDROP {ONE_PRODUCER}"),
    Case("mailbox", "drop_of_a_taken_slot_among_replicas", f"-DMUTANT_DROP_TAKEN -DLATEST {REPLICAS_KILLED}"),
    Case(
        "mailbox", "no_reader_in_taken_while_oldest_is_dropped", f"-DMUTANT_NO_READER_IN_TAKEN -DDROP {REPLICAS_KILLED}"
    ),
    Case("mailbox", "take_by_store_while_oldest_is_dropped", f"-DMUTANT_TAKE_BY_STORE -DRECLAIM -DDROP {ONE_PRODUCER}"),
    # --- lanes and closing ---
    Case("lanes", "closed_by_a_flag_in_the_directory", "-DMUTANT_CLOSED_FLAG"),
    Case("lanes", "tail_helped_past_the_mark", "-DMUTANT_HELP_PAST_MARK"),
    Case("lanes", "mark_by_store", "-DMUTANT_MARK_BY_STORE"),
    Case("lanes", "mark_in_one_lane_only", "-DMUTANT_MARK_IN_ONE_LANE"),
    Case("lanes", "reader_leaves_at_the_first_mark", "-DMUTANT_LEAVES_AT_FIRST_MARK"),
    Case("lanes", "normal_lane_first", "-DMUTANT_NORMAL_FIRST"),
    Case("lanes", "reader_stays_in_its_lane", "-DMUTANT_STAYS_IN_LANE -DNORMAL_MESSAGES=2 -DPRIORITY_MESSAGES=0"),
    # --- waiting for room ---
    Case("room", "no_second_look", "-DMUTANT_NO_LOOK_AGAIN"),
    Case("room", "release_by_a_release_store_only", "-DMUTANT_RELEASE_STORE_ONLY"),
    Case("room", "waiters_looked_at_before_the_release", "-DMUTANT_WAITERS_BEFORE_RELEASE"),
    Case("room", "own_bit_stored_instead_of_ored", "-DMUTANT_WAITERS_BY_STORE"),
    Case("room", "waiters_cleared_after_ringing", "-DMUTANT_CLEAR_WAITERS_LAST"),
    Case("room", "rung_before_the_room_bit", "-DMUTANT_RING_BEFORE_ROOM_BIT"),
    Case("room", "replica_stopped_and_the_poll_does_not_see_it", "-DMUTANT_POLL_BLIND_TO_ROOM -DREADER_STOPS=1"),
    Case("room", "poll_goes_by_the_bits_alone", "-DMUTANT_POLL_GOES_BY_BITS_ALONE -DREADER_STOPS=1"),
    Case("room", "no_recheck_when_parked", "-DMUTANT_NO_RECHECK"),
    Case("room", "reader_killed_and_nobody_rings", "-DMUTANT_NOBODY_RINGS -DMESSAGES=1 -DREADER_KILLS=1"),
    Case("room", "doorbell_before_the_repair", "-DMUTANT_DOORBELL_BEFORE_REPAIR -DMESSAGES=1 -DREADER_KILLS=1"),
    Case("room", "doorbell_without_the_full_look", "-DMUTANT_DOORBELL_WITHOUT_FULL_LOOK -DMESSAGES=1 -DREADER_KILLS=1"),
    Case("room", "second_word_before_the_release", "-DTWO_WORDS -DMUTANT_SECOND_WORD_BEFORE_RELEASE"),
    Case("room", "second_word_only_with_the_first", "-DTWO_WORDS -DMUTANT_SECOND_WORD_WITH_THE_FIRST"),
    # --- wake-up ---
    Case("wake", "release_only_commit", "-DMUTANT_RELEASE_ONLY_COMMIT"),
    Case("wake", "release_only_park", "-DMUTANT_RELEASE_ONLY_PARK"),
    Case("wake", "no_recheck", "-DMUTANT_NO_RECHECK"),
    Case("wake", "blind_increment", "-DMUTANT_BLIND_INCREMENT"),
    Case("wake", "boolean_instead_of_a_sequence", "-DMUTANT_BOOLEAN_PARK"),
    Case("wake", "park_seq_reset_by_the_successor", "-DMUTANT_PARK_SEQ_RESET -DRECEIVER_KILLS=1 -DMESSAGES_1=0"),
    Case("wake", "successor_trusts_the_bits", "-DMUTANT_SUCCESSOR_TRUSTS_BITS -DMESSAGES=1 -DRECEIVER_KILLS=1"),
    Case("wake", "bit_cleared_after_the_drain", "-DMUTANT_BIT_CLEARED_AFTER_DRAIN"),
    Case("wake", "bit_before_publish", "-DMUTANT_BIT_BEFORE_PUBLISH"),
    Case("wake", "summary_set_before_word", "-DMUTANT_SUMMARY_SET_FIRST"),
    Case("wake", "summary_loaded_before_word_while_a_sender_is_stopped", "-DSUMMARY_LOADED_FIRST -DSENDER_STOPS=1"),
    Case("wake", "sender_killed_and_nobody_rings", "-DMUTANT_NOBODY_RINGS -DSENDER_KILLS=1"),
    Case("wake", "doorbell_without_the_full_look", "-DMUTANT_DOORBELL_WITHOUT_FULL_LOOK -DSENDER_KILLS=1"),
    # --- the reader changes ---
    Case("route", "readers_word_cached", "-DMUTANT_ROUTE_CACHED"),
    Case("route", "readers_word_read_before_publish", "-DMUTANT_ROUTE_READ_BEFORE_PUBLISH"),
    Case("route", "scan_before_the_readers_word", "-DMUTANT_SCAN_BEFORE_ROUTE"),
    Case("route", "no_first_scan", "-DMUTANT_NO_FIRST_SCAN"),
    Case("route", "moved_without_letting_go", "-DMUTANT_MOVE_WITHOUT_LETTING_GO"),
    Case("route", "old_reader_goes_by_the_readers_word", "-DMUTANT_GOES_BY_READERS_WORD"),
    Case("route", "scan_between_the_words", "-DTWO_WORDS -DMUTANT_SCAN_BETWEEN_WORDS"),
    Case("route", "second_word_read_before_publish", "-DTWO_WORDS -DMUTANT_SECOND_WORD_BEFORE_PUBLISH"),
    # --- what a handler has sent ---
    Case("effect", "intent_taken_for_proof", "-DMUTANT_INTENT_IS_PROOF"),
    Case("effect", "note_after_the_publish", "-DMUTANT_NOTE_AFTER"),
    Case("effect", "index_of_the_record_written_last", "-DMUTANT_INDEX_LAST"),
    Case("effect", "refused_send_left_in_the_log", "-DMUTANT_NO_WAY_BACK -DEQUAL"),
    Case("effect", "equal_sends_not_counted", "-DMUTANT_DROPS_WHATEVER_WAS_SENT -DEQUAL"),
    Case("effect", "evidence_after_the_slot_is_emptied", "-DMUTANT_EVIDENCE_AFTER_EMPTY"),
    Case("effect", "evidence_looked_at_before_the_slot", "-DMUTANT_EVIDENCE_FIRST"),
    Case("effect", "no_evidence", "-DMUTANT_NO_EVIDENCE"),
    Case("effect", "evidence_of_this_number_alone", "-DMUTANT_EVIDENCE_OF_THIS_NUMBER_ALONE -DOTHER_AGENT"),
    Case("effect", "evidence_lowered_by_another_lane", "-DMUTANT_EVIDENCE_OVERWRITTEN -DSENDER_KILLS=2"),
    Case("effect", "evidence_raised_by_a_store_among_replicas", "-DMUTANT_RAISED_BY_STORE -DREADERS=2"),
    # --- after a death ---
    Case("recovery", "repaired_without_proof_of_death", "-DMUTANT_NO_PROOF -DREADER_KILLS=1"),
    Case("recovery", "full_again_although_in_hand", "-DMUTANT_RECOVERY_ALWAYS_FILLS -DREADER_KILLS=1"),
    Case("recovery", "claimed_entry_left", "-DMUTANT_CLAIMED_LEFT -DREADER_KILLS=1"),
    Case("recovery", "moved_to_the_heir_before_the_repair", "-DMUTANT_MOVED_BEFORE_REPAIRED -DREADER_KILLS=1"),
    Case("recovery", "heir_not_alarmed", "-DMUTANT_HEIR_NOT_ALARMED -DREADER_KILLS=1"),
    Case("recovery", "successor_started_before_the_verdict", "-DMUTANT_SUCCESSOR_BEFORE_THE_VERDICT -DREADER_KILLS=1"),
    Case("recovery", "judged_twice_because_it_does_not_wait", "-DMUTANT_VERDICT_WITHOUT_WAITS -DREADER_KILLS=2"),
    Case("recovery", "death_of_the_host_counts", "-DMUTANT_NEXT_HOST_BLAMES -DHOST_KILLS=1"),
    Case("recovery", "who_waits_for_room_is_not_alarmed", "-DMUTANT_READERS_ALARMED_ONLY -DWAITER -DREADER_KILLS=1"),
    Case("recovery", "announcement_of_the_dead_left", "-DMUTANT_WANTING_OF_THE_DEAD_LEFT -DWAITER -DWAITER_KILLS=1"),
    # --- given up ---
    Case("burial", "buried_before_its_note", f"-DMUTANT_BURIED_BEFORE_ITS_NOTE {BOTH_KILLED}"),
    Case("burial", "notes_read_before_entries", f"-DMUTANT_NOTES_BEFORE_ENTRIES {BOTH_KILLED}"),
    Case("burial", "discarded_before_its_letter_is_stored", f"-DMUTANT_DISCARDED_BEFORE_IT_IS_STORED {BOTH_KILLED}"),
    Case("burial", "note_released_before_the_discard", f"-DMUTANT_NOTE_RELEASED_BEFORE_THE_DISCARD {BOTH_KILLED}"),
    Case("burial", "a_letter_each_time", f"-DMUTANT_A_LETTER_EACH_TIME {BOTH_KILLED}"),
    Case("burial", "what_has_its_letter_is_not_settled", f"-DMUTANT_NOT_SETTLED {BOTH_KILLED}"),
    Case("burial", "buried_is_handed_over", f"-DMUTANT_BURIED_IS_HANDED_OVER {BOTH_KILLED}"),
    Case("burial", "owner_forgets_the_buried", f"-DMUTANT_OWNER_FORGETS_THE_BURIED {BOTH_KILLED}"),
    Case("burial", "stale_notes_kept", f"-DMUTANT_STALE_NOTES_KEPT {BOTH_KILLED}"),
    Case("burial", "note_stale_unless_its_message_runs", f"-DMUTANT_STALE_UNLESS_IT_RUNS {BOTH_KILLED}"),
    Case("burial", "what_is_buried_read_first", f"-DMUTANT_STALE_BY_WHAT_IS_BURIED_THEN_RUNS {BOTH_KILLED}"),
    # --- structural changes ---
    Case("change", "mailbox_placed_behind_what_is_backed", "-DADD -DMUTANT_PLACE_BEHIND_THE_END"),
    Case("change", "end_stored_before_its_memory", "-DADD -DMUTANT_END_BEFORE_ITS_MEMORY"),
    Case("change", "counted_before_it_is_filled", "-DADD -DMUTANT_COUNTED_BEFORE_IT_IS_FILLED"),
    Case("change", "bit_before_its_memory", "-DEXTENT -DMUTANT_BIT_BEFORE_ITS_MEMORY"),
    Case("change", "hole_before_its_bit", "-DEXTENT -DMUTANT_HOLE_BEFORE_ITS_BIT"),
    Case("change", "rebuilt_from_slots_alone", "-DEXTENT -DMUTANT_REBUILT_FROM_SLOTS_ALONE"),
    Case("change", "next_host_goes_by_the_record", "-DEND -DMUTANT_NEXT_HOST_GOES_BY_THE_RECORD"),
    Case("change", "released_before_its_letter", "-DEND -DMUTANT_RELEASED_BEFORE_ITS_LETTER"),
    # --- whose a run is ---
    Case("adoption", "inode_not_compared", "-DMUTANT_INODE_NOT_COMPARED"),
    Case("adoption", "lock_removed_first", "-DMUTANT_LOCK_REMOVED_FIRST"),
    Case("adoption", "slots_not_waited_for", "-DMUTANT_SLOTS_NOT_WAITED_FOR"),
    Case("adoption", "locks_of_the_slots_let_go_at_once", "-DMUTANT_SLOTS_LET_GO_AT_ONCE"),
    Case("adoption", "slot_not_looked_at_by_its_process", "-DMUTANT_SLOT_NOT_LOOKED_AT"),
    Case("adoption", "segments_before_their_names_are_noted", "-DMUTANT_SEGMENTS_BEFORE_THEIR_NAMES_ARE_NOTED"),
    Case("adoption", "names_removed_first", "-DMUTANT_NAMES_REMOVED_FIRST"),
    Case("adoption", "marked_first", "-DMUTANT_MARKED_FIRST"),
    Case("adoption", "mark_removed_last", "-DMUTANT_MARK_REMOVED_LAST"),
    # --- an agent ends with a message in hand ---
    Case("leaving", "left_in_hand", "-DMUTANT_LEFT_IN_HAND"),
    Case("leaving", "told_before_it_left", "-DMUTANT_TOLD_BEFORE_IT_LEFT"),
    Case("leaving", "taken_before_it_has_ended", "-DMUTANT_NOT_WAITED_FOR"),
    Case("leaving", "released_by_store", "-DMUTANT_RELEASED_BY_STORE"),
    # --- a mailbox changes hands ---
    Case("reuse", "no_compare", "-DMUTANT_NO_COMPARE"),
    Case("reuse", "no_number", "-DMUTANT_NO_NUMBER"),
    Case("reuse", "no_wait", "-DMUTANT_NO_WAIT"),
    Case("reuse", "probe_before_the_number", "-DMUTANT_PROBE_BEFORE_THE_NUMBER"),
    Case("reuse", "stopped_taken_for_dead", "-DMUTANT_STOPPED_TAKEN_FOR_DEAD -DSTOPS=1"),
    Case("adoption", "who_adopts_leaves_no_mark", "-DMUTANT_WHO_ADOPTS_LEAVES_NO_MARK -DKILLS=2 -DUPGRADE -DFILES"),
]


def parse_outcome(report: str) -> Outcome:
    """Read pan's closing report; a report without its figures is an incomplete search."""
    errors = re.search(r"errors: (\d+)", report)
    states = re.search(r"(\d+) states, stored", report)
    cut_short = re.search(r"max search depth too small|Search not completed|MEMLIM bound|out of memory", report)
    auditor = re.search(r"unreached in proctype auditor\n\t\(0 of \d+ states\)", report)
    return Outcome(
        errors=int(errors[1]) if errors else 0,
        states=int(states[1]) if states else 0,
        complete=bool(errors and states and not cut_short),
        auditor_fully_reached=auditor is not None,
        report=report,
    )


def explore(case: Case, directory: Path) -> Outcome:
    """Build the verifier of one case in `directory` and let it search."""
    for_gcc, for_pan = {Search.SAFETY: ("-DSAFETY", "-c1"), Search.CYCLES: ("-DNP", "-l")}[case.search]
    steps = [
        ["spin", "-a", *case.macros.split(), str(MODELS / f"{case.model}.pml")],
        # Not optimized: for all but a few that costs gcc more than the search gains. With partial order reduction,
        # spin's default: it keeps every state in which nothing can move, every failed assertion and every cycle.
        ["gcc", "-w", "-O0", f"-DMEMLIM={MEMORY_MAX_MB}", for_gcc, "-o", "pan", "pan.c"],
        # -E: states in which nothing can move are judged by the model's auditor, not reported wholesale.
        ["./pan", "-E", f"-m{DEPTH_MAX_STEPS}", "-w22", for_pan],
    ]
    report = ""
    for step in steps:
        done = subprocess.run(
            step,
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=WATCHDOG_S,
            check=False,
        )
        report = done.stdout
        # pan's exit status says whether it found an error in the model, which is for the caller to judge.
        assert step[0] == "./pan" or done.returncode == 0, f"{' '.join(step)}\n{report}"
    return parse_outcome(report)


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    """Where pan is built, about a megabyte per case; removed at once, because pytest keeps tmp_path for three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture
def _spin_and_gcc() -> None:
    missing = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]
    if missing:
        sentence = f"the models need {' and '.join(missing)}: apt-get install {' '.join(missing)}"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)


@pytest.mark.usefixtures("_spin_and_gcc")
@pytest.mark.parametrize("case", RIGHT, ids=str)
def test_protocol_holds_in_every_interleaving(case: Case, workplace: Path) -> None:
    outcome = explore(case, workplace)
    assert outcome.complete, outcome.report
    assert outcome.errors == 0, outcome.report
    assert outcome.auditor_fully_reached, outcome.report


@pytest.mark.usefixtures("_spin_and_gcc")
@pytest.mark.parametrize("case", MUTANTS, ids=str)
def test_mutant_is_caught(case: Case, workplace: Path) -> None:
    outcome = explore(case, workplace)
    assert outcome.errors > 0, outcome.report
    expected = {Search.SAFETY: "assertion violated", Search.CYCLES: "non-progress cycle"}[case.search]
    assert expected in outcome.report, outcome.report


@pytest.mark.parametrize("case", RIGHT + MUTANTS, ids=str)
def test_macros_of_a_case_mean_something_to_its_model(case: Case) -> None:
    text = (MODELS / f"{case.model}.pml").read_text()
    for macro in re.findall(r"-D(\w+)", case.macros):
        assert re.search(rf"^#.*\b{macro}\b", text, re.MULTILINE), f"{case.model}.pml never looks at {macro}"


@pytest.mark.parametrize("model", sorted(path.stem for path in MODELS.glob("*.pml")))
def test_every_mutant_of_a_model_has_a_case(model: str) -> None:
    offered = set(re.findall(r"MUTANT_\w+", (MODELS / f"{model}.pml").read_text()))
    tried = set(re.findall(r"MUTANT_\w+", " ".join(case.macros for case in MUTANTS if case.model == model)))
    assert offered == tried


@pytest.mark.usefixtures("_spin_and_gcc")
def test_search_cut_short_by_depth_counts_as_incomplete(workplace: Path) -> None:
    whole = explore(Case("room", "whole", "-DMESSAGES=1"), workplace)
    assert whole.complete
    cut = subprocess.run(["./pan", "-E", "-m20"], cwd=workplace, capture_output=True, text=True, check=False)
    assert not parse_outcome(cut.stdout + cut.stderr).complete
