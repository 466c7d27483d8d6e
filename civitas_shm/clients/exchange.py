"""One connection of a blocking client: requests and their answers, one thread at a time.

Guarantee: while something is being said, what the run says is read, so that neither side waits for the other to read.

Rules of this file: no pool and no policy; who uses it gives it back or closes it. Each wait has the deadline that it is
given; None waits for ever. The socket never blocks; `_wait` does.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from typing import Final

from ..errors import RunNotAnswering, TransportClosed
from ..host.wire import FrameDecoder, WireError, encode_frame
from .client import lost, silent
from .dial import Line
from .protocol import Bye, Chunks, Done, Failed, FromClient, Replied, ToClient
from .stream import GRACE_S

__all__ = ["Answer", "Exchange"]

Answer = Done | Replied | Failed | Chunks

_READ_BYTES: Final = 64 << 10


class Exchange:
    """Over one connection."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._sock = line.sock
        self._sock.setblocking(False)
        self._decoder: FrameDecoder[ToClient] = FrameDecoder(ToClient)
        self._come: deque[ToClient] = deque()
        self._last = 0
        self.pid = os.getpid()

    def fresh(self) -> bool:
        """Whether it still stands: an idle one has nothing to read but the end, or the run's last word."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        return False

    def number(self) -> int:
        """Of the next request."""
        self._last += 1
        return self._last

    def say(self, request: FromClient, timeout_s: float | None) -> None:
        """TransportClosed when the run has ended; RunNotAnswering when it does not read."""
        until_s = None if timeout_s is None or timeout_s <= 0 else time.monotonic() + timeout_s + GRACE_S
        left = memoryview(encode_frame(request))
        while left:
            try:
                left = left[self._sock.send(left) :]
            except (BlockingIOError, InterruptedError):
                if not self._wait(select.POLLIN | select.POLLOUT, until_s):
                    raise RunNotAnswering(silent(self._line, timeout_s or 0.0)) from None
                self._read()
            except OSError:
                raise self._gone() from None

    def hear(self, timeout_s: float | None) -> Answer:
        """What the run says next. TransportClosed when it ends; RunNotAnswering: nothing in that time, nor in the grace
        behind it."""
        answer = self.hear_by(None if timeout_s is None or timeout_s <= 0 else time.monotonic() + timeout_s + GRACE_S)
        if answer is None:
            raise RunNotAnswering(silent(self._line, timeout_s or 0.0))
        return answer

    def hear_by(self, until_s: float | None) -> Answer | None:
        """What the run says next; None: nothing until then, on the monotonic clock."""
        while not self._come:
            if not self._wait(select.POLLIN, until_s):
                return None
            self._read()
        answer = self._come.popleft()
        if isinstance(answer, Bye):
            raise TransportClosed(answer.text or lost(self._line, committed=None))
        return answer

    def silent(self, timeout_s: float) -> RunNotAnswering:
        """The error of a run that has not answered in that time and its grace."""
        return RunNotAnswering(silent(self._line, timeout_s))

    def close(self) -> None:
        """Idempotent. What is under way on it is called off."""
        self._sock.close()

    def _read(self) -> None:
        """What lies there. After the end it is told once all that came before has been heard."""
        try:
            data = self._sock.recv(_READ_BYTES)
            if not data:
                self._come.append(Bye(lost(self._line, committed=None)))
            self._come += self._decoder.feed(data)
        except (BlockingIOError, InterruptedError):
            return
        except WireError as error:
            self._come.append(Bye(f"What the run {self._line.run!r} answered is no answer: {error}."))
        except OSError:
            self._come.append(Bye(lost(self._line, committed=None)))

    def _gone(self) -> TransportClosed:
        """What the run said before it closed, while the request was on its way."""
        for _ in range(2):  # the first look may say only that the other side has closed
            self._read()
        for answer in self._come:
            if isinstance(answer, Bye):
                return TransportClosed(answer.text)
        return TransportClosed(lost(self._line, committed=None))

    def _wait(self, events: int, until_s: float | None) -> bool:
        """False: the time is over."""
        poll = select.poll()
        poll.register(self._sock, events)
        return bool(poll.poll(None if until_s is None else max(0.0, until_s - time.monotonic()) * 1e3))
