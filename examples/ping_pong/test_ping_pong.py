"""python -m pytest examples/ping_pong: each agent alone, with a probe in the place of the other."""

from __future__ import annotations

import pytest
from agents import Ping, Pong

from civitas_shm.testing import Probe, RuntimeUnderTest


@pytest.mark.civitas(transport=["in_process", "shm"])
async def test_pong_gives_back_what_comes_after(runtime: RuntimeUnderTest) -> None:
    await runtime.start(Pong("pong"))
    assert [(await runtime.ask("pong", {"ball": ball})).payload["ball"] for ball in (0, 41)] == [1, 42]


async def test_ping_plays_on_with_what_it_got_and_ends_the_run(runtime: RuntimeUnderTest) -> None:
    pong = Probe("pong", lambda message: {"ball": message.payload["ball"] + 10})
    await runtime.start(pong, Ping("ping", config={"rounds": 3}))
    assert await runtime.wait() == 0
    assert [message.payload["ball"] for message in pong.messages] == [0, 10, 20]
