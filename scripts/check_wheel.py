"""What must and must not be in a wheel: check_wheel.py WHEEL; exit code 1 and a sentence for each fault."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

MUST = {
    "civitas_shm/__init__.py",
    "civitas_shm/py.typed",
    "civitas_shm_transports/py.typed",
    "civitas_shm_transports/shm/_shm.pyi",
}
NATIVE = "civitas_shm_transports/shm/_shm.abi3.so"
SOURCES = (".c", ".h", ".pml")
"""Suffixes of what is built from, which has no business in a wheel."""


def faults(name: str, members: list[str]) -> list[str]:
    """Sentences about what is wrong with a wheel of that file name and with these members."""
    found = [f"{member} is missing" for member in sorted(MUST - set(members))]
    found += [f"{member} is a source" for member in members if member.endswith(SOURCES)]
    roots = {member.split("/")[0] for member in members if ".dist-info/" not in member}
    found += [f"{root} does not belong to us" for root in sorted(roots - {"civitas_shm", "civitas_shm_transports"})]
    if not any(member.endswith("/licenses/LICENSE") for member in members):
        found.append("the licence is missing")
    if sys.platform == "linux":
        if NATIVE not in members:
            found.append(f"{NATIVE} is missing: the C part was not built")
        tag = f"cp3{sys.version_info.minor}-abi3"
        if f"-{tag}-linux_" not in name:
            found.append(f"{name}: the tag is not {tag}, so it does not serve the Pythons that it should")
    return found


def main() -> int:
    path = Path(sys.argv[1])
    with zipfile.ZipFile(path) as wheel:
        found = faults(path.name, wheel.namelist())
    for sentence in found:
        print(f"{path.name}: {sentence}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
