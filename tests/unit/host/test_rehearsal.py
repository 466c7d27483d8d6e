"""A rehearsal is the start of an agent, leaves nothing, and cannot harm the process that plays it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from civitas_shm.host import rehearsal
from civitas_shm.host.loop import new_loop
from civitas_shm.host.rehearsal import Extra, rehearse


def test_an_agent_starts_answers_and_stops_on_the_loop_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lived: list[str] = []
    real = Extra.handle

    async def handle(self: Extra, message: Any) -> Any:
        lived.append(message.payload["n"])
        return await real(self, message)

    monkeypatch.setattr(Extra, "handle", handle)
    with asyncio.Runner(loop_factory=new_loop) as loops:
        rehearse(loops)
        assert lived == [1]
        before = len(os.listdir("/proc/self/fd"))
        rehearse(loops)
        assert len(os.listdir("/proc/self/fd")) == before
        assert loops.run(asyncio.sleep(0, "the loop serves")) == "the loop serves"
        assert asyncio.all_tasks(loops.get_loop()) == set()
    assert capfd.readouterr().err == ""


def test_a_rehearsal_that_fails_says_so_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def play() -> None:
        raise LookupError("no stage")

    monkeypatch.setattr(rehearsal, "_play", play)
    with asyncio.Runner(loop_factory=new_loop) as loops:
        rehearse(loops)
    assert "the rehearsal of a standby failed: LookupError: no stage" in capfd.readouterr().err
