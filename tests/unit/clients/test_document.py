"""docs/clients.md: its programs run as they stand there, with stand-ins for Flask and Celery."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from civitas_shm import AgentProcess, Message
from civitas_shm.errors import StreamInterrupted
from civitas_shm.testing import Probe, RuntimeUnderTest

DOCUMENT = Path(__file__).parents[3] / "docs" / "clients.md"


class Routes:
    """What the programs use of `Flask` and `Celery`: decorators that give the function back."""

    def __init__(self, name: str) -> None:
        pass

    def get(self, path: str) -> Callable[[Any], Any]:
        return lambda function: function

    def task(self, function: Any) -> Any:
        return function


class Teller(AgentProcess):
    left = 0

    async def handle(self, message: Message) -> None:
        try:
            for number in range(message.payload["words"]):
                await self.emit({"word": number})
        except StreamInterrupted:
            Teller.left += 1
            raise


def program(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The one whose first line is `# name...`."""
    for module, names in {"flask": {"Flask": Routes, "Response": iter}, "celery": {"Celery": Routes}}.items():
        stand_in = ModuleType(module)
        vars(stand_in).update(names)
        monkeypatch.setitem(sys.modules, module, stand_in)
    [source] = re.findall(rf"```python\n(# {re.escape(name)}.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    namespace: dict[str, Any] = {"__name__": name}
    exec(compile(source, name, "exec"), namespace)
    return namespace


async def test_the_web_process_and_the_task_queue_of_the_document_run(
    runtime: RuntimeUnderTest, switchboard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pricing = Probe("pricing", lambda message: {"price": 2 * message.payload["item"]})
    orders = Probe("orders")
    await runtime.start(pricing, orders, Teller("teller"))
    serving = switchboard.serve(runtime)

    def web() -> None:
        flask = program("web.py", monkeypatch)
        assert flask["price"](17) == {"price": 34}
        lines: Iterable[str] = flask["story"](3)
        assert [json.loads(line) for line in lines] == [{"word": 0}, {"word": 1}, {"word": 2}]
        gone = flask["story"](10**9)
        next(gone)
        gone.close()  # what a server does when the browser has gone
        flask["shop"].close()

    def tasks() -> None:
        celery = program("tasks.py", monkeypatch)
        assert celery["reprice"]([1, 2, 3]) == [2, 4, 6]
        celery["order"]("tea", 2)
        celery["shop"].close()

    await asyncio.to_thread(web)
    await runtime.until(lambda: Teller.left == 1)
    await asyncio.to_thread(tasks)
    await orders.expect(payload={"item": "tea", "count": 2})
    assert runtime.runtime._run._driver.delays.waiting() == {"orders": 1}
    await runtime.until(lambda: serving.clients == 0)
