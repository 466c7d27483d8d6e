"""The coverage-guided fuzzers of shared words (libFuzzer): a slice of their work, and that they find what is broken.

Rules of this file: inputs that reached new branches are kept as hexadecimal lines in corpus/, one file a fuzzer; every
run begins with all of them, so what was found once stays found. scripts/fuzz runs the same programs for long.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
FUZZERS = {"fuzz_words": 2_000, "fuzz_attach": 20_000}
"""How many inputs the slice tries: about five seconds each."""
ENDS = ("-timeout=20", "-error_exitcode=1", "-timeout_exitcode=1")
"""libFuzzer's own 77 is what other harnesses say when they are not permitted to do their work."""

MUTANTS = {
    "a ring may end beyond its mailbox": (
        "fuzz_attach",
        "run.h",
        "at < cv_mailbox_head(run->slots) ||\n        at + (8ull << log2) > size)",
        "at < cv_mailbox_head(run->slots))",
    ),
    "a chunk may end beyond its arena": (
        "fuzz_attach",
        "run.h",
        "if (at < CV_ARENA_DATA || size > run->arena_size[arena] || at > run->arena_size[arena] - size) return NULL;",
        "if (at < CV_ARENA_DATA) return NULL;",
    ),
    "a payload may be longer than its chunk": (
        "fuzz_attach",
        "mailbox.h",
        "h->position == position &&\n"
        "           sizeof *h + h->type_len + (uint64_t)h->payload_len <= (uint64_t)h->granules * CV_GRANULE;",
        "h->position == position;",
    ),
    "the number of in-hand entries is believed": (
        "fuzz_attach",
        "ledger.h",
        "    if (high > CV_HAND) high = CV_HAND;\n",
        "",
    ),
    "a record may lie beyond the mail segment": (
        "fuzz_attach",
        "run.h",
        "size > run->mail_size || at > run->mail_size - size ||\n        at + size > at_acquire(cv_mail_end(run)))",
        "at + size > at_acquire(cv_mail_end(run)))",
    ),
    "a segment's counts are believed": (
        "fuzz_attach",
        "run.h",
        "s.slots == 0 || s.slots > CV_SLOTS_MAX || s.mailboxes < s.slots || s.mailboxes > CV_MAILBOXES_MAX",
        "s.slots == 0",
    ),
    "the same, found by those at work": (
        "fuzz_words",
        "run.h",
        "at < cv_mailbox_head(run->slots) ||\n        at + (8ull << log2) > size)",
        "at < cv_mailbox_head(run->slots))",
    ),
}
RUNS_TO_FIND = 300_000


def corpus(fuzzer: str, folder: Path) -> Path:
    """The kept inputs as files."""
    folder.mkdir()
    packed = HERE / "corpus" / f"{fuzzer}.hex"
    subprocess.run([sys.executable, HERE / "corpus" / "corpus.py", "unpack", packed, folder], check=True)
    return folder


@pytest.mark.parametrize("fuzzer", FUZZERS)
def test_no_input_crashes_loops_or_harms(harness: Any, fuzzer: str, tmp_path: Path) -> None:
    program = harness.build(fuzzer, "clang", "fuzzer,address,undefined")
    kept = corpus(fuzzer, tmp_path / "kept")
    harness.run(program, f"-runs={FUZZERS[fuzzer]}", "-seed=1", *ENDS, f"-artifact_prefix={tmp_path}/", kept)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_fuzzer_finds_that(harness: Any, mutant: str, tmp_path: Path) -> None:
    fuzzer, header, old, new = MUTANTS[mutant]
    headers = tmp_path / "native"
    shutil.copytree(harness.headers, headers)
    text = (headers / header).read_text()
    assert text.count(old) == 1, f"{header} has changed; the text of the mutant is there {text.count(old)} times"
    (headers / header).write_text(text.replace(old, new))
    program = harness.build(fuzzer, "clang", "fuzzer,address,undefined", headers)
    kept = corpus(fuzzer, tmp_path / "kept")
    done = harness.execute(
        program,
        f"-runs={RUNS_TO_FIND}",
        "-seed=1",
        *ENDS,
        "-use_value_profile=1",
        f"-artifact_prefix={tmp_path}/",
        kept,
    )
    assert done.returncode != 0, "not found"
    assert "Test unit written to" in done.stderr
