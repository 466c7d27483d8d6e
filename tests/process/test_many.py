"""A run with a hundred workers: processes whose slots lie in either word of a mailbox's sets (native/sets.h).

The memory has no name and is as large as it has to be: each process that sends takes a MiB, more in all than /dev/shm
has in many containers.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from civitas_shm.topology.model import PoolSpec, TransportSpec

pytestmark = pytest.mark.process

WORKERS = 100


def test_each_of_a_hundred_workers_handles_and_answers_and_is_replaced(start_run: Any, agent: Any) -> None:
    async def test() -> None:
        agents = [agent("Echo", f"a{n}", process=f"w{n}") for n in range(WORKERS)]
        low, high = 0, WORKERS - 1  # slots 2 and 101: in the first and in the second word
        agents[low] = agent("Asks", f"a{low}", process=f"w{low}", config={"to": f"a{high - 1}"})
        agents[high] = agent("Asks", f"a{high}", process=f"w{high}", config={"to": f"a{low + 1}"})
        transport = TransportSpec("shm", segments="memfd", arena_mb=4, mailboxes=WORKERS)
        async with start_run(*agents, transport=transport, pool=PoolSpec(size=1, standby=0)) as run:
            replies = await asyncio.gather(*(run.ask(f"a{n}", {"n": n}) for n in range(WORKERS)))
            assert [reply["n"] for reply in replies] == list(range(WORKERS))
            # The two in the middle of a chain pass on what another one has answered.
            pids = [run.pid(f"w{n}") for n in range(WORKERS)]
            assert [reply["pid"] for reply in replies] == [pids[high - 1], *pids[1:high], pids[low + 1]]
            assert len(set(pids)) == WORKERS

            for number in (low + 1, high - 1):  # whom the two ask
                os.kill(pids[number], signal.SIGKILL)
            await run.until(lambda: len(run.named("process_died")) == 2)
            passed_on = await asyncio.gather(run.ask(f"a{low}", {"n": 0}), run.ask(f"a{high}", {"n": 1}))
            assert [reply["pid"] for reply in passed_on] == [run.pid(f"w{high - 1}"), run.pid(f"w{low + 1}")]
            assert not {reply["pid"] for reply in passed_on} & set(pids)

    asyncio.run(test())
