"""What a resumed run knows of its spawned agents: the journal, also when its host was killed at any byte of it."""

from __future__ import annotations

from pathlib import Path

from civitas_shm.host.spawned import REWRITE_LINES, Journal
from civitas_shm.supervision import AddChild
from civitas_shm.topology.model import AgentSpec


def wanted(name: str) -> AddChild:
    return AddChild("pool", AgentSpec(name, "m.A", config={"a": [1, None]}, restart="transient"), spawner="a")


def test_a_resumed_run_knows_what_was_spawned_and_is_not_gone(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "spawned", resume=False)
    for name in ("x", "y", "z"):
        journal.added(wanted(name))
    journal.removed("y")
    journal.removed("unknown")
    journal.close()
    again = Journal(tmp_path / "spawned", resume=True)
    assert again.known() == [wanted("x"), wanted("z")]
    again.close()
    again.close()


def test_a_run_that_is_not_resumed_begins_without(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "spawned", resume=False)
    journal.added(wanted("x"))
    journal.close()
    journal = Journal(tmp_path / "spawned", resume=False)
    assert journal.known() == []
    journal.close()
    assert (tmp_path / "spawned").read_bytes() == b""


def test_a_journal_that_was_cut_off_at_any_byte_has_the_spawns_before_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "whole", resume=False)
    journal.added(wanted("x"))
    first = (tmp_path / "whole").stat().st_size
    journal.added(wanted("y"))
    journal.close()
    whole = (tmp_path / "whole").read_bytes()
    for size in range(len(whole) + 1):
        (tmp_path / "cut").write_bytes(whole[:size])
        journal = Journal(tmp_path / "cut", resume=True)
        names = [known.agent.name for known in journal.known()]
        journal.close()
        assert names == ["x", "y"][: (size >= first - 1) + (size >= len(whole) - 1)], size


def test_a_journal_does_not_grow_with_agents_that_come_and_go(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "spawned", resume=False)
    journal.added(wanted("stays"))
    line = (tmp_path / "spawned").stat().st_size
    for number in range(3 * REWRITE_LINES):
        journal.added(wanted(f"n{number}"))
        journal.removed(f"n{number}")
    journal.close()
    assert (tmp_path / "spawned").stat().st_size < 2 * REWRITE_LINES * line
    again = Journal(tmp_path / "spawned", resume=True)
    assert again.known() == [wanted("stays")]
    again.close()
