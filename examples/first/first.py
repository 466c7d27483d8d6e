import asyncio
import os

from civitas_shm import AgentProcess, Message, Runtime, Supervisor


class Greeter(AgentProcess):
    async def handle(self, message: Message) -> Message:
        return self.reply({"text": f"Hello {message.payload['name']}", "from": os.getpid()})


async def main() -> None:
    async with Runtime(Supervisor("root", children=[Greeter("greeter")]), transport="shm") as runtime:
        for name in ("Ada", "Grace"):
            reply = await runtime.ask("greeter", {"name": name})
            print(f"{reply.payload['text']}, says process {reply.payload['from']} to process {os.getpid()}")


if __name__ == "__main__":
    asyncio.run(main())
