"""`sim`: one line when all is well; seed, invariant and schedule when not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from civitas_shm import simulation
from civitas_shm.cli.app import app
from civitas_shm.simulation import Batch, FailedSeed
from civitas_shm.supervision import Event, ProcessDied, Tree, step

TOPOLOGY = """
supervision:
  children:
    - agent: {name: walker, type: nowhere.to.be.Found}
    - agent: {name: teller, type: nowhere.to.be.Found, replicas: 2}
"""


def sim(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["sim", *arguments])
    return result.exit_code, result.output


def test_one_line_says_what_was_played() -> None:
    code, text = sim("--seeds", "20", "--jobs", "1")
    assert code == 0
    assert len(text.splitlines()) == 1
    assert text.startswith("20 seeds from 0, ")
    assert text.rstrip().endswith("every invariant held")


def test_two_processes_play_the_same_as_one() -> None:
    one, two = (json.loads(sim("--seeds", "100", "--seed", "7", "--json", "--jobs", jobs)[1]) for jobs in "12")
    assert one.pop("took_s") >= 0
    assert two.pop("took_s") >= 0
    assert one.pop("simulated_s") == pytest.approx(two.pop("simulated_s"))
    assert one == two


def test_a_topology_is_played_with_stubs_and_only_the_faults_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "topology.yaml"
    file.write_text(TOPOLOGY)
    code, text = sim(str(file), "--seeds", "5", "--faults", "kill, slow", "--json")
    told = json.loads(text)
    assert code == 0
    assert told["kinds"] == ["kill", "slow"]
    assert told["faults"]["kill"] > 0
    assert told["faults"]["pause"] == told["faults"]["full"] == 0
    assert told["least"]["children"] == 3


def test_a_wrong_topology_is_said_as_by_run(tmp_path: Path) -> None:
    file = tmp_path / "topology.yaml"
    file.write_text("supervision: {childs: []}")
    code, text = sim(str(file))
    assert code == 3
    assert "childs" in text


@pytest.mark.parametrize("faults", ["kill,flood", "", ","])
def test_a_fault_that_does_not_exist_is_refused(faults: str) -> None:
    code, text = sim("--faults", faults)
    assert code == 2
    assert "kill, pause, slow, full" in " ".join(text.replace("│", " ").split())


def test_a_seed_that_fails_is_told_with_its_schedule_and_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(tree: Tree, event: Event, now_s: float) -> object:
        return (tree, []) if isinstance(event, ProcessDied) else step(tree, event, now_s)

    monkeypatch.setattr(simulation, "play", lambda seeds, **options: real_play(seeds, **options, step=forgetful))
    real_play = simulation.batch.play
    code, text = sim("--seeds", "20", "--jobs", "1")
    assert code == 1
    assert "1 seeds FAILED" in text.splitlines()[0]
    assert "seed 0: no limbo: " in text
    assert "the shortest schedule that shows it (" in text
    assert "\n  root: " in text
    assert "again: civitas-shm sim --seed 0 --seeds 1 --faults kill,pause,slow,full" in text


def test_batches_go_through_json_and_add_up() -> None:
    batch = simulation.play(range(3))
    batch.failed.append(FailedSeed(2, "the end", "the end: it ended", ["root"], ["Kill"], 7))
    again = Batch.from_plain(json.loads(json.dumps(batch.to_plain())))
    assert again == batch
    again.merge(simulation.play(range(3, 6)))
    assert again.seeds == 6
    assert again.fired == batch.fired + simulation.play(range(3, 6)).fired
