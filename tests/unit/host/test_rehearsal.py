"""A rehearsal is the start of an agent, leaves nothing, and cannot harm the process that plays it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from civitas_shm.host import kernel, rehearsal
from civitas_shm.host.loop import new_loop
from civitas_shm.host.rehearsal import Extra, rehearse


@pytest.mark.parametrize(("transport", "heard"), [("in_process", [1]), ("shm", [0, 1])])
def test_an_agent_starts_answers_and_stops_on_the_loop_that_goes_on(
    transport: str, heard: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if transport == "shm":  # there it gets what its predecessor had in hand, too
        pytest.importorskip("civitas_shm_transports.shm._shm")
    lived: list[str] = []
    real = Extra.handle

    async def handle(self: Extra, message: Any) -> Any:
        lived.append(message.payload["n"])
        return await real(self, message)

    monkeypatch.setattr(Extra, "handle", handle)
    monkeypatch.setattr(kernel, "set_name", lambda name: None)  # the process that rehearses here runs all tests
    with asyncio.Runner(loop_factory=new_loop) as loops:
        rehearse(loops, transport)
        assert lived == heard
        before = len(os.listdir("/proc/self/fd"))
        rehearse(loops, transport)
        assert len(os.listdir("/proc/self/fd")) == before
        assert loops.run(asyncio.sleep(0, "the loop serves")) == "the loop serves"
        assert asyncio.all_tasks(loops.get_loop()) == set()
    assert capfd.readouterr().err == ""


def test_a_rehearsal_that_fails_says_so_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def play(*_: Any) -> None:
        raise LookupError("no stage")

    monkeypatch.setattr(rehearsal, "_play", play)
    with asyncio.Runner(loop_factory=new_loop) as loops:
        rehearse(loops)
    assert "the rehearsal of a standby failed: LookupError: no stage" in capfd.readouterr().err
