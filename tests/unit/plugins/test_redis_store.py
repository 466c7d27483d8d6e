"""The store in a real Redis server that goes away and comes back, and one that does not want us."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import pytest

from civitas_shm.errors import DeserializationError, PluginError, StateStoreUnavailable
from civitas_shm.plugins import calls
from civitas_shm.plugins.loader import load_plugin

PASSWORD = "correct-horse-battery"


def make(url: str, **config: Any) -> Any:
    return load_plugin("state", "redis", {"url": url, **config})


def test_prefixes_keep_runs_apart(redis_server: Any) -> None:
    async def scene() -> None:
        one, other = make(redis_server.url, prefix="one:"), make(redis_server.url, prefix="*")
        await one.set("a", {"n": 1})
        await other.set("b", {"n": 2})
        assert (await one.list_agents(), await other.list_agents()) == (["a"], ["b"])
        assert await other.get("a") is None
        await one.close()
        await other.close()

    asyncio.run(scene())


def test_a_server_that_goes_away_is_waited_for_and_the_write_is_done_once(
    redis_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        store = make(redis_server.url)
        await store.write("a", {"n": 1}, b"one", [b""])
        redis_server.kill()
        waiting = asyncio.create_task(store.write("a", {"n": 2}, b"two", [b"", b"one"]))
        while "Trying again" not in caplog.text:
            await asyncio.sleep(0.001)
        assert not waiting.done()
        await asyncio.to_thread(redis_server.start)  # with nothing in it: it kept nothing on a disk
        await waiting
        assert await store.read("a") == ({"n": 2}, b"two")
        await store.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scene())


def test_patience_ends_with_a_sentence_and_the_store_works_later(redis_server: Any) -> None:
    async def scene() -> None:
        store = make(redis_server.url, patience_s=0.1)
        await store.set("a", {"n": 1})
        redis_server.kill()
        with pytest.raises(StateStoreUnavailable, match=r"The states in unix:///.* cannot be read or written: "):
            await store.get("a")
        await asyncio.to_thread(redis_server.start)
        assert await store.get("a") is None
        await store.close()

    asyncio.run(scene())


def test_what_waiting_does_not_mend_is_an_error_at_once_and_no_password_is_shown(
    redis_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        admin = make(redis_server.url)
        await admin._do(lambda client: client.config_set("requirepass", "another"))
        wrong = make(redis_server.url.replace("unix://", f"unix://:{PASSWORD}@"), patience_s=1000)
        errors = []
        with pytest.raises(StateStoreUnavailable) as caught:
            await wrong.get("a")
        errors.append(str(caught.value))
        right = make(redis_server.url.replace("unix://", "unix://:another@"))
        await right._do(lambda client: client.execute_command("ACL SETUSER reader on >another ~* +@read +client"))
        reader = make(redis_server.url.replace("unix://", "unix://reader:another@"), patience_s=1000)
        with pytest.raises(StateStoreUnavailable, match="permission") as caught:
            await reader.set("a", {})
        errors.append(str(caught.value))
        shown = [*errors, repr(wrong), repr(right), caplog.text, repr(wrong.plugin_spec())]
        assert "//***@/" in repr(wrong)
        assert not [text for text in shown if PASSWORD in text or "another@" in text]
        for store in (admin, wrong, right, reader):
            await store.close()

    with caplog.at_level(logging.DEBUG):
        asyncio.run(scene())


def test_who_is_connected_can_be_asked(redis_server: Any) -> None:
    async def scene() -> None:
        one, other, elsewhere = make(redis_server.url), make(redis_server.url), make(redis_server.url, prefix="x:")
        for store in (one, other, elsewhere):
            await store.get("a")
        assert await one.users() == []  # all of them are this process
        await other._client().client_setname(f"civitas-shm-state:{other._digest()}:1:another")
        users = await one.users()
        assert len(users) == 1
        assert users[0].startswith("pid 1 at ")
        for store in (one, other, elsewhere):
            await store.close()

    asyncio.run(scene())


def test_what_is_no_state_is_said_so(redis_server: Any) -> None:
    async def scene() -> None:
        store = make(redis_server.url, prefix="p:")
        await store._do(lambda client: client.hset("p:a", "state", b"\xc1"))
        with pytest.raises(DeserializationError, match=r"the state of 'a' in unix:.*`state clear`"):
            await store.get("a")
        await store._do(lambda client: client.set("p:b", "text"))
        with pytest.raises(StateStoreUnavailable, match="WRONGTYPE"):
            await store.get("b")
        await store.close()

    asyncio.run(scene())


def test_a_server_that_does_not_answer_is_not_waited_for_without_end() -> None:
    pytest.importorskip("redis", reason='pip install "civitas-shm[redis]"')
    with socket.create_server(("127.0.0.1", 0)) as silent:

        async def scene() -> None:
            store = make(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", patience_s=0.05, timeout_s=0.02)
            with pytest.raises(StateStoreUnavailable, match="Timeout"):
                await store.get("a")
            await store.close()

        asyncio.run(scene())


def test_without_the_package_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name="redis")

    monkeypatch.setattr(calls.importlib, "import_module", missing)
    from civitas_shm.plugins.redis_store import RedisStateStore

    with pytest.raises(PluginError, match=r'redis.* is not installed: pip install "civitas-shm\[redis\]"'):
        RedisStateStore()
    with pytest.raises(ValueError, match="patience_s is 0"):
        RedisStateStore(patience_s=0)
