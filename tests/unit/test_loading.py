"""Classes by name: of modules, of the running script, and what is said when there is none."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from civitas_shm import loading
from civitas_shm.errors import AgentImportError
from civitas_shm.process import AgentProcess
from civitas_shm.topology.model import AgentSpec

ROOT = Path(__file__).parents[2]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on sys.path; what is imported from it is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    loading._scripts.clear()


AGENT = """
from civitas_shm import AgentProcess

class One(AgentProcess):
    class Inner(AgentProcess):
        pass

class Fussy(AgentProcess):
    def __init__(self, name, *, factor):
        super().__init__(name)
        if factor < 0:
            raise ValueError("factor is negative")

class Nameless(AgentProcess):
    def __init__(self):
        super().__init__("own name")

class Forgetful(AgentProcess):
    def __init__(self, name):
        pass

def helper(): ...
"""


def spec(kind: str, **options: Any) -> AgentSpec:
    return AgentSpec("agent", kind, **options)


def test_a_class_is_found_by_its_dotted_path_also_inside_of_another(modules: Path) -> None:
    (modules / "pack").mkdir()
    (modules / "pack" / "__init__.py").write_text("")
    (modules / "pack" / "mod.py").write_text(AGENT)
    for path in ("pack.mod.One", "pack.mod.One.Inner"):
        cls = loading.load_class(path)
        assert loading.class_path(cls) == path


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("absent_module.Class", "there is no module 'absent_module'"),
        ("agents.Onne", "has no class 'Onne'; did you mean 'One'?"),
        ("agents.helper", "is no agent: it must be a class derived from civitas_shm.AgentProcess"),
        ("agents.One.Outer", "has no class 'One.Outer'"),
        ("broken.One", "importing 'broken' failed:(.|\n)*ZeroDivisionError"),
        ("needy.One", "importing 'needy' failed:(.|\n)*absent_dependency"),
        ("leaver.One", "importing 'leaver' failed:(.|\n)*SystemExit"),
    ],
)
def test_a_class_that_cannot_be_had_is_named_with_the_reason(modules: Path, path: str, words: str) -> None:
    (modules / "agents.py").write_text(AGENT)
    (modules / "broken.py").write_text("1 / 0")
    (modules / "needy.py").write_text("import absent_dependency")
    (modules / "leaver.py").write_text("raise SystemExit(1)")
    with pytest.raises(AgentImportError, match=words):
        loading.load_class(path)


def test_an_agent_is_built_as_its_specification_says(modules: Path) -> None:
    (modules / "agents.py").write_text(AGENT)
    agent = loading.build_agent(
        spec("agents.Fussy", kwargs={"factor": 2}, config={"a": 1}, max_retries=7, shutdown_timeout_s=1.5)
    )
    assert (agent.name, agent.config, agent.max_retries, agent.shutdown_timeout) == ("agent", {"a": 1}, 7, 1.5)
    own = loading.build_agent(AgentSpec("own name", "agents.Nameless", takes_name=False))
    assert own.name == "own name"


def test_a_setting_that_the_specification_leaves_alone_is_the_classs() -> None:
    class Patient(AgentProcess):
        def __init__(self, name: str) -> None:
            super().__init__(name, max_retries=9, config={"own": True})

    agent = loading.construct(Patient, spec("Patient"))
    assert (agent.max_retries, agent.config) == (9, {"own": True})


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("agents.Fussy", {"kwargs": {"factor": -1}}, r"Fussy\('agent', factor=-1\) raised(.|\n)*factor is negative"),
        ("agents.Fussy", {}, "missing 1 required keyword-only argument: 'factor'"),
        ("agents.Nameless", {}, "takes 1 positional argument"),
        ("agents.Nameless", {"takes_name": False}, "named itself 'own name'"),
        ("agents.Forgetful", {}, r"does not call super\(\)\.__init__\(name\)"),
    ],
)
def test_a_constructor_that_fails_is_named_with_its_call(
    modules: Path, kind: str, options: dict[str, Any], words: str
) -> None:
    (modules / "agents.py").write_text(AGENT)
    with pytest.raises(AgentImportError, match=words):
        loading.build_agent(spec(kind, **options))


def test_import_paths_come_first(modules: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "special.py").write_text(AGENT)
    assert loading.build_agent(spec("special.One"), [str(elsewhere)]).name == "agent"


# --- scripts ------------------------------------------------------------------------------------------------------

UNGUARDED = (
    AGENT
    + """
import asyncio, sys
from civitas_shm import Runtime, Supervisor

DIRECTORY = sys.argv[1:]

async def main():
    async with Runtime(Supervisor("root", [One("one")])):
        raise AssertionError("a script that is imported for its classes must not run")

asyncio.run(main())
AFTER = True
"""
)


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_a_script_without_a_guard_gives_its_classes_and_starts_nothing(modules: Path, in_a_loop: bool) -> None:
    script = modules / "script.py"
    script.write_text(UNGUARDED)

    async def load() -> type[AgentProcess]:
        return loading.load_class(f"__main__:{script}:One")

    cls = asyncio.run(load()) if in_a_loop else loading.load_class(f"__main__:{script}:One")
    assert cls.__module__ == loading.MAIN_MODULE
    module = sys.modules[loading.MAIN_MODULE]
    assert not hasattr(module, "AFTER")
    assert loading.load_class(f"__main__:{script}:One") is cls
    assert loading.class_path(cls) == f"__main__:{script}:One"


def test_a_script_finds_the_arguments_of_the_program_again(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = modules / "script.py"
    script.write_text(UNGUARDED)
    monkeypatch.setattr(sys, "argv", ["script.py", "caf\udce9"])
    with loading.argv_handed_down():
        handed_down = os.environ[loading.ARGV_VARIABLE]
    assert loading.ARGV_VARIABLE not in os.environ
    monkeypatch.setattr(sys, "argv", ["worker"])
    monkeypatch.setenv(loading.ARGV_VARIABLE, handed_down)
    loading.load_class(f"__main__:{script}:One")
    assert sys.modules[loading.MAIN_MODULE].DIRECTORY == ["caf\udce9"]
    assert sys.argv == ["worker"]


@pytest.mark.parametrize("text", ["raise SystemExit(2)", "1 / 0", "def broken("])
def test_a_script_that_fails_says_what_to_do(modules: Path, text: str) -> None:
    script = modules / "script.py"
    script.write_text(text)
    with pytest.raises(AgentImportError, match=r"script\.py"):
        loading.load_class(f"__main__:{script}:One")


def test_a_class_of_the_running_script_is_named_by_its_file(modules: Path) -> None:
    script = modules / "script.py"
    script.write_text(AGENT + "from civitas_shm.loading import class_path\nprint(class_path(One))\n")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'transports'}"}
    for arguments, name in (
        ([str(script)], f"__main__:{script}:One"),
        (["-m", "script"], "script.One"),
    ):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=modules, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == name


def test_a_class_from_a_prompt_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = types.ModuleType("__main__")
    exec(AGENT, prompt.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", prompt)
    with pytest.raises(AgentImportError, match=r"__main__\.One cannot be imported.*prompt or a notebook.*in_process"):
        loading.class_path(prompt.One)


def test_a_class_that_lost_its_name_is_refused(modules: Path) -> None:
    (modules / "agents.py").write_text(AGENT)
    cls = loading.load_class("agents.One")
    sys.modules["agents"].One = loading.load_class("agents.Fussy")  # type: ignore[attr-defined]
    with pytest.raises(AgentImportError, match="no such class under that name"):
        loading.class_path(cls)
