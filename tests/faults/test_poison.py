"""A poison message is convicted although the host dies in between: strikes and kills are neither lost nor doubled."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.dead_letters import store_of
from civitas_shm.errors import RunFailed
from civitas_shm.host import kernel
from civitas_shm.letters import Letter
from civitas_shm.topology.model import AgentSpec

pytestmark = pytest.mark.process

PATIENT = {"max_restarts": 1000, "backoff_base_s": 0.0}


class Scene:
    """One run after the other, under one name, with a poisoned agent and an innocent one beside it."""

    def __init__(self, start_run: Any, folder: Path) -> None:
        self.start_run, self.folder = start_run, folder
        self.options = {"name": f"t{os.getpid()}-poison"}

    def run(self, *, resume: bool = True) -> Any:
        agents = [
            AgentSpec(name, "fault_agents.Poison", process=f"p-{name}", config={"out": str(self.folder)})
            for name in ("bad", "good")
        ]
        return self.start_run(*agents, supervision=PATIENT, options=self.options | {"resume": resume})

    def handed_over(self, name: str = "bad") -> list[int]:
        """The delivery count of each hand-over."""
        path = self.folder / name
        return [int(line.split()[1]) for line in path.read_text().splitlines()] if path.exists() else []

    async def kill_host(self, run: Any) -> None:
        os.kill(run.client.host_pid, signal.SIGKILL)
        with pytest.raises(RunFailed, match="SIGKILL"):
            await run.client.wait()

    def die(self) -> None:
        (self.folder / "die-bad").touch()

    def letter(self) -> Letter:
        (directory,) = [path for path in (self.folder / "runs").iterdir() if path.is_dir()]
        store = store_of(directory)
        assert store is not None
        (letter,) = store.letters()
        store._db.close()  # as a reader: nothing is removed
        return letter


@pytest.mark.fault("poison message")
def test_strikes_survive_the_host_and_a_death_that_no_host_has_judged_counts_for_nobody(
    start_run: Any, tmp_path: Path, fired: Any
) -> None:
    scene = Scene(start_run, tmp_path)

    async def test() -> None:
        async with scene.run(resume=False) as run:
            await run.send("bad", {"n": 1, "poison": True})
            await run.send("good", {"n": 2})
            await run.until(scene.handed_over)
            scene.die()  # the first strike
            await run.until(lambda: len(scene.handed_over()) == 2)
            await run.until(lambda: len(run.named_process("process_started", "p-bad")) == 2)
            worker = run.pid("p-bad")
            os.kill(run.client.host_pid, signal.SIGSTOP)
            scene.die()  # unseen
            await run.until(lambda: kernel.process_state(worker)[0] == "Z")
            await scene.kill_host(run)
        async with scene.run() as run:
            await run.until(lambda: len(scene.handed_over()) == 3)
            scene.die()  # the second strike
            await run.until(lambda: len(scene.handed_over()) == 4)
            await scene.kill_host(run)  # while it runs, alone: the host's death counts for nobody
        async with scene.run() as run:
            await run.until(lambda: len(scene.handed_over()) == 5)
            assert not run.named("dead_letter")
            scene.die()  # the third
            await run.until(lambda: run.named("dead_letter"))
            await run.send("good", {"n": 3})
            await run.until(lambda: len(scene.handed_over("good")) == 2)
            fired(len(run.named("process_died")), "death that has convicted, after two hosts were killed")

    asyncio.run(test())
    letter = scene.letter()
    assert (letter.recipient, letter.strikes, letter.deliveries) == ("bad", 3, 5)
    assert "it ended its process 3 times, and nothing else ran there" in letter.cause
    assert "exit code 7" in letter.cause
    assert scene.handed_over() == [1, 2, 3, 4, 5]
    assert scene.handed_over("good") == [1, 1], "the innocent one was handled once"


@pytest.mark.fault("poison message")
def test_kills_from_outside_are_counted_on_over_the_death_of_the_host(
    start_run: Any, tmp_path: Path, fired: Any
) -> None:
    scene = Scene(start_run, tmp_path)

    async def killed(run: Any, times: int) -> None:
        for _ in range(times):
            deaths = len(run.named("process_died"))
            count = len(scene.handed_over())
            os.kill(run.pid("p-bad"), signal.SIGKILL)
            await run.until(lambda: len(run.named("process_died")) > deaths)  # noqa: B023
            await run.until(lambda: run.named("dead_letter") or len(scene.handed_over()) > count)  # noqa: B023
            await run.until(lambda: len(run.named("process_recovered")) > deaths)  # noqa: B023
            fired(1, "kill from outside")

    async def test() -> None:
        async with scene.run(resume=False) as run:
            await run.send("bad", {"n": 1, "poison": True})
            await run.until(scene.handed_over)
            await killed(run, 4)
            await scene.kill_host(run)
        async with scene.run() as run:
            await run.until(lambda: len(scene.handed_over()) == 6)
            await killed(run, 5)
            assert not run.named("dead_letter")
            await killed(run, 1)
            await run.until(lambda: run.named("dead_letter"))

    asyncio.run(test())
    assert "it was killed from outside 10 times" in scene.letter().cause.replace("its process was", "it was")
    assert scene.handed_over() == list(range(1, 12))
