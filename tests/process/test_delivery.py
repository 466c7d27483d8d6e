"""Delivery over the death of real processes: who is convicted, who is not, and that no letter is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.dead_letters import store_of
from civitas_shm.errors import AgentError, CivitasError, RunFailed
from civitas_shm.letters import Letter, count_letters
from civitas_shm.serializer import decode
from civitas_shm.topology.model import AgentSpec, PoolSpec

pytestmark = pytest.mark.process


def run_async(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def noting(name: str, out: Path, **fields: Any) -> AgentSpec:
    config = {"out": str(out), **fields.pop("config", {})}
    return AgentSpec(name, "letter_agents.Noting", config=config, **fields)


def handled(out: Path, name: str) -> list[tuple[int, int]]:
    """(number, delivery) of each handler that began."""
    path = out / name
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(n), int(delivery)) for n, delivery, _ in map(str.split, lines)]


def letters_of(run: Any, tmp_path: Path) -> list[Letter]:
    (directory,) = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    store = store_of(directory)
    if store is None:
        return []
    found = store.letters(payloads=True)
    store._db.close()  # as a reader: nothing is removed
    return found


PATIENT = {"max_restarts": 1000, "backoff_base_s": 0.0}


# --- poison ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault("poison message")
def test_the_poison_message_among_five_innocent_ones_is_convicted_alone(
    start_run: Any, tmp_path: Path, fired: Any
) -> None:
    names = [f"a{n}" for n in range(6)]

    async def test() -> None:
        agents = [noting(name, tmp_path) for name in names]
        async with start_run(*agents, supervision=PATIENT) as run:
            asks = [
                asyncio.create_task(run.ask(name, {"n": 1, "pause_s": 1.0, "crowd": True}))
                for name in names
                if name != "a3"
            ]
            poison = asyncio.create_task(run.ask("a3", {"n": 1, "do": "crash", "crowd": True}))
            with pytest.raises(AgentError, match="it ended its process 3 times") as failed:
                await poison
            assert failed.value.type_name == "ProcessDied"
            answers = await asyncio.gather(*asks)
            # All ran at the first death, so it convicts nobody; then each innocent one ran once more, and to its end.
            assert [answer["delivery"] for answer in answers] == [2] * 5
            for name in names:
                assert (await run.ask(name, {"n": 2}))["n"] == 2
            died = run.named("process_died")
            assert [len(death["in_hand"]) >= 1 for death in died] == [True] * 4
            assert len(died[0]["in_hand"]) == 6
            fired(sum("SIGSEGV" in death["cause"] for death in died), "deaths by SIGSEGV")
            assert [death["counts"] for death in died] == [True, True, True, False]
            (told,) = run.named("dead_letter")
            assert told["agent"] == "a3"
        (letter,) = letters_of(run, tmp_path)
        assert (letter.recipient, letter.sender, letter.strikes, letter.deliveries) == ("a3", "_runtime", 3, 4)
        assert "SIGSEGV" in letter.cause
        assert "Segmentation fault" in letter.traceback
        assert handled(tmp_path, "a3") == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1)]
        for name in set(names) - {"a3"}:
            assert handled(tmp_path, name) == [(1, 1), (1, 2), (2, 1)], name

    run_async(test)


def test_with_the_budget_that_agents_have_by_default_a_poison_message_ends_no_run(
    start_run: Any, tmp_path: Path
) -> None:
    async def test() -> None:
        supervision = {"max_restarts": 3, "backoff_base_s": 0.0}
        async with start_run(noting("a", tmp_path), noting("b", tmp_path), supervision=supervision) as run:
            innocent = asyncio.create_task(run.ask("b", {"n": 1, "pause_s": 1.0, "crowd": True}))
            with pytest.raises(AgentError):
                await run.ask("a", {"n": 1, "do": "crash", "crowd": True})
            await innocent
            assert len(run.named("process_died")) == 4

    run_async(test)


def test_a_limit_of_none_brings_it_back_until_supervision_gives_up_and_it_stays(start_run: Any, tmp_path: Path) -> None:
    async def test() -> None:
        agent = noting("a", tmp_path, max_deliveries=0)
        async with start_run(agent, supervision={"max_restarts": 6, "backoff_base_s": 0.0}) as run:
            await run.send("a", {"n": 1, "do": "exit"})
            with pytest.raises(RunFailed):
                await run.client.wait()
        assert handled(tmp_path, "a") == [(1, n) for n in range(1, 8)]
        assert letters_of(run, tmp_path) == []

    run_async(test)


def test_a_suspect_that_asks_in_its_own_process_is_answered(start_run: Any, tmp_path: Path) -> None:
    async def test() -> None:
        async with start_run(noting("a", tmp_path), noting("b", tmp_path), supervision=PATIENT) as run:
            asking = asyncio.create_task(run.ask("a", {"n": 1, "do": "ask", "whom": "b"}))
            other = asyncio.create_task(run.ask("b", {"n": 7, "pause_s": 1.0, "crowd": True}))
            await run.until(lambda: handled(tmp_path, "a") and handled(tmp_path, "b"))
            os.kill(run.pid(), signal.SIGSEGV)
            assert (await asking)["n"] == 1
            assert (await other)["n"] == 7

    run_async(test)


def test_kills_from_outside_are_endured_ten_times_and_chaos_for_ever(start_run: Any, tmp_path: Path) -> None:
    async def test() -> None:
        async with start_run(noting("a", tmp_path), supervision=PATIENT) as run:
            ask = asyncio.create_task(run.ask("a", {"n": 1, "pause_s": 600}))
            for kills in range(1, 11):
                await run.until(lambda: len(handled(tmp_path, "a")) == kills)  # noqa: B023
                assert not ask.done()
                os.kill(run.pid(), signal.SIGKILL)
                await run.until(lambda: len(run.named("process_recovered")) == kills)  # noqa: B023
            with pytest.raises(AgentError, match="killed from outside 10 times"):
                await ask
            assert len(handled(tmp_path, "a")) == 10

    run_async(test)


def test_strikes_and_letters_outlive_the_host(start_run: Any, tmp_path: Path) -> None:
    async def test() -> None:
        name = f"t{os.getpid()}-outlive"
        supervision = {"max_restarts": 2, "backoff_base_s": 0.0}
        agents = (noting("a", tmp_path), noting("b", tmp_path))
        async with start_run(*agents, supervision=supervision, options={"name": name}) as run:
            with pytest.raises(AgentError):
                await run.ask("b", {"n": 5, "do": "raise"})
            await run.ask("b", {"n": 6})  # it is back: one restart is used up
            await run.send("a", {"n": 1, "do": "exit"})
            with pytest.raises(CivitasError):  # two deaths, two strikes, the budget is gone
                await run.client.wait()
        assert handled(tmp_path, "a") == [(1, 1), (1, 2)]
        async with start_run(*agents, supervision=PATIENT, options={"name": name, "resume": True}) as run:
            await run.until(lambda: run.named("dead_letter"))
            assert handled(tmp_path, "a") == [(1, 1), (1, 2), (1, 3)]
            # And once more, by force: the letters of both runs are there.
            os.kill(run.client.host_pid, signal.SIGKILL)
            with pytest.raises(CivitasError):
                await run.client.wait()
        by_agent = {letter.recipient: letter for letter in letters_of(run, tmp_path)}
        assert set(by_agent) == {"a", "b"}
        assert by_agent["a"].strikes == 3
        assert "exit code 7" in by_agent["a"].cause
        assert by_agent["b"].traceback.strip().endswith("LookupError: number 5")

    run_async(test)


# --- raising --------------------------------------------------------------------------------------------------------


def test_a_message_whose_handler_escalates_is_a_letter_with_its_traceback_and_its_asker_knows(
    start_run: Any, tmp_path: Path
) -> None:
    async def test() -> None:
        async with start_run(noting("a", tmp_path), supervision=PATIENT) as run:
            with pytest.raises(AgentError, match="number 3"):
                await run.ask("a", {"n": 3, "do": "raise"})
            assert (await run.ask("a", {"n": 4}))["delivery"] == 1
            await run.until(lambda: run.named("dead_letter"))
        (letter,) = letters_of(run, tmp_path)
        assert letter.cause == "its handler raised LookupError: number 3"
        assert "letter_agents.py" in letter.traceback
        assert letter.payload is not None
        assert letter.header is not None

    run_async(test)


def test_with_redeliver_the_next_incarnation_gets_it_again_up_to_the_limit(start_run: Any, tmp_path: Path) -> None:
    async def test() -> None:
        agent = noting("a", tmp_path, on_crash="redeliver")
        async with start_run(agent, supervision=PATIENT) as run:
            assert (await run.ask("a", {"n": 1, "do": "raise once"}))["delivery"] == 2
            with pytest.raises(AgentError):
                await run.ask("a", {"n": 2, "do": "raise"})
            await run.until(lambda: run.named("dead_letter"))
        assert handled(tmp_path, "a") == [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]
        (letter,) = letters_of(run, tmp_path)
        assert (letter.strikes, letter.deliveries) == (3, 3)

    run_async(test)


def test_what_waits_for_an_agent_that_is_given_up_becomes_letters_that_say_so(start_run: Any, tmp_path: Path) -> None:
    async def test() -> None:
        given_up = noting("a", tmp_path, restart="temporary")
        async with start_run(given_up, noting("b", tmp_path), supervision=PATIENT) as run:
            await run.send("a", {"n": 0, "do": "raise", "pause_s": 1})
            for n in range(1, 101):  # more than a mailbox has in hand at once
                await run.send("a", {"n": n})
            await run.until(lambda: len(run.named("dead_letter")) == 101)
            assert (await run.ask("b", {"n": 1}))["n"] == 1
        letters = letters_of(run, tmp_path)
        assert Counter(letter.cause.split(":")[0] for letter in letters) == {
            "its handler raised LookupError": 1,
            "'a' was given up, and its mailbox closed": 100,
        }

    run_async(test)


# --- at most once ---------------------------------------------------------------------------------------------------


def test_at_most_once_handles_nothing_twice_under_fifty_kills_and_accounts_for_every_message(
    start_run: Any, tmp_path: Path
) -> None:
    total = 400

    async def test() -> None:
        agent = noting("a", tmp_path, delivery="at_most_once", config={"pause_s": 0.004})
        async with start_run(agent, pool=PoolSpec(size=1, standby=1), supervision=PATIENT) as run:
            sending = asyncio.create_task(send_all(run))
            for kills in range(1, 51):
                await asyncio.sleep(0.003 * (kills % 7))
                os.kill(run.pid(), signal.SIGKILL)
                await run.until(lambda: len(run.named("process_recovered")) == kills)  # noqa: B023
            await sending
            await run.ask("a", {"n": total})  # behind all others
        numbers = Counter(n for n, _ in handled(tmp_path, "a"))
        assert set(numbers.values()) == {1}
        letters = letters_of(run, tmp_path)
        assert letters, "no kill has hit a handler"
        assert all("at_most_once" in letter.cause for letter in letters)
        cut_off = {decode(letter.payload or b"")["n"] for letter in letters}
        # Not every one of these has come as far as to say that it began.
        assert set(numbers) | cut_off == set(range(total + 1))
        in_hand = sum(len(death["in_hand"]) for death in run.named("process_died"))
        assert len(letters) <= in_hand

    async def send_all(run: Any) -> None:
        for n in range(total):
            await run.send("a", {"n": n})

    run_async(test)


# --- after the end ----------------------------------------------------------------------------------------------------


def test_letters_alone_are_what_a_run_leaves_and_the_next_of_its_name_keeps_them(
    start_run: Any, tmp_path: Path
) -> None:
    async def test() -> None:
        options = {"name": f"t{os.getpid()}-left"}
        for count in (1, 2):
            async with start_run(noting("a", tmp_path), supervision=PATIENT, options=options) as run:
                await run.send("a", {"n": 1, "do": "raise"})
                await run.until(lambda: run.named("dead_letter"))
                await run.client.stop()
                await run.client.wait()
            (directory,) = (tmp_path / "runs").iterdir()
            assert [path.name for path in directory.iterdir()] == ["letters"]
            assert count_letters(directory) == count
            assert run.named("run_stopped")[0]["dead_letters"] == count
        async with start_run(noting("a", tmp_path), options=options | {"fresh": True}) as run:
            assert any("2 dead letters" in note and "--fresh" in note for note in run.client.notes)
            await run.client.stop()
            await run.client.wait()
        assert list((tmp_path / "runs").iterdir()) == []

    run_async(test)
