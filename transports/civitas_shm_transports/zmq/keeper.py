"""Keeps a proxy running at given addresses, in a process of its own, as long as the link that asks for it lives.

Rules of this file: nothing waits for a time that it could be told of. Several hosts of one machine may keep one proxy:
who binds its addresses first has it, and the others try again when it ends, which their links see.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .proxy import EXIT_TAKEN
from .settings import Settings

__all__ = ["ProxyKeeper"]

AGAIN_S: Final = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Waits before the next start, after each start that came to nothing."""


class ProxyKeeper:
    """All methods belong to one loop."""

    def __init__(self, settings: Settings, told: Callable[[str], None]) -> None:
        """`told` gets a sentence whenever a proxy was started, has ended, or cannot be."""
        self._settings = settings
        self._told = told
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._answers: asyncio.Queue[bytes] = asyncio.Queue()
        self._missed = asyncio.Event()
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Of the proxy that this keeper has started; None: it has none now."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Begin; the proxy is there when the link is up."""
        self._task = asyncio.get_running_loop().create_task(self._keep())

    def missed(self) -> None:
        """The link does not see a proxy: if another host had it, it may be gone."""
        self._missed.set()

    async def stop(self) -> None:
        """End the proxy, if this keeper has one. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def statistics(self) -> dict[str, int] | None:
        """Of the proxy that was started here; None: there is none."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return None
        process.stdin.write(b"stats\n")
        line = await self._answers.get()
        return None if not line else dict(json.loads(line))

    async def _keep(self) -> None:
        failures = 0
        while True:
            await asyncio.sleep(AGAIN_S[min(failures, len(AGAIN_S) - 1)])
            self._missed.clear()
            code, ran = await self._run()
            if code == EXIT_TAKEN:  # another host of this machine has it
                failures = 0
                await self._missed.wait()
                await asyncio.sleep(AGAIN_S[1])  # its addresses are free a moment after its links see its end
                continue
            failures = 0 if ran else failures + 1
            self._told(f"the proxy has ended ({_how(code)}) and is started again")

    async def _run(self) -> tuple[int, bool]:
        """One life: its exit code, and whether it had been ready."""
        settings = self._settings
        arguments = ["--kept", "--pub-addr", settings.pub_addr, "--sub-addr", settings.sub_addr]
        if settings.key_directory:
            arguments += ["--keys", settings.key_directory]
        source = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(entry for entry in (source, *sys.path) if entry)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "civitas_shm_transports.zmq.proxy",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        try:
            assert process.stdout is not None
            ready = await process.stdout.readline() == b"ready\n"
            if ready:
                self.starts += 1
                self._process = process
                self._told(f"the proxy runs (pid {process.pid})")
                while line := await process.stdout.readline():
                    self._answers.put_nowait(line)
            return await process.wait(), ready
        finally:
            self._process = None
            self._answers.put_nowait(b"")
            if process.returncode is None:
                process.kill()
                await asyncio.shield(process.wait())


def _how(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
