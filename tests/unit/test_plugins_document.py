"""docs/plugins.md: every test that its table names exists, no name goes without one, and its topology is one."""

from __future__ import annotations

import re
from pathlib import Path

from civitas_shm.topology.load import load_topology_text

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")


def test_every_name_has_a_test_and_every_test_exists() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line[:1] == "|"][2:]
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    there = {name for source in sources for name in re.findall(r"^ *(?:async )?def (test_\w+)", source, re.MULTILINE)}
    assert len(rows) > 25
    for name, what, shown_by in rows:
        named = re.findall(r"`(test_\w+)`", shown_by)
        assert what
        assert named, name
        assert set(named) <= there, (name, set(named) - there)


def test_the_topology_of_the_document_is_one() -> None:
    block = TEXT.split("```yaml\n")[1].split("```")[0]
    spec = load_topology_text(f"{block}\nsupervision: {{children: [{{type: m.A, name: a}}]}}\n")
    assert [model.label for model in spec.plugins.models] == ["anthropic", "local"]


def test_the_agent_of_the_document_is_python() -> None:
    compile(TEXT.split("```python\n")[1].split("```")[0], "docs/plugins.md", "exec")
