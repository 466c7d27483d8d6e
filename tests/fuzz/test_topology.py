"""A slice of the topology fuzzer, and that it finds what is broken."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from civitas_shm.topology import load as loader

INPUTS = 600
"""About three seconds."""


@pytest.fixture(scope="module")
def fuzzer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_topology", Path(__file__).parent / "fuzz_topology.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_whatever_the_text_is_it_loads_or_is_refused(fuzzer: Any) -> None:
    tried, accepted, kept, pairs = fuzzer.fuzz(seed=1, inputs=INPUTS)
    assert tried == INPUTS
    assert accepted > 0
    assert kept > len(fuzzer.seeds())
    assert pairs > 500


def test_every_seed_is_a_text_that_is_understood(fuzzer: Any) -> None:
    assert sum(map(fuzzer.check, fuzzer.seeds())) >= 4


def test_a_loader_that_raises_anything_else_is_found(fuzzer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in = loader.Variables.put_in

    def careless(self: Any, data: Any, path: Any = ()) -> Any:
        return (path or data["supervision"]) and put_in(self, data, path)  # KeyError, TypeError

    monkeypatch.setattr(loader.Variables, "put_in", careless)
    with pytest.raises(AssertionError, match=r"KeyError|TypeError"):
        fuzzer.fuzz(seed=1, inputs=INPUTS)


def test_a_text_that_takes_too_long_is_found(fuzzer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzer, "SLOW_S", 0.0)
    with pytest.raises(AssertionError, match="too long"):
        fuzzer.check("a: 1")
