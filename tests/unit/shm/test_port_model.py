"""Ports, mailboxes and arenas against a model in plain Python: random posts, takes, releases, deaths, closes, commits.

The model is the contract of `civitas_shm.transport`: three lanes of messages for each mailbox, what is in hand, a
state. Positions start at 0, or two laps before the wrap of the lap. All memory is free again at the end of each run.
"""

from __future__ import annotations

import tempfile
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from civitas_shm.messages import HEADER, LANE_CONTROL, LANE_NORMAL, LANE_PRIORITY
from civitas_shm.transport import CLOSED, FULL, SENT

SENDERS, READER = (1, 3), 2
IN_HAND_MAX = 3
"""So that what a run holds stays far below the arenas: memory that is short has tests of its own."""
POLICIES = {"block": 5, "error": 1, "drop_oldest": 3, "latest": 4}


@dataclass(frozen=True)
class Sent:
    number: int
    payload: bytes
    type: str
    sender: int


@dataclass
class Hand:
    message: Sent
    lane: int
    order: int
    deliveries: int
    id: bytes


@dataclass
class Box:
    """What a mailbox of the contract holds."""

    mailbox: int
    policy: str
    capacity: dict[int, int]
    lanes: dict[int, deque[Sent]] = field(default_factory=lambda: {lane: deque() for lane in range(3)})
    in_hand: dict[int, Hand] = field(default_factory=dict)
    redeliver: list[int] = field(default_factory=list)
    """Tokens of what a dead reader had in hand, next one first."""
    dropped: int = 0
    closed: bool = False
    state: tuple[bytes, bytes] | None = None


class PortModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="civitas-unit-")
        self.numbers = 0
        self.takes = 0
        self.ids: set[bytes] = set()

    @initialize(first_lap=st.sampled_from([0, 65534]))
    def begin(self, first_lap: int) -> None:
        self.run = PortModel.make_run(Path(self.folder.name), first_lap)
        self.boxes = {
            policy: Box(
                self.run.mailbox(policy, capacity, overflow=policy, priority_capacity=2),
                policy,
                {LANE_CONTROL: 63, LANE_PRIORITY: 2, LANE_NORMAL: capacity},
            )
            for policy, capacity in POLICIES.items()
        }
        for slot in (*SENDERS, READER):
            self.run.port(slot)
        self._listen()

    make_run: Any = None

    def _listen(self) -> None:
        for box in self.boxes.values():
            self.run.ports[READER].listen(box.mailbox, True)

    # --- rules ----------------------------------------------------------------------------------------------------

    @rule(
        policy=st.sampled_from(sorted(POLICIES)),
        sender=st.sampled_from(SENDERS),
        lane=st.sampled_from([LANE_NORMAL, LANE_NORMAL, LANE_NORMAL, LANE_PRIORITY, LANE_CONTROL]),
        size=st.sampled_from([0, 1, 60, 700, 20_000, 60_000]),
        type_=st.text(max_size=40),
    )
    def post(self, policy: str, sender: int, lane: int, size: int, type_: str) -> None:
        box = self.boxes[policy]
        self.numbers += 1
        payload = self.numbers.to_bytes(8, "big") + bytes([self.numbers % 256]) * size
        type_ = type_.encode("utf-8", "replace").decode()
        outcome = self.run.ports[sender].post(box.mailbox, payload, type_, box.mailbox, None, lane, -7)
        waiting = box.lanes[lane]
        if box.closed:
            assert outcome == CLOSED
            return
        if policy == "latest":
            box.dropped += len(waiting)
            waiting.clear()
        elif len(waiting) == box.capacity[lane]:
            if policy != "drop_oldest":
                assert outcome == FULL
                return
            box.dropped += 1
            waiting.popleft()
        assert outcome == SENT
        waiting.append(Sent(self.numbers, payload, type_, box.mailbox))

    @rule(policy=st.sampled_from(sorted(POLICIES)), done=st.booleans())
    def take(self, policy: str, done: bool) -> None:
        box = self.boxes[policy]
        running = [token for token in box.in_hand if token not in box.redeliver]
        if len(running) >= IN_HAND_MAX and not done:
            return
        token = running[0] if done and running else -1
        got = self.run.ports[READER].take(box.mailbox, token)
        if token >= 0:
            del box.in_hand[token]
        if box.redeliver:
            hand = box.in_hand[box.redeliver[0]]
            assert got is not None
            assert got[0] == box.redeliver.pop(0)
            hand.deliveries += 1
            self._is(box, got, hand)
            return
        lane = next((lane for lane in range(3) if box.lanes[lane]), None)
        if lane is None:
            assert got is None
            return
        assert got is not None
        self.takes += 1
        fields = HEADER.unpack(got[1])
        hand = Hand(box.lanes[lane].popleft(), lane, self.takes, 1, fields[11])
        assert fields[11] not in self.ids, "an id came twice"
        self.ids.add(fields[11])
        assert got[0] not in box.in_hand
        box.in_hand[got[0]] = hand
        self._is(box, got, hand)

    def _is(self, box: Box, got: Any, hand: Hand) -> None:
        _, header, type_, sender, payload, deliveries = got
        fields = HEADER.unpack(header)
        assert (payload, type_, deliveries) == (hand.message.payload, hand.message.type, hand.deliveries)
        assert sender == box.policy
        assert (fields[2], fields[6], fields[8], fields[11], fields[12], fields[13]) == (
            len(payload), box.mailbox, hand.lane, hand.id, box.mailbox, -7
        )  # fmt: skip

    @rule(policy=st.sampled_from(sorted(POLICIES)), which=st.integers(0, IN_HAND_MAX))
    def release(self, policy: str, which: int) -> None:
        box = self.boxes[policy]
        running = [token for token in box.in_hand if token not in box.redeliver]
        if running:
            token = running[which % len(running)]
            self.run.ports[READER].release(box.mailbox, token)
            del box.in_hand[token]

    @rule()
    def reader_dies(self) -> None:
        left = self.run.die(READER)
        expected = {(box.mailbox, token): hand for box in self.boxes.values() for token, hand in box.in_hand.items()}
        assert {(one.mailbox, one.token): (one.delivery, one.payload_len) for one in left} == {
            key: (hand.deliveries, len(hand.message.payload)) for key, hand in expected.items()
        }
        self.run.port(READER)
        self._listen()
        for box in self.boxes.values():
            box.redeliver = sorted(box.in_hand, key=lambda token: (box.in_hand[token].lane, box.in_hand[token].order))

    @rule(sender=st.sampled_from(SENDERS))
    def sender_dies(self, sender: int) -> None:
        assert self.run.die(sender) == []
        self.run.port(sender)

    @rule(policy=st.sampled_from(sorted(POLICIES)), size=st.sampled_from([0, 10, 5_000, 200_000]))
    def commit_state(self, policy: str, size: int) -> None:
        box = self.boxes[policy]
        running = [token for token in box.in_hand if token not in box.redeliver]
        if running:
            state = bytes([size % 251]) * size
            assert self.run.ports[READER].commit_state(box.mailbox, running[-1], state) == SENT
            box.state = (state, box.in_hand[running[-1]].id)

    @rule(policy=st.sampled_from(sorted(POLICIES)))
    def close(self, policy: str) -> None:
        box = self.boxes[policy]
        if box.closed or self.takes < 10:  # not before something has happened
            return
        waiting = [message for lane in range(3) for message in box.lanes[lane]]
        removed = self.run.memory.close_mailbox(box.mailbox)
        assert [one.payload_len for one in removed] == [len(message.payload) for message in waiting]
        for lane in box.lanes.values():
            lane.clear()
        box.closed = True

    @rule(slot=st.sampled_from([*SENDERS, READER]))
    def trim(self, slot: int) -> None:
        self.run.ports[slot].trim(0)

    # --- what holds all the time ----------------------------------------------------------------------------------

    @invariant()
    def numbers_are_those_of_the_model(self) -> None:
        for box in getattr(self, "boxes", {}).values():
            stats = self.run.memory._native.stats(box.mailbox)
            waiting = sum(map(len, box.lanes.values()))
            assert (stats[2], stats[3], stats[7], stats[8]) == (waiting, len(box.in_hand), box.dropped, 0)
            assert self.run.ports[READER].stored_state(box.mailbox) == box.state

    def teardown(self) -> None:
        if hasattr(self, "run"):
            self._all_memory_is_free_in_the_end()
            self.run.end()
        self.folder.cleanup()

    def _all_memory_is_free_in_the_end(self) -> None:
        reader = self.run.ports[READER]
        for box in self.boxes.values():
            for token in list(box.in_hand):
                reader.release(box.mailbox, token)
            while (got := reader.take(box.mailbox)) is not None:
                reader.release(box.mailbox, got[0])
        for slot in SENDERS:
            port = self.run.ports[slot]
            port.trim(0)
            used, backed, _, _ = port.memory()
            assert (used, backed) in ((0, 0), (0, 1 << 20)), "an idle sender keeps the extent of its header alone"


PortModel.TestCase.settings = settings(
    max_examples=150, stateful_step_count=80, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(autouse=True)
def _run_maker(request: pytest.FixtureRequest, make_run: Any) -> None:
    PortModel.make_run = staticmethod(make_run)


TestPorts = PortModel.TestCase
