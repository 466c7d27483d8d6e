"""An agent that asks for approval, and notes in a file what it pays."""

from __future__ import annotations

from pathlib import Path

from civitas_shm import AgentProcess, Message


class Payer(AgentProcess):
    async def handle(self, message: Message) -> Message | None:
        if message.type == "message" and "amount" in message.payload:
            amount = message.payload["amount"]
            if amount > 100:
                await self.suspend_for_approval(f"{amount} EUR")
            with Path(message.payload["out"]).open("a") as out:
                out.write(f"{amount}\n")
            return None
        return self.reply({"status": self.status.value})

    async def on_resume(self, approver: str) -> None:
        if approver == "nobody":
            raise PermissionError("not you")
