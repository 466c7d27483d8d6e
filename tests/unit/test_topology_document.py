"""docs/topology.md is what scripts/generate-topology makes of the schema today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from civitas_shm.topology.json_schema import BLOCKS, keys

ROOT = Path(__file__).parents[2]


def test_document_is_current() -> None:
    check = [sys.executable, ROOT / "scripts" / "generate-topology", "--check"]
    result = subprocess.run(check, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_document_has_a_line_for_every_key() -> None:
    text = (ROOT / "docs" / "topology.md").read_text(encoding="utf-8")
    sections = text.split("\n## ")[1:]
    for (title, block), section in zip(BLOCKS, sections, strict=False):
        assert section.startswith(title)
        for key in keys(block):
            if not (key.inherited and title.endswith("and")):
                assert all(f"`{name}`" in section for name in key.names), f"{block.__name__}.{key.names}"
