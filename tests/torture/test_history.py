"""The checker of histories finds every planted fault, and no fault in a right history."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"torture_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


history = load("history")


@st.composite
def right(draw: st.DrawFn) -> Any:
    """A right history: every sender's messages go to one receiver, some twice, each double one that was in hand."""
    sent, handled, allowed = {}, {"r0": [], "r1": []}, 0
    for index in range(draw(st.integers(1, 3))):
        sender, count = f"s{index}", draw(st.integers(1, 12))
        begun = sorted(draw(st.sets(st.integers(0, 40), min_size=count, max_size=count)))
        perhaps = set(draw(st.lists(st.sampled_from(begun), max_size=2)))  # begun, and its sender died before it noted
        sent[sender] = history.Sent(frozenset(begun), frozenset(set(begun) - perhaps))
        receiver = handled[draw(st.sampled_from(["r0", "r1"]))]
        for number in begun:
            if number in perhaps and draw(st.booleans()):
                continue
            times = draw(st.sampled_from([1, 1, 1, 2, 3]))
            allowed += times - 1
            receiver.extend([history.Handled(sender, number, history.mark_of(sender, number))] * times)
    return history.History(sent, handled, allowed)


@given(right())
def test_a_right_history_has_no_fault(one: Any) -> None:
    found, doubles = history.faults(one)
    assert found == []
    assert doubles == one.in_hand_at_deaths


def changed(one: Any, receiver: str, notes: list[Any]) -> Any:
    return history.History(one.sent, {**one.handled, receiver: notes}, one.in_hand_at_deaths)


def pick(data: st.DataObject, one: Any) -> tuple[str, int, Any]:
    places = [(receiver, at, note) for receiver, notes in one.handled.items() for at, note in enumerate(notes)]
    assume(places)
    return data.draw(st.sampled_from(places))


def kinds(one: Any) -> set[str]:
    return {sentence.partition(":")[0] for sentence in history.faults(one)[0]}


@given(right(), st.data())
def test_a_lost_message_is_reported(one: Any, data: st.DataObject) -> None:
    receiver, _, note = pick(data, one)
    assume(note.number in one.sent[note.sender].returned)
    assert "lost" in kinds(changed(one, receiver, [other for other in one.handled[receiver] if other != note]))


@given(right(), st.data())
def test_a_double_too_many_is_reported(one: Any, data: st.DataObject) -> None:
    receiver, at, note = pick(data, one)
    notes = list(one.handled[receiver])
    notes.insert(at, note)
    assert kinds(changed(one, receiver, notes)) == {"doubled"}


@given(right(), st.data())
def test_two_messages_in_the_wrong_order_are_reported(one: Any, data: st.DataObject) -> None:
    receiver, _, note = pick(data, one)
    rest = [other for other in one.handled[receiver] if other != note]
    later = [at for at, other in enumerate(rest) if other.sender == note.sender and other.number > note.number]
    assume(later)
    rest.insert(later[0] + 1, note)
    assert "reordered" in kinds(changed(one, receiver, rest))


@given(right(), st.data())
def test_a_message_that_nobody_sent_is_reported(one: Any, data: st.DataObject) -> None:
    receiver, at, note = pick(data, one)
    notes = list(one.handled[receiver])
    kind = data.draw(st.sampled_from(["number", "sender", "content"]))
    match kind:
        case "number":
            notes.insert(at, history.Handled(note.sender, 1000, history.mark_of(note.sender, 1000)))
        case "sender":
            notes.insert(at, history.Handled("nobody", note.number, history.mark_of("nobody", note.number)))
        case "content":
            notes[at] = history.Handled(note.sender, note.number, note.mark ^ 1)
    assert "invented" in kinds(changed(one, receiver, notes))
