"""Deadlock detection: pure cases, a brute-force model, and random worlds in which the truth is known."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from civitas_shm.deadlock import AGAIN, Deadlock, DeadlockWatch, cycles, deadlock_error
from civitas_shm.transport import Wait


def wait(agent: int, target: int, since: int, seen: int, number: int = 1, kind: str = "ask") -> Wait:
    return Wait(agent, target, kind, number, since, seen, "question")  # type: ignore[arg-type]


def agents_of(deadlock: Deadlock) -> list[int]:
    return [one.agent for one in deadlock.waits]


def test_two_that_ask_each_other_are_a_circle_and_the_later_ask_is_the_youngest() -> None:
    (found,) = cycles([wait(1, 2, since=10, seen=100), wait(2, 1, since=50, seen=60)])
    assert agents_of(found) == [1, 2]
    assert found.youngest.agent == 2


def test_who_only_waits_for_a_circle_is_not_in_it() -> None:
    (found,) = cycles([wait(7, 1, 0, 100), wait(1, 2, 10, 100), wait(2, 3, 20, 100), wait(3, 1, 5, 100)])
    assert agents_of(found) == [3, 1, 2]


def test_a_wait_that_was_last_seen_before_another_began_proves_nothing() -> None:
    assert cycles([wait(1, 2, since=10, seen=40), wait(2, 1, since=50, seen=90)]) == []


def test_one_that_waits_for_itself_is_a_circle() -> None:
    (found,) = cycles([wait(4, 4, 1, 2, kind="room")])
    assert agents_of(found) == [4]


def test_two_circles_at_once_are_both_found() -> None:
    waits = [wait(1, 2, 1, 9), wait(2, 1, 2, 9), wait(3, 4, 3, 9, kind="room"), wait(4, 3, 4, 9)]
    assert sorted(agents_of(found) for found in cycles(waits)) == [[1, 2], [3, 4]]


def test_told_in_the_second_reading_and_only_if_everybody_was_seen_again() -> None:
    watch = DeadlockWatch()
    assert watch.look([wait(1, 2, 1, 10), wait(2, 1, 2, 10)]) == []
    assert watch.look([wait(1, 2, 1, 20), wait(2, 1, 2, 10)]) == []  # 2 has not looked since
    (found,) = watch.look([wait(1, 2, 1, 20), wait(2, 1, 2, 20)])
    assert agents_of(found) == [1, 2]


def test_another_wait_between_the_same_agents_is_another_circle() -> None:
    watch = DeadlockWatch()
    watch.look([wait(1, 2, 1, 10), wait(2, 1, 2, 10, number=1)])
    assert watch.look([wait(1, 2, 1, 20), wait(2, 1, 15, 20, number=2)]) == []


def test_told_once_then_again_only_if_it_stays() -> None:
    watch = DeadlockWatch()
    told = [bool(watch.look([wait(1, 2, 1, 10 + n), wait(2, 1, 2, 10 + n)])) for n in range(2 + AGAIN)]
    assert told == [False, True, *[False] * (AGAIN - 1), True]


def test_the_error_names_who_waits_for_what_and_how_long() -> None:
    (found,) = cycles([wait(1, 2, since=10**9, seen=3 * 10**9), wait(2, 1, 2 * 10**9, 3 * 10**9, kind="room")])
    error = deadlock_error(found, {1: "planner", 2: "critic"}.__getitem__)
    assert str(error) == (
        "'planner' waits for 2 s for the answer of 'critic' to 'question'; 'critic' waits for 1 s for room in the full "
        "mailbox of 'planner' for 'question': nobody of them can go on."
    )
    assert error.cycle[1] == ("critic", "planner", "room", "question", 1.0)


# --- against brute force ---------------------------------------------------------------------------------------------

edges = st.builds(
    lambda target, since, length: (target, since, since + length),
    st.integers(0, 5), st.integers(0, 20), st.integers(0, 20),
)  # fmt: skip


@given(st.dictionaries(st.integers(0, 5), edges, max_size=6))
def test_finds_what_trying_all_circles_finds(graph: dict[int, tuple[int, int, int]]) -> None:
    """Every sequence of distinct agents is tried, and every instant."""
    expected = set()
    for size in range(1, len(graph) + 1):
        for circle in itertools.permutations(graph, size):
            closed = all(graph[a][0] == circle[(n + 1) % size] for n, a in enumerate(circle))
            if closed and any(all(graph[a][1] <= now <= graph[a][2] for a in circle) for now in range(41)):
                expected.add(frozenset(circle))
    found = cycles(wait(agent, target, since, seen) for agent, (target, since, seen) in graph.items())
    assert {frozenset(agents_of(one)) for one in found} == expected


# --- worlds in which the truth is known --------------------------------------------------------------------------


class World:
    """Agents that ask one another at random, some with a deadline, in processes that note their waits late or not at
    all for a while, and deliver answers late; a host that reads whenever it likes."""

    AGENTS = 5

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0
        self.busy_until = [0] * self.AGENTS
        self.asks: dict[int, tuple[int, int, int, int]] = {}  # asker -> (target, id, since, deadline)
        self.answers: dict[int, int] = {}  # asker -> when its answer arrives; the other handler has ended
        self.queue: list[list[tuple[int, int]]] = [[] for _ in range(self.AGENTS)]  # (asker, id) that wait there
        self.serving: list[tuple[int, int] | None] = [None] * self.AGENTS
        self.working = [False] * self.AGENTS
        self.cells: dict[int, Wait] = {}
        self.number = 0
        self.watch = DeadlockWatch()
        self.found = self.stood = 0
        self.first_true: dict[frozenset[tuple[int, int]], int] = {}
        self.last_true: dict[frozenset[tuple[int, int]], int] = {}

    def look_at_the_truth(self) -> None:
        for start in self.asks:
            path, agent = [start], self.asks[start][0]
            while agent in self.asks and agent not in path:
                path.append(agent)
                agent = self.asks[agent][0]
            if agent == start and not any(member in self.answers for member in path):
                circle = frozenset((member, self.asks[member][1]) for member in path)
                self.last_true[circle] = self.now
                self.stood = max(self.stood, self.now - self.first_true.setdefault(circle, self.now))

    def step(self) -> None:
        self.now += 1
        for agent, (_, _, _, deadline) in list(self.asks.items()):
            if deadline <= self.now and agent not in self.answers:
                self.goes_on(agent)
        for agent, arrives in list(self.answers.items()):
            if arrives <= self.now:
                self.goes_on(agent)
        agent = self.random.randrange(self.AGENTS)
        if agent not in self.asks and self.now >= self.busy_until[agent]:
            self.turn(agent)
        self.look_at_the_truth()
        if self.random.random() < 0.5:  # some process notes; one that is blocked does not for a while
            self.note(self.random.randrange(self.AGENTS))
        if self.random.random() < 0.2:
            self.read()

    def goes_on(self, agent: int) -> None:
        """Its ask is over; its handler runs, perhaps for long, and its process notes nothing then."""
        self.answers.pop(agent, None)
        del self.asks[agent]
        self.busy_until[agent] = self.now + self.random.choice([0, 1, 30])

    def turn(self, agent: int) -> None:
        """The agent's own code runs: it takes a message, asks somebody, or ends its handler with the answer."""
        if not self.working[agent]:
            if self.queue[agent]:
                self.serving[agent] = self.queue[agent].pop(0)
            self.working[agent] = True
            self.busy_until[agent] = self.now + self.random.choice([0, 5])
        elif self.random.random() < 0.4:
            self.number += 1
            target = self.random.choice([other for other in range(self.AGENTS) if other != agent])
            self.asks[agent] = (target, self.number, self.now, self.now + self.random.choice([60, 10**9]))
            self.queue[target].append((agent, self.number))
        else:
            served = self.serving[agent]
            self.working[agent], self.serving[agent] = False, None
            if served is not None and served[0] in self.asks and self.asks[served[0]][1] == served[1]:
                self.answers[served[0]] = self.now + self.random.choice([1, 20])

    def note(self, agent: int) -> None:
        """What has been posted by now is collected first, as `AgentRunner._look` does."""
        if agent not in self.asks and self.now < self.busy_until[agent]:
            return  # its loop is blocked: what it noted before stands
        if agent in self.answers:
            self.goes_on(agent)
        if agent in self.asks:
            target, number, since, _ = self.asks[agent]
            self.cells[agent] = wait(agent, target, since, self.now, number)
        else:
            self.cells.pop(agent, None)

    def read(self) -> None:
        for deadlock in self.watch.look(self.cells.values()):
            circle = frozenset((one.agent, one.id) for one in deadlock.waits)
            assert circle in self.last_true, f"an innocent circle at {self.now}"
            last_seen = min(one.seen_ns for one in deadlock.waits)
            assert self.last_true[circle] >= last_seen, f"at {self.now} a circle that was no more at {last_seen}"
            youngest = deadlock.youngest
            if self.asks.get(youngest.agent, (0, 0))[1] == youngest.id and youngest.agent not in self.answers:
                self.found += 1
                self.goes_on(youngest.agent)  # with the error


def test_in_random_worlds_every_circle_that_is_told_is_one_and_none_stays() -> None:
    found = 0
    for seed in range(60):
        world = World(seed)
        for _ in range(3000):
            world.step()
        found += world.found
        # Two readings with a note of everybody between take some 40 steps; ten times that is "it was forgotten".
        assert world.stood < 400, f"a circle stood for {world.stood} steps with seed {seed}"
    assert found > 300
