"""The JSON Schema for editors takes what the loader takes, and refuses what one key alone can be refused for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from civitas_shm.cli.scaffold import FILES
from civitas_shm.errors import TopologyError
from civitas_shm.topology.json_schema import BLOCKS, json_schema, keys
from civitas_shm.topology.load import load_topology_text
from civitas_shm.topology.yaml12 import read

from .test_load import FULL, MINIMAL, TABLE, agent_yaml

ROOT = Path(__file__).parents[3]
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def yaml_blocks(document: str) -> list[str]:
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    return [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "supervision:" in block]


def topologies() -> dict[str, str]:
    """Everything in the repository that is one."""
    found = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for folder in ("examples", "bench", "tests/seeds")
        for path in sorted((ROOT / folder).rglob("*.yaml"))
        if re.search(r"^supervision:", text := path.read_text(encoding="utf-8"), re.MULTILINE)
        and not re.search("jetstream: true", text)  # which wait
    }
    for document in sorted(path.name for path in (ROOT / "docs").glob("*.md")):
        found |= {f"docs/{document}[{index}]": text for index, text in enumerate(yaml_blocks(document))}
    found["init"] = FILES["topology.yaml"].replace("@NAME@", "n")
    found["every form"] = FULL
    found["variables"] = agent_yaml(
        "name: a, type: m.A, replicas: '${N}', restart: '${R:-never}', on_crash: '${S:-redeliver}'"
    )
    return found


TOPOLOGIES = topologies()


def complaints(text: str) -> list[str]:
    data = read(text).data
    return [f"{'.'.join(map(str, one.absolute_path))}: {one.message[:200]}" for one in VALIDATOR.iter_errors(data)]


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_what_the_loader_takes_the_schema_takes(name: str) -> None:
    load_topology_text(TOPOLOGIES[name], environment=dict.fromkeys(["N", "WALKER_KEY"], "2") | {"R": "", "S": ""})
    assert complaints(TOPOLOGIES[name]) == []


def test_there_are_examples_of_all_kinds() -> None:
    assert len(TOPOLOGIES) >= 6
    assert any(name.startswith("examples/") for name in TOPOLOGIES)
    assert any(name.startswith("docs/") for name in TOPOLOGIES)


ACROSS = (
    "is already taken", "is not declared under processes", "there is no agent", "same block", "belongs to one reader",
    "runs no agents", "replicas run in", "significant", "has no supervisor", "is not started by the pool",
    "begins with '_'", "the transport", "is set beside 'config'", "is no import path", "no variable", "is not set",
    "set twice", "not valid YAML", "the file is empty", "a key here", "is not built in",
    "is no address", "'jetstream: true'", "is not supported yet", "names a bridge already", "belong together",
    "different ways to log in", "is beyond this machine", "are one address", "give a directory", "are two ways",
)  # fmt: skip
"""What shows only across keys, or not in the data at all: the loader's business."""


@pytest.mark.parametrize(("text", "problem"), TABLE, ids=[problem[:50] for _, problem in TABLE])
def test_what_the_loader_refuses_for_one_key_the_schema_refuses(text: str, problem: str) -> None:
    with pytest.raises(TopologyError) as caught:
        load_topology_text(text, environment={})
    if not any(words in str(caught.value) for words in ACROSS):
        assert complaints(text), problem


def test_most_of_the_table_is_the_schemas_business_too() -> None:
    assert sum(bool(complaints(text)) for text, _ in TABLE) > len(TABLE) // 2


def test_a_key_in_two_forms_or_none_is_refused() -> None:
    assert complaints(MINIMAL.replace("{children", "{restart_window: 1, restart_window_s: 2, children"))
    assert complaints("transport: shm\n")
    assert complaints(MINIMAL + MINIMAL.replace("supervision", "supervisor"))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("block", [block for _, block in BLOCKS], ids=lambda block: str(block.__name__))
def test_every_key_has_a_meaning_that_fits_one_line(block: Any) -> None:
    for key in keys(block):
        assert key.meaning.endswith("."), f"{block.__name__}.{key.names[0]} says nothing below itself in schema.py"
        assert len(key.meaning) <= 120
