"""The native core broken on purpose, one line at a time: a harness that does not notice proves nothing.

Each mutant is one of the mistakes that the comments of native/*.h warn of.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Mutant:
    header: str
    old: str
    new: str
    harness: str
    arguments: tuple[str, ...]
    sanitizer: str = ""
    says: str = "FAILED"
    """What the harness must print: that it failed, and not that something else went wrong."""


INTEND = "cv_effect_intend(post->effect, post->digest, post->number, post->mailbox, post->lane, ref);\n"

MUTANTS = {
    "slot_emptied_before_it_is_in_hand": Mutant(
        "mailbox.h",
        "        at_release(&m->hand[entry].ref, ref | (uint64_t)lane << 40);\n",
        "        at_store(slot, cv_word(lap + 1, CV_EMPTY, 0, 0));\n"
        "        at_release(&m->hand[entry].ref, ref | (uint64_t)lane << 40);\n",
        "kill_sweep", ("take",),
    ),
    "recovery_without_a_look_at_the_hands": Mutant(
        "mailbox.h", "unsigned e = 0; e < CV_HAND && !in_hand", "unsigned e = CV_HAND; e < CV_HAND && !in_hand",
        "kill_sweep", ("recover",),
    ),
    "state_named_before_its_check": Mutant(
        "port.h", "    if (cause) memcpy(h->id, cause->id, 16);\n",
        "    at_store(&m->state_ref, ref);\n    if (cause) memcpy(h->id, cause->id, 16);\n",
        "kill_sweep", ("commit_state",),
    ),
    "record_counted_before_it_is_filled": Mutant(
        "directory.h", "    memset(r, 0, sizeof *r);\n",
        "    at_release(cv_count(run), index + 1);\n    memset(r, 0, sizeof *r);\n",
        "kill_sweep", ("directory_add",),
    ),
    "chunk_of_a_buried_message_is_nobodys": Mutant(
        "ledger.h", "        if (cv_meta_state(meta) >= CV_HAND_RUNNING && lane < CV_LANES &&",
        "        if (cv_meta_state(meta) == CV_HAND_RUNNING && lane < CV_LANES &&", "kill_sweep", ("bury",),
    ),
    "at_most_once_is_forgotten_after_a_death": Mutant(
        "mailbox.h", "    if (meta & CV_META_ONCE) {", "    if (false) {", "kill_sweep", ("forgo",),
    ),
    "suspect_is_handed_over_like_any_other": Mutant(
        "mailbox.h", "    out->alone = meta & CV_META_ALONE;", "    out->alone = false;", "kill_sweep", ("begin",),
    ),
    "verdict_overwrites_the_count": Mutant(
        "mailbox.h", "cv_meta_struck(meta, strikes, kills) | CV_META_WAITS",
        "cv_meta_struck(cv_meta(cv_meta_position(meta), 0, dead, CV_HAND_RUNNING), strikes, kills) | CV_META_WAITS",
        "kill_sweep", ("judge",),
    ),
    "successor_sleeps_with_the_park_word_of_the_dead": Mutant(
        "port.h", "    cv_rise(&p->run);\n", "", "kill_sweep", ("park",),
    ),
    "nobody_helps_the_tail_of_a_stopped_producer": Mutant(
        "mailbox.h", "at_cas(r->tail, tail, tail + 1); /* taken by somebody", "/* taken by somebody",
        "mailbox_cases", ("producer_stopped_before_helping_stops_nobody",),
    ),
    "owner_looks_at_slots_only": Mutant(
        "ledger.h", "        if (cv_meta_state(at_load(&m->hand[e].meta)) != CV_HAND_FREE) refs",
        "        if (cv_meta_state(at_load(&m->hand[e].meta)) > CV_HAND_RUNNING) refs",
        "mailbox_cases", ("message_in_hand_is_never_dropped",),
    ),
    "garbage_leaves_its_slot_before_it_is_put_aside": Mutant(
        "mailbox.h",
        "            mb_bury_garbage(m, run->me, lane, out->position, ref);\n"
        "            at_store(slot, cv_word(lap + 1, CV_EMPTY, 0, 0));\n",
        "            at_store(slot, cv_word(lap + 1, CV_EMPTY, 0, 0));\n"
        "            mb_bury_garbage(m, run->me, lane, out->position, ref);\n",
        "kill_sweep", ("take_garbage",),
    ),
    "announcement_of_the_dead_left": Mutant(
        "directory.h", "        cv_set_leave(&m->wanting, dead);\n", "", "kill_sweep", ("want_room",),
    ),
    "wait_named_before_it_is_written": Mutant(
        "waits.h", "        at_store(&cell->wait.id, 0);\n        at_store(&cell->wait.on, w->on);\n",
        "        at_store(&cell->wait.id, w->id);\n        at_store(&cell->wait.on, w->on);\n",
        "kill_sweep", ("note_wait",),
    ),
    "publish_without_order": Mutant(
        "mailbox.h", "if (at_cas(slot, word, cv_word(lap, CV_FULL, h->flags & CV_FLAG_ASK, ref)))",
        "if (atomic_compare_exchange_strong_explicit(slot, &word, cv_word(lap, CV_FULL, 0, ref), memory_order_relaxed,"
        " memory_order_relaxed))",
        "threads", ("messages=4000",), "thread", "data race",
    ),
    "no_look_after_the_park_word": Mutant(
        "park.h", "if (!cv_announced(run)) return true;\n", "return true;\n",
        "mailbox_cases", ("what_was_announced_before_the_park_word_keeps_its_reader_awake",),
    ),
    "ring_out_of_bounds": Mutant(
        "run.h", " ||\n        at + (8ull << log2) > size)", ")", "hostile_words", (), "address", says="",
    ),
    "room_made_and_nobody_told": Mutant(
        "mailbox.h", "        mb_help_head(r);\n        mb_tell_waiters(run, m);\n        return 1;",
        "        mb_help_head(r);\n        return 1;",
        "mailbox_cases", ("waiter_is_told_of_a_place",),
    ),
    "nobody_waits_in_the_first_word_so_nobody_is_told": Mutant(
        "mailbox.h", "        if (!at_load(&m->waiters.word[w])) continue;\n",
        "        if (!at_load(&m->waiters.word[w])) break;\n",
        "mailbox_cases", ("waiters_and_readers_of_both_words_are_told",),
    ),
    "readers_of_the_first_word_alone_are_told": Mutant(
        "park.h", "    for (unsigned w = 0; w < CV_SET_WORDS; w++)\n        for (uint64_t left",
        "    for (unsigned w = 0; w < 1; w++)\n        for (uint64_t left",
        "mailbox_cases", ("waiters_and_readers_of_both_words_are_told",),
    ),
    "intent_after_the_publish": Mutant(
        "port.h",
        f"    if (post->effect) {INTEND}"
        "    outcome = drops ? port_publish_dropping(p, m, &r, h, ref, &position, &dropped)\n"
        "                    : mb_publish(&p->run, &r, h, ref, &position);\n",
        "    outcome = drops ? port_publish_dropping(p, m, &r, h, ref, &position, &dropped)\n"
        "                    : mb_publish(&p->run, &r, h, ref, &position);\n"
        f"    if (post->effect && outcome == MB_OK) {INTEND}",
        "kill_sweep", ("sends",),
    ),
    "intent_taken_for_proof": Mutant(
        "effect.h", "        at_store(&m->log_count, count - 1);\n", "        (void)count;\n", "kill_sweep", ("sends",),
    ),
    "record_told_apart_too_late": Mutant(
        "effect.h",
        "    at_release(&e->m->open_index, e->entries);\n    at_release(&e->m->open_number, number);\n",
        "    at_release(&e->m->open_number, number);\n    at_release(&e->m->open_index, e->entries);\n",
        "kill_sweep", ("sends_that_are_taken",),
    ),
    "evidence_of_this_number_alone": Mutant(
        "effect.h", "at_load(&m->taken_from[dead]) >= number; /*", "at_load(&m->taken_from[dead]) == number; /*",
        "kill_sweep", ("sends_beside_another_agent",),
    ),
    "taken_without_evidence": Mutant(
        "mailbox.h", "        if (out->header.number) mb_raise", "        if (!out->header.number) mb_raise",
        "kill_sweep", ("sends_that_are_taken",),
    ),
    "memory_that_does_not_know_its_state": Mutant(
        "effect.h", "return e->current ^ cv_fold(e->tag, 0x9e3779b97f4a7c15ull);", "return e->current;",
        "kill_sweep", ("sends_and_saves",),
    ),
    "log_named_before_its_entries": Mutant(
        "effect.h",
        "    if (e->log) memcpy(h + 1, e->log, 8ull * e->entries);\n",
        "    memset(h + 1, 0, 8ull * room);\n    at_store(&e->m->log_ref, ref);\n"
        "    if (e->log) memcpy(h + 1, e->log, 8ull * e->entries);\n",
        "kill_sweep", ("sends_with_a_growing_log",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(harness: Any, tmp_path: Path, name: str) -> None:
    mutant = MUTANTS[name]
    headers = tmp_path / "native"
    shutil.copytree(harness.headers, headers)
    text = (headers / mutant.header).read_text()
    assert text.count(mutant.old) == 1, f"the line of this mutant has changed in {mutant.header}: {mutant.old!r}"
    (headers / mutant.header).write_text(text.replace(mutant.old, mutant.new))
    done = harness.execute(harness.build(mutant.harness, "gcc", mutant.sanitizer, headers), *mutant.arguments)
    assert done.returncode != 0, done.stdout
    assert mutant.says in done.stdout + done.stderr
