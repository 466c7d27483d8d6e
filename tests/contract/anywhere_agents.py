"""Agents of the suite that runs in one process and in many: each shows one thing of the public API."""

from __future__ import annotations

import os
import time
from typing import Any

from civitas_shm import (
    AgentProcess,
    CapabilityNotFoundError,
    CivitasError,
    CorrectionSignal,
    ErrorAction,
    EvalAgent,
    EvalEvent,
    GenServer,
    Message,
    SpawnError,
)


class Echo(AgentProcess):
    """Answers with what it got; does what its payload's `do` says before that."""

    async def handle(self, message: Message) -> Message | None:
        match message.payload.get("do"):
            case "crash":
                raise ValueError("told to")
            case "finish":
                raise LookupError("nothing left to do")
        return self.reply({**message.payload, "name": self.name, "pid": os.getpid(), "sender": message.sender})

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.STOP if isinstance(exc, LookupError) else ErrorAction.ESCALATE


class Counter(GenServer):
    """Counts casts, remembers infos."""

    def init(self) -> None:  # type: ignore[override]  # a plain function will do
        self.total = 0
        self.infos: list[dict[str, Any]] = []

    async def handle_call(self, payload: dict[str, Any], from_: str) -> dict[str, Any]:
        match payload.get("op"):
            case "wrong":
                return payload["op"]  # type: ignore[no-any-return]
            case "later":
                self.send_after(payload["ms"], {"n": payload["n"]})
        return {"total": self.total, "infos": self.infos, "from": from_}

    async def handle_cast(self, payload: dict[str, Any]) -> None:
        assert "__cast__" not in payload
        self.total += payload["by"]

    async def handle_info(self, payload: dict[str, Any]) -> None:
        self.infos.append(payload)


class Client(AgentProcess):
    """Uses a server as it is told."""

    async def handle(self, message: Message) -> Message:
        await self.cast("counter", {"by": 2})
        return self.reply(await self.call("counter", {}))


class PlainClient(AgentProcess):
    """The same from a thread of its own."""

    def handle(self, message: Message) -> Message:  # type: ignore[override]
        self.cast("counter", {"by": 3})
        return self.reply(self.call("counter", {}))  # type: ignore[arg-type]


class Guard(EvalAgent):
    """Does what the event says, and remembers what it saw."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.seen: list[list[Any]] = []

    async def on_eval_event(self, event: EvalEvent) -> CorrectionSignal | None:
        self.seen.append([event.agent_name, event.event_type, event.payload])
        severity = event.payload.get("want")
        return None if severity is None else CorrectionSignal(severity, "as it wanted", {"hint": 1})

    async def handle(self, message: Message) -> Message | None:
        if message.correlation_id:
            return self.reply({"seen": self.seen})
        return await super().handle(message)


class Watched(AgentProcess):
    """Shows what it does, and remembers how it was corrected."""

    async def on_start(self) -> None:
        self.corrections: list[dict[str, Any]] = []

    async def handle(self, message: Message) -> Message:
        if "show" in message.payload:
            await self.emit_eval("step", message.payload["show"], eval_agent="guard")
        return self.reply({"corrections": self.corrections})

    async def on_correction(self, message: Message) -> None:
        self.corrections.append({**message.payload, "from": message.sender})


class Plain(AgentProcess):
    """Sends what it is told to whom it is told, and says what became of it."""

    async def handle(self, message: Message) -> Message:
        try:
            await self.send(message.payload["to"], {}, message.payload["type"])
        except CivitasError as error:
            return self.reply({"error": type(error).__name__})
        return self.reply({"error": ""})


class Observer(AgentProcess):
    """Asks supervision what it is told, from inside of an agent."""

    async def handle(self, message: Message) -> Message:
        fields = message.payload
        reply = await self.ask(fields["to"], fields.get("payload", {}), message_type=fields["type"])
        return self.reply({"answer": reply.payload, "sender": reply.sender})


class Able(Echo):
    """Has a capability."""

    capabilities = ["sum", "any"]  # noqa: RUF012
    capability_metadata = {"version": 2}  # noqa: RUF012

    async def on_start(self) -> None:
        self.got = 0

    async def handle(self, message: Message) -> Message | None:
        if message.type == "work":
            self.got += 1
            return None
        if message.type == "count":
            return self.reply({"got": self.got})
        return await super().handle(message)


class Seeker(AgentProcess):
    """Sends to whoever can."""

    async def handle(self, message: Message) -> Message:
        try:
            for _ in range(message.payload.get("times", 1)):
                await self.send_capable(message.payload["capability"], {}, "work")
        except CapabilityNotFoundError as error:
            return self.reply({"missing": error.capability})
        return self.reply({"missing": None})


class Spawner(AgentProcess):
    """Spawns what it is told, where it is told."""

    async def handle(self, message: Message) -> Message:
        fields = message.payload
        try:
            if "into" in fields:
                await self.spawn_into(fields["into"], Echo, fields["name"], fields.get("config"))
            else:
                await self.spawn_nowait(Echo, fields["name"], fields.get("config"))
        except SpawnError as error:
            return self.reply({"error": str(error)})
        return self.reply({"error": ""})


class Measured(AgentProcess):
    """Says how long it has lived and how much it has done."""

    async def handle(self, message: Message) -> Message:
        if message.payload.get("do") == "crash":
            raise ValueError("told to")
        assert self.session_duration_seconds >= 0
        return self.reply({"turns": self.session_turn_count, "uptime": self.uptime_seconds, "id": self.id})


class Configured(AgentProcess):
    """Tells what it was given."""

    async def handle(self, message: Message) -> Message:
        return self.reply({"config": self.config, "id": self.id})


class Stuck(AgentProcess):
    """Blocks a thread that nothing in its process can end."""

    def handle(self, message: Message) -> None:  # type: ignore[override]
        time.sleep(3600)
