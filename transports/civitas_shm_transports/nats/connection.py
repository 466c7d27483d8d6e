"""One connection to NATS servers, as a link. nats-py does protocol, TLS and credentials; this decides when to connect.

Rules of this file:
- each connection is a new client object: nats-py's own reconnection keeps what was published meanwhile and sends it
  later, in addition to what the bridge repeats;
- what the server cannot deliver it says at once, by its "no responders" message to the reply subject of the frame;
- a frame is with the link until the next turn of `_sender`, then in nats-py's buffer, then in the kernel's, then in the
  server's: the loss of the connection or of the server loses what is there, and the bridge repeats it;
- no error text carries a password.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import ssl
from collections import deque
from typing import Any, Final
from urllib.parse import urlsplit

from civitas_shm.bridge.link import FRAME_BYTES_MAX, LinkEvents, LinkSettings, LinkState
from civitas_shm.errors import ConfigurationError

from .subjects import FRAMES, GROUP, agent_subject, host_subject

try:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
except ImportError as error:  # pragma: no cover - said to who has asked for it
    raise ConfigurationError(
        f'A bridge of type nats needs nats-py, which cannot be imported ({error}): pip install "civitas-shm[nats]".'
    ) from error

__all__ = ["NatsLink"]

BUFFER_BYTES_MAX: Final = 8 << 20
"""Accepted and not yet with the kernel. As much as a link of 1 Gbit/s carries in 70 ms."""
WAIT_FIRST_S: Final = 0.05
WAIT_MAX_S: Final = 2.0
CONNECT_S: Final = 5
CLOSE_S: Final = 2.0
QUIT_S: Final = 0.5
PING_S: Final = 10
"""A connection that is silent for twice as long is given up: a server's machine that is gone sends no word."""

LOOPBACK: Final = frozenset(["localhost", "127.0.0.1", "::1"])

logging.getLogger("nats.aio.client").setLevel(logging.CRITICAL)  # it is told by `state_changed`


class NatsLink:
    """The contract is `civitas_shm.bridge.link.Link`."""

    def __init__(self, settings: LinkSettings) -> None:
        self.state: LinkState = "connecting"
        self.frame_bytes_max = FRAME_BYTES_MAX
        self._host = settings.host
        options = settings.options
        servers = options.get("servers") or "nats://localhost:4222"
        self._servers: list[str] = (
            [one.strip() for one in servers.split(",")] if isinstance(servers, str) else list(servers)
        )
        self._options = _client_options(options)
        self._names: dict[str, Any] = {}
        """Subscribed names, with the subscription of the connection that is up."""
        self._queue: deque[tuple[str, str, bytes]] = deque()
        """(subject, reply subject, frame)"""
        self._queued_bytes = 0
        self._refused = False
        self._wake = asyncio.Event()
        self._events: LinkEvents | None = None
        self._client: Client | None = None
        self._life: asyncio.Task[None] | None = None
        self._lost: asyncio.Event = asyncio.Event()
        self._why = ""
        self._reconnects = -1
        self._oversized = 0
        self._tasks: set[asyncio.Task[None]] = set()
        if not any((self._options.get("tls"), self._secured())):
            far = [one for one in self._servers if (urlsplit(one).hostname or "") not in LOOPBACK]
            if far:
                logging.getLogger("civitas_shm.bridge").warning(
                    "the connection to %s is neither encrypted nor authenticated: whoever reaches the server can send "
                    "to every agent. See docs/bridge.md, TLS and credentials.", ", ".join(map(_public, far)),
                )  # fmt: skip

    def _secured(self) -> bool:
        return any(urlsplit(one).scheme in ("tls", "wss") for one in self._servers)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def open(self, events: LinkEvents) -> None:
        self._events = events
        self._life = asyncio.get_running_loop().create_task(self._live())

    async def close(self) -> None:
        if self._life is None or self.state == "closed":
            return
        loop = asyncio.get_running_loop()
        until_s = loop.time() + CLOSE_S
        self._events = None
        while self._queue and self.state == "up" and loop.time() < until_s:
            await asyncio.sleep(0.005)
        self.state = "closed"
        client = self._client
        if client is not None and client.is_connected:
            try:
                async with asyncio.timeout(max(0.05, until_s - loop.time())):
                    await client.flush(timeout=1)
            except Exception:  # noqa: BLE001 - it is lost then, and comes again from the outbox
                pass
        self._life.cancel()
        await asyncio.wait([self._life])

    async def _live(self) -> None:
        wait_s = WAIT_FIRST_S
        while True:
            client = Client()
            self._lost, self._why = asyncio.Event(), ""
            try:
                await self._connect(client)
                wait_s = WAIT_FIRST_S
                sender = asyncio.get_running_loop().create_task(self._sender(client))
                try:
                    await self._lost.wait()
                finally:
                    sender.cancel()
                    await asyncio.wait([sender])
            except asyncio.CancelledError:
                await _quietly(client)
                raise
            except Exception as error:  # noqa: BLE001 - whatever keeps it from being up is tried again
                self._why = self._why or f"{type(error).__name__}: {error}"
            await _quietly(client)
            self._client = None
            self._queue.clear()  # the bridge repeats it
            self._queued_bytes = 0
            self._change(
                "connecting" if self._reconnects < 0 else "down",
                f"{self._servers_text()} cannot be used ({self._clean(self._why)}); tried again in {wait_s:g} s",
            )
            await asyncio.sleep(wait_s)
            wait_s = min(WAIT_MAX_S, wait_s * 2)

    async def _connect(self, client: Client) -> None:
        async def on_closed() -> None:
            self._why = self._why or "the connection was lost"
            self._lost.set()

        async def on_error(error: Exception) -> None:
            self._why = f"{type(error).__name__}: {error}"

        async with asyncio.timeout(CONNECT_S * 2):
            await client.connect(
                self._servers, allow_reconnect=False, closed_cb=on_closed, disconnected_cb=on_closed,
                error_cb=on_error, connect_timeout=CONNECT_S, ping_interval=PING_S, max_outstanding_pings=1,
                max_reconnect_attempts=1, reconnect_time_wait=0, name=f"civitas-shm {self._host}",
                skip_subject_validation=True, flush_timeout=CONNECT_S, **self._options,
            )  # fmt: skip
            await client.subscribe(host_subject(self._host, "*"), cb=self._told)
            for name in list(self._names):
                self._names[name] = await client.subscribe(agent_subject(name), queue=GROUP, cb=self._came)
            await client.flush(timeout=CONNECT_S)
        self._client = client
        self.frame_bytes_max = min(client.max_payload, FRAME_BYTES_MAX)
        self._reconnects += 1
        url = client.connected_url
        self._change("up", f"connected to {'' if url is None else _public(url.geturl())}")

    def _change(self, state: LinkState, why: str) -> None:
        if self.state != "closed":
            self.state = state
            if self._events is not None:
                self._events.state_changed(state, why)

    def _servers_text(self) -> str:
        return ", ".join(map(_public, self._servers))

    def _clean(self, text: str) -> str:
        for secret in (self._options.get("password"), self._options.get("token")):
            if secret:
                text = text.replace(secret, "***")
        return text

    # --- out ----------------------------------------------------------------------------------------------------------

    def publish(self, name: str, frame: bytes, key: int) -> bool:
        return self._publish(agent_subject(name), frame, key)

    def publish_to_host(self, host: str, frame: bytes, key: int) -> bool:
        return self._publish(host_subject(host, FRAMES), frame, key)

    def _publish(self, subject: str, frame: bytes, key: int) -> bool:
        if len(frame) > self.frame_bytes_max:
            raise ValueError(f"a frame of {len(frame)} bytes; the server takes {self.frame_bytes_max}")
        if self.state != "up" or self._queued_bytes > BUFFER_BYTES_MAX:
            self._refused = self.state == "up"
            return False
        self._queue.append((subject, host_subject(self._host, str(key)) if key else "", frame))
        self._queued_bytes += len(frame)
        self._wake.set()
        return True

    async def _sender(self, client: Client) -> None:
        """Hands what was accepted to the connection, in order."""
        queue = self._queue
        try:
            while True:
                self._wake.clear()
                while queue:
                    subject, reply, frame = queue.popleft()
                    await client.publish(subject, frame, reply)
                    self._queued_bytes -= len(frame)
                if self._refused:
                    self._refused = False
                    if self._events is not None:
                        self._events.writable()
                if not queue:
                    await self._wake.wait()
        except Exception as error:  # noqa: BLE001 - the connection is not to be trusted any more
            self._why = f"{type(error).__name__}: {error}"
            self._lost.set()

    # --- in -----------------------------------------------------------------------------------------------------------

    def subscribe(self, name: str) -> None:
        if name not in self._names:
            self._names[name] = None
            if self._client is not None:
                self._soon(self._subscribe(self._client, name))

    def unsubscribe(self, name: str) -> None:
        subscription = self._names.pop(name, None)
        if subscription is not None and self._client is not None:
            self._soon(subscription.unsubscribe())

    async def _subscribe(self, client: Client, name: str) -> None:
        subscription = await client.subscribe(agent_subject(name), queue=GROUP, cb=self._came)
        if name in self._names:
            self._names[name] = subscription
        else:
            await subscription.unsubscribe()

    def _soon(self, work: Any) -> None:
        async def done() -> None:
            try:
                await work
            except Exception:  # noqa: BLE001 - the connection is gone: the next one begins with all names
                pass

        task = asyncio.get_running_loop().create_task(done())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _came(self, message: Msg) -> None:
        if self._events is None:
            return
        if len(message.data) > FRAME_BYTES_MAX:
            self._oversized += 1
            return
        self._events.received(message.data)

    async def _told(self, message: Msg) -> None:
        """To this host: a frame, or the server's word that nobody has got one of its own."""
        what = message.subject.rpartition(".")[2]
        if what == FRAMES:
            await self._came(message)
        elif what.isdecimal() and self._events is not None:
            headers = message.headers
            if headers and headers.get("Status") == "503":
                self._events.unroutable(int(what))

    def counts(self) -> dict[str, int]:
        pending = 0 if self._client is None else self._client.pending_data_size
        return {
            "reconnects": max(0, self._reconnects),
            "buffered_bytes": self._queued_bytes + pending,
            "oversized": self._oversized,
        }


def _client_options(options: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `Client.connect`. ConfigurationError: they cannot be."""
    chosen: dict[str, Any] = {
        theirs: options[ours]
        for ours, theirs in (
            ("user", "user"), ("password", "password"), ("token", "token"), ("nkey", "nkeys_seed"),
            ("credentials", "user_credentials"),
        )
        if options.get(ours)
    }  # fmt: skip
    tls = options.get("tls")
    if tls:
        tls = {} if tls is True else tls
        try:
            context = ssl.create_default_context(cafile=tls.get("ca"))
            if tls.get("cert"):
                context.load_cert_chain(tls["cert"], tls.get("key"))
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"bridge.tls: ca, cert or key cannot be used: {error}") from error
        chosen["tls"] = context
    if {"nkeys_seed", "user_credentials"} & set(chosen):
        try:
            importlib.import_module("nkeys")
        except ImportError as error:
            raise ConfigurationError(
                f'bridge.nkey and bridge.credentials need nkeys ({error}): pip install "civitas-shm[nats-auth]".'
            ) from error
    return chosen


def _public(url: str) -> str:
    """Without user, password or token."""
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://{tail}" if at else url


async def _quietly(client: Client) -> None:
    try:
        async with asyncio.timeout(QUIT_S):  # a connection whose TLS failed never says that it is closed
            await client.close()
    except Exception:  # noqa: BLE001 - it is gone either way
        pass
