"""A program with one blocking client that is connected, then forked into several which all send and ask with it.

    python client_program.py RUN CHILDREN FOLDER

Each child appends a line to its own file in FOLDER after each send that has returned, and after each answer.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import civitas_shm

run, children, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
client = civitas_shm.connect_blocking(run)
client.ask("echo", {"from": "the parent"})
for child in range(children):
    if os.fork() == 0:
        with open(folder / str(child), "a", encoding="ascii", buffering=1) as out:
            out.write(f"pid {os.getpid()}\n")
            for number in range(child * 1_000_000, (child + 1) * 1_000_000):
                client.send("sink", {"n": number})
                out.write(f"sent {number}\n")
                assert client.ask("echo", {"n": number}).payload["n"] == number
        os._exit(0)
print("forked", flush=True)
client.ask("echo", {"from": "the parent, again"})
print("asked", flush=True)
sys.stdin.read()
