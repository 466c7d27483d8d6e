"""docs/state.md: its topologies are topologies, its Python compiles, and it shows the commands that there are."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from civitas_shm.cli.app import app
from civitas_shm.topology.load import load_topology_text

TEXT = (Path(__file__).parents[2] / "docs" / "state.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_topologies_of_the_document_are_ones() -> None:
    stores = []
    for block in blocks("yaml"):
        text = f"{block}\nsupervision: {{children: [{{type: m.A, name: a}}]}}\n"
        state = load_topology_text(text, environment={"STATE_KEY": "x"}).plugins.state
        assert state is not None
        stores.append(state.type)
    assert stores == ["sqlite", "encrypted"]


def test_the_programs_of_the_document_are_python() -> None:
    assert len([compile(block, "docs/state.md", "exec") for block in blocks("python")]) == 2


def test_the_commands_of_the_document_are_there() -> None:
    verbs = re.findall(r"^civitas-shm state (\w+)", TEXT, re.MULTILINE)
    assert verbs == ["list", "show", "clear", "migrate"]
    for verb in verbs:
        assert CliRunner().invoke(app, ["state", verb, "--help"]).exit_code == 0
