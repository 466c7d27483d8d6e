"""What `plan` says of shared memory, beside a run that is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from civitas_shm.placement import ARENA_HEAD_BYTES, EXTENT_BYTES, place, plan_bytes
from civitas_shm.topology.model import AgentSpec, PoolSpec, SupervisorSpec, TopologySpec, TransportSpec
from civitas_shm.transport import DELAYS, MailboxSpec, MemoryPlan
from civitas_shm_transports.shm.memory import create


@pytest.mark.parametrize(
    ("workers", "standby", "mailboxes", "size"), [(1, 0, 4096, 1000), (20, 2, 64, 1024), (100, 0, 101, 5)]
)
def test_the_plan_says_what_a_run_takes(
    tmp_path: Path, name: str, workers: int, standby: int, mailboxes: int, size: int
) -> None:
    agents = [AgentSpec(f"a{n}", "x.Y", process=f"p{n}", mailbox_size=size) for n in range(workers)]
    spec = TopologySpec(
        supervision=SupervisorSpec(children=[*agents]),
        pool=PoolSpec(standby=standby),
        transport=TransportSpec(mailboxes=mailboxes, arena_mb=8),
    )
    placement = place(spec, [0])
    estimate = plan_bytes(spec, placement)
    plan = MemoryPlan(slots=placement.slots_needed, mailboxes=mailboxes, arena_bytes=8 << 20, kind="memfd")
    run = create(name, plan, run_dir=tmp_path)
    run.add_mailbox(MailboxSpec(DELAYS))
    for one in agents:
        run.add_mailbox(MailboxSpec(one.name, one.mailbox_size))
    arenas = estimate.arenas * (EXTENT_BYTES - ARENA_HEAD_BYTES)  # of the first message of each process
    assert abs(run.used_bytes() + arenas - estimate.expected_bytes) <= 256 << 10
    sizes = [(8 << 20) * plan.slots, plan.mailbox_bytes]
    assert sum(sizes) < estimate.reserved_bytes < sum(sizes) + estimate.expected_bytes
    run.close(keep=False)
