"""Classes are looked for without running the user's code, and nothing that may be there is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from civitas_shm.cli.classes import check_classes
from civitas_shm.errors import AgentImportError
from civitas_shm.topology.model import AgentSpec, SupervisorSpec, TopologySpec

FILES = {
    "plain.py": "raise SystemExit('was executed')\nclass Walker:\n    class Inner: pass\nAlias = Walker\n",
    "broken.py": "class Walker:\n  def\n",
    "conditional.py": "try:\n    from fast import Walker\nexcept ImportError:\n    class Slow: pass\n",
    "star.py": "from other import *\n",
    "lazy.py": "def __getattr__(name): ...\n",
    "package/__init__.py": "from .inner import Shown\n",
    "package/inner.py": "class Walker: pass\n",
    "spread/module.py": "class Walker: pass\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def check(project: Path, *types: str) -> None:
    agents = [AgentSpec(f"a{number}", dotted) for number, dotted in enumerate(types)]
    check_classes(TopologySpec(supervision=SupervisorSpec(children=[*agents]), import_paths=[str(project)]))


@pytest.mark.parametrize(
    "dotted",
    [
        "plain.Walker",
        "plain.Walker.Inner",
        "plain.Alias",
        "conditional.Walker",
        "conditional.Slow",
        "star.Anything",
        "lazy.Anything",
        "package.Shown",
        "package.inner.Walker",
        "spread.module.Walker",
        "civitas_shm.process.AgentProcess",
        "math.Compiled",
        "json.decoder.JSONDecoder",
    ],
)
def test_what_is_or_may_be_there_is_taken_and_nothing_is_executed(project: Path, dotted: str) -> None:
    check(project, dotted)


@pytest.mark.parametrize(
    ("dotted", "problem"),
    [
        ("nowhere.Walker", "there is no module 'nowhere'"),
        ("plain.Walkr", "'plain' has no class 'Walkr'; did you mean 'Walker'?"),
        ("plain.inner.Walker", "'plain' has no module or class 'inner'"),
        ("package.innr.Walker", "'package' has no module or class 'innr'"),
        ("package.inner.Shown", "'package.inner' has no class 'Shown'"),
        ("spread.modul.Walker", "there is no module 'spread.modul'"),
        ("broken.Walker", "broken.py:2 is not valid Python"),
    ],
)
def test_what_is_surely_not_there_is_named(project: Path, dotted: str, problem: str) -> None:
    with pytest.raises(AgentImportError) as caught:
        check(project, dotted)
    assert f"agent 'a0': type '{dotted}' cannot be imported: " in str(caught.value)
    assert problem in str(caught.value)


def test_all_of_them_are_named_at_once_with_where_was_looked(project: Path) -> None:
    with pytest.raises(AgentImportError) as caught:
        check(project, "plain.A", "plain.Walker", "nowhere.B")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[:2]] == ["agent 'a0'", "agent 'a2'"]
    assert str(caught.value).endswith(f"Looked in {project} and on sys.path.")


def test_the_topologys_own_directory_comes_before_everything_else(project: Path) -> None:
    (project / "json.py").write_text("class Walker: pass\n")
    check(project, "json.Walker")
