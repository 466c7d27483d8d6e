"""Two agents that ask each other things: the smallest topology with two pinned processes."""

from __future__ import annotations

import time

from civitas_shm import AgentProcess, Message


class Pong(AgentProcess):
    async def handle(self, message: Message) -> Message:
        return self.reply({"ball": message.payload["ball"] + 1})


class Ping(AgentProcess):
    async def on_start(self) -> None:
        # The game is a message, so it is played by `handle` like everything else, and again should this process die.
        await self.send(self.name, {}, message_type="play")

    async def handle(self, message: Message) -> None:
        ball, rounds = 0, int(self.config["rounds"])
        start = time.perf_counter()
        for _ in range(rounds):
            reply = await self.ask("pong", {"ball": ball})
            ball = reply.payload["ball"]
        seconds = time.perf_counter() - start
        print(f"{ball:,} round trips in {seconds:.2f} s, {seconds / rounds * 1e6:.1f} µs each")
        await self.stop_runtime(0)
