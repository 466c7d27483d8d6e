"""The wrapper that encrypts: keys and their change, records that were touched, nothing shown."""

from __future__ import annotations

import asyncio
import base64
import logging
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.errors import ConfigurationError, PluginError, StateDecryptionError
from civitas_shm.plugins.loader import load_plugin
from civitas_shm.plugins.state import InMemoryStateStore

pytest.importorskip("cryptography", reason='pip install "civitas-shm[encryption]"')
from civitas_shm import EncryptingStateStore
from civitas_shm.plugins.encrypted_store import new_key

OLD, NEW = b"o" * 32, b"n" * 32
SECRET = "the launch code"


def test_what_is_stored_shows_nothing_and_no_two_records_are_alike() -> None:
    async def scene() -> None:
        inner = InMemoryStateStore()
        store = EncryptingStateStore(inner, keys={"k": NEW})
        await store.set("a", {"code": SECRET})
        first = await inner.get("a")
        assert first is not None
        assert set(first) == {"_civitas.encrypted", "key_id", "nonce", "data"}
        assert SECRET not in base64.b64decode(first["data"]).decode(errors="replace")
        await store.set("a", {"code": SECRET})
        second = await inner.get("a")
        assert second is not None
        assert first["nonce"] != second["nonce"]
        assert first["data"] != second["data"]

    asyncio.run(scene())


def test_the_first_key_encrypts_and_every_key_decrypts() -> None:
    async def scene() -> None:
        inner = InMemoryStateStore()
        await EncryptingStateStore(inner, keys={"old": OLD}).set("a", {"n": 1})
        both = EncryptingStateStore(inner, keys={"new": NEW, "old": OLD})
        assert await both.get("a") == {"n": 1}
        await both.set("a", {"n": 2})
        assert (await inner.get("a") or {})["key_id"] == "new"
        assert await EncryptingStateStore(inner, keys={"new": NEW}).get("a") == {"n": 2}
        with pytest.raises(StateDecryptionError, match="with the key 'new', and there are old") as caught:
            await EncryptingStateStore(inner, keys={"old": OLD}).get("a")
        assert (caught.value.agent, caught.value.key_id) == ("a", "new")
        named = EncryptingStateStore(inner, keys={"new": NEW, "old": OLD}, current_key_id="old")
        await named.set("a", {})
        assert (await inner.get("a") or {})["key_id"] == "old"
        with pytest.raises(ConfigurationError, match="'other'; there are new, old"):
            EncryptingStateStore(inner, keys={"new": NEW, "old": OLD}, current_key_id="other")

    asyncio.run(scene())


def _flip(text: str) -> str:
    data = bytearray(base64.b64decode(text))
    data[0] ^= 1
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    "touch",
    [
        lambda record: {**record, "data": _flip(record["data"])},
        lambda record: {**record, "data": record["data"][:-8]},
        lambda record: {**record, "nonce": _flip(record["nonce"])},
        lambda record: {**record, "nonce": ""},
        lambda record: {**record, "data": "no base64!"},
        lambda record: {key: value for key, value in record.items() if key != "data"},
        lambda record: {**record, "key_id": "twin"},
        lambda record: {**record, "_civitas.encrypted": 2},
    ],
)
def test_a_record_that_was_touched_is_refused(touch: Any) -> None:
    async def scene() -> None:
        inner = InMemoryStateStore()
        store = EncryptingStateStore(inner, keys={"k": NEW, "twin": NEW})
        await store.set("a", {"n": 1})
        await inner.set("a", touch(await inner.get("a")))
        with pytest.raises(StateDecryptionError, match="The state of 'a' cannot be decrypted"):
            await store.get("a")

    asyncio.run(scene())


def test_a_record_of_another_agent_is_refused() -> None:
    async def scene() -> None:
        inner = InMemoryStateStore()
        store = EncryptingStateStore(inner, keys={"k": NEW})
        await store.set("clerk", {"may": "read"})
        await store.set("boss", {"may": "all"})
        await inner.set("clerk", await inner.get("boss") or {})
        with pytest.raises(StateDecryptionError):
            await store.get("clerk")

    asyncio.run(scene())


def test_plaintext_is_refused_unless_it_is_let_in() -> None:
    async def scene() -> None:
        inner = InMemoryStateStore()
        await inner.set("a", {"n": 1})
        with pytest.raises(StateDecryptionError, match="not encrypted; allow_plaintext_read"):
            await EncryptingStateStore(inner, keys={"k": NEW}).get("a")
        lenient = EncryptingStateStore(inner, keys={"k": NEW}, allow_plaintext_read=True)
        assert await lenient.get("a") == {"n": 1}
        await lenient.set("a", {"n": 2})
        assert "n" not in (await inner.get("a") or {})

    asyncio.run(scene())


def test_keys_come_as_text_from_files_and_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = bytes(range(224, 256))
    text = base64.b64encode(raw).decode()
    forms: list[Any] = [raw, text, text.rstrip("="), base64.urlsafe_b64encode(raw).decode(), raw.hex(), f" {text}\n"]
    for number, content in enumerate((raw, text.encode(), raw.hex().encode() + b"\n")):
        path = tmp_path / f"key{number}"
        path.write_bytes(content)
        forms.append({"file": str(path)})

    async def scene() -> None:
        inner = InMemoryStateStore()
        await EncryptingStateStore(inner, keys={"environment": raw}).set("a", {"n": 1})
        for form in forms:
            assert await EncryptingStateStore(inner, keys={"environment": form}).get("a") == {"n": 1}
        monkeypatch.setenv("CIVITAS_STATE_KEY", text)
        assert await EncryptingStateStore(inner).get("a") == {"n": 1}
        assert await load_plugin("state", "encrypted", {"inner": {"type": "in_memory"}}).get("a") is None

    asyncio.run(scene())
    assert len(base64.b64decode(new_key())) == 32
    assert new_key() != new_key()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"k": "too short but secret"}, "The key 'k' of the encrypted states is no key: 32 bytes"),
        ({"k": b"secret"}, "is no key: 32 bytes"),
        ({"k": "s" * 64}, "is no key"),
        ({"k": {"file": "/no/such/file"}}, "in /no/such/file cannot be read: No such file"),
    ],
)
def test_what_is_no_key_is_refused_and_not_shown(keys: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text) as caught:
        EncryptingStateStore(InMemoryStateStore(), keys=keys)
    assert "secret" not in str(caught.value)


def test_without_keys_it_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CIVITAS_STATE_KEY", raising=False)
    for keys in (None, {}):
        with pytest.raises(PluginError, match=r"CIVITAS_STATE_KEY\. A new one: python -c"):
            EncryptingStateStore(InMemoryStateStore(), keys=keys)


def test_keys_are_shown_nowhere(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    key = base64.b64encode(NEW).decode()
    caplog.set_level(logging.DEBUG)
    config = {"inner": {"type": "sqlite", "config": {"db_path": str(tmp_path / "s.db")}}, "keys": {"k": key}}
    store = load_plugin("state", "encrypted", config)
    shown = [repr(store), str(store.plugin_spec()), caplog.text]
    with pytest.raises(PluginError) as caught:
        load_plugin("state", "encrypted", {**config, "keys": {"k": key, "l": key[:-4]}, "surplus": 1})
    shown += [str(caught.value), repr(caught.value)]
    assert not [text for text in shown if key in text or key[:-4] in text or NEW.hex() in text]
