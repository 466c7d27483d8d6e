"""docs/supervision.md: every test that it names exists, and no rule goes without a test or a reason."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "supervision.md").read_text(encoding="utf-8")
HEADS = {"OTP's rule", "Erlang's rule", "---"}


def rows() -> list[list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line[:1] == "|"]
    return [row for row in cells if row[0] not in HEADS]


def test_every_test_that_the_document_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    there = {name for source in sources for name in re.findall(r"^ *(?:async )?def (test_\w+)", source, re.MULTILINE)}
    assert named
    assert named <= there, sorted(named - there)


def test_every_rule_has_a_test_or_a_reason_why_it_is_not_ours() -> None:
    assert len(rows()) > 40
    for rule, here, shown_by, *more in rows():
        assert not more, f"a bar inside of a cell: {rule}"
        assert here
        assert re.search(r"`test_\w+`", shown_by) or here.startswith("not for us: "), rule
