"""A run under load whose history is checked: sources that note what they send, sinks that note what they handle.

The agents are those of the torture (tests/torture/chaos_agents.py), each in a process of its own, and so is the judge
(history.py). `finish` ends the run in order, with every mailbox drained, and says what is amiss.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from civitas_shm.topology.model import AgentSpec, StopSpec

TORTURE = Path(__file__).parents[1] / "torture"


def load_module(name: str) -> ModuleType:
    """One of tests/torture, which is a folder of scripts and no package."""
    if str(TORTURE) not in sys.path:
        sys.path.append(str(TORTURE))
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, TORTURE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


history = load_module("history")

DRAINED: dict[str, Any] = {"stop": StopSpec(drain="all", timeout_s=100)}
"""For `start_run`."""


class Load:
    """`sources` send numbers to `sinks` in turn, for as long as nobody says that it is enough."""

    def __init__(
        self, folder: Path, sources: Sequence[str] = ("s0", "s1"), sinks: Sequence[str] = ("k0", "k1")
    ) -> None:
        self.folder = folder / "load"
        self.folder.mkdir(parents=True)
        self.sources, self.sinks = sources, sinks

    def agents(self, *, mailbox_size: int = 100, **config: Any) -> list[AgentSpec]:
        """`config`: as the agents read it, beside what they need."""
        config = {"folder": str(self.folder), "sinks": list(self.sinks)} | config
        kinds = [*((name, "Sink") for name in self.sinks), *((name, "Source") for name in self.sources)]
        return [
            AgentSpec(name, f"chaos_agents.{kind}", process=f"p-{name}", mailbox_size=mailbox_size, config=config)
            for name, kind in kinds
        ]

    def handled(self, sink: str) -> int:
        """How many messages it has noted."""
        path = self.folder / f"got-{sink}"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def sent(self, source: str) -> int:
        """How many sends have returned."""
        path = self.folder / f"sent-{source}"
        return path.read_bytes().count(b"r") if path.exists() else 0

    async def flows(self, run: Any, count: int = 20) -> None:
        """Return when each sink has handled so many more."""
        before = {sink: self.handled(sink) for sink in self.sinks}
        await run.until(lambda: all(self.handled(sink) >= before[sink] + count for sink in self.sinks))

    def enough(self) -> None:
        (self.folder / "enough").touch()

    async def finish(self, run: Any) -> int:
        """End the run in order. AssertionError unless its history is right; how many messages there were."""
        self.enough()
        await run.client.stop()
        ended = await run.client.wait()
        assert (ended.exit_code, ended.waiting) == (0, {})
        in_hand = [entry["agent"] for death in run.named("process_died") for entry in death["in_hand"] or []]
        return self.check(sum(agent in self.sinks for agent in in_hand))

    def check(self, in_hand_at_deaths: int) -> int:
        """AssertionError unless nothing is lost, invented, reordered or doubled beyond that."""
        found, _ = history.faults(history.read(self.folder, self.sources, self.sinks, in_hand_at_deaths))
        assert not found, found[:10]
        return sum(map(self.sent, self.sources))
