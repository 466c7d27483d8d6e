"""The bus of a run whose messages travel by a user's own `Transport`: names become addresses, messages become bytes.

    send -> serialize -> transport.publish(address) ... deserialize -> mailbox -> handler
    ask  -> serialize -> transport.request(address) ... deserialize -> mailbox -> handler -> publish(reply address)

Guarantees, whatever the transport does:
- what arrives and is no message is logged, and nothing ends over it;
- a full mailbox delays its own address alone, up to IN_FLIGHT_MAX messages of it; then the handler waits;
- a handler that raises answers its asker at once, with AgentError; reserved types cannot be brought in from outside;
- within one process the order of a sender is that of the transport's calls.

Not promised, because a transport of addresses cannot: that a message is committed when `send` returns (it was handed to
the transport), that it survives a process, that a full mailbox is seen by its sender.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

from .clients.protocol import Failed, error_from, failed
from .errors import AgentError, AgentStopped, CivitasError, DeserializationError, MessageRoutingError
from .formats import Serializer
from .messages import Cause, Message, cause_from, is_system_type
from .petitions import PETITIONS
from .port_bus import ASK_TIMEOUT_S, SEND_TIMEOUT_S, PortBus
from .registry import LocalRegistry
from .serializer import decode
from .transport import SENDER_PROGRAM, Transport, load_transport
from .typed import Payload

__all__ = ["MessageBus"]

IN_FLIGHT_MAX: Final = 1000
"""Messages of one address that have come and are not in its mailbox, or not answered: as many as a mailbox holds."""

FOR_EVER_S: Final = 1e9
"""What a transport is told where nobody wants a deadline: thirty years."""

ERROR_TYPE: Final = "_agency.error"
"""Of a reply that is an error. Reserved, so no agent can send one."""

log: Final = logging.getLogger("civitas_shm.transport")


class MessageBus(PortBus):
    """`PortBus` of Civitas: transport, registry and serializer behind the operations of ours."""

    def __init__(
        self,
        transport: Transport,
        registry: LocalRegistry,
        serializer: Serializer,
        tracer: Any = None,
        audit_sink: Any = None,
    ) -> None:
        """`registry`: who is where; agents of this run are added, `register_remote` adds those of other processes."""
        super().__init__(load_transport("in_process").create())
        self.transport = transport
        self.addresses = registry
        self.serializer = serializer
        self.tracer = tracer
        self.audit_sink = audit_sink
        self._subscribed: dict[str, asyncio.Task[None]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._in_flight: Counter[str] = Counter()
        self._less: dict[str, asyncio.Event] = {}
        set_serializer = getattr(transport, "set_serializer", None)
        if set_serializer is not None:
            set_serializer(serializer)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self, names: list[str]) -> None:
        """Start the transport and subscribe all these agents; returns when both are in effect."""
        await self.transport.start()
        try:
            for name in names:
                await self.setup_agent(name)
            await self.transport.wait_ready()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop the transport; what came and is not handled is dropped. Idempotent as far as the transport is."""
        for task in [*self._serving, *self._subscribed.values()]:
            task.cancel()
        await asyncio.gather(*self._serving, *self._subscribed.values(), return_exceptions=True)
        for name in self._subscribed:
            self.addresses.deregister(name)
        self._subscribed.clear()
        await self.transport.stop()

    async def setup_agent(self, agent: Any) -> None:
        """Subscribe the address of an agent (or of a name): what comes goes into its mailbox. Once for each."""
        name = agent if isinstance(agent, str) else agent.name
        if name not in self._subscribed:
            self._subscribed[name] = asyncio.ensure_future(self._subscribe(name))
        await asyncio.shield(self._subscribed[name])

    async def teardown_agent(self, name: str) -> None:
        """The agent is gone for good: forget its address, and end its subscription where the transport can."""
        if self._subscribed.pop(name, None) is None:
            return
        entry = self.addresses.lookup(name)
        self.addresses.deregister(name)
        unsubscribe = getattr(self.transport, "unsubscribe", None)
        if unsubscribe is not None:
            await unsubscribe(name if entry is None else entry.address)

    async def _subscribe(self, name: str) -> None:
        if not self.addresses.has(name):
            self.addresses.register(name)
        entry = self.addresses.lookup(name)

        async def handler(data: bytes) -> None:
            await self._arrived(name, data)

        await self.transport.subscribe(name if entry is None else entry.address, handler)

    # --- out ----------------------------------------------------------------------------------------------------------

    def post(
        self,
        recipient: str,
        payload: Payload,
        message_type: str,
        timeout: float | None,
        priority: int,
        sender: int,
        cause: Cause | None,
    ) -> Coroutine[Any, Any, None]:
        """As `send`: nothing is committed without awaiting."""
        return self.send(recipient, payload, message_type, timeout, priority, sender, cause)

    async def send(
        self,
        recipient: str,
        payload: Payload,
        message_type: str = "message",
        timeout: float | None = SEND_TIMEOUT_S,
        priority: int = 0,
        sender: int = SENDER_PROGRAM,
        cause: Cause | None = None,
        ttl_s: float | None = None,
    ) -> None:
        """Hand one message to the transport; returns when it has taken it."""
        if message_type in PETITIONS:
            await super().send(recipient, payload, message_type, timeout, priority, sender, cause)
            return
        message = self._message(recipient, payload, message_type, priority, sender, cause, ttl_s)
        async with asyncio.timeout(timeout if timeout is not None and timeout > 0 else None):
            await self.route(message)

    async def ask(
        self,
        recipient: str,
        payload: Payload,
        message_type: str = "message",
        timeout: float | None = ASK_TIMEOUT_S,
        priority: int = 0,
        sender: int = SENDER_PROGRAM,
        cause: Cause | None = None,
        asker: str = "_runtime",
        built: Callable[[bytes], Any] = decode,
    ) -> Message:
        """Ask by the transport. The same errors as without one, TimeoutError included. The user's own serializer
        builds the payload, not `built`."""
        if message_type in PETITIONS:
            return await super().ask(recipient, payload, message_type, timeout, priority, sender, cause, asker)
        message = self._message(recipient, payload, message_type, priority, sender, cause)
        limit_s = timeout if timeout is not None and timeout > 0 else FOR_EVER_S
        try:
            async with asyncio.timeout(limit_s):
                reply = await self.request(message, limit_s)
        except TimeoutError as late:
            if isinstance(late, CivitasError):
                raise
            raise TimeoutError(f"{recipient!r} did not answer {message_type!r} within {limit_s:.3g} s.") from None
        reply.recipient = asker
        return reply

    def _message(
        self,
        recipient: str,
        payload: Payload,
        message_type: str,
        priority: int,
        sender: int,
        cause: Cause | None,
        ttl_s: float | None = None,
    ) -> Message:
        if message_type not in self.known_types:
            self.check_type(message_type)
        trace = Message.received(cause, "", "", "", {}, 1) if cause else None
        return Message(
            type=message_type,
            sender="_runtime" if sender == SENDER_PROGRAM else self.port.stats(sender).name,
            recipient=recipient,
            payload=cast(Any, payload),
            priority=priority,
            ttl=ttl_s,
            trace_id=trace.trace_id if trace else os.urandom(16).hex(),
            span_id=os.urandom(8).hex(),
            parent_span_id=trace.span_id if trace else None,
        )

    async def route(self, message: Message) -> None:
        """Publish a message to whom it names: an agent that the registry knows, or a reply address."""
        await self.transport.publish(await self._address(message.recipient), self.serializer.serialize(message))

    async def request(self, message: Message, timeout: float = 30.0) -> Message:
        """Publish a question, and give back its reply. Raises the error that the other side answered."""
        address = await self._address(message.recipient)
        if message.correlation_id is None:
            message = Message.from_dict({**message.to_dict(), "correlation_id": message.id})
        reply = self.serializer.deserialize(
            await self.transport.request(address, self.serializer.serialize(message), timeout)
        )
        if reply.type == ERROR_TYPE:
            raise error_from(_failed_of(reply.payload))
        return reply

    def lookup_all(self, pattern: str) -> list[Any]:
        """The entries of the registry whose names match."""
        return list(self.addresses.lookup_all(pattern))

    async def _address(self, name: str) -> str:
        if self.port.resolve(name) >= 0:
            await self.setup_agent(name)  # of an agent that was spawned a moment ago
        entry = self.addresses.lookup(name)
        if entry is not None:
            return entry.address
        if self.transport.has_reply_address(name) or name.startswith("_reply."):
            return name
        self.directory.lookup(name)  # says which names come close
        raise MessageRoutingError(f"No agent is named {name!r}.")

    # --- in -----------------------------------------------------------------------------------------------------------

    async def _arrived(self, name: str, data: bytes) -> None:
        """Called by the transport. Returns at once while the address has not too much under way."""
        while self._in_flight[name] >= IN_FLIGHT_MAX:
            await self._less.setdefault(name, asyncio.Event()).wait()
        try:
            message = self.serializer.deserialize(data)
        except DeserializationError as error:
            log.warning("What came for %r is dropped: %s", name, error)
            return
        if is_system_type(message.type):
            log.warning(
                "A message of the reserved type %r came for %r from outside, and is dropped.", message.type, name
            )
            return
        self._in_flight[name] += 1
        task = asyncio.get_running_loop().create_task(self._serve(name, message))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, name: str, message: Message) -> None:
        """Put it into the mailbox; of an ask, see that its asker hears what comes of it."""
        try:
            sender, cause = self.port.resolve(message.sender), cause_from(message.trace_id, message.span_id)
            who = sender if sender >= 0 else SENDER_PROGRAM
            args = (name, message.payload, message.type, None, message.priority, who, cause)
            if message.reply_to is None:
                await super().send(*args, ttl_s=message.ttl)
                return
            try:
                reply = await super().ask(*args)
                answer = Message(type=reply.type, sender=reply.sender, payload=reply.payload)
            except (CivitasError, TimeoutError) as error:
                answer = Message(type=ERROR_TYPE, sender=name, payload=_payload_of(error))
            answer.recipient = message.reply_to
            fields = {"correlation_id": message.correlation_id, "trace_id": message.trace_id}
            await self.route(Message.from_dict({**answer.to_dict(), **fields}))
        except AgentStopped as gone:
            log.warning("What came for %r is dropped: %s", name, gone)
            await self.teardown_agent(name)
        except Exception:
            log.exception("What came for %r could not be delivered, or its reply not be sent", name)
        finally:
            self._in_flight[name] -= 1
            less = self._less.pop(name, None)
            if less is not None:
                less.set()


def _payload_of(error: BaseException) -> dict[str, Any]:
    plain = failed(0, error)
    attributes = plain.attributes if isinstance(error, AgentError) else {}
    return {"error": plain.error, "text": plain.text, "attributes": attributes, "notes": plain.notes}


def _failed_of(payload: dict[str, Any]) -> Failed:
    get = payload.get
    return Failed(0, get("error", ""), get("text", ""), get("attributes", {}), get("notes", []))
