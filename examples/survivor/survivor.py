"""An agent whose process is killed in the middle of a message, and an asker that gets its answer all the same."""

from __future__ import annotations

import asyncio
import os
import signal

from civitas_shm import AgentProcess, Message, Runtime, Supervisor


class Survivor(AgentProcess):
    async def handle(self, message: Message) -> Message:
        if message.delivery == 1:
            os.kill(os.getpid(), signal.SIGKILL)  # no exception, no clean-up: the process is gone
        return self.reply({"delivery": message.delivery, "pid": os.getpid()})


async def main() -> None:
    async with Runtime(Supervisor("root", children=[Survivor("survivor")]), transport="shm") as runtime:
        reply = await runtime.ask("survivor", {"question": "are you there?"})
        print(f"answered by process {reply.payload['pid']} on delivery {reply.payload['delivery']}")


if __name__ == "__main__":
    asyncio.run(main())
