"""One running agent: takes its messages, runs its handler, answers, releases; and decides what an exception does.

Guarantees:
- one message at a time; a message is released only after its handler has finished, its answer is posted and its state
  is saved, where it is to be (`state`); one of an at-most-once agent is marked before its handler begins, and nobody
  gets it again;
- one that is suspected of a death begins when nothing else runs in this process (`alone`);
- a message that is given up (its handler escalated, it cannot be decoded) is in the dead letters before it is let go;
- after BATCH_MESSAGES messages or BATCH_S seconds the loop turns before the next one, so a flooded agent delays its
  neighbours, timers and sockets by no more than one batch;
- whatever a handler raises, SystemExit and CancelledError included, ends at most the agent, never the loop;
- an asker whose message failed for good gets the error at once.

No task per message and none per idle agent: one task for many busy periods, see `parked`.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from .alone import Alone, limit_s
from .bus import MessageBus
from .errors import DeserializationError, ErrorAction, LinkedAgentDown, TransportClosed
from .events import (
    AgentEvent,
    AgentExited,
    AgentFailed,
    AgentStarted,
    AgentStuck,
    DeadLetter,
    EventHandler,
    MessageSummary,
    summary,
)
from .handler_thread import HandlerThread
from .letters import Note
from .messages import FLAG_ASK, Message, is_system_type
from .notices import DOWN, decode_notice
from .parked import Nap, Park
from .process import AGENT, HANDLED, AgentProcess, Attachment, ProcessStatus, Supervise
from .serializer import decode, encode
from .state import StateKeeper, StateStore
from .topology.model import AgentSpec, Drain
from .tracebacks import format_exception
from .transport import SENT, Delivery

__all__ = ["BATCH_MESSAGES", "BATCH_S", "Seat"]

BATCH_MESSAGES: Final = 64
BATCH_S: Final = 0.002
"""What a neighbour can be made to wait by many small handlers. A single long one only its author can cut."""

NOTE_ROOM_S: Final = 5.0
"""How long a message that is given up may wait for room for its traceback; the host makes some every quarter second."""
NOTE_LOOK_S: Final = 0.01

CANCEL_GRACE_S: Final = 1.0
"""What a cancelled handler gets to clean up; then it is left behind, for nothing in Python can end it."""

_FLAGS: Final = 19
"""Offset of the flags in the header."""
_ID: Final = slice(32, 48)
_NO_MESSAGE: Final = "handle returned {}; return self.reply({{...}}) or None"

Finished = Callable[["Seat"], None]


class Seat:
    """An agent at its mailbox, from `start` until it has stopped, finished or failed."""

    def __init__(
        self,
        agent: AgentProcess,
        mailbox: int,
        spec: AgentSpec,
        bus: MessageBus,
        on_event: EventHandler,
        on_end: Finished,
        loop: asyncio.AbstractEventLoop,
        loop_thread: int,
        park: Park,
        store: StateStore,
        supervise: Supervise,
        alone: Alone,
    ) -> None:
        self.agent = agent
        self.mailbox = mailbox
        self.spec = spec
        self._bus = bus
        self._port = bus.port
        self._on_event = on_event
        self._on_end = on_end
        self._loop = loop
        # All hooks of an agent share one context, as if they ran in one task.
        self._context = contextvars.Context()
        self._context.run(AGENT.set, agent.name)
        self._thread: HandlerThread | None = None
        self._handle: Callable[[Message], Awaitable[Message | None]] = agent.handle
        self._keeper = StateKeeper(agent, mailbox, spec.state, bus.port, store)
        self._task: asyncio.Task[Any] | None = None
        self._hook_task: asyncio.Task[BaseException | None] | None = None
        self._park = park
        self._alone = alone
        self._starting = True
        self._nap = Nap(loop, self._context)
        self._busy = False
        self._draining: Drain | None = None
        self._cancelling = False
        self._quiet: asyncio.Future[None] | None = None
        self._ended = False
        agent.attach(Attachment(bus, mailbox, on_event, loop, loop_thread, store, self._checkpoint, supervise))

    @property
    def own_task(self) -> asyncio.Task[Any] | None:
        """The task that its handler or hook runs in, or is blocked by; None while neither runs.

        None for an agent with replicas too: while this one waits, another one may answer.
        """
        if self.spec.replicas > 1:
            return None
        return self.agent._blocked or (self._task if self._busy else self._hook_task)

    # --- start ----------------------------------------------------------------------------------------------------

    async def start(self) -> bool:
        """Restore state, run `on_start`, begin to take messages. False when it failed; the event says why."""
        agent = self.agent
        self._alone.join(self)
        try:
            await self._keeper.restore()
        except Exception as error:  # noqa: BLE001 - damaged, or a store of the user's
            await self._fail(error, "on_start", None)
            return False
        if not inspect.iscoroutinefunction(agent.handle):
            self._thread = HandlerThread(agent.name, self._loop)
            self._handle = self._handle_in_thread
            agent._thread = self._thread.ident
        elif agent.handle_timeout is not None:
            self._handle = self._handle_in_time
        failure = await self._run_hook(agent.on_start, self.spec.start_timeout_s)
        if isinstance(failure, asyncio.CancelledError):
            if self._cancelling:
                return False  # `stop` cut the start short and goes on from here
            if _cancelled():
                self._close(ProcessStatus.STOPPED)
                self._on_end(self)
                raise failure
        if failure is not None:
            await self._fail(failure, "on_start", None)
            return False
        agent._status = ProcessStatus.RUNNING
        self._report(AgentStarted(agent.name))
        self._starting = False
        self._port.listen(self.mailbox, self._on_ready)
        return True

    async def _run_hook(self, hook: Callable[[], Any], limit_s: float) -> BaseException | None:
        """Run `on_start` or `on_stop` in the agent's context; what it raised, because a task hands SystemExit on."""

        async def run() -> BaseException | None:
            HANDLED.set(None)
            try:
                async with asyncio.timeout(limit_s):
                    await _hook(hook())
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 - the user's code, see the guarantees
                return error
            return None

        task = self._hook_task = self._loop.create_task(run(), context=self._context)
        try:
            return await task
        except asyncio.CancelledError as error:  # before its first step
            return error
        finally:
            self._hook_task = None

    # --- messages -------------------------------------------------------------------------------------------------

    def _on_ready(self) -> None:
        """The Port says that messages may wait."""
        if self._busy or self._ended:
            return
        self._busy = True
        if not self._nap.end(True):
            self._task = self._loop.create_task(self._work(), context=self._context)

    async def _work(self) -> None:
        """Take and handle until nothing waits, then park; ends when the agent ends or drains, or may not park.

        The hot loop: what it does not need stands elsewhere.
        """
        port, mailbox, name = self._port, self.mailbox, self.agent.name
        take, handle, set_handled, now = port.take, self._handle, HANDLED.set, time.monotonic
        post_reply, received, keeper = port.post_reply, Message.received, self._keeper
        alone, once = self._alone, self.spec.delivery == "at_most_once"
        worked, goes_on = False, True
        while goes_on:
            goes_on = False
            done = -1
            left, batch_end = BATCH_MESSAGES, now() + BATCH_S
            try:
                if alone.closed:
                    await alone.passage(self)
                while (delivery := take(mailbox, done)) is not None:
                    done, header, kind, sender, data, count = delivery
                    try:
                        payload = decode(data)
                    except DeserializationError as error:
                        if (notice := decode_notice(kind, data)) is None:
                            await self._reject(delivery, error)
                            continue
                        if count < 0:
                            await self._begin_alone(done, -count)
                        if not await self._noticed(notice, delivery):
                            return
                        continue
                    if count != 1:
                        if header[_ID] == keeper.committed_id:
                            continue  # its state was saved, only the release was cut off
                        if count < 0:
                            count = await self._begin_alone(done, -count)
                    if once:
                        port.forgo(mailbox, done)
                    message = received(header, kind, sender, name, payload, count)
                    set_handled(message)
                    try:
                        answer = await handle(message)
                        if answer is not None:
                            if not isinstance(answer, Message):
                                raise TypeError(_NO_MESSAGE.format(type(answer).__name__))
                            if header[_FLAGS] & FLAG_ASK:  # else nobody waits for it
                                post_reply(header, encode(answer.payload), answer.type, mailbox)
                    except GeneratorExit:
                        raise  # the loop is being torn down: nothing may be awaited any more
                    except BaseException as error:  # noqa: BLE001 - the user's code, see the guarantees
                        if not await self._recovered(error, message, done):
                            return
                    if keeper.due and not await self._state_saved(message, done):
                        return
                    left -= 1
                    if left == 0 or alone.closed or self._draining == "current" or now() >= batch_end:
                        port.release(mailbox, done)
                        done = -1
                        alone.leave(self)
                        if self._draining == "current":
                            return
                        await asyncio.sleep(0)
                        if alone.closed:
                            await alone.passage(self)
                        left, batch_end = BATCH_MESSAGES, now() + BATCH_S
                goes_on = worked or done >= 0
            except TransportClosed:
                pass  # the process leaves the run; what is in hand stays there for the successor
            except asyncio.CancelledError as error:
                if not self._cancelling:  # else `stop` did it; either way an unfinished message stays in hand
                    await self._fail(self._uncancelled(error), "handle", None)
            except Exception as error:  # noqa: BLE001 - a fault of ours must be as visible as one of theirs
                await self._fail(error, "handle", None)
            finally:
                set_handled(None)
                self._busy = False
                alone.leave(self)
                if self._quiet is not None and not self._quiet.done():
                    self._quiet.set_result(None)
            if goes_on:
                worked = True
                goes_on = not self._ended and await self._park.admit(self, self._nap)

    # --- alone in the process: see `alone` ------------------------------------------------------------------------

    @property
    def runs(self) -> bool:
        return self._busy or self._starting

    def awaits_reply(self) -> bool:
        return self._port.stats(self.mailbox).asking >= 0

    async def _begin_alone(self, token: int, deliveries: int) -> int:
        """Wait until nothing else runs here; the raised delivery count."""
        await self._alone.enter(self, limit_s(deliveries))
        return self._port.begin(self.mailbox, token)

    async def _handle_in_thread(self, message: Message) -> Message | None:
        assert self._thread is not None
        limit_s = self.agent.handle_timeout
        stuck = None if limit_s is None else self._loop.call_later(limit_s, self._stuck, limit_s, "is a plain function")
        try:
            result = await self._thread.call(self.agent.handle, message)
            # A wrapper around a coroutine function looks plain until it is called.
            return (await result) if inspect.isawaitable(result) else result  # type: ignore[no-any-return]
        finally:
            if stuck is not None:
                stuck.cancel()

    async def _handle_in_time(self, message: Message) -> Message | None:
        limit_s = self.agent.handle_timeout
        assert limit_s is not None
        after_s = limit_s + CANCEL_GRACE_S
        stuck = self._loop.call_later(after_s, self._stuck, after_s, "ignores that it was cancelled")
        limit = asyncio.timeout(limit_s)
        try:
            async with limit:
                return await self.agent.handle(message)
        except TimeoutError:
            if not limit.expired():
                raise  # the handler's own
            raise TimeoutError(
                f"handle of {self.agent.name!r} ran longer than its handle_timeout_s of {limit_s:g} s and was cancelled"
            ) from None
        finally:
            stuck.cancel()

    def _stuck(self, for_s: float, why: str) -> None:
        """Nothing in this process can end the handler, and a successor beside it would be a second one."""
        limit_s = self.agent.handle_timeout
        text = (
            f"handle of {self.agent.name!r} has run for {for_s:g} s, its handle_timeout_s is {limit_s:g}, and it {why}"
        )
        self.agent.log.error("%s", text)
        self._report(AgentStuck(self.agent.name, for_s, text))

    async def _noticed(self, notice: tuple[str, str], delivery: Delivery) -> bool:
        """A turn for the runtime's news. False: the agent has ended over it, and has been reported."""
        token, header, kind, sender, _, count = delivery
        name, reason = notice
        payload = {"name": name, "reason": reason}
        message = Message.received(header, kind, sender, self.agent.name, payload, abs(count))
        HANDLED.set(message)
        try:
            await self._hear(message)
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - the user's code, see the guarantees
            return await self._recovered(error, message, token)
        return True

    async def _hear(self, message: Message) -> None:
        hook = self.agent.on_down if message.type == DOWN else self.agent.on_child_terminated
        await _hook(hook(message.payload["name"], message.payload["reason"]))

    def _answer(self, message: Message, answer: Message | None) -> None:
        """Post what `handle` returned; nothing when the message was no ask. The hot loop has the same in line."""
        if answer is None:
            return
        if not isinstance(answer, Message):
            raise TypeError(_NO_MESSAGE.format(type(answer).__name__))
        header = message.header
        if header is not None and header[_FLAGS] & FLAG_ASK:
            self._port.post_reply(header, encode(answer.payload), answer.type, self.mailbox)

    async def _reject(self, delivery: Delivery, error: DeserializationError) -> None:
        """An undecodable payload: nobody can handle it."""
        token, header, kind, sender, _, count = delivery
        message = Message.received(header, kind, sender, self.agent.name, {}, abs(count))
        self.agent.log.error("message %s of type %r from %r was put aside: %s", message.id, kind, sender, error)
        self._answer_failed(message, error, "")
        await self._bury(message, token, f"its payload cannot be decoded: {error}", "")

    async def _bury(self, message: Message, token: int, cause: str, traceback: str) -> None:
        """Instead of a release. Waits for room for the traceback, but not long: the letter is worth more."""
        assert message.header is not None
        note = Note(cause, traceback, message.attempt).encode()
        until_s = time.monotonic() + NOTE_ROOM_S
        while self._port.bury(self.mailbox, token, message.header, note) != SENT:
            if time.monotonic() >= until_s:
                note = b""
            else:
                await asyncio.sleep(NOTE_LOOK_S)
        self._report(DeadLetter(self.agent.name, cause, traceback, summary(message)))

    # --- exceptions -----------------------------------------------------------------------------------------------

    async def _recovered(self, error: BaseException, message: Message, token: int) -> bool:
        """`handle` raised. True: go on with the next message. False: the agent has ended and has been reported."""
        while True:
            if self._cancelling and isinstance(error, asyncio.CancelledError):
                raise error
            action = await self._action(error, message)
            if action is not ErrorAction.RETRY:
                break
            message.attempt += 1
            if message.attempt > self.agent.max_retries:
                action = ErrorAction.ESCALATE
                break
            self.agent.log.warning(
                "handle raised %s on message %s, retry %d of %d",
                _brief(error), message.id, message.attempt, self.agent.max_retries,
            )  # fmt: skip
            await asyncio.sleep(0)
            try:
                if is_system_type(message.type):
                    await self._hear(message)
                else:
                    self._answer(message, await self._handle(message))
                return True
            except GeneratorExit:
                raise
            except BaseException as again:  # noqa: BLE001 - the user's code, see the guarantees
                error = again
        text = format_exception(error)
        self._log_failure(message, text, action)
        if action is ErrorAction.ESCALATE:
            if not self._comes_back(token):
                self._answer_failed(message, error, text)
                await self._bury(message, token, f"its handler raised {_brief(error)}", text)
            await self._fail(error, "handle", summary(message), text)
            return False
        self._answer_failed(message, error, text)
        if action is ErrorAction.SKIP:
            return True
        self._port.release(self.mailbox, token)
        await self._finish("finished")
        return False

    def _comes_back(self, token: int) -> bool:
        """Whether the next incarnation gets the message that this one failed over: it stays in hand, with a strike."""
        if self.spec.on_crash != "redeliver" or self.spec.delivery == "at_most_once":
            return False
        strikes = self._port.strike(self.mailbox, token)
        return self.spec.max_deliveries == 0 or strikes < self.spec.max_deliveries

    async def _action(self, error: BaseException, message: Message) -> ErrorAction:
        if not isinstance(error, Exception):
            if isinstance(error, asyncio.CancelledError):
                self._uncancelled(error)
            return ErrorAction.ESCALATE
        try:
            action = await _hook(self.agent.on_error(error, message))
        except Exception as second:  # noqa: BLE001 - the user's code: told below, and the first error decides
            self.agent.log.error("on_error raised:\n%s", format_exception(second))
            return ErrorAction.ESCALATE
        if not isinstance(action, ErrorAction):
            self.agent.log.error("on_error returned %r, which is no ErrorAction: taken as ESCALATE", action)
            return ErrorAction.ESCALATE
        return action

    def _uncancelled(self, error: asyncio.CancelledError) -> asyncio.CancelledError:
        """The handler cancelled its own task; the agent still has to end in good order."""
        if (task := asyncio.current_task()) is not None:
            task.uncancel()
        return error

    def _log_failure(self, message: Message, text: str, action: ErrorAction) -> None:
        self.agent.log.error(
            "%r failed in handle on message %s of type %r from %r (delivery %d, attempt %d), %s:\n%s",
            self.agent.name, message.id, message.type, message.sender, message.delivery, message.attempt,
            action.value, text,
            extra={"agent": self.agent.name, "message_id": message.id, "delivery": message.delivery},
        )  # fmt: skip

    def _answer_failed(self, message: Message, error: BaseException, text: str) -> None:
        """Tell the asker, if somebody asks, what happened."""
        header = message.header
        if header is None or not header[_FLAGS] & FLAG_ASK:
            return
        fields = {"type": type(error).__qualname__, "text": _clean(str(error)), "traceback": _clean(text)}
        self._port.post_reply(header, encode(fields), "error", self.mailbox, True)

    # --- state ----------------------------------------------------------------------------------------------------

    async def _state_saved(self, message: Message, token: int) -> bool:
        """Save the state as the effect of the message. False when the agent crashed over it."""
        try:
            await self._keeper.handler_ended(token, b"" if message.header is None else message.header[_ID])
            return True
        except TransportClosed:
            raise
        except Exception as error:  # noqa: BLE001 - what cannot be copied or encoded, or a store of the user's
            text = format_exception(error)
            self._log_failure(message, text, ErrorAction.ESCALATE)
            await self._bury(message, token, f"the state after it could not be saved: {_brief(error)}", text)
            await self._fail(error, "state", summary(message), text)
            return False

    async def _checkpoint(self, now: bool) -> None:
        """`AgentProcess.checkpoint`. After a crash the state may be half changed: only `now` saves it all the same."""
        if now or not (self._cancelling or self.agent._status is ProcessStatus.CRASHED):
            await self._keeper.checkpoint(now, self._busy)

    # --- end ------------------------------------------------------------------------------------------------------

    async def stop(self, drain: Drain, timeout_s: float) -> bool:
        """Finish the message in hand (`all`: all that wait too), run `on_stop`. False if the handler had to be cut.

        What was not finished stays in hand, and what waits stays where it is.
        """
        if self._ended:
            return True  # its `on_stop` runs already, and the report follows
        self.agent._status = ProcessStatus.STOPPING
        deadline = time.monotonic() + timeout_s
        self._draining = drain
        if drain == "all":
            self._on_ready()
        in_time = await self._quiesced(timeout_s)
        if self._ended:
            return in_time  # it crashed or finished by itself meanwhile
        await self._finish("stopped", max(CANCEL_GRACE_S, deadline - time.monotonic()))
        return in_time

    async def crash(self, reason: str) -> None:
        """End as if it had crashed, at once: the handler is cancelled, its message stays in hand for the next life."""
        if self._ended:
            return
        self._draining = "current"  # a handler that ends just now takes no other message
        await self._quiesced(0.0)
        if not self._ended:
            await self._fail(LinkedAgentDown(reason), "link", None)

    async def _quiesced(self, timeout_s: float) -> bool:
        """Wait until no handler runs; cancel it at the deadline. Whether it ended by itself."""
        if not self._busy and self._hook_task is None:
            return True
        if self._busy:
            if self._quiet is None:
                self._quiet = self._loop.create_future()
            await asyncio.wait([self._quiet], timeout=timeout_s)
            if not self._busy:
                return True
        self._cancelling = True
        task: asyncio.Task[Any] | None = self._task if self._busy else self._hook_task
        if task is not None:
            task.cancel()
            _, left = await asyncio.wait([task], timeout=CANCEL_GRACE_S)
            if left:
                self.agent.log.error("handle ignores its cancellation and was left behind")
        return False

    async def _finish(self, reason: str, timeout_s: float | None = None) -> None:
        """The end without a crash."""
        self._close(ProcessStatus.STOPPED)
        await self._run_on_stop(timeout_s)
        self._on_end(self)
        self._report(AgentExited(self.agent.name, reason))

    async def _fail(
        self, error: BaseException, during: str, message: MessageSummary | None, text: str | None = None
    ) -> None:
        """The end by a crash. What waits in the mailbox stays there for the next incarnation."""
        if text is None:
            text = format_exception(error)
            self.agent.log.error("%s failed:\n%s", during, text, extra={"agent": self.agent.name})
        self._close(ProcessStatus.CRASHED)
        await self._run_on_stop(None)
        self._on_end(self)
        self._report(AgentFailed(self.agent.name, type(error).__qualname__, str(error), text, during, message))

    def _close(self, status: ProcessStatus) -> None:
        """Take no more messages. `on_stop` and the report follow."""
        self._ended = True
        self.agent._status = status
        self._port.unlisten(self.mailbox)
        self._park.leave(self)
        self._alone.quit(self)
        if self._thread is not None:
            self._thread.end()

    async def _run_on_stop(self, timeout_s: float | None) -> None:
        """The user's last words cannot change what happens, and must not be lost either."""
        failure = await self._run_hook(
            self.agent.on_stop, self.agent.shutdown_timeout if timeout_s is None else timeout_s
        )
        if failure is None:
            return
        self.agent.log.error("on_stop failed:\n%s", format_exception(failure))
        if isinstance(failure, asyncio.CancelledError) and _cancelled():
            raise failure

    def _report(self, event: AgentEvent) -> None:
        try:
            self._on_event(event)
        except Exception:
            logging.getLogger(__name__).exception("the receiver of %s failed", event)


async def _hook(result: Any) -> Any:
    """What a hook returned, awaited if it was `async def`."""
    return (await result) if inspect.isawaitable(result) else result


def _cancelled() -> bool:
    """Whether the running task is being cancelled, and not just something that it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _brief(error: BaseException) -> str:
    return f"{type(error).__qualname__}: {error}"


def _clean(text: str) -> str:
    """Text that can be encoded: an exception may quote a file name with lone surrogates."""
    return text.encode(errors="backslashreplace").decode()
