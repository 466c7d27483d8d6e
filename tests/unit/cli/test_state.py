"""`state`: what is in a store, without it when it cannot be shown, and all of it into another store or nothing."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from civitas_shm.cli.app import app
from civitas_shm.plugins.sqlite_store import SQLiteStateStore
from civitas_shm.plugins.state import InMemoryStateStore
from civitas_shm.plugins.state_moves import migrate, store_of
from civitas_shm.state import MESSAGE_KEY

KEY, OTHER = (base64.b64encode(letter * 32).decode() for letter in (b"k", b"o"))
STATES = {"planner": {"step": 3, "raw": b"\x00", MESSAGE_KEY: "ab" * 16}, "critic": {"secret": "hidden words"}}


def state(*arguments: str, code: int = 0, answer: str = "") -> Any:
    """What it prints: as data with --json."""
    result = CliRunner().invoke(app, ["state", *arguments], input=answer)
    assert result.exit_code == code, result.output + result.stderr
    return json.loads(result.stdout) if "--json" in arguments and code == 0 else result.stdout + result.stderr


def put(where: str, states: dict[str, Any]) -> None:
    async def write() -> None:
        store = store_of(where)
        for name, one in states.items():
            await store.set(name, one)
        await store.close()

    asyncio.run(write())


def held(where: str) -> dict[str, Any]:
    async def read() -> dict[str, Any]:
        store = store_of(where)
        found = {name: await store.get(name) for name in await store.list_agents()}
        await store.close()
        return found

    return asyncio.run(read())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIVITAS_STATE_KEY", KEY)
    return tmp_path


def topology(path: str, store: str) -> str:
    Path(path).write_text(f"plugins: {{state: {store}}}\nsupervision: {{children: [{{type: m.A, name: planner}}]}}\n")
    return path


def test_states_are_listed_and_shown_by_file_store_and_topology() -> None:
    put("s.db", STATES)
    topology("topology.yaml", "{type: sqlite, config: {db_path: s.db}}")
    for where in (["--db", "s.db"], ["--store", "sqlite:s.db"], ["-t", "topology.yaml"], []):
        listed = state("list", *where, "--json")
        assert [(row["agent"], row["keys"]) for row in listed["agents"]] == [
            ("critic", ["secret"]),
            ("planner", ["step", "raw"]),
        ]
        shown = state("show", "planner", *where, "--json")
        assert (shown["state"], shown["message"]) == ({"step": 3, "raw": "b'\\x00'"}, "ab" * 16)
    text = state("list")
    assert text.splitlines()[0].split() == ["AGENT", "BYTES", "WHAT"]
    assert "step, raw" in text
    assert json.loads(state("show", "critic")) == {"secret": "hidden words"}
    assert "There is no state of 'nobody' in topology.yaml." in state("show", "nobody", code=1)


def test_what_is_encrypted_is_shown_only_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography", reason='pip install "civitas-shm[encryption]"')
    put("encrypted+s.db", STATES)
    for arguments in (["list"], ["list", "--json"], ["show", "critic"], ["show", "critic", "--json"]):
        said = state(*arguments, "--db", "s.db", code=1 if "show" in arguments else 0)
        assert "hidden" not in str(said)
        assert "secret" not in str(said)
        assert "environment" in str(said), "which key it needs"
    assert json.loads(state("show", "critic", "--store", "encrypted+sqlite:s.db")) == {"secret": "hidden words"}
    monkeypatch.setenv("CIVITAS_STATE_KEY", OTHER)
    assert "cannot be decrypted" in state("show", "critic", "--store", "encrypted+sqlite:s.db", code=1)
    rows = state("list", "--store", "encrypted+sqlite:s.db", "--json")["agents"]
    assert ["cannot be decrypted" in row["problem"] for row in rows] == [True, True]


def test_clear_asks_and_takes_no_for_an_answer() -> None:
    put("s.db", STATES)
    assert "Forget the state of critic in sqlite:s.db?" in state(
        "clear", "critic", "--db", "s.db", code=1, answer="n\n"
    )
    assert len(held("s.db")) == 2
    state("clear", "critic", "--db", "s.db", answer="y\n")
    assert list(held("s.db")) == ["planner"]
    assert state("clear", "--force", "--db", "s.db", "--json")["cleared"] == ["planner"]
    assert held("s.db") == {}
    assert "There is no state" in state("clear", "--db", "s.db")


def test_looking_makes_no_file(here: Path) -> None:
    topology("topology.yaml", "{type: sqlite, config: {db_path: s.db}}")
    for arguments in (["list"], ["show", "a"], ["clear"], ["list", "--db", "s.db"], ["migrate", "s.db", "t.db"]):
        assert "There is no such file" in state(*arguments, code=1)
    put("s.db", STATES)
    assert "2 states would be copied: critic, planner." in state("migrate", "s.db", "t.db")
    assert sorted(path.name for path in here.glob("*.db")) == ["s.db"]


def test_what_names_no_store_is_refused(here: Path) -> None:
    assert "give one of --topology, --store and --db" in state("list", "--db", "a", "--store", "b.db", code=2)
    assert "no topology.yaml here" in state("list", code=2)
    assert "names no store; write sqlite:PATH" in state("list", "--store", "postgres://u:pw@h/d", code=3)
    assert "names no store that outlives its run" in state("list", "-t", topology("t.yaml", ""), code=3)


def test_migrate_copies_all_into_any_other_store_and_reads_it_back(request: pytest.FixtureRequest) -> None:
    pytest.importorskip("cryptography", reason='pip install "civitas-shm[encryption]"')
    put("s.db", STATES)
    redis = request.getfixturevalue("redis_server").url
    way = ["s.db", "encrypted+sqlite:e.db", f"{redis}#a:", f"encrypted+{redis}#b:", "t.db"]
    for source, destination in itertools.pairwise(way):
        assert state("migrate", source, destination, "--execute", "--json") == {
            "agents": ["critic", "planner"],
            "replaced": [],
            "done": True,
        }
    assert held("t.db") == STATES == held("s.db")
    assert "hidden" not in str(held("e.db"))


def test_keys_change_by_a_migration_of_a_store_into_itself() -> None:
    pytest.importorskip("cryptography", reason='pip install "civitas-shm[encryption]"')
    store = "{type: encrypted, config: {inner: {type: sqlite, config: {db_path: s.db}}, keys: {%s}}}"
    old = topology("old.yaml", store % f"old: {KEY}")
    both = topology("both.yaml", store % f"new: {OTHER}, old: {KEY}")
    new = topology("new.yaml", store % f"new: {OTHER}")
    put(old, STATES)
    assert "has critic, planner already. --replace replaces them" in state("migrate", both, both, code=1)
    state("migrate", both, both, "--replace", "--execute")
    assert held(new) == STATES
    assert "cannot be decrypted" in state("show", "critic", "-t", old, code=1)


def test_a_store_in_use_is_not_touched_unless_it_is_said() -> None:
    put("s.db", STATES)
    put("x.db", {"other": {}})

    async def scene() -> None:
        user = SQLiteStateStore("s.db")  # as a process of a run
        await user.get("planner")
        for arguments in (["s.db", "t.db"], ["s.db", "t.db", "--execute"], ["x.db", "s.db", "--execute"]):
            said = await asyncio.to_thread(lambda given=arguments: state("migrate", *given, code=1))
            assert " is in use by another process. Stop the run first, or say --in-use" in said
        await asyncio.to_thread(lambda: state("migrate", "s.db", "t.db", "--execute", "--in-use"))
        await user.close()

    asyncio.run(scene())
    assert held("t.db") == STATES


class Failing(InMemoryStateStore):
    """A store of somebody's own, with a fault."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    async def set(self, agent_name: str, state: dict[str, Any]) -> None:
        if self.fault == "raises" and agent_name == "planner":
            raise OSError("the disk is full")
        if self.fault == "forgets":
            state = {key: value for key, value in state.items() if key != "raw"}
        await super().set(agent_name, state)


@pytest.mark.parametrize(
    ("fault", "text"), [("raises", "the disk is full"), ("forgets", "gives back planner otherwise"), ("", "meanwhile")]
)
def test_a_migration_that_fails_leaves_the_destination_as_it_was(fault: str, text: str) -> None:
    async def scene() -> None:
        class Changing(InMemoryStateStore):
            """Is written to while it is read for the second time."""

            reads = 0

            async def list_agents(self) -> list[str]:
                self.reads += 1
                if self.reads == 2 and not fault:
                    await self.set("new", {})
                return await super().list_agents()

        source, destination = Changing(), Failing("")
        for name, one in STATES.items():
            await source.set(name, one)
        await destination.set("critic", {"old": 1})
        await destination.set("other", {})
        destination.fault = fault
        with pytest.raises(Exception, match=text):
            await migrate(source, destination, execute=True, replace=True)
        destination.fault = ""
        assert await destination.list_agents() == ["critic", "other"]
        assert await destination.get("critic") == {"old": 1}

    asyncio.run(scene())
