"""python -m pytest examples/survivor: what the kill leaves, seen from outside."""

from __future__ import annotations

import pytest
from survivor import Survivor

from civitas_shm.testing import RuntimeUnderTest


@pytest.mark.civitas(transport="shm")
async def test_its_answer_comes_from_another_process_than_the_one_that_was_asked(runtime: RuntimeUnderTest) -> None:
    await runtime.start(Survivor("survivor"))
    first = await runtime.pid("survivor")
    reply = await runtime.ask("survivor", {})
    assert reply.payload["delivery"] == 2
    assert reply.payload["pid"] == await runtime.pid("survivor") != first
