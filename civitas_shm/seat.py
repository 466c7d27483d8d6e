"""One running agent: takes its messages, runs its handler, answers, releases.

Guarantees:
- one message at a time; a message is released only after its handler has finished, its answer is posted and its state
  is saved, where it is to be (`state`); one of an at-most-once agent is marked before its handler begins, and nobody
  gets it again;
- one that is suspected of a death begins when nothing else runs in this process (`alone`);
- a message that is given up is in the dead letters before it is let go (`failures`);
- after BATCH_MESSAGES messages or BATCH_S seconds the loop turns before the next one, so a flooded agent delays its
  neighbours, timers and sockets by no more than one batch;
- whatever a handler raises, SystemExit and CancelledError included, ends at most the agent, never the loop.

How the author's code is called stands in `user_code`, what an exception means in `failures`.

No task per message and none per idle agent: one task for many busy periods, see `parked`.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from . import typed
from .alone import Alone, limit_s
from .batching import Batches, has_batches
from .errors import AgentRestarted, DeserializationError, LinkedAgentDown, TransportClosed
from .events import (
    AgentEvent,
    AgentExited,
    AgentFailed,
    AgentStarted,
    EventHandler,
    MessageSummary,
    summary,
)
from .failures import Failures, Verdict, uncancelled
from .messages import FLAG_ASK, FLAGS_AT, ID_AT, Message
from .notices import CORRECTION, DOWN, HALT, NOTICES, decode_notice
from .parked import Nap, Park
from .petitions import Supervise
from .port_bus import PortBus
from .process import AGENT, HANDLED, AgentProcess, Attachment, Ending, ProcessStatus
from .roster import Traits
from .serializer import decode, encode
from .state import StateKeeper, StateKind, StateStore
from .suspension import Pausing, Suspension
from .topology.model import AgentSpec, Drain
from .tracebacks import error_text, format_exception
from .transport import BRIDGE, Delivery
from .user_code import CANCEL_GRACE_S, UserCode, awaited

__all__ = ["BATCH_MESSAGES", "BATCH_S", "Seat"]

BATCH_MESSAGES: Final = 64
BATCH_S: Final = 0.002
"""What a neighbour can be made to wait by many small handlers. A single long one only its author can cut."""

_NO_MESSAGE: Final = "handle returned {}; return self.reply({{...}}) or None"

Finished = Callable[["Seat"], None]


class Seat(Pausing):
    """An agent at its mailbox, from `start` until it has stopped, finished or failed."""

    def __init__(
        self,
        agent: AgentProcess,
        mailbox: int,
        spec: AgentSpec,
        bus: PortBus,
        on_event: EventHandler,
        on_end: Finished,
        loop: asyncio.AbstractEventLoop,
        loop_thread: int,
        park: Park,
        kept: StateKind,
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
        self._code = UserCode(agent, loop, self._context, self._report)
        self._failures = Failures(
            agent, mailbox, spec, bus.port, self._report, self._again, cancelling=lambda: self._cancelling,
            gives_up=lambda: self._suspension.begin_failed(),
        )  # fmt: skip
        self._decode: Callable[[bytes], Any] = decode
        self._turns: Callable[[], Coroutine[Any, Any, None]] = self._work
        self._keeper = StateKeeper(agent, mailbox, kept, bus.port, store)
        self._task: asyncio.Task[Any] | None = None
        self._park = park
        self._alone = alone
        self._starting = True
        self._nap = Nap(loop, self._context)
        self._busy = False
        self._draining: Drain | None = None
        self._cancelling = False
        self._quiet: asyncio.Future[None] | None = None
        self._ended = False
        self._ending: Ending | None = None
        self._flagged = False
        self._save = False
        """While flagged: whether the state is to be saved as well."""
        self._suspension = Suspension(self, kept)
        self._deaf = False
        self._dying: asyncio.Task[None] | None = None
        attachment = Attachment(
            bus,
            mailbox,
            on_event,
            loop,
            loop_thread,
            store,
            self._checkpoint,
            supervise,
            self._suspension,
            self._at_end,
        )
        agent.attach(attachment)

    @property
    def own_task(self) -> asyncio.Task[Any] | None:
        """The task that its handler or hook runs in, or is blocked by; None while neither runs.

        None for an agent with replicas too: while this one waits, another one may answer.
        """
        if self.spec.replicas > 1:
            return None
        return self.agent._blocked or (self._task if self._busy else self._code.hook_task)

    # --- start ----------------------------------------------------------------------------------------------------

    async def start(self) -> bool:
        """Restore state, run `on_start`, begin to take messages. False when it failed; the event says why."""
        agent = self.agent
        self._alone.join(self)
        try:
            self._decode = typed.expected(agent.handle, Message) or decode
            if has_batches(agent):
                self._turns = Batches.of(self).work
            elif agent.name == BRIDGE:
                agent._take_seat(self)  # type: ignore[attr-defined]
                self._on_ready = agent._messages_wait  # type: ignore[attr-defined, method-assign]
            await self._keeper.restore()
            self._suspension.restore()
        except Exception as error:  # noqa: BLE001 - an annotation, damage, or a store of the user's
            await self._fail(error, "on_start", None)
            return False
        self._code.prepare()
        failure = await self._code.run_hook(agent.on_start, self.spec.start_timeout_s)
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
        try:
            traits = Traits.of(agent.name, agent._kind, agent.capabilities, agent.capability_metadata)
        except Exception as error:  # noqa: BLE001 - what the user's class says of itself
            await self._fail(error, "on_start", None)
            return False
        agent._status = ProcessStatus.RUNNING
        self._report(AgentStarted(agent.name, traits))
        self._starting = False
        await self._first_message()
        return True

    # --- messages -------------------------------------------------------------------------------------------------

    def _on_ready(self) -> None:
        """The Port says that messages may wait."""
        if self._busy or self._ended or self._deaf:
            return
        self._busy = True
        if not self._nap.end(True):
            self._task = self._loop.create_task(self._turns(), context=self._context)

    async def _work(self) -> None:
        """Take and handle until nothing waits, then park; ends when the agent ends or drains, or may not park.

        The hot loop: what it does not need stands elsewhere.
        """
        port, mailbox, name = self._port, self.mailbox, self.agent.name
        take, handle, set_handled, now = port.take, self._code.handle, HANDLED.set, time.monotonic
        post_reply, received, keeper = port.post_reply, Message.received, self._keeper
        decode = self._decode
        alone, once, checked = self._alone, self.spec.delivery == "at_most_once", self._bus.known_types
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
                            await self._failures.reject(delivery, error)
                            continue
                        if count < 0:
                            await self._begin_alone(done, -count)
                        if not await self._noticed(notice, delivery):
                            return
                        if self._draining == "current" or self._suspension.wanted:
                            await self._ended_with_news(done)
                            return
                        continue
                    if count != 1:
                        if count == 0:
                            await self._failures.expired(delivery)
                            continue
                        if header[ID_AT] == keeper.committed_id:
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
                            if header[FLAGS_AT] & FLAG_ASK:  # else nobody waits for it
                                if (kind := answer.type) not in checked:
                                    self._bus.check_type(kind)
                                post_reply(header, encode(answer.payload), kind, mailbox)
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
                    await self._fail(uncancelled(error), "handle", None)
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

    async def _noticed(self, payload: dict[str, Any], delivery: Delivery) -> bool:
        """A turn for the runtime's news. False: the agent has ended over it, and has been reported."""
        token, header, kind, sender, _, count = delivery
        if kind == HALT:
            self.agent.log.warning("halted by %r: %s", sender, payload.get("reason"))
            self._port.release(self.mailbox, token)
            await self._finish("finished")
            return False
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
        if message.type == CORRECTION:
            await awaited(self.agent.on_correction(message))
            return
        hook = self.agent.on_down if message.type == DOWN else self.agent.on_child_terminated
        await awaited(hook(message.payload["name"], message.payload["reason"]))

    def _answer(self, message: Message, answer: Message | None) -> None:
        """Post what `handle` returned; nothing when the message was no ask. The hot loop has the same in line."""
        if answer is None:
            return
        if not isinstance(answer, Message):
            raise TypeError(_NO_MESSAGE.format(type(answer).__name__))
        header = message.header
        if header is not None and header[FLAGS_AT] & FLAG_ASK:
            self._bus.check_type(answer.type)
            self._port.post_reply(header, encode(answer.payload), answer.type, self.mailbox)

    # --- what fails -----------------------------------------------------------------------------------------------

    async def _again(self, message: Message) -> None:
        """One more attempt at a message, its answer included."""
        if has_batches(self.agent) and message.type not in NOTICES:
            await self.agent.handle_batch([message])  # type: ignore[attr-defined]
            return
        if message.type in NOTICES:
            await self._hear(message)
        else:
            self._answer(message, await self._code.handle(message))

    async def _recovered(self, error: BaseException, message: Message, token: int) -> bool:
        """`handle` raised. True: go on with the next message. False: the agent has ended and has been reported."""
        if self._ending is not None and self._ending.excuses(error):
            return True
        verdict = await self._failures.met(error, message, token)
        if verdict is None:
            return True
        if verdict.crashed:
            await self._crashed(verdict, "handle", message)
        else:
            await self._finish("finished")
        return False

    async def _crashed(self, verdict: Verdict, during: str, message: Message) -> None:
        await self._fail(verdict.error, during, summary(message), verdict.text)

    # --- state ----------------------------------------------------------------------------------------------------

    async def _state_saved(self, message: Message, token: int) -> bool:
        """Finish what the handler has begun, and save the state as the effect of the message. False: a crash."""
        save = await self._end_begun()
        suspends = self._suspension.wanted
        if not save:
            self._keeper.due = False
        elif not (suspends and self._suspension.in_state):  # else both are saved at once
            try:
                await self._keeper.handler_ended(token, b"" if message.header is None else message.header[ID_AT])
            except TransportClosed:
                raise
            except Exception as error:  # noqa: BLE001 - what cannot be copied or encoded, or a store of the user's
                await self._crashed(await self._failures.state_not_saved(error, message, token), "state", message)
                return False
        if suspends:
            await self._suspend_at(token, message)
        return True

    async def _checkpoint(self, now: bool) -> None:
        """`AgentProcess.checkpoint`. After a crash the state may be half changed: only `now` saves it all the same."""
        self._save |= not now
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
            self._on_ready()  # a suspended one takes nothing all the same
        in_time = await self._quiesced(timeout_s)
        if self._ended:
            return in_time  # it crashed or finished by itself meanwhile
        await self._finish("stopped", max(CANCEL_GRACE_S, deadline - time.monotonic()))
        return in_time

    async def crash(self, reason: str, wanted: bool = False) -> None:
        """End as if it had crashed, at once: the handler is cancelled, its message stays in hand for the next life."""
        if self._ended:
            return
        self._draining = "current"  # a handler that ends just now takes no other message
        await self._quiesced(0.0)
        if not self._ended:
            if wanted:  # nobody's failure, so neither an error of the log nor a traceback
                self.agent.log.warning("restarted: %s", reason)
                await self._fail(AgentRestarted(reason), "restart", None, reason)
            else:
                await self._fail(LinkedAgentDown(reason), "link", None)

    async def _quiesced(self, timeout_s: float) -> bool:
        """Wait until no handler runs; cancel it at the deadline. Whether it ended by itself."""
        if not self._busy and self._code.hook_task is None:
            return True
        if resting := self.rests():
            await asyncio.wait(resting, timeout=timeout_s)
            if not self._busy:
                return True
        if self._ended:
            return True  # it finished or crashed meanwhile: its `on_stop` runs, with a limit of its own, and is let be
        self._cancelling = True
        task: asyncio.Task[Any] | None = self._task if self._busy else self._code.hook_task
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
        kind = type(error).__qualname__
        self._report(AgentFailed(self.agent.name, kind, error_text(error), text, during, message, error))

    def _close(self, status: ProcessStatus) -> None:
        """Take no more messages. `on_stop` and the report follow."""
        self._ended = True
        self.agent._status = status
        self._port.unlisten(self.mailbox)
        if self._ending is not None:
            self._ending.close()
            self._ending = None
        self._suspension.close()
        self._park.leave(self)
        self._alone.quit(self)
        self._code.end()
        self.agent._life_ends()

    async def _run_on_stop(self, timeout_s: float | None) -> None:
        """The user's last words cannot change what happens, and must not be lost either."""
        failure = await self._code.run_hook(
            self.agent.on_stop, self.agent.shutdown_timeout if timeout_s is None else timeout_s
        )
        if failure is None:
            return
        self.agent.log.error("on_stop failed:\n%s", format_exception(failure))
        if isinstance(failure, asyncio.CancelledError) and _cancelled():
            raise failure

    def _fail_soon(self, error: BaseException) -> None:
        """From a callback, where nothing can be awaited."""
        if not self._ended:
            self._draining = "current"
            self._dying = self._loop.create_task(self._fail(error, "handle", None), context=self._context)

    def _report(self, event: AgentEvent) -> None:
        try:
            self._on_event(event)
        except Exception:
            logging.getLogger(__name__).exception("the receiver of %s failed", event)


def _cancelled() -> bool:
    """Whether the running task is being cancelled, and not just something that it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
