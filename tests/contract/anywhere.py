"""Whole runs for the suite of the public API: the same scene in one process and in many.

    def test_something(anywhere: Anywhere) -> None:
        async def scene(runtime: Runtime) -> None: ...
        anywhere.play(lambda: Supervisor("root", [Echo("a", process="one"), Echo("b", process="two")]), scene)

Rules of this file:
- a scene knows nothing of processes: what it asserts holds over every transport;
- a run's memory has no name (`memfd`), so that a scene that fails leaves none, whatever waits in it;
- agents stand at the top of a module, so that a worker can import them; the tree is made anew for each run;
- a test that cannot run over shm stands in NOT_ON_SHM with its reason, which is the text of its skip there. Nothing
  else may skip it, and a name that is no test any more is an error (`test_anywhere.py`).
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from civitas_shm import Runtime, Supervisor
from civitas_shm.topology.model import PoolSpec, TransportSpec

__all__ = ["NOT_ON_SHM", "ROOT", "Anywhere", "until"]

ROOT = Path(__file__).parents[2]

NOT_ON_SHM: dict[str, str] = {
    "test_the_object_of_an_agent_can_be_had_where_it_lives": "the object lives in another process",
    "test_a_crash_callback_gets_the_exception_itself": "an exception does not leave its process, its text does",
}
"""By test: why it cannot run where agents live in processes of their own."""


class Anywhere:
    """One place to play in: a transport."""

    def __init__(self, transport: str) -> None:
        self.transport = transport

    @property
    def in_process(self) -> bool:
        return self.transport == "in_process"

    def play(self, tree: Callable[[], Supervisor], scene: Callable[[Runtime], Awaitable[None]], **options: Any) -> None:
        """Run the tree, and the scene beside it; stop in good order."""

        async def run() -> None:
            transport = (
                TransportSpec(self.transport)
                if self.in_process
                else TransportSpec("shm", "memfd", arena_mb=8, mailboxes=64)
            )
            runtime = Runtime(
                tree(),
                transport=transport,
                name=f"any-{os.getpid()}-{uuid.uuid4().hex[:8]}",
                **{"pool": PoolSpec(size=1, standby=0), **options},
            )
            async with runtime:
                await scene(runtime)

        asyncio.run(run())


async def until(condition: Callable[[], Any]) -> Any:
    """What the condition says when it holds; it may be awaitable. The watchdog of pytest-timeout is the only limit."""
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        await asyncio.sleep(0.002)


def anywhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Anywhere:
    """The fixture's work; see `conftest`."""
    transport = str(request.param)
    if transport == "shm":
        reason = NOT_ON_SHM.get(request.node.originalname)
        if reason is not None:
            pytest.skip(reason)
        pytest.importorskip("civitas_shm_transports.shm", reason="the transport is not installed")
        monkeypatch.setenv("CIVITAS_SHM_DIR", str(tmp_path / "runs"))
        monkeypatch.syspath_prepend(ROOT)
    return Anywhere(transport)
