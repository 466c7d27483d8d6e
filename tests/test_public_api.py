"""The public door: exactly these names, each shown under a public path, and nothing heavy behind the import."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import civitas_shm
from civitas_shm import errors

CONTRACT = {
    "AgentProcess",
    "CorrectionSignal",
    "DynamicSupervisor",
    "EncryptingStateStore",
    "ErrorAction",
    "EvalAgent",
    "EvalEvent",
    "EvalExporter",
    "GenServer",
    "Message",
    "RegistryListener",
    "RoutingEntry",
    "Runtime",
    "SecretsProvider",
    "StateStore",
    "Supervisor",
    "substitute_vars",
}
"""What users of Civitas import, with the signatures and semantics of that API."""

OURS = {"BlockingClient", "Client", "Retry", "connect", "connect_blocking", "payload_type"}
"""What Civitas does not have."""


def test_the_door_shows_the_contract_and_every_error_and_nothing_else() -> None:
    assert set(civitas_shm.__all__) == CONTRACT | OURS | set(errors.__all__)
    assert len(civitas_shm.__all__) == len(set(civitas_shm.__all__))


def test_dir_shows_what_the_door_shows() -> None:
    assert set(dir(civitas_shm)) == {*civitas_shm.__all__, "__version__"}


@pytest.mark.parametrize("name", civitas_shm.__all__)
def test_each_name_is_importable_and_shown_under_a_public_path(name: str) -> None:
    value = getattr(civitas_shm, name)
    assert value.__qualname__ == name
    assert not any(part.startswith("_") for part in value.__module__.split(".")), value.__module__
    assert getattr(importlib.import_module(value.__module__), name) is value


@pytest.mark.parametrize("name", sorted(errors.__all__))
def test_every_error_can_be_caught_as_civitas_error_and_has_an_exit_code(name: str) -> None:
    value = getattr(errors, name)
    if name != "ErrorAction":
        assert issubclass(value, errors.CivitasError)
        assert value.exit_code in {1, 3, 4, 5, 6, 7, 8}


def test_an_unknown_name_is_an_attribute_error_that_says_so() -> None:
    with pytest.raises(AttributeError, match="'civitas_shm' has no attribute 'Agent'"):
        _ = civitas_shm.Agent
    with pytest.raises(ImportError, match="cannot import name 'Agent'"):
        exec("from civitas_shm import Agent")


@pytest.mark.parametrize("statement", ["import civitas_shm", "from civitas_shm import AgentProcess, CivitasError"])
def test_import_brings_neither_the_command_line_nor_its_libraries(statement: str) -> None:
    heavy = [
        "rich",
        "rich_click",
        "click",
        "pydantic",
        "civitas_shm.cli",
        "civitas_shm.runtime",
        "civitas_shm_transports",
    ]
    script = f"import sys; {statement}; print(*sorted(set(sys.modules) & set({heavy!r})))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
