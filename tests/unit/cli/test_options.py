"""Values of options: names of runs, intervals of chaos, the one topology that is meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import rich_click as click

from civitas_shm.cli.options import ChaosType, run_name, topology_path
from civitas_shm.host.protocol import Chaos
from civitas_shm.topology.keytypes import run_name_problem


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/work/code_atlas/topology.yaml", "code-atlas"),
        ("/work/x/Big System.v2.yaml", "big-system-v2"),
        ("/topology.yaml", "run"),
        ("/work/東京/topology.yaml", "run"),
        (f"/work/{'a' * 63}-b/topology.yaml", "a" * 63),
    ],
)
def test_a_run_is_named_by_its_file_or_its_directory(path: str, name: str) -> None:
    assert run_name(path) == name
    assert run_name_problem(name) is None


def test_the_name_does_not_depend_on_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-project").mkdir()
    monkeypatch.chdir(tmp_path / "my-project")
    assert run_name("topology.yaml") == run_name("../my-project/topology.yaml") == "my-project"


@pytest.mark.parametrize(
    ("text", "interval_s"), [("kill=0.5s", 0.5), ("kill=300ms", 0.3), ("kill=2", 2), ("kill=1m", 60), ("kill=.5s", 0.5)]
)
def test_kills_of_chaos_are_an_interval(text: str, interval_s: float) -> None:
    assert ChaosType().convert(text, None, None) == Chaos(kill_s=interval_s)


@pytest.mark.parametrize(
    ("text", "chaos"),
    [
        ("stop=0.3s/0.2s", Chaos(stop_s=0.3, stop_for_s=0.2)),
        ("stop=1/300ms", Chaos(stop_s=1, stop_for_s=0.3)),
        ("kill=0.1s,stop=0.3s/0.2s", Chaos(kill_s=0.1, stop_s=0.3, stop_for_s=0.2)),
        ("stop=1m/.5s,kill=100ms", Chaos(kill_s=0.1, stop_s=60, stop_for_s=0.5)),
    ],
)
def test_stops_of_chaos_are_an_interval_and_a_duration(text: str, chaos: Chaos) -> None:
    assert ChaosType().convert(text, None, None) == chaos


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        *((text, "has not the form") for text in ("", "kill", "kill=", "0.5s", "kill=-1s", "kill=1h", "stop=1s")),
        *(
            (text, "has not the form")
            for text in ("stop=1s/", "stop=/1s", "kill=1s,", "kill=1s stop=1s/1s", "kill=1s/1s")
        ),
        *((text, "from 10 ms to a day") for text in ("kill=0s", "kill=5ms", "stop=5ms/1s", "stop=1s/0s", "kill=9999m")),
        *((text, "twice") for text in ("kill=1s,kill=2s", "stop=1s/1s,stop=1s/1s", "kill=1s,stop=1s/1s,kill=1s")),
    ],
)
def test_what_is_no_chaos_is_usage(text: str, sentence: str) -> None:
    with pytest.raises(click.BadParameter, match=sentence):
        ChaosType().convert(text, None, None)


@pytest.mark.parametrize(
    ("argument", "option", "path"),
    [(None, None, "topology.yaml"), ("a", None, "a"), (None, "b", "b"), ("a", "a", "a")],
)
def test_argument_option_or_default_name_the_topology(argument: str | None, option: str | None, path: str) -> None:
    assert topology_path(argument, option) == path
