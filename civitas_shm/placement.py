"""Where everything runs: which processes there are, on which cores, and which agents are in them. Decided here, once.

Rules of this file: pure (the machine's cores come in as values); deterministic: the same topology on the same cores
gives the same plan, so `plan` shows what `run` will do; every refusal says what was asked, what there is, and the way
out.

    placement = place(spec, cpus=sorted(os.sched_getaffinity(0)), workers=args.workers)
    spec = placement.spec                             # as it will run: --workers may have lowered replicas
    tree = Tree.from_spec(spec.supervision)           # its children are those in placement.processes[…].agents
    plan = MemoryPlan(slots=placement.slots_needed, …)

Which processes:
- slot 0 is the host, slot 1 the caller's own process (`main`), slots 2 … are workers, then come the standbys;
- a process that an agent names (`process:`) exists, with or without an entry in `processes:`;
- agents without `process:` go to the pool, processes `w1` … `wN` (a name that is taken is passed over). N is
  `--workers`, else `pool.size`; `auto` is one per core, or more where an agent has more replicas than there are cores;
- an entry in `processes:` that no agent names but that bears the name of a pool process describes that pool process;
- a process without agents is not started: it is left out, and `notes` says so;
- with a dynamic supervisor in the tree the pool has its full size, however few agents are declared: a process of it is
  started when the first agent is spawned into it (`process_for`: the least loaded, or the one that is named).

Which agents: by count, the least loaded pool process first. Replicas of one agent never share a process, for there they
would only take turns. More replicas than `pool.size` is an error, because the file contradicts itself; `--workers`
is a wish for this run, so it lowers them, and `notes` says so.

Which cores: a process with `cpus` gets those, or those of its `numa` node. All others are pinned to one core each,
round-robin, while `pool.pin`; cores that a process asked for by number are left to it as long as there are others.

May it spin? A process may wait for messages by spinning only if every process of the run that might need one of the
same cores can have a core of its own at the same time. `main` is not pinned; it counts if it has agents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from .errors import ConfigurationError
from .supervision.state import child_keys
from .topology.model import AgentSpec, ProcessSpec, SupervisorSpec, TopologySpec
from .transport import SLOT_FIRST_WORKER, SLOT_MAIN, MailboxSpec, MemoryPlan

__all__ = ["MAIN", "MAX_SLOTS", "MemoryEstimate", "Placement", "PlannedProcess", "place", "plan_bytes"]

MAIN = "main"
"""Name of the caller's own process."""
HOST = "host"

MAX_SLOTS = 128
"""A slot's number has 7 bits in the words of shared memory, and a bit in every mailbox's sets of processes."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCH_NUM_THREADS")
"""Set to the number of cores a process has, or numeric libraries start one thread per core of the whole machine."""


@dataclass(frozen=True, slots=True)
class PlannedProcess:
    """One OS process of the run, the host apart."""

    name: str
    slot: int
    cpus: tuple[int, ...] = ()
    """Pinned to these; empty: not pinned."""
    nice: int = 0
    env: Mapping[str, str] = field(default_factory=dict)
    """To be set before the interpreter starts (or right after the fork)."""
    gpu: tuple[int, ...] = ()
    """Not empty: a fresh exec, `env` makes these devices visible."""
    numa: int | None = None
    memory_limit_mb: int | None = None
    threads: int = 1
    """For numeric libraries."""
    spin: bool = False
    agents: tuple[str, ...] = ()
    """Child keys as in the supervision tree."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The plan of a run."""

    spec: TopologySpec
    """What is really run: as asked, but with replicas lowered where `--workers` wants fewer processes."""
    processes: tuple[PlannedProcess, ...]
    """`main` first (also when it has no agents), then workers by slot."""
    standby: int
    """Processes that wait to be handed a slot."""
    notes: tuple[str, ...] = ()
    """What was decided differently from what one might expect: sentences for people."""
    pool: tuple[str, ...] = ()
    """Names of the processes that agents without `process:` go to."""

    @property
    def workers(self) -> tuple[PlannedProcess, ...]:
        """The processes that the host starts."""
        return self.processes[1:]

    @property
    def slots_needed(self) -> int:
        """Host, main, workers, standbys."""
        return SLOT_FIRST_WORKER + len(self.workers) + self.standby

    def process_of(self, child: str) -> PlannedProcess:
        """Where a child runs; KeyError for a name that is no child of the tree."""
        for process in self.processes:
            if child in process.agents:
                return process
        raise KeyError(child)

    def process_for(self, agent: AgentSpec, loads: Mapping[str, int]) -> PlannedProcess:
        """Where an agent that is spawned shall run; `loads`: how many agents each process has now.

        ConfigurationError when it names a process that this run does not have: their number is fixed at its start.
        """
        if agent.process is None and self.pool:
            name = min(self.pool, key=lambda each: loads.get(each, 0))
        else:
            name = agent.process or MAIN
        for process in self.processes:
            if process.name == name:
                return process
        raise ConfigurationError(
            f"{agent.name!r} cannot be spawned into process {name!r}: this run has "
            f"{_listed([process.name for process in self.processes])}. Leave out `process`, or name one of these."
        )


def place(
    spec: TopologySpec,
    cpus: Sequence[int],
    workers: int | None = None,
    *,
    numa_nodes: Mapping[int, Sequence[int]] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Placement:
    """The plan for a machine whose cores this run may use are `cpus`. ConfigurationError when it cannot be met.

    `workers` is `--workers`. `numa_nodes`: cores of each node, where known. `environ`: variables that the user has
    set already; thread limits among them are left alone.
    """
    if not cpus:
        raise ValueError("place: cpus is empty; give the cores that this process may run on")
    if workers is not None and workers < 1:
        raise ConfigurationError(f"--workers is {workers}; at least 1 is needed.")
    declared = _declared(spec, cpus, numa_nodes)
    named, pooled = _split(spec.supervision.agents())
    dynamic = bool(spec.supervision.dynamic_supervisors())
    pool_size, lowered, notes = _pool_size(spec, pooled, len(cpus), workers, dynamic)
    if lowered:
        spec = replace(spec, supervision=_lower(spec.supervision, lowered))
        named, pooled = _split(spec.supervision.agents())

    residents: dict[str, list[str]] = {MAIN: named.pop(MAIN, [])}
    residents.update(named)
    homes = {of.dynamic.process for of in spec.supervision.dynamic_supervisors() if of.dynamic and of.dynamic.process}
    residents |= {name: [] for name in sorted(homes - set(residents))}
    pool = _pool_names(pool_size, taken=set(residents))
    residents.update(_spread(pooled, pool))
    if dynamic:
        notes += [
            f"process {name!r} is started when an agent is spawned into it."
            for name in [*sorted(homes - {MAIN}), *pool]
            if not residents[name]
        ]
    notes += [
        f"process {name!r} is declared, but no agent runs in it: it is not started."
        for name in declared
        if name not in residents
    ]
    processes = _processes(spec, residents, declared, list(cpus), environ or {}, [*homes, *pool] if dynamic else [])
    placement = Placement(spec, tuple(processes), spec.pool.standby, tuple(notes), tuple(pool))
    if placement.slots_needed > MAX_SLOTS:
        raise ConfigurationError(
            f"This topology needs {placement.slots_needed} processes at once (host, caller, {len(placement.workers)} "
            f"workers, {placement.standby} standby); a run has at most {MAX_SLOTS}, so at most "
            f"{MAX_SLOTS - SLOT_FIRST_WORKER - placement.standby} workers. Put several agents into one process "
            "(`process:`), or lower `--workers`, `pool.size` or `pool.standby`."
        )
    return placement


def _declared(
    spec: TopologySpec, cpus: Sequence[int], numa_nodes: Mapping[int, Sequence[int]] | None
) -> dict[str, ProcessSpec]:
    """`processes:` by name, checked, with `numa` turned into cores."""
    declared: dict[str, ProcessSpec] = {}
    for process in spec.processes:
        if process.name in (MAIN, HOST):
            raise ConfigurationError(
                f"processes.{process.name}: {MAIN!r} is the caller's own process and {HOST!r} the supervising one; "
                "their cores and limits are set from outside (taskset, nice). Choose another name."
            )
        if process.name in declared:
            raise ConfigurationError(f"processes.{process.name} is declared twice.")
        missing = sorted(set(process.cpus) - set(cpus))
        if missing:
            raise ConfigurationError(
                f"processes.{process.name}.cpus asks for {_listed(missing)}; this run may use "
                f"{_listed(sorted(cpus))} (taskset, cgroup and container limits included)."
            )
        if process.numa is not None and not process.cpus and numa_nodes is not None:
            usable = [cpu for cpu in cpus if cpu in numa_nodes.get(process.numa, ())]
            if not usable:
                raise ConfigurationError(
                    f"processes.{process.name}.numa is {process.numa}; this machine has the nodes "
                    f"{_listed(sorted(numa_nodes))}, and of node {process.numa} this run may use no core."
                )
            process = replace(process, cpus=usable)
        declared[process.name] = process
    return declared


def _split(agents: list[AgentSpec]) -> tuple[dict[str, list[str]], list[AgentSpec]]:
    """(children of each process that agents name, agents for the pool), in start order."""
    named: dict[str, list[str]] = {}
    pooled: list[AgentSpec] = []
    for agent in agents:
        if agent.process is None:
            pooled.append(agent)
            continue
        if agent.process == HOST:
            raise ConfigurationError(
                f"agent {agent.name!r}: process {HOST!r} runs no agents. Use {MAIN!r} for the caller's own process."
            )
        if agent.replicas > 1:
            raise ConfigurationError(
                f"agent {agent.name!r}: {agent.replicas} replicas in the one process {agent.process!r} would only take "
                "turns. Leave out `process:`, and each gets a process of the pool; or set replicas: 1."
            )
        named.setdefault(agent.process, []).extend(child_keys(agent))
    return named, pooled


def _pool_size(
    spec: TopologySpec, pooled: list[AgentSpec], cores: int, workers: int | None, dynamic: bool
) -> tuple[int, dict[str, int], list[str]]:
    """(processes of the pool, new replicas of agents that have too many, notes)."""
    if not pooled and not dynamic:
        notes = [] if workers is None else ["--workers has no effect: every agent names its process."]
        return 0, {}, notes
    most = max(pooled, key=lambda agent: agent.replicas, default=AgentSpec("", ""))
    children = sum(agent.replicas for agent in pooled)
    if workers is None and spec.pool.size == "auto":
        size = max(cores, most.replicas)
        return size if dynamic else min(size, children), {}, []
    if workers is None:
        size = int(spec.pool.size)
        if size < 1:
            raise ConfigurationError(f"pool.size is {size}; at least 1 is needed, or `auto`.")
        if size < most.replicas:
            raise ConfigurationError(
                f"agent {most.name!r} has {most.replicas} replicas, each in a process of its own, but pool.size is "
                f"{size}. Set pool.size to {most.replicas} or more (or `auto`), or replicas to {size} or less; "
                f"`--workers {size}` lowers the replicas for one run."
            )
        asked, lowered = "pool.size", {}
    else:
        size, asked = workers, "--workers"
        lowered = {agent.name: workers for agent in pooled if agent.replicas > workers}
    notes = [
        f"agent {agent.name!r}: {lowered[agent.name]} of {agent.replicas} replicas run, one per process (--workers)."
        for agent in pooled
        if agent.name in lowered
    ]
    if dynamic:
        return size, lowered, notes
    children = sum(lowered.get(agent.name, agent.replicas) for agent in pooled)
    if size > children:
        notes.append(
            f"{asked} is {size}, but {children} processes hold all agents of the pool: {children} are started."
        )
    return min(size, children), lowered, notes


def _lower(supervisor: SupervisorSpec, replicas: Mapping[str, int]) -> SupervisorSpec:
    return replace(
        supervisor,
        children=[
            _lower(child, replicas)
            if isinstance(child, SupervisorSpec)
            else replace(child, replicas=replicas.get(child.name, child.replicas))
            for child in supervisor.children
        ],
    )


def _pool_names(size: int, taken: set[str]) -> list[str]:
    names: list[str] = []
    number = 0
    while len(names) < size:
        number += 1
        if f"w{number}" not in taken:
            names.append(f"w{number}")
    return names


def _spread(agents: list[AgentSpec], names: list[str]) -> dict[str, list[str]]:
    """Balanced by count: an agent's children go to the processes with the fewest so far, each to another one.

    Loads never differ by more than one, because each agent adds one to some of the least loaded.
    """
    residents: dict[str, list[str]] = {name: [] for name in names}
    for agent in agents:
        least_loaded = sorted(names, key=lambda name: len(residents[name]))
        for key, name in zip(child_keys(agent), least_loaded, strict=False):
            residents[name].append(key)
    return residents


def _processes(
    spec: TopologySpec,
    residents: Mapping[str, list[str]],
    declared: Mapping[str, ProcessSpec],
    cpus: list[int],
    environ: Mapping[str, str],
    later: Sequence[str],
) -> list[PlannedProcess]:
    wishes = {name: declared.get(name, ProcessSpec(name)) for name in residents if name != MAIN}
    pinned = _pin(wishes, cpus, spec.pool.pin)
    # What a process may run on, for those that run agents, now or `later`: main wherever the caller may.
    busy = [name for name, agents in residents.items() if agents or name in later]
    may_use = {name: pinned.get(name) or tuple(cpus) for name in busy}
    unpinned = sum(1 for name in wishes if not pinned[name])
    planned = [
        PlannedProcess(
            MAIN,
            SLOT_MAIN,
            threads=len(cpus),
            spin=_may_spin(MAIN, may_use),
            agents=tuple(residents[MAIN]),
        )
    ]
    for slot, (name, wish) in enumerate(wishes.items(), SLOT_FIRST_WORKER):
        # Unpinned processes share all cores, so each gets its share of threads.
        threads = len(pinned[name]) or max(1, len(cpus) // unpinned)
        planned.append(
            PlannedProcess(
                name=name,
                slot=slot,
                cpus=pinned[name],
                nice=wish.nice,
                env=_environment(wish, threads, environ),
                gpu=tuple(wish.gpu),
                numa=wish.numa,
                memory_limit_mb=wish.memory_limit_mb,
                threads=threads,
                spin=_may_spin(name, may_use),
                agents=tuple(residents[name]),
            )
        )
    return planned


def _pin(wishes: Mapping[str, ProcessSpec], cpus: list[int], pin: bool) -> dict[str, tuple[int, ...]]:
    """Cores of each process; empty: not pinned."""
    asked = {cpu for wish in wishes.values() for cpu in wish.cpus}
    free = [cpu for cpu in cpus if cpu not in asked] or cpus
    load = Counter(cpu for wish in wishes.values() for cpu in wish.cpus)
    pinned: dict[str, tuple[int, ...]] = {}
    for name, wish in wishes.items():
        if wish.cpus:
            pinned[name] = tuple(dict.fromkeys(wish.cpus))
        elif pin:
            cpu = min(free, key=load.__getitem__)
            load[cpu] += 1
            pinned[name] = (cpu,)
        else:
            pinned[name] = ()
    return pinned


def _environment(wish: ProcessSpec, threads: int, environ: Mapping[str, str]) -> dict[str, str]:
    env = {name: str(threads) for name in _THREAD_VARIABLES if name not in environ}
    if wish.gpu:
        # By bus order, so that the numbers are those that nvidia-smi shows.
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, wish.gpu))
    return env | wish.env


def _may_spin(name: str, may_use: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether this process and all that compete with it, directly or through others, can have a core each at once."""
    if name not in may_use:
        return False
    rivals = {name}
    contested = set(may_use[name])
    while True:
        more = {other for other, cores in may_use.items() if other not in rivals and contested & set(cores)}
        if not more:
            break
        rivals |= more
        contested.update(cpu for other in more for cpu in may_use[other])

    holder: dict[int, str] = {}

    def seat(process: str, tried: set[int]) -> bool:
        """Give it a core, moving others along where they have a choice (augmenting path of a bipartite matching)."""
        for cpu in may_use[process]:
            if cpu not in tried:
                tried.add(cpu)
                if cpu not in holder or seat(holder[cpu], tried):
                    holder[cpu] = process
                    return True
        return False

    return all(seat(process, set()) for process in sorted(rivals))


def _listed(things: Sequence[object]) -> str:
    return ", ".join(map(str, things)) or "none"


# --- shared memory -------------------------------------------------------------------------------------------------

# Sizes of the shared-memory layout (LAYOUT.md); tests/unit/shm/test_plan.py compares them with a run that is made.
_PAGE_BYTES = 4096
_MAILBOX_HEAD_BYTES = 2432
_RECORD_BYTES, _CELL_BYTES, _SLOT_HEAD_BYTES, _LINE_BYTES = 256, 512, 416, 128
_WORD_BYTES = 8
_RING_PLACES_MIN = 64
_CONTROL_CAPACITY = 63
_REPLY_CAPACITY = 2 * 4096 - 1
"""Of the mailbox that each process has its answers in: 64 KiB."""
_MAILBOXES_MAX = 16384
_MAIL_STEP_BYTES = 256 << 10
"""The mailboxes' memory is taken in pieces of this size."""
EXTENT_BYTES = 1 << 20
"""An arena takes memory in pieces of this size; each has one from its first message."""
ARENA_HEAD_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Shared memory of a run, before it runs."""

    reserved_bytes: int
    """Address space; sparse, costs no memory by itself. The most that the run can ever take."""
    expected_bytes: int
    """Memory taken at the start, with empty mailboxes."""
    mailboxes: int
    arenas: int


def plan_bytes(spec: TopologySpec, placement: Placement) -> MemoryEstimate:
    """How much shared memory this plan reserves, and how much it takes at its start.

    reserved = slots * arena_mb + mailbox area (MemoryPlan.mailbox_bytes) + directory + cells
    expected = directory and cells, for `transport.mailboxes` agents
             + a mailbox for each agent (replicas share one), for the answers of each slot, for dead letters and for
               delayed messages
             + EXTENT_BYTES for each process, ARENA_HEAD_BYTES for each standby, which takes over the arena of the slot
               that it is handed
    """
    agents = spec.supervision.agents()
    arenas, slots = SLOT_FIRST_WORKER + len(placement.workers), placement.slots_needed
    records = min(spec.transport.mailboxes + slots + 1, _MAILBOXES_MAX)
    slot_bytes = _aligned(_SLOT_HEAD_BYTES + _aligned(records, 64) // 8, _LINE_BYTES)
    directory = _aligned(_PAGE_BYTES + slots * slot_bytes + records * _RECORD_BYTES, _PAGE_BYTES)
    cells = _aligned(_PAGE_BYTES + records * _CELL_BYTES, _PAGE_BYTES)
    made = MailboxSpec("")
    own = slots * _mailbox_bytes(slots, 1, _REPLY_CAPACITY) + _mailbox_bytes(slots, 1, 1)
    own += _mailbox_bytes(slots, made.priority_capacity, made.capacity)
    mail = own + sum(_mailbox_bytes(slots, made.priority_capacity, agent.mailbox_size) for agent in agents)
    mail = _PAGE_BYTES + _aligned(mail, _MAIL_STEP_BYTES)
    heads = (slots - arenas) * ARENA_HEAD_BYTES
    arena_bytes = spec.transport.arena_mb << 20
    return MemoryEstimate(
        reserved_bytes=slots * arena_bytes + MemoryPlan().mailbox_bytes + directory + cells,
        expected_bytes=directory + cells + mail + arenas * EXTENT_BYTES + heads,
        mailboxes=len(agents),
        arenas=arenas,
    )


def _mailbox_bytes(slots: int, priority: int, capacity: int) -> int:
    head = _MAILBOX_HEAD_BYTES + _aligned(_WORD_BYTES * slots, _LINE_BYTES)
    places = sum(map(_ring_places, (_CONTROL_CAPACITY, priority, capacity)))
    return _aligned(head + _WORD_BYTES * places, _LINE_BYTES)


def _ring_places(capacity: int) -> int:
    """One more at least, for the word that closes a lane; a power of two."""
    return max(_RING_PLACES_MIN, 1 << capacity.bit_length())


def _aligned(value: int, to: int) -> int:
    return -(-value // to) * to
