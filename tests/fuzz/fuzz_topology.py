"""Coverage-guided fuzzing of the topology loader: any text loads, or is refused with a ConfigurationError.

    python tests/fuzz/fuzz_topology.py SECONDS [SEED]

Rules of this file: standard library and the project only, so that it runs wherever the tests do. An input that
reaches new pairs of lines of `civitas_shm/topology` is kept and changed further. Changes know the words of the schema,
because a text of random bytes is refused in the first line. What loads must also be placed, planted as a supervision
tree and go through plain data and back, each of which may only say ConfigurationError too.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import civitas_shm.topology
from civitas_shm.errors import ConfigurationError
from civitas_shm.placement import place, plan_bytes
from civitas_shm.supervision import Tree
from civitas_shm.topology.load import load_topology, load_topology_text
from civitas_shm.topology.model import TopologySpec

ROOT = Path(__file__).parents[2]
TOPOLOGY = str(Path(civitas_shm.topology.__file__).parent)
SLOW_S = 5.0
"""An input that takes longer is a finding: work is bounded (topology.yaml12)."""
SIZE_MAX = 4_000
"""Of an input in characters: larger ones are slower, not different."""

WORDS = sorted(
    set(re.findall(r"[a-z_]{2,}(?=:)", (Path(TOPOLOGY) / "schema.py").read_text()))
    | set(re.findall(r"[a-z_]{3,}", (ROOT / "docs" / "cli.md").read_text().split("```yaml")[1].split("```")[0]))
)
VALUES = (
    "0", "1", "-1", "3", "64", "65", "1e3", "1e400", "-0.0", ".inf", ".nan", "0o17", "0x1F", "99999999999999999999",
    "true", "no", "null", "~", "a", "main", "host", "root", "[]", "{}", "[1]", "[[[]]]", "*a", "!x", "${HOME}", "${",
    "$${", "${NOT_SET}", "a.B", "a..B", ".a", "ONE_FOR_ALL", "permanent", "never", "shm", "in_process", "2001-01-01",
    "any_significant", "all_significant", "1:30", "---", "...", "\ufeff", "\u2028", "\x00", "\ud800", "\x85", "é", "名",
    "''", '""', '"a b"', "{a: 1}", "&a 1", "<<: *a", "!!python/object:os.system x", "|\n  text", ">-\n  text", "- a",
    "? a\n: b", "%YAML 1.1", "# x", "\t", " ", "\r\n",
)  # fmt: skip


def seeds() -> list[str]:
    """Texts that load: the examples, and the one of the documentation that has every key."""
    found = [path.read_text() for path in sorted(ROOT.glob("examples/*/topology.yaml"))]
    found += re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "cli.md").read_text(), re.DOTALL)
    return [*found, "supervision: {children: [{agent: {name: a, type: m.A}}]}", ""]


def mutate(text: str, others: list[str], luck: random.Random) -> str:
    """One to four changes."""
    for _ in range(luck.choice((1, 1, 2, 4))):
        lines = text.split("\n")
        at = luck.randrange(len(lines))
        match luck.randrange(9):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[luck.randrange(len(lines))] if lines else "")
            case 2:
                lines[at] = " " * luck.randrange(9) + lines[at].strip()
            case 3:
                lines[at] = re.sub(r":.*", f": {luck.choice(VALUES)}", lines[at], count=1)
            case 4:
                spaces = len(lines[at]) - len(lines[at].lstrip())
                lines.insert(at, f"{' ' * spaces}{luck.choice(WORDS)}: {luck.choice((*VALUES, luck.choice(WORDS)))}")
            case 5:
                words = re.findall(r"\w+", lines[at])
                if words:
                    lines[at] = lines[at].replace(luck.choice(words), luck.choice((*VALUES, *WORDS)), 1)
            case 6:
                other = luck.choice(others).split("\n")
                begin = luck.randrange(len(other))
                lines[at:at] = other[begin : begin + luck.randrange(1, 8)]
            case 7:
                place_of = luck.randrange(len(lines[at]) + 1)
                lines[at] = (
                    lines[at][:place_of] + luck.choice((*VALUES, *"{}[],:&*!|>%@`'\"#-? ")) + lines[at][place_of:]
                )
            case _:
                lines[at] = f"{lines[at]}\n" * luck.choice((2, 3, 50))
        text = "\n".join(lines)[:SIZE_MAX]
    return text


def check(text: str, folder: Path | None = None) -> bool:
    """Load it and use it; whether it was accepted. Anything but ConfigurationError comes out."""
    begin_s = time.process_time()
    try:
        if folder is None:
            spec = load_topology_text(text)
        else:
            file = folder / "topology.yaml"
            file.write_bytes(text.encode("utf-8", "surrogatepass"))
            spec = load_topology(file, ["walker.a=1"] if len(text) % 2 else [])
    except ConfigurationError as error:
        if not str(error).strip():
            raise AssertionError("an error without a sentence") from error
        return False
    finally:
        assert time.process_time() - begin_s < SLOW_S, "it takes too long"
    assert TopologySpec.from_plain(spec.to_plain()) == spec
    for use in (lambda: Tree.from_spec(spec.supervision), lambda: _place(spec)):
        try:
            use()
        except ConfigurationError:
            return False
    return True


def _place(spec: TopologySpec) -> None:
    placement = place(spec, (0, 1))
    plan_bytes(placement.spec, placement)


class Coverage:
    """Pairs of lines that follow each other in the loader."""

    def __init__(self) -> None:
        self.seen: set[tuple[Any, int, int]] = set()
        self._new = False

    def of(self, run: Callable[[], object]) -> bool:
        """Whether the call reached something new."""
        self._new = False
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            run()
        finally:
            sys.settrace(before)
        return self._new

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(TOPOLOGY):
            return None
        last = 0

        def line(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal last
            pair = (frame.f_code, last, frame.f_lineno)
            last = frame.f_lineno
            if pair not in self.seen:
                self.seen.add(pair)
                self._new = True
            return line

        return line


def fuzz(seed: int, inputs: int | None = None, seconds: float = 0.0) -> tuple[int, int, int, int]:
    """(inputs, accepted, kept, pairs of lines). AssertionError with the text at the first finding."""
    luck = random.Random(seed)
    coverage = Coverage()
    kept = seeds()
    tried = accepted = 0
    end_s = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as name:
        for text in kept:
            _one(coverage, text, None, f"seed text {text[:40]!r}")
        while tried < inputs if inputs is not None else time.monotonic() < end_s:
            tried += 1
            text = mutate(luck.choice(kept[-50:] if luck.random() < 0.5 else kept), kept, luck)
            folder = Path(name) if luck.random() < 0.1 else None
            new, loaded = _one(coverage, text, folder, f"seed {seed}, input {tried}")
            accepted += loaded
            if new:
                kept.append(text)
    return tried, accepted, len(kept), len(coverage.seen)


def _one(coverage: Coverage, text: str, folder: Path | None, which: str) -> tuple[bool, bool]:
    """(whether it reached something new, whether it was accepted)."""
    said: list[bool] = []
    try:
        new = coverage.of(lambda: said.append(check(text, folder)))
    except Exception as error:
        raise AssertionError(f"{which}: {type(error).__name__}: {error}\n{text!r}") from error
    return new, said == [True]


if __name__ == "__main__":
    seconds_wanted = float(sys.argv[1])
    seed_wanted = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    figures = fuzz(seed_wanted, seconds=seconds_wanted)
    print("topology: {:,} inputs, {:,} accepted, {:,} kept, {:,} pairs of lines; seed {}".format(*figures, seed_wanted))
