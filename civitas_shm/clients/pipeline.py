"""`ask_many` of the blocking client: many questions on one connection, answers as they come.

Rules of this file: no thread; as `many`, which is the same for those who have a loop.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..retrying import Retry
from .exchange import Exchange
from .protocol import IN_FLIGHT_MAX, Ask, Failed, Replied, error_from
from .stream import GRACE_S

__all__ = ["Pipeline"]


@dataclass(slots=True)
class _Question:
    number: int
    """Of its payload."""
    data: bytes
    name: str
    attempt: int
    due_s: float
    """When its answer must be here."""


class Pipeline:
    """One `ask_many`."""

    def __init__(
        self,
        exchange: Exchange,
        names: list[str],
        ask: Callable[[int, str, bytes], Ask],
        built: Callable[[Replied], Any],
        timeout_s: float | None,
        retry: Retry | None,
    ) -> None:
        """`ask` makes a request of its number, a name and a payload; `built` what the caller gets of a reply."""
        self._exchange = exchange
        self._ask = ask
        self._built = built
        self._timeout_s = timeout_s if timeout_s is not None and timeout_s > 0 else None
        self._retry = retry
        self._open_asks = dict.fromkeys(names, 0)
        self._open: dict[int, _Question] = {}
        """By number of the request."""
        self._later: list[tuple[float, int, _Question]] = []
        """Heap: what is tried again, and when."""
        self._answers: dict[int, Any] = {}
        self.failed: list[Exception] = []

    def run(self, payloads: Iterable[bytes], limit: int) -> list[Any]:
        """The replies, and the errors in their places, in the order of the payloads. What ends the connection is
        raised."""
        numbered = enumerate(payloads)
        limit = min(limit, IN_FLIGHT_MAX)
        more = True
        while more or self._open or self._later:
            while more and len(self._open) + len(self._later) < limit:
                following = next(numbered, None)
                more = following is not None
                if following is not None:
                    self._begin(_Question(*following, "", 1, 0.0))
            now_s = time.monotonic()
            while self._later and self._later[0][0] <= now_s:
                self._begin(heapq.heappop(self._later)[2])
            if self._open or self._later:
                self._hear()
        return [self._answers[number] for number in sorted(self._answers)]

    def _begin(self, question: _Question) -> None:
        question.name = name = min(self._open_asks, key=lambda each: self._open_asks[each])
        request = self._ask(self._exchange.number(), name, question.data)
        question.due_s = float("inf") if self._timeout_s is None else time.monotonic() + self._timeout_s + GRACE_S
        self._open_asks[name] += 1
        self._open[request.id] = question
        self._exchange.say(request, self._timeout_s)

    def _hear(self) -> None:
        due_s = min((question.due_s for question in self._open.values()), default=float("inf"))
        until_s = min(due_s, self._later[0][0] if self._later else float("inf"))
        answer = self._exchange.hear_by(None if until_s == float("inf") else until_s)
        if answer is None:
            if time.monotonic() >= due_s:
                raise self._exchange.silent(self._timeout_s or 0.0)
            return
        question = self._open.pop(answer.id)
        # Behind the others, so that equals take turns.
        self._open_asks[question.name] = self._open_asks.pop(question.name) - 1
        try:
            if isinstance(answer, Failed):
                raise error_from(answer)
            assert isinstance(answer, Replied)
            self._answers[question.number] = self._built(answer)
        except Exception as error:  # noqa: BLE001 - tried again, or handed to the caller
            if not self._again(question, error):
                error.add_note(f"asked of {question.name!r}")
                error.add_note(f"payload {question.number} of ask_many")
                self._answers[question.number] = error
                self.failed.append(error)

    def _again(self, question: _Question, error: Exception) -> bool:
        retry = self._retry
        if retry is None or not retry.again(question.attempt, error):
            return False
        due_s = time.monotonic() + retry.wait_s(question.attempt, random.random())
        question.attempt += 1
        heapq.heappush(self._later, (due_s, question.number, question))
        return True
