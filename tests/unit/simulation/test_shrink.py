"""Delta debugging: the smallest schedule that still fails."""

from __future__ import annotations

import random

from civitas_shm.simulation.schedule import End, Schedule
from civitas_shm.simulation.shrink import shrink


def entries(count: int) -> Schedule:
    return tuple(End(float(number), f"a{number}", "crash") for number in range(count))


def test_only_the_entries_that_matter_are_left_in_their_order() -> None:
    schedule = entries(200)
    for seed in range(20):
        culprits = sorted(random.Random(seed).sample(range(200), 3))
        wanted = {schedule[number] for number in culprits}
        smallest = shrink(schedule, lambda s, wanted=wanted: wanted <= set(s))  # type: ignore[misc]
        assert smallest == tuple(schedule[number] for number in culprits)


def test_what_fails_without_any_entry_is_shrunk_to_nothing() -> None:
    assert shrink(entries(50), lambda schedule: True) == ()


def test_what_does_not_fail_again_is_left_as_it_is() -> None:
    assert shrink(entries(50), lambda schedule: False) == entries(50)


def test_the_budget_of_replays_holds() -> None:
    calls = 0

    def fails(schedule: Schedule) -> bool:
        nonlocal calls
        calls += 1
        return len(schedule) >= 90

    assert len(shrink(entries(100), fails, replays_max=40)) >= 90
    assert calls <= 40
