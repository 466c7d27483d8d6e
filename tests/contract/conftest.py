"""One world for each transport and loop: two ports, and a host's hold on the mailboxes.

Rules of this file:
- a scene is an async function that gets a World; `play` runs it on stock asyncio and on uvloop, over each transport;
- a new transport needs a maker here, and no test of its own;
- what a transport cannot do it says with a reason (`World.cannot`), which becomes the text of a skip.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.errors import TransportUnavailable
from civitas_shm.port_bus import PortBus
from civitas_shm.transport import MailboxSpec, MemoryPlan, Port, load_transport

from .anywhere import Anywhere
from .anywhere import anywhere as make_anywhere

uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")

SENDER, READER = 2, 3
"""Slots of the two processes that the two ports of shm stand for."""


@dataclass
class World:
    """What a scene plays in. `a` sends, `b` reads; in process both are the same port."""

    a: Port
    b: Port
    admin: Any
    """Makes and closes mailboxes: a RunMemory, or the in-process port."""
    cannot: dict[str, str] = field(default_factory=dict)
    """Ability -> why this transport does not have it."""
    successor: Callable[[], Port] | None = None
    """`b`'s process dies, by proof; the port of its next incarnation."""

    @property
    def bus(self) -> PortBus:
        return PortBus(self.a)

    def mailbox(self, name: str, capacity: int = 1000, **options: Any) -> int:
        mailbox: int = self.admin.add_mailbox(MailboxSpec(name, capacity, **options))
        if self.b is not self.admin:
            self.admin.set_readers(mailbox, [READER])
        return mailbox

    def need(self, ability: str) -> None:
        if ability in self.cannot:
            pytest.skip(self.cannot[ability])


Scene = Callable[[World], Awaitable[None]]
Play = Callable[[Scene], None]


async def _in_process(scene: Scene, tmp_path: Path) -> None:
    port = load_transport("in_process").create()
    port.start(asyncio.get_running_loop())
    reason = "the messages of in_process die with the process: there is no successor"
    try:
        await scene(World(port, port, port, cannot={"succession": reason}))
    finally:
        port.stop()


async def _shm(scene: Scene, tmp_path: Path) -> None:
    try:
        module = load_transport("shm")
    except TransportUnavailable as error:
        pytest.skip(str(error))
    assert module.attach is not None
    attach = module.attach
    plan = MemoryPlan(slots=5, mailboxes=64, arena_bytes=64 << 20, kind="memfd")
    memory = module.create(f"contract-{os.getpid()}-{uuid.uuid4().hex[:6]}", plan, run_dir=tmp_path, fresh=True)
    ports: list[Port] = []

    def join(slot: int) -> Port:
        port = attach(memory.attach_spec(slot, memory.incarnation(slot) + 1, 0), memory.fds())
        port.start(asyncio.get_running_loop())
        ports.append(port)
        return port

    def successor() -> Port:
        world.b.stop()
        memory.slot_died(READER)
        world.b = join(READER)
        for stats in memory.stats():
            memory.set_readers(world.b.resolve(stats.name), [READER])
        return world.b

    try:
        world = World(join(SENDER), join(READER), memory, successor=successor)
        await scene(world)
    finally:
        for port in ports:
            port.stop()
        memory.close(keep=False)


WORLDS = {"in_process": _in_process, "shm": _shm}
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=[f"{transport}-{loop}" for transport in WORLDS for loop in LOOPS])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    """Runs a scene in a fresh world."""
    transport, loop = request.param.split("-")

    def run(scene: Scene) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(WORLDS[transport](scene, tmp_path))

    return run


@pytest.fixture(params=["in_process", "shm"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Anywhere:
    """Plays whole runs, see `anywhere.py`."""
    return make_anywhere(request, tmp_path, monkeypatch)
