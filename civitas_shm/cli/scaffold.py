"""The files of a first project: text, and nothing else. `init` writes them; a test runs what they say."""

from __future__ import annotations

from typing import Final

__all__ = ["FILES", "SCHEMA"]

_TOPOLOGY = """\
# yaml-language-server: $schema=./topology.schema.json
# What runs, and where. `civitas-shm plan` shows it before it runs, `civitas-shm run` runs it.
name: @NAME@
transport: shm            # in_process: everything in one process, on any system

stop:
  drain: all              # what waits is handled before the end

supervision:
  name: root
  strategy: ONE_FOR_ONE   # a crashed agent is started anew, the others go on
  children:
    - agent:
        name: squarer
        type: agents.Squarer
        replicas: 2       # two processes pull from one mailbox
    - agent:
        name: asker
        type: agents.Asker
        state: shm        # self.state is committed together with the release of each message
        config:
          count: 10       # for one run: civitas-shm run --set asker.count=100
"""

_AGENTS = '''\
"""Two agents: one squares numbers, one asks it to."""

from __future__ import annotations

from civitas_shm import AgentProcess, Message


class Squarer(AgentProcess):
    """Answers {"number": n} with {"square": n * n}."""

    async def handle(self, message: Message) -> Message | None:
        number = message.payload["number"]
        return self.reply({"square": number * number})


class Asker(AgentProcess):
    """Asks for one square per message, adds it up, prints the sum and ends the run.

    Its state is committed together with the release of each message (`state: shm` in the topology). So when its process
    is killed, the next one goes on where this one was, and a message that comes twice is known by its number.
    """

    async def on_start(self) -> None:
        self.state.setdefault("next", 1)
        self.state.setdefault("total", 0)
        await self.send(self.name, {"number": self.state["next"]})

    async def handle(self, message: Message) -> None:
        number = message.payload["number"]
        if number != self.state["next"]:
            return  # done before
        if number <= self.config["count"]:
            answer = await self.ask("squarer", {"number": number})
            self.state["total"] += answer.payload["square"]
            await self.send(self.name, {"number": number + 1})
        else:
            print(f"the sum of the first {self.config['count']} squares is {self.state['total']}")
            await self.stop_runtime(exit_code=0)
        self.state["next"] = number + 1
'''

_TEST = '''\
"""The agents are tested in one process and in several: the same tests. docs/testing.md of civitas_shm says what else
the `runtime` can do."""

from __future__ import annotations

import os

import pytest
from agents import Squarer

from civitas_shm.testing import RuntimeUnderTest


@pytest.mark.civitas(transport=["in_process", "shm"])
async def test_the_squarer_squares(runtime: RuntimeUnderTest) -> None:
    await runtime.start(Squarer("squarer"))
    answer = await runtime.ask("squarer", {"number": 7})
    assert answer.payload == {"square": 49}


@pytest.mark.civitas(transport="shm")
async def test_it_squares_after_its_process_was_killed(runtime: RuntimeUnderTest) -> None:
    await runtime.start(Squarer("squarer"))
    assert await runtime.kill("squarer") != os.getpid()
    answer = await runtime.ask("squarer", {"number": 8})
    assert answer.payload == {"square": 64}
'''

_RUN = '''\
"""The same as `civitas-shm run`, from a program of one's own."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from civitas_shm import Runtime


async def main() -> int:
    async with Runtime.from_config(Path(__file__).with_name("topology.yaml"), log_format="text") as runtime:
        return await runtime.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
'''

_PYPROJECT = """\
[project]
name = "@NAME@"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["civitas-shm"]

[dependency-groups]
dev = ["pytest>=9"]

[tool.pytest.ini_options]
pythonpath = ["."]
"""

_README = """\
# @NAME@

    civitas-shm plan      # processes, cores, agents, shared memory
    civitas-shm run       # prints the sum of the first ten squares and ends
    python run.py         # the same, from a program of your own
    pytest                # tests the agents, in one process and in several

`topology.yaml` says which agents there are and where they run; `agents.py` holds their classes. Editors complete and
check the topology by `topology.schema.json` (`civitas-shm topology schema` prints it anew), `civitas-shm topology
validate` checks it anywhere else.

- More work: `civitas-shm run --set asker.count=50000`
- With a process killed every tenth of a second, and the same sum: add `--chaos kill=0.1s`
- Without shared memory, on any system: `civitas-shm run --transport in_process`
"""

FILES: Final = {
    "topology.yaml": _TOPOLOGY,
    "agents.py": _AGENTS,
    "run.py": _RUN,
    "test_agents.py": _TEST,
    "pyproject.toml": _PYPROJECT,
    "README.md": _README,
}
"""Name -> text, with @NAME@ for the name of the project. `init` adds SCHEMA, which is made and not kept."""

SCHEMA: Final = "topology.schema.json"
