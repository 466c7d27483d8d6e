import asyncio
import sys
from pathlib import Path

from civitas_shm import AgentProcess, ErrorAction, Message, Runtime, Supervisor


class Counter(AgentProcess):
    replicas = 4

    async def handle(self, message: Message) -> Message:
        text = Path(message.payload["path"]).read_text(encoding="utf-8")
        return self.reply({"words": len(text.split())})

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.RETRY if isinstance(exc, OSError) else ErrorAction.ESCALATE


async def main() -> None:
    paths = sorted(Path(sys.argv[1]).glob("*.txt"))
    async with Runtime(Supervisor("root", [Counter("counter")]), transport="shm") as runtime:
        replies = await runtime.ask_many("counter", [{"path": str(path)} for path in paths])
    print(sum(reply.payload["words"] for reply in replies), "words in", len(paths), "texts")


if __name__ == "__main__":
    asyncio.run(main())
