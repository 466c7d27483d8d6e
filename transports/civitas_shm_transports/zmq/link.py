"""The link of a bridge over a ZeroMQ proxy: sockets for `machine`. The contract is `civitas_shm.bridge.link.Link`.

Rules of this file: it decides nothing about frames. Sockets are used without zmq.asyncio: all that waits is read in one
callback, and all frames of a turn of the loop are sent together.

ZeroMQ's descriptor tells of changes, not of states: after anything is done to a socket, what it has is asked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from typing import Any, Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from civitas_shm.bridge.link import FRAME_BYTES_MAX, LinkEvents, LinkSettings, LinkState

from . import wire
from .keeper import ProxyKeeper
from .machine import Came, Changed, Event, LinkMachine, Mark, Ready, Renew, Superseded, Unroutable
from .proxy import HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS, HWM, MESSAGE_BYTES_MAX
from .settings import Settings, read_settings

__all__ = ["ZmqLink"]

BATCH: Final = 256
"""Frames that are read before others of the loop get their turn."""
RECONNECT_MS: Final = 20
RECONNECT_MAX_MS: Final = 1000
CLOSE_S: Final = 2.0
"""What was accepted is sent for so long when the link closes."""

_REFUSED: Final[dict[int, str]] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "the proxy does not know this host's CURVE key",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "the proxy and this host do not agree on CURVE: one has keys, or other ones",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "the proxy has ended the connection at once: has it other CURVE keys?",
}

log: Final = logging.getLogger("civitas_shm.bridge.zmq")


class ZmqLink:
    """One host's connection to a proxy."""

    def __init__(self, settings: LinkSettings) -> None:
        self.state: LinkState = "connecting"
        self.frame_bytes_max = FRAME_BYTES_MAX
        self.host = settings.host
        self.settings: Settings = read_settings(settings.options)
        self.keeper: ProxyKeeper | None = None
        self._names: set[str] = set()
        self._reconnects = 0
        self._oversized = 0
        self._refused = False
        self._flushing = False
        self._why = ""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._out: _Socket | None = None
        self._in: _Socket | None = None
        self._mark = b""
        self.machine = LinkMachine(os.urandom(wire.ID_BYTES), self.host, time.time_ns(), (), time.monotonic())

    # --- the contract -------------------------------------------------------------------------------------------------

    async def open(self, events: LinkEvents) -> None:
        """Begin. A proxy that is not there is waited for; with `start_proxy` it is started."""
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[Any] = zmq.Context()
        self.machine = LinkMachine(os.urandom(wire.ID_BYTES), self.host, time.time_ns(), self._names, time.monotonic())
        if self.settings.start_proxy:
            self.keeper = ProxyKeeper(self.settings, log.info)
            self.keeper.start()
        self._connect()
        self._say("connecting", f"connecting to the proxy at {self.settings.pub_addr} and {self.settings.sub_addr}")
        self._act()

    async def close(self) -> None:
        """Send what was accepted, for at most CLOSE_S, and leave."""
        if self.state == "closed" and self._out is None:
            return
        self._refused = False
        deadline_s = self._loop.time() + CLOSE_S
        while self.state == "up" and self.machine.kept and self._loop.time() < deadline_s:
            await asyncio.sleep(0.005)
        self.machine.leave()
        self._flush()
        self.state = "closed"
        if self._timer is not None:
            self._timer.cancel()
        self._disconnect(linger_ms=100)
        await self._loop.run_in_executor(None, self._context.term)
        if self.keeper is not None:
            await self.keeper.stop()

    def publish(self, name: str, frame: bytes, key: int) -> bool:
        """To one host that has subscribed to that name."""
        return self._publish(name, False, frame, key)

    def publish_to_host(self, host: str, frame: bytes, key: int) -> bool:
        """To the host of that id."""
        return self._publish(host, True, frame, key)

    def subscribe(self, name: str) -> None:
        """Frames to that name come here, or to another host that has it."""
        if name not in self._names:
            self._names.add(name)
            self._announce()

    def unsubscribe(self, name: str) -> None:
        """No more of them."""
        if name in self._names:
            self._names.discard(name)
            self._announce()

    def counts(self) -> dict[str, int]:
        """For statistics."""
        machine, lanes = self.machine, list(self.machine.directory)
        return {
            "reconnects": self._reconnects,
            "buffered_bytes": machine.kept_bytes,
            "oversized": self._oversized,
            "bad_frames": machine.bad_frames,
            "dropped": machine.dropped,
            "resent": sum(peer.sending.resent for peer in lanes),
            "doubles": sum(peer.receiving.doubles for peer in lanes),
            "gaps": sum(peer.receiving.gaps for peer in lanes),
            "hosts": len(machine.directory.hosts),
            "proxy_starts": 0 if self.keeper is None else self.keeper.starts,
        }

    # --- sockets ------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        out = self._out = _Socket(self._context, zmq.XPUB, self.settings, self._loop, self._news)
        into = self._in = _Socket(self._context, zmq.SUB, self.settings, self._loop, self._frames)
        out.zmq.set(zmq.XPUB_NODROP, 1)
        for link in (self.machine.id, wire.EVERYBODY):
            into.zmq.subscribe(wire.topic(link))
        out.watch(self._loop, self._monitored)
        out.zmq.connect(self.settings.pub_addr)
        into.zmq.connect(self.settings.sub_addr)
        self._mark = b""
        self._loop.call_soon(self._look)

    def _disconnect(self, linger_ms: int = 0) -> None:
        for socket in (self._out, self._in):
            if socket is not None:
                socket.close(self._loop, linger_ms)
        self._out = self._in = None

    def _look(self) -> None:
        """What a socket has may have come while something was done to it."""
        self._news()
        self._frames()

    def _news(self) -> None:
        if self._out is None:
            return
        now = time.monotonic()
        for news in self._out.receive(BATCH, self._news):
            if news[:1] == b"\x01":
                self.machine.subscribed(news[1:], now)
            elif news[:1] == b"\x00":
                self.machine.unsubscribed(news[1:], now)
        self._act()

    def _frames(self) -> None:
        if self._in is None:
            return
        now, machine = time.monotonic(), self.machine
        for frame in self._in.receive(BATCH, self._frames):
            machine.received(frame, now)
        self._act()

    def _monitored(self, what: int, value: int) -> None:
        if what in _REFUSED:
            self._why = _REFUSED[what]
        elif what == zmq.EVENT_CONNECT_RETRIED and not self._why:
            self._why = f"nobody answers at {self.settings.pub_addr}"
        elif what == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._why = ""
            return
        else:
            return
        if self.keeper is not None:
            self.keeper.missed()
        if self.state in ("connecting", "down"):
            self._say(self.state, self._why)

    # --- the machine --------------------------------------------------------------------------------------------------

    def _publish(self, name: str, to_host: bool, frame: bytes, key: int) -> bool:
        if len(frame) > self.frame_bytes_max:
            raise ValueError(f"a frame of {len(frame)} bytes is above the {self.frame_bytes_max} of this link")
        if self.state != "up" or not self.machine.offer(name, to_host, frame, key):
            self._refused = True
            return False
        self._soon()
        return True

    def _announce(self) -> None:
        if self.state != "closed" and self._out is not None:
            self._soon()

    def _soon(self) -> None:
        """All that this turn of the loop brings is sent together."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._flushing = False
        if self._out is not None:
            self.machine.announce(self._names)
            self._act()

    def _tick(self) -> None:
        self._timer = None
        self.machine.tick(time.monotonic())
        self._act()

    def _act(self) -> None:
        """Do what the machine wants, and come back when it wants to."""
        machine = self.machine
        for event in machine.events():
            if type(event) is Came:
                if len(event.body) > FRAME_BYTES_MAX:
                    self._oversized += 1
                else:
                    self._events.received(event.body)
            else:
                self._happened(event)
        if self._out is None:
            return
        self._flush()
        at_s = self.machine.wake_at()
        if self._timer is None or at_s < self._timer_at_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at_s = at_s
            self._timer = self._loop.call_later(max(0.0, at_s - time.monotonic()), self._tick)
        if self._refused and self.state == "up" and machine.has_room:
            self._refused = False
            self._events.writable()

    def _flush(self) -> None:
        out = self._out
        if out is None:
            return
        frames = self.machine.flush(time.monotonic())
        for frame in frames:
            try:
                out.zmq.send(frame, zmq.NOBLOCK, len(frame) < COPY_BYTES)
            except zmq.Again:  # as lost as any other: it is asked for
                break
        if frames and out.zmq.get(zmq.EVENTS) & zmq.POLLIN:
            self._loop.call_soon(self._news)

    def _happened(self, event: Event) -> None:
        match event:
            case Unroutable(key):
                self._events.unroutable(key)
            case Mark(topic):
                if self._in is not None:
                    if self._mark:
                        self._in.zmq.unsubscribe(self._mark)
                    self._mark = topic
                    self._in.zmq.subscribe(topic)
                    self._loop.call_soon(self._frames)
            case Ready(True):
                self._reconnects += self.state == "down"
                self._say("up", f"connected to the proxy at {self.settings.pub_addr}")
            case Ready(False):
                self._why = ""
                self._say("down", "the connection to the proxy is lost")
                if self.keeper is not None:
                    self.keeper.missed()
            case Changed(host, names, why):
                log.info("host %s: %s", host, f"gone, {why}" if names is None else f"{len(names)} names")
            case Renew(why):
                log.warning("This link begins again: %s", why)
                self.machine = self.machine.renewed(os.urandom(wire.ID_BYTES), time.time_ns(), time.monotonic())
                self._disconnect()
                self._connect()
                if self.state == "up":
                    self._say("down", why)
            case Superseded():
                self._disconnect()
                self._say("closed", f"another link says that it is host {self.host!r}, and it was started later")

    def _say(self, state: LinkState, why: str) -> None:
        self.state = state
        self._events.state_changed(state, why)


COPY_BYTES: Final = 64 << 10
"""From there on ZeroMQ reads a frame where it lies, which costs a message between threads when it is done."""


class _Socket:
    """A ZeroMQ socket on a loop."""

    def __init__(
        self, context: zmq.Context[Any], kind: int, settings: Settings, loop: asyncio.AbstractEventLoop, ready: Any
    ) -> None:
        made = self.zmq = context.socket(kind)
        made.set(zmq.LINGER, 0)
        made.set(zmq.SNDHWM, HWM)
        made.set(zmq.RCVHWM, HWM)
        made.set(zmq.IMMEDIATE, 1)
        made.set(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
        made.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        made.set(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        made.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        made.set(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        made.set(zmq.IPV6, 1)
        keys = settings.keys
        if keys is not None:
            made.set(zmq.CURVE_SERVERKEY, keys.server_public_key.encode())
            made.set(zmq.CURVE_PUBLICKEY, keys.client_public_key.encode())
            made.set(zmq.CURVE_SECRETKEY, keys.client_secret_key.encode())
        self._loop = loop
        self._fd = made.get(zmq.FD)
        self._monitor: zmq.Socket[bytes] | None = None
        loop.add_reader(self._fd, ready)

    def receive(self, most: int, again: Any) -> list[bytes]:
        """What waits, up to that many; `again` is called soon when there is more."""
        got: list[bytes] = []
        receive = self.zmq.recv
        try:
            for _ in range(most):
                frame = receive(zmq.NOBLOCK)
                if self.zmq.get(zmq.RCVMORE):  # of several parts: none of ours
                    while self.zmq.get(zmq.RCVMORE):
                        receive(zmq.NOBLOCK)
                    frame = b""
                got.append(frame)
        except zmq.Again:
            return got
        self._loop.call_soon(again)
        return got

    def watch(self, loop: asyncio.AbstractEventLoop, told: Any) -> None:
        """What becomes of its connection."""
        monitor = self._monitor = self.zmq.get_monitor_socket()
        self._monitor_fd = monitor.get(zmq.FD)

        def read() -> None:
            with contextlib.suppress(zmq.Again, zmq.ZMQError):
                while not monitor.closed:
                    event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))
                    told(event["event"], event["value"])

        loop.add_reader(self._monitor_fd, read)
        loop.call_soon(read)

    def close(self, loop: asyncio.AbstractEventLoop, linger_ms: int) -> None:
        """Let go of it."""
        loop.remove_reader(self._fd)
        if self._monitor is not None:
            loop.remove_reader(self._monitor_fd)
            self.zmq.disable_monitor()
            self._monitor.close(0)
        self.zmq.close(linger_ms)
