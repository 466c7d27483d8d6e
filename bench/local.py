#!/usr/bin/env python3
"""One case on the in_process transport, in a process of its own: local.py WHAT TO CPU N WIDTH. Prints JSON."""

from __future__ import annotations

import json
import os
import sys
from array import array

from agents import Driver, Echo, Sink
from figures import Figures, from_rate, from_times

from civitas_shm import Message, Runtime, Supervisor

TIMEOUT_S = 120.0


def figures_of(reply: Message) -> Figures:
    """What a Driver answered."""
    payload = reply.payload
    if "times" not in payload:
        return from_rate(payload["n"], payload["elapsed_ns"])
    times = array("q")
    times.frombytes(payload["times"])
    return from_times(times, payload["elapsed_ns"])


async def main(what: str, to: str, n: int, width: int) -> Figures:
    children = [Echo("near_echo"), Sink("near_sink"), Driver("driver")]
    async with Runtime(Supervisor("bench", children=children), transport="in_process") as runtime:
        asked = {"to": to, "n": n, "width": width, "gap_s": 0.0}
        return figures_of(await runtime.ask("driver", asked, timeout=TIMEOUT_S, message_type=what))


if __name__ == "__main__":
    import uvloop

    os.sched_setaffinity(0, {int(sys.argv[3])})
    print(json.dumps(uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[4]), int(sys.argv[5])))))
