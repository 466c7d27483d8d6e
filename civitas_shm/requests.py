"""What agents ask of supervision while the run lasts: spawn, despawn, stop, monitor, link. One for both drivers.

    requests.take("spawner", "spawn", {...}, answer)     # `answer(error, text, value)` is called once, now or later

Rules of this file: whether something is allowed is decided in `supervision.dynamic`, who is told in
`supervision.watch`; here answers are kept until it has happened. A request that cannot be done is answered by the name
of an error and its text, never by silence: at the end of the run, whatever still waits is.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec
from msgspec import structs

from . import errors
from .errors import CivitasError
from .notices import CHILD_TERMINATED, DOWN
from .roster import NO_TRAITS, Roster, Traits
from .supervision import (
    AddChild,
    ChildRemoved,
    Event,
    RemoveChild,
    Tree,
    child_of,
    nearest_dynamic,
    refusal,
    status_of_supervisor,
)
from .supervision.state import ChildState, ChildStatus
from .supervision.watch import DESPAWNED, GONE, Life, Watches
from .topology.model import AgentSpec

__all__ = ["Answer", "Requests", "RequestsDriver", "error_of"]


class Answer(Protocol):
    """Called once, now or later."""

    def __call__(self, error: str, text: str, value: Any = None, /) -> object:
        """`error`: a class in `errors`, and its text; both empty: done, with `value`, plain data."""
        ...


TELL_AGAIN_S: Final = 0.05
"""A control lane has 63 places; who has more news waiting than that gets the rest when it has read some."""


class RequestsDriver(Protocol):
    """What a driver of the tree gives to its `Requests`."""

    @property
    def tree(self) -> Tree: ...

    @property
    def stopping(self) -> bool:
        """Whether the run is being ended: then nobody is told of anything."""
        ...

    @property
    def now_s(self) -> float:
        """On the tree's clock."""
        ...

    def feed(self, event: Event) -> None:
        """Tell the tree."""
        ...

    def admit(self, wanted: AddChild) -> None:
        """Make room for a child that will be added: process, mailbox, note for a resumed run. CivitasError: refused."""
        ...

    def tell(self, agent: str, kind: str, name: str, reason: str) -> bool:
        """Commit a notice to the agent's control lane. False: there is no room just now."""
        ...

    def crash(self, child: str, incarnation: int, reason: str, counts: bool, wanted: bool = False) -> None:
        """End this life of a child as if it had crashed; nothing when it has ended already. `counts`: ChildFailed's;
        `wanted`: somebody wants it to be restarted, else it is linked with one that fell."""
        ...

    def judge(self, wanted: AddChild, then: Callable[[str], None]) -> None:
        """Ask the program whether this may be spawned; `then` gets why not, or an empty text."""
        ...

    def steer(self, child: str, incarnation: int, number: int, what: str, fields: dict[str, Any]) -> bool:
        """Order this life of a child to do it; `Requests.steered` is told what came of it. False: it is not there."""
        ...

    def suspended(self, agent: str) -> bool:
        """Whether it takes no messages until somebody resumes it."""
        ...

    def later(self, delay_s: float, work: Callable[[], None]) -> object: ...


class Requests:
    """One run's. All methods belong to the driver's loop."""

    def __init__(self, driver: RequestsDriver, roster: Roster | None = None) -> None:
        """`roster`: where what is known of the agents shall stand."""
        self._driver = driver
        self.roster = Roster() if roster is None else roster
        self._judged: dict[int, Answer] = {}
        """By number: who wants to spawn, and waits until the program has judged it."""
        self._last_judged = 0
        self._restarting: dict[str, tuple[list[Answer], set[str]]] = {}
        """By agent: who waits for its restart, and which children of it are not ready again."""
        self._starting: dict[str, Answer] = {}
        """By child: who waits until it is ready."""
        self._leaving: dict[str, list[Answer]] = {}
        """By child: who waits until it is gone."""
        self._steering: dict[int, tuple[str, Answer]] = {}
        """By number of the order: which child has it, and who waits."""
        self._last_steering = 0
        self._watches = Watches()
        self._untold: deque[tuple[str, str, str, str]] = deque()

    def take(self, asker: str, what: str, fields: Mapping[str, Any], answer: Answer) -> None:
        """Begin to do it. `asker`: the agent that wants it; empty: the program."""
        try:
            match what:
                case "spawn":
                    self._spawn(asker, fields, answer)
                case "despawn":
                    self._despawn(asker, fields, answer)
                case "monitor":
                    self._monitor(asker, str(fields["name"]), answer)
                case "demonitor":
                    self._watches = self._watches.demonitor(asker, str(fields["name"]))
                    answer("", "")
                case "link" | "unlink":
                    self._link(asker, str(fields["name"]), what == "link", answer)
                case "restart":
                    self._restart(fields, answer)
                case "suspend" | "resume":
                    self._steer(what, fields, answer)
                case "roster":
                    answer("", "")
                case "status":
                    self._status(str(fields["supervisor"]), answer)
                case _:
                    answer("MessageValidationError", f"supervision does not know the request {what!r}")
        except CivitasError as error:
            answer(type(error).__name__, str(error))

    def adopt(self, wanted: AddChild) -> str | None:
        """Bring back a child of the run that is resumed; why not, or None. Before the tree starts."""
        refused = refusal(self._driver.tree, wanted)
        if refused is not None:
            return refused
        try:
            self._driver.admit(wanted)
        except CivitasError as error:
            return str(error)
        self.declared(wanted.agent, wanted.supervisor)
        self._driver.feed(wanted)
        return None

    def close(self) -> None:
        """The run has ended: whoever still waits hears so."""
        waiting = [*self._starting.values(), *(answer for answers in self._leaving.values() for answer in answers)]
        waiting += [*self._judged.values(), *(one for answers, _ in self._restarting.values() for one in answers)]
        self._judged.clear()
        self._restarting.clear()
        waiting += [answer for _, answer in self._steering.values()]
        self._starting.clear()
        self._leaving.clear()
        self._steering.clear()
        for answer in waiting:
            answer("TransportClosed", "the run has ended")

    # --- spawn and despawn -------------------------------------------------------------------------------------------

    def _spawn(self, asker: str, fields: Mapping[str, Any], answer: Answer, granted: bool = False) -> None:
        spec = msgspec.convert(fields["spec"], AgentSpec)
        tree = self._driver.tree
        supervisor = fields.get("supervisor") or nearest_dynamic(tree, asker)
        if supervisor is None:
            answer(
                "SpawnError",
                f"{spec.name!r} cannot be spawned: there is no dynamic supervisor beside {asker!r} or above it. "
                "Declare one ({type: dynamic_supervisor, name: ...}) in the topology, or name one with spawn_into.",
            )
            return
        state = tree.supervisors.get(supervisor)
        if state is not None and state.spec.dynamic is not None:
            spec = child_of(state.spec.dynamic, spec, restart_given=fields.get("restart") is not None)
        wanted = AddChild(supervisor, spec, asker)
        refused = "the run is stopping" if self._driver.stopping else refusal(tree, wanted)
        if refused is not None:
            answer("SpawnError", refused)
            return
        assert state is not None
        assert state.spec.dynamic is not None
        if state.spec.dynamic.asks and not granted:
            self._judge(asker, fields, wanted, answer)
            return
        self._driver.admit(wanted)
        self.declared(spec, supervisor)
        if fields.get("wait", True):
            self._starting[spec.name] = answer
        self._driver.feed(wanted)
        if not fields.get("wait", True):
            answer("", "")

    def _judge(self, asker: str, fields: Mapping[str, Any], wanted: AddChild, answer: Answer) -> None:
        """The program's own supervisor is asked; the quotas are looked at again when it has answered."""
        self._last_judged += 1
        number = self._last_judged
        self._judged[number] = answer

        def judged(refused: str) -> None:
            if self._judged.pop(number, None) is None:
                return  # the run has ended
            if refused:
                answer("SpawnError", refused)
                return
            try:
                self._spawn(asker, fields, answer, granted=True)
            except CivitasError as error:
                answer(type(error).__name__, str(error))

        self._driver.judge(wanted, judged)

    def _despawn(self, asker: str, fields: Mapping[str, Any], answer: Answer) -> None:
        name, supervisor = str(fields["name"]), fields.get("supervisor")
        child = self._driver.tree.children.get(name)
        if child is None or child.dynamic is None or supervisor not in (None, child.supervisor):
            where = f" below {supervisor!r}" if supervisor else ""
            what = (
                "has not been spawned but declared" if child is not None and child.dynamic is None else "is not there"
            )
            answer("SpawnError", f"{name!r} cannot be despawned: no spawned agent of that name{where}; it {what}.")
            return
        if asker == name:
            answer("", "")  # it cannot wait for its own end
        else:
            self._leaving.setdefault(name, []).append(answer)
        self._driver.feed(RemoveChild(name, fields.get("drain"), fields.get("timeout_s")))

    # --- restarts -------------------------------------------------------------------------------------------------

    def _restart(self, fields: Mapping[str, Any], answer: Answer) -> None:
        name = str(fields["name"])
        children = self._known(name, answer)
        if not children:
            return
        if any(child.restart == "temporary" for child in children):
            answer("ConfigurationError", f"{name!r} cannot be restarted: restart: temporary says never.")
            return
        alive = [child for child in children if child.status in (ChildStatus.STARTING, ChildStatus.READY)]
        if not alive:
            status = children[0].status.value
            answer("AgentStopped", f"{name!r} cannot be restarted: it does not run just now ({status}).")
            return
        answers, missing = self._restarting.setdefault(name, ([], set()))
        answers.append(answer)
        missing.update(child.key for child in alive)
        by, why = fields.get("by") or "_runtime", fields.get("reason") or "no reason given"
        for child in alive:
            self._driver.crash(child.key, child.incarnation, f"{by} wants it to be restarted: {why}", False, True)

    def restarting(self, agent: str) -> bool:
        """Whether somebody has asked for it, so that its fall is no crash."""
        return agent in self._restarting

    def _restarted(self, child: ChildState) -> None:
        answers, missing = self._restarting.get(child.agent, ([], {child.key}))
        missing.discard(child.key)
        if not missing:
            self._restarting.pop(child.agent, None)
            for answer in answers:
                answer("", "")

    def _not_restarted(self, agent: str) -> None:
        answers, _ = self._restarting.pop(agent, ([], set()))
        for answer in answers:
            answer("AgentStopped", f"{agent!r} fell when it was to be restarted, and is gone for good.")

    # --- what is asked for only -------------------------------------------------------------------------------------

    def _status(self, supervisor: str, answer: Answer) -> None:
        status = status_of_supervisor(self._driver.tree, supervisor, self._driver.now_s, self._driver.suspended)
        if status is None:
            known = ", ".join(map(repr, self._driver.tree.supervisors))
            answer("MessageRoutingError", f"No supervisor is named {supervisor!r}; there are {known}.")
        else:
            answer("", "", status)

    # --- suspend and resume -------------------------------------------------------------------------------------------

    def _steer(self, what: str, fields: Mapping[str, Any], answer: Answer) -> None:
        name = str(fields["name"])
        if name in self._driver.tree.supervisors:
            answer("ConfigurationError", f"{name!r} is a supervisor, which is never suspended. Suspend its agents.")
            return
        children = self._known(name, answer)
        if not children:
            return
        if len(children) > 1:
            answer("ConfigurationError", f"{name!r} has {len(children)} replicas: only a single agent can be {what}d.")
            return
        child = children[0]
        self._last_steering += 1
        number = self._last_steering
        self._steering[number] = (child.key, answer)
        if not self._driver.steer(child.key, child.incarnation, number, what, dict(fields)):
            self.steered(number, "AgentStopped", f"{name!r} does not run just now ({child.status.value}): try again.")

    def steered(self, number: int, error: str = "", text: str = "") -> None:
        """An order was done, or not."""
        _, answer = self._steering.pop(number, ("", None))
        if answer is not None:
            answer(error, text)

    # --- monitors and links ------------------------------------------------------------------------------------------

    def _children(self, agent: str) -> list[ChildState]:
        return [child for child in self._driver.tree.children.values() if child.agent == agent]

    def _known(self, name: str, answer: Answer) -> list[ChildState]:
        children = self._children(name)
        if not children:
            answer("MessageRoutingError", f"There is no agent {name!r} in this run.")
        return children

    def _monitor(self, watcher: str, name: str, answer: Answer) -> None:
        children = self._known(name, answer)
        if not children:
            return
        if all(child.status is ChildStatus.GONE for child in children):
            self._tell(watcher, DOWN, name, GONE)
        else:
            self._watches = self._watches.monitor(watcher, name)
        answer("", "")

    def _link(self, asker: str, name: str, on: bool, answer: Answer) -> None:
        mine, peers = self._children(asker), self._known(name, answer)
        if not peers:
            return
        if len(mine) != 1 or len(peers) != 1:
            who = asker if len(mine) != 1 else name
            answer("ConfigurationError", f"{who!r} has replicas: a link is between two single agents. Monitor it.")
            return
        one, other = (Life(child.agent, child.incarnation) for child in (mine[0], peers[0]))
        if not on:
            self._watches = self._watches.unlink(one, other)
            answer("", "")
        elif not peers[0].lives:
            answer(
                "AgentStopped", f"{name!r} cannot be linked with: it does not run just now ({peers[0].status.value})."
            )
        else:
            self._watches = self._watches.link(one, other)
            answer("", "")

    # --- what the driver tells ---------------------------------------------------------------------------------------

    def declared(self, spec: AgentSpec, supervisor: str = "") -> None:
        """An agent is going to be there; more is known when it is ready. `supervisor`: that it is spawned below."""
        traits = Traits("agent", tuple(spec.capabilities), dict(spec.capability_metadata))
        self._put(spec.name, traits, supervisor)

    def _put(self, agent: str, traits: Traits, supervisor: str) -> None:
        self.roster.put(agent, structs.replace(traits, supervisor=supervisor) if supervisor else traits)

    def ready(self, child: str, traits: Traits = NO_TRAITS) -> None:
        """The tree has heard that a child is ready, and what it is."""
        state = self._driver.tree.children.get(child)
        if state is not None:
            self._put(state.agent, traits, state.supervisor if state.dynamic is not None else "")
            self._restarted(state)
        answer = self._starting.pop(child, None)
        if answer is not None:
            answer("", "")

    def ended(self, child: str, incarnation: int, why: str, detail: str = "", *, counts: bool = True) -> None:
        """A life has ended; to be told before the tree is. Who falls with it counts if it does."""
        for number in [number for number, (key, _) in self._steering.items() if key == child]:
            self.steered(number, "AgentStopped", f"{child!r} ended before it was done ({why}): try again.")
        state = self._driver.tree.children.get(child)
        if state is None or self._driver.stopping:
            return
        if state.dynamic is not None and state.dynamic.removing:
            why, detail = DESPAWNED, ""
        self._watches, tells, falls = self._watches.ended(Life(state.agent, incarnation), child, why, detail)
        for tell in tells:
            self._tell(tell.watcher, DOWN, tell.name, tell.reason)
        for fall in falls:
            for peer in self._children(fall.life.agent):
                self._driver.crash(peer.key, fall.life.incarnation, fall.reason, counts)

    def given_up(self, agent: str) -> None:
        """It will not be back, but for a restart of its whole group."""
        self._watches = self._watches.gone(agent)
        self.roster.drop(agent)
        self._not_restarted(agent)

    def removed(self, action: ChildRemoved) -> None:
        """A spawned child has left the tree."""
        self._watches = self._watches.gone(action.child)
        self.roster.drop(action.child)
        self._not_restarted(action.child)
        starting = self._starting.pop(action.child, None)
        if starting is not None:
            starting("SpawnError", f"{action.child!r} was spawned but is gone before it was ready: {action.reason}")
        for answer in self._leaving.pop(action.child, []):
            answer("", "")
        if action.spawner and action.why != "despawned" and not self._driver.stopping:
            self._tell(action.spawner, CHILD_TERMINATED, action.child, action.why)

    def _tell(self, agent: str, kind: str, name: str, reason: str) -> None:
        if self._untold or not self._driver.tell(agent, kind, name, reason):
            self._untold.append((agent, kind, name, reason))
            if len(self._untold) == 1:
                self._driver.later(TELL_AGAIN_S, self._tell_again)

    def _tell_again(self) -> None:
        """In order; one whose reader is slow delays the others' news by a round, never loses it."""
        for _ in range(len(self._untold)):
            notice = self._untold.popleft()
            if not self._driver.stopping and not self._driver.tell(*notice):
                self._untold.append(notice)
        if self._untold:
            self._driver.later(TELL_AGAIN_S, self._tell_again)


def error_of(name: str, text: str, exit_code: int = 1) -> CivitasError:
    """An error that another process has named, as the same class here; an unknown one keeps its text and exit code."""
    kind = getattr(errors, name, CivitasError)
    error = CivitasError(text)
    if isinstance(kind, type) and issubclass(kind, CivitasError):
        with contextlib.suppress(TypeError):  # it wants more than a text
            error = kind(text)
    error.exit_code = max(exit_code, error.exit_code)
    return error
