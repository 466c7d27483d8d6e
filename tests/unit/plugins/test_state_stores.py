"""What every store of states does: the same suite over all that come with the package."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.errors import MessageValidationError, StateConflict
from civitas_shm.plugins.loader import load_plugin
from civitas_shm.plugins.sqlite_store import SQLiteStateStore
from civitas_shm.plugins.state import FencedStateStore, InMemoryStateStore, StateStore, portable_store
from civitas_shm.state import fenced

Make = Callable[[], Any]
KEY = base64.b64encode(b"k" * 32).decode()

STORES = ["in_memory", "sqlite", "redis", "encrypted sqlite", "encrypted redis", "encrypted in_memory"]
LASTING = [name for name in STORES if "in_memory" not in name]


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """`make()`: one more object for the same states."""
    *encrypted, kind = request.param.split()
    config: dict[str, Any] = {}
    if kind == "sqlite":
        config = {"db_path": str(tmp_path / "states.db")}
    elif kind == "redis":
        config = {"url": request.getfixturevalue("redis_server").url, "prefix": "a[b]*:"}
    if encrypted:
        pytest.importorskip("cryptography", reason='pip install "civitas-shm[encryption]"')
        kind, config = "encrypted", {"inner": {"type": kind, "config": config}, "keys": {"k": KEY}}
    return lambda: load_plugin("state", kind, config)


def play(*scenes: Any) -> None:
    for scene in scenes:
        asyncio.run(scene)


@pytest.mark.parametrize("make", STORES, indirect=True)
def test_a_store_gives_back_what_it_was_given_and_copies_only(make: Make) -> None:
    async def scene() -> None:
        store = make()
        assert isinstance(store, StateStore)
        assert (await store.get("nobody"), await store.list_agents()) == (None, [])
        state = {"n": 1, "nested": [{"a": [1]}], "bytes": b"\x00\xff", "tuple": (1, 2), "ü": None}
        await store.set("b/1", state)
        state["nested"][0]["a"].append(2)  # type: ignore[index]
        found = await store.get("b/1")
        assert found == {"n": 1, "nested": [{"a": [1]}], "bytes": b"\x00\xff", "tuple": (1, 2), "ü": None}
        found["nested"].clear()
        assert (await store.get("b/1"))["nested"] == [{"a": [1]}]
        await store.set("a*", {})
        await store.set("b/1", {"n": 2})
        assert (await store.get("b/1"), await store.get("a*")) == ({"n": 2}, {})
        assert await store.list_agents() == ["a*", "b/1"]
        await store.delete("a*")
        await store.delete("nobody")
        assert (await store.list_agents(), await store.get("a*")) == (["b/1"], None)
        await store.close()
        await store.close()

    play(scene())


@pytest.mark.parametrize("make", LASTING, indirect=True)
def test_what_was_set_is_there_for_the_next_object_and_for_others(make: Make) -> None:
    async def scene() -> None:
        one, other = make(), make()
        await one.set("a", {"n": 1})
        assert await other.get("a") == {"n": 1}
        await one.close()
        assert await one.get("a") == {"n": 1}  # opened again
        await one.close()
        await other.close()

    async def later() -> None:
        store = make()
        assert await store.get("a") == {"n": 1}
        with pytest.raises(MessageValidationError, match=r"state\.bad"):
            await store.set("a", {"bad": object()})
        assert await store.get("a") == {"n": 1}
        await store.close()

    play(scene(), later())


@pytest.mark.parametrize("make", LASTING, indirect=True)
def test_a_record_is_changed_only_by_who_has_seen_it(make: Make) -> None:
    async def scene() -> None:
        store = fenced(make())
        assert isinstance(store, FencedStateStore)
        assert await store.read("a") == (None, b"")
        await store.write("a", {"n": 1}, b"one", [b""])
        await store.write("a", {"n": 1}, b"one", [b""])  # the same write, whose answer was lost
        assert await store.read("a") == ({"n": 1}, b"one")
        with pytest.raises(StateConflict):
            await store.write("a", {"n": 9}, b"late", [b""])
        with pytest.raises(StateConflict):
            await store.write("nobody", {"n": 9}, b"late", [b"one"])
        await store.write("a", {"n": 2}, b"two", [b"zero", b"one"])
        assert await store.read("a") == ({"n": 2}, b"two")
        await store.set("a", {"n": 3})  # by hand: no question
        found, tag = await store.read("a")
        assert (found, tag in (b"", b"one", b"two")) == ({"n": 3}, False)
        await store.set_many({"x": {"n": 1}, "y": {"n": 2}})
        assert await store.list_agents() == ["a", "x", "y"]
        with pytest.raises(MessageValidationError):
            await store.set_many({"x": {"n": 7}, "z": {"bad": object()}})
        assert (await store.list_agents(), await store.get("x")) == (["a", "x", "y"], {"n": 1})
        await store.close()

    play(scene())


@pytest.mark.parametrize("make", STORES, indirect=True)
def test_a_store_can_be_built_again_elsewhere_from_what_it_says(make: Make) -> None:
    async def scene() -> None:
        store = make()
        spec = portable_store(store)
        assert spec is not None
        assert KEY not in repr(spec)
        again = load_plugin("state", spec.type, spec.config)
        await store.set("a", {"n": 1})
        assert await again.get("a") == (None if "InMemory" in repr(store) else {"n": 1})
        await store.close()
        await again.close()

    play(scene())


def test_only_who_can_tell_is_asked_to(tmp_path: Path) -> None:
    encrypted = pytest.importorskip("civitas_shm.plugins.encrypted_store").EncryptingStateStore
    assert fenced(InMemoryStateStore()) is None
    assert fenced(encrypted(InMemoryStateStore(), keys={"k": KEY})) is None

    class Own:
        """Another program's, which cannot be built elsewhere."""

    assert portable_store(Own()) is None
    assert portable_store(encrypted(Own(), keys={"k": KEY})) is None
    assert SQLiteStateStore(os.path.relpath(tmp_path / "x.db")).db_path == str(tmp_path / "x.db")


@pytest.fixture(autouse=True)
def no_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CIVITAS_STATE_KEY", raising=False)
