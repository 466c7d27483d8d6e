"""States encrypted before they reach a store, by ChaCha20-Poly1305, with keys that can be changed.

    plugins:
      state:
        type: encrypted
        config:
          inner: {type: sqlite, config: {db_path: /data/state.db}}
          keys: {"2026-11": "${STATE_KEY}", "2026-05": {file: /run/secrets/old_state_key}}

A key is 32 bytes: as base64, as 64 hexadecimal digits, or in a file as one of these or as they are. Without `keys` the
one in the environment variable CIVITAS_STATE_KEY is used.

Guarantees:
- the first key encrypts (or the one that `current_key_id` names), each of them decrypts. To change keys: put a new one
  first; records are encrypted anew when they are saved next, or all at once by `civitas-shm state migrate`;
- a record that was changed, cut or put under another agent's name is a StateDecryptionError: the agent's name and the
  key's id are part of what is authenticated;
- keys are in no repr, log line or error of ours.

What it does not hide: names of agents, sizes, times, ids of keys. What it does not prevent: that an older record of the
same agent is put back.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Collection, Mapping
from typing import Any, Final

from ..errors import ConfigurationError, PluginError, StateDecryptionError
from ..serializer import decode, encode
from ..state import FencedStateStore, StateStore, fenced
from ..topology.model import PluginSpec
from .calls import import_vendor
from .loader import load_plugin
from .state import portable_store

__all__ = ["ENCRYPTED", "EncryptingStateStore", "new_key"]

ENCRYPTED: Final = "_civitas.encrypted"
"""In a record: the version of this format. The others: `key_id`, and `nonce` and `data` in base64."""
VERSION: Final = 1

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
"""Random: one key is good for 2^32 records, which a thousand a second make in 50 days; change it before."""

KEY_VARIABLE: Final = "CIVITAS_STATE_KEY"
INSTALL: Final = '"civitas-shm[encryption]"'

Key = str | bytes | Mapping[str, str]


class EncryptingStateStore:
    """Around another store, `inner`: see the module."""

    requires: Final = ("cryptography", INSTALL)

    def __init__(
        self,
        inner: StateStore | Mapping[str, Any],
        *,
        keys: Mapping[str, Key] | None = None,
        current_key_id: str | None = None,
        allow_plaintext_read: bool = False,
    ) -> None:
        """`inner`: a store, or `{type, config}` of one. `keys`: by id; 32 bytes, text, or `{file: path}`.

        `current_key_id`: which one encrypts; without it the first. `allow_plaintext_read`: records that are not
        encrypted are given as they are, which lets old states in while encryption is introduced, and forged ones too.
        ConfigurationError for a key that is none.
        """
        self._inner: StateStore = (
            load_plugin("state", inner["type"], inner.get("config")) if isinstance(inner, Mapping) else inner
        )
        self._fenced = fenced(self._inner)
        self._keys = {str(key_id): _key(str(key_id), key) for key_id, key in _given(keys).items()}
        self._current = next(iter(self._keys)) if current_key_id is None else current_key_id
        if self._current not in self._keys:
            raise ConfigurationError(f"current_key_id is {self._current!r}; there are {', '.join(self._keys)}.")
        self._plaintext = allow_plaintext_read
        cipher = import_vendor("cryptography.hazmat.primitives.ciphers.aead", "encrypted", INSTALL, kind="state")
        self._ciphers = {key_id: cipher.ChaCha20Poly1305(key) for key_id, key in self._keys.items()}
        self._invalid = import_vendor("cryptography.exceptions", "encrypted", INSTALL, kind="state").InvalidTag

    @property
    def is_fenced(self) -> bool:
        """Whether `read` and `write` work: whether `inner` has them."""
        return self._fenced is not None

    # --- the protocol ---------------------------------------------------------------------------------------------

    async def get(self, agent_name: str) -> dict[str, Any] | None:
        """The last state that was set, decrypted, or None."""
        record = await self._inner.get(agent_name)
        return None if record is None else self._opened(agent_name, record)

    async def set(self, agent_name: str, state: dict[str, Any]) -> None:
        """Encrypt and keep it."""
        await self._inner.set(agent_name, self._sealed(agent_name, state))

    async def set_many(self, states: Mapping[str, dict[str, Any]]) -> None:
        """As `set` of each, all or none."""
        await self._telling().set_many({name: self._sealed(name, state) for name, state in states.items()})

    async def delete(self, agent_name: str) -> None:
        """Forget it."""
        await self._inner.delete(agent_name)

    async def list_agents(self) -> list[str]:
        """Names with a state, sorted; they are not encrypted."""
        return await self._inner.list_agents()

    async def close(self) -> None:
        """Close the inner store."""
        await self._inner.close()

    async def read(self, agent_name: str) -> tuple[dict[str, Any] | None, bytes]:
        """As `get`, with the inner record's tag."""
        record, tag = await self._telling().read(agent_name)
        return (None if record is None else self._opened(agent_name, record)), tag

    async def write(self, agent_name: str, state: dict[str, Any], tag: bytes, after: Collection[bytes]) -> None:
        """As `set`, if the inner record is one that was seen."""
        await self._telling().write(agent_name, self._sealed(agent_name, state), tag, after)

    def exists(self) -> bool:
        """Whether the inner store does."""
        ask = getattr(self._inner, "exists", None)
        return True if ask is None else bool(ask())

    async def users(self) -> list[str]:
        """Who else uses the inner store, if it can tell."""
        ask = getattr(self._inner, "users", None)
        found: list[str] = [] if ask is None else await ask()
        return found

    def plugin_spec(self) -> PluginSpec | None:
        """How another process builds the like; None when it cannot build the inner one."""
        inner = portable_store(self._inner)
        if inner is None:
            return None
        config = {
            "inner": {"type": inner.type, "config": inner.config},
            "keys": {key_id: key.hex() for key_id, key in self._keys.items()},
            "current_key_id": self._current,
            "allow_plaintext_read": self._plaintext,
        }
        return PluginSpec("encrypted", config)

    # --- a record -----------------------------------------------------------------------------------------------------

    def _sealed(self, agent: str, state: dict[str, Any]) -> dict[str, Any]:
        nonce = os.urandom(NONCE_BYTES)
        data = self._ciphers[self._current].encrypt(nonce, encode(state, "state"), _context(agent, self._current))
        return {
            ENCRYPTED: VERSION,
            "key_id": self._current,
            "nonce": base64.b64encode(nonce).decode(),
            "data": base64.b64encode(data).decode(),
        }

    def _opened(self, agent: str, record: dict[str, Any]) -> dict[str, Any]:
        if ENCRYPTED not in record:
            if self._plaintext:
                return record
            raise StateDecryptionError(agent, "", "it is not encrypted; allow_plaintext_read: true lets it in")
        key_id = str(record.get("key_id"))
        if record[ENCRYPTED] != VERSION:
            reason = f"its format is version {record[ENCRYPTED]!r}, and this is civitas_shm for version {VERSION}"
            raise StateDecryptionError(agent, key_id, reason)
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            reason = f"it was encrypted with the key {key_id!r}, and there are {', '.join(self._keys)}"
            raise StateDecryptionError(agent, key_id, reason)
        try:
            nonce, data = (base64.b64decode(record[part], validate=True) for part in ("nonce", "data"))
            plain = cipher.decrypt(nonce, data, _context(agent, key_id))
        except (self._invalid, KeyError, TypeError, ValueError):
            reason = f"the key {key_id!r} does not fit, or the record was changed or is another agent's"
            raise StateDecryptionError(agent, key_id, reason) from None
        state: dict[str, Any] = decode(plain)
        return state

    def _telling(self) -> FencedStateStore:
        if self._fenced is None:
            raise TypeError(f"{type(self._inner).__qualname__} cannot tell whether a record was changed")
        return self._fenced

    def __repr__(self) -> str:
        return f"EncryptingStateStore({self._inner!r}, key {self._current!r} of {len(self._keys)})"


def new_key() -> str:
    """A random key, as the text that goes into the environment."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def _context(agent: str, key_id: str) -> bytes:
    """What is authenticated beside the state: lengths first, so that no two pairs look alike."""
    parts = [b"civitas_shm state", key_id.encode(), agent.encode(errors="surrogatepass")]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _given(keys: Mapping[str, Key] | None) -> Mapping[str, Key]:
    if keys:
        return keys
    found = os.environ.get(KEY_VARIABLE)
    if keys is None and found:
        return {"environment": found}
    raise PluginError(
        "state", "encrypted",
        f"it has no keys; give some in keys:, or one in {KEY_VARIABLE}. A new one: "
        'python -c "import base64, os; print(base64.b64encode(os.urandom(32)).decode())"',
    )  # fmt: skip


def _key(key_id: str, given: Key) -> bytes:
    """Its 32 bytes. No error shows any part of it."""
    where = f"The key {key_id!r} of the encrypted states"
    if isinstance(given, Mapping):
        path = given.get("file", "")
        where += f" in {path}"
        try:
            with open(path, "rb") as file:
                given = file.read(1024)
        except OSError as error:
            raise ConfigurationError(f"{where} cannot be read: {error.strerror}.") from None
        if len(given) != KEY_BYTES:
            given = given.decode(errors="replace")
    found = given if isinstance(given, bytes) else _bytes_of(given.strip())
    if len(found) != KEY_BYTES:
        raise ConfigurationError(f"{where} is no key: {KEY_BYTES} bytes, as base64 or as {2 * KEY_BYTES} hex digits.")
    return found


def _bytes_of(text: str) -> bytes:
    """Empty for what is neither form."""
    try:
        if len(text) == 2 * KEY_BYTES:
            return bytes.fromhex(text)
        return base64.b64decode(text.translate(str.maketrans("-_", "+/")) + "=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error):
        return b""
