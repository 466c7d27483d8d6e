"""What a user's type checker sees. Never run: mypy checks it, strictly.

`assert_type` states what must be inferred. An `ignore` states what must be an error: mypy complains of one that is not
needed, so a lost error fails too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_type

import civitas_shm
from civitas_shm import (
    AgentError,
    AgentProcess,
    CivitasError,
    ErrorAction,
    MailboxFull,
    Message,
    Runtime,
    Supervisor,
    payload_type,
)


class Greeter(AgentProcess):
    async def handle(self, message: Message) -> Message | None:
        assert_type(message.payload, dict[str, Any])
        assert_type(message.sender, str)
        assert_type(message.delivery, int)
        assert_type(self.state, dict[str, Any])
        assert_type(self.config, dict[str, Any])
        self.log.info("hello %s", message.payload["name"])
        await self.send("greeter", {"name": "you"})
        answer = await self.ask("greeter", {"name": "me"}, timeout=1.0)
        assert_type(answer, Message)
        return self.reply({"text": answer.payload["text"]})

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.RETRY


@payload_type
@dataclass
class Order:
    sku: str


class Shop(AgentProcess):
    async def handle(self, message: Message[Order]) -> Message | None:
        assert_type(message.payload, Order)
        self.log.info(message.payload.amount)  # type: ignore[attr-defined]
        await self.send("shop", Order("tea"))
        await self.send("shop", 42)  # type: ignore[arg-type]
        return self.reply(message.payload)


class Wrong(AgentProcess):
    async def handle(self, message: str) -> None:  # type: ignore[override]
        await self.send(42, {})  # type: ignore[arg-type]
        await self.send("greeter", "text")  # type: ignore[arg-type]

    async def on_error(self, exc: Exception, message: Message) -> str:  # type: ignore[override]
        return "RETRY"


async def program() -> None:
    async with Runtime(Supervisor("root", [Greeter("greeter")]), transport="shm") as runtime:
        assert_type(runtime, Runtime)
        try:
            answer = await runtime.ask("greeter", {"name": "world"})
        except MailboxFull as full:
            assert_type(full.capacity, int)
        except AgentError as error:
            assert_type(error.remote_traceback, str)
        except CivitasError as error:
            assert_type(error.exit_code, int)
        else:
            assert_type(answer, Message)
    _ = civitas_shm.Superviser  # type: ignore[attr-defined]
    Greeter()  # type: ignore[call-arg]
    Supervisor("root", [Greeter])  # type: ignore[list-item]
