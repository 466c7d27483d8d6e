"""A probe: an agent that records what it gets and answers as a test tells it to.

    critic = Probe("critic")
    critic.answer({"verdict": "good"}, type="review", times=1).answer(ValueError("tired"))
    await runtime.start(Planner("planner"), critic)
    message = await critic.expect(type="review", payload={"draft": 1})

Rules of this file: a probe lives in the test's own process, whatever the transport, so the test has the object; what it
has recorded outlives its restarts; `expect` takes each message once, and a failure says all that has come.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self, cast

from ..messages import Message
from ..process import AgentProcess

__all__ = ["EXPECT_TIMEOUT_S", "Answer", "Probe"]

EXPECT_TIMEOUT_S: Final = 30.0
"""How long `expect` waits before it fails: a watchdog, not a measure. A machine under load is slow."""

_SHOWN: Final = 20
"""Messages in the text of a failure."""

Answer = (
    Mapping[str, Any]
    | BaseException
    | type[BaseException]
    | Callable[[Message], "dict[str, Any] | Awaitable[dict[str, Any] | None] | None"]
    | None
)
"""A payload to reply with; an exception to raise; a function of the message that gives a payload, or None for no reply;
None: no reply."""


@dataclass
class _Rule:
    answer: Answer
    type: str | None
    times: int | None
    """How often it still holds; None: for ever."""


@dataclass
class _Record:
    """Shared by all lives of one probe."""

    messages: list[Message] = field(default_factory=list)
    open: list[Message] = field(default_factory=list)
    """Those that no `expect` has taken."""
    downs: list[tuple[str, str]] = field(default_factory=list)
    rules: list[_Rule] = field(default_factory=list)
    came: list[asyncio.Future[None]] = field(default_factory=list)
    """Of those who wait for one more message."""


class Probe(AgentProcess):
    """Records and answers. Every method but the hooks is for the test, and runs on the test's loop."""

    process = "main"

    def __init__(self, name: str = "probe", answer: Answer = None, **options: Any) -> None:
        """`answer`: to whatever no rule of `answer()` is for. `options` as of `AgentProcess`."""
        super().__init__(name, **options)
        self._record = _Record()
        self._otherwise: Answer = answer

    # --- what the test says -------------------------------------------------------------------------------------------

    def answer(self, answer: Answer, *, type: str | None = None, times: int | None = None) -> Self:
        """From now on answer so, messages of `type` (None: of any), `times` times (None: always); gives the probe back.

        The first rule that fits counts: what is told later is for when the earlier ones are used up.
        """
        if times is not None and times < 1:
            raise ValueError(f"times={times}: an answer holds once or more often; None: always")
        self._record.rules.append(_Rule(answer, type, times))
        return self

    @property
    def messages(self) -> list[Message]:
        """All that it was handed, in order; after a crash the same message may be here twice, see `delivery`."""
        return list(self._record.messages)

    @property
    def unexpected(self) -> list[Message]:
        """Those of them that no `expect` has taken."""
        return list(self._record.open)

    @property
    def downs(self) -> list[tuple[str, str]]:
        """(name, reason) of each end of an agent that it monitors."""
        return list(self._record.downs)

    async def expect(
        self,
        type: str | None = None,
        payload: Mapping[str, Any] | None = None,
        *,
        sender: str | None = None,
        where: Callable[[Message], object] | None = None,
        timeout_s: float = EXPECT_TIMEOUT_S,
    ) -> Message:
        """The first message, come or to come, that nobody has expected yet and that fits all that is given.

        `payload`: these keys have these values, whatever else there is. `where`: any condition. AssertionError after
        `timeout_s`, with all that has come. Messages that do not fit stay for others.
        """

        def fits(message: Message) -> bool:
            return (
                (type is None or message.type == type)
                and (sender is None or message.sender == sender)
                and (payload is None or _has(message.payload, payload))
                and (where is None or bool(where(message)))
            )

        record = self._record
        looked = 0
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    for message in record.open[:]:
                        if fits(message):
                            record.open.remove(message)
                            return message
                    looked = len(record.messages)
                    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    record.came.append(waiter)
                    await waiter
        except TimeoutError:
            wanted = {"type": type, "payload": payload, "sender": sender, "where": where}
            text = ", ".join(f"{key}={value!r}" for key, value in wanted.items() if value is not None) or "anything"
            raise AssertionError(
                f"{self.name!r} got no message with {text} within {timeout_s:g} s. {self._all(looked)}"
            ) from None

    def assert_nothing_unexpected(self) -> None:
        """AssertionError if a message has come that no `expect` has taken. Says nothing of what is still to come."""
        if self._record.open:
            raise AssertionError(f"{self.name!r} got messages that nobody expected. {self._all(len(self.messages))}")

    def _all(self, count: int) -> str:
        lines = [
            f"  {'  ' if any(message is other for other in self._record.open) else '✓ '}{message.type!r} from "
            f"{message.sender!r}: {message.payload!r:.200}"
            for message in self._record.messages[-_SHOWN:]
        ]
        if not lines:
            return "Nothing has come at all."
        return "\n".join([f"{count} have come (✓: expected before), the last of them:", *lines])

    # --- what the runtime calls ---------------------------------------------------------------------------------------

    async def handle(self, message: Message) -> Message | None:
        """Record, wake who waits for it, answer."""
        record = self._record
        record.messages.append(message)
        record.open.append(message)
        waiting, record.came = record.came, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
        payload = await self._answer(message)
        return None if payload is None else self.reply(payload)

    async def on_down(self, name: str, reason: str) -> None:
        """Record."""
        self._record.downs.append((name, reason))

    def reborn(self) -> AgentProcess:
        """A new life with the same record and the same rules."""
        agent = cast(Self, super().reborn())
        agent._record = self._record
        return agent

    async def _answer(self, message: Message) -> dict[str, Any] | None:
        answer = self._rule(message.type)
        if answer is None:
            return None
        if isinstance(answer, BaseException | type):
            raise answer
        if isinstance(answer, Mapping):
            return dict(answer)
        given = answer(message)
        return await given if inspect.isawaitable(given) else given

    def _rule(self, type: str) -> Answer:
        rules = self._record.rules
        for rule in rules:
            if rule.type in (None, type):
                if rule.times is not None:
                    rule.times -= 1
                    if not rule.times:
                        rules.remove(rule)
                return rule.answer
        return self._otherwise


def _has(payload: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    missing = object()
    return all(payload.get(key, missing) == value for key, value in wanted.items())
