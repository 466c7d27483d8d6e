"""The smallest use of an installed civitas_shm: two agents, in process and (on Linux) over shared memory.

Run by scripts/build in an environment that has only the wheel, from a directory that is not the checkout.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import civitas_shm
from civitas_shm import AgentProcess, Message, Runtime, Supervisor


class Doubler(AgentProcess):
    async def handle(self, message: Message) -> Message | None:
        return self.reply({"n": message.payload["n"] * 2})


class Asker(AgentProcess):
    async def handle(self, message: Message) -> Message | None:
        answer = await self.ask("doubler", message.payload)
        return self.reply({"n": answer.payload["n"] + 1})


async def ask_twice(transport: str) -> None:
    async with Runtime(Supervisor("root", [Doubler("doubler"), Asker("asker")]), transport=transport) as runtime:
        for n in (1, 20):
            answer = await runtime.ask("asker", {"n": n})
            if answer.payload != {"n": 2 * n + 1}:
                raise SystemExit(f"{transport}: asked with {n}, got {answer.payload}")
    print(f"{transport}: ok")


def main() -> None:
    home = Path(civitas_shm.__file__)
    if "site-packages" not in home.parts:
        raise SystemExit(f"civitas_shm comes from {home}, not from the wheel")
    transports = ["in_process"]
    if sys.platform == "linux":
        import civitas_shm_transports.shm._shm as native

        print(f"C part: {Path(native.__file__).name}")
        transports.append("shm")
    for transport in transports:
        asyncio.run(ask_twice(transport))


if __name__ == "__main__":
    main()
