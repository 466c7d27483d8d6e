"""The fuzzers' inputs: in the repository one file of hexadecimal lines each, for the fuzzer one file an input.

corpus.py unpack FILE.hex FOLDER     prints how many there are
corpus.py pack FILE.hex FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path


def unpack(file: Path, folder: Path) -> int:
    """Write the inputs into the folder; how many."""
    lines = file.read_text().split()
    for number, line in enumerate(lines):
        (folder / f"{number:04}").write_bytes(bytes.fromhex(line))
    return len(lines)


def pack(file: Path, folder: Path) -> int:
    """Write the folder's inputs into the file, in an order of their own; how many."""
    lines = sorted(path.read_bytes().hex() for path in folder.iterdir())
    file.write_text("".join(f"{line}\n" for line in lines if line))
    return len(lines)


if __name__ == "__main__":
    print({"unpack": unpack, "pack": pack}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3])))
