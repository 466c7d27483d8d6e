"""States in Redis (or Valkey), for agents that may come up on another machine.

    plugins:
      state: {type: redis, config: {url: "redis://:${REDIS_PASSWORD}@redis:6379/0", prefix: "shop:"}}

One hash for each agent, `PREFIX` + name: `state` (msgpack, as messages), `tag`, `saved_s`.

Guarantees:
- a `set` that has returned has been done by the server; whether it survives the server's death is the server's
  business (`appendonly yes` with `appendfsync always`, or replicas);
- while the server is away, or is loading, or is a replica that may not write, a call is tried again, after 50 ms, then
  twice as long and so on up to a second, for `patience_s` in all; then StateStoreUnavailable. A write that got through
  although its answer was lost is recognised by its tag;
- what waiting will not mend (a wrong password, a right that is missing) is an error at once;
- passwords are in no repr, log line or error of ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final, TypeVar

from ..errors import DeserializationError, StateConflict, StateStoreUnavailable
from ..serializer import decode, encode
from ..topology.model import PluginSpec
from .calls import import_vendor

__all__ = ["RedisStateStore"]

T = TypeVar("T")

INSTALL: Final = '"civitas-shm[redis]"'

WAIT_FIRST_S: Final = 0.05
WAIT_MAX_S: Final = 1.0

_WRITE: Final = """
local tag = redis.call('HGET', KEYS[1], 'tag') or ''
for i = 4, #ARGV do
    if tag == ARGV[i] then
        redis.call('HSET', KEYS[1], 'state', ARGV[1], 'tag', ARGV[2], 'saved_s', ARGV[3])
        return 1
    end
end
return 0
"""
"""Compares the tag and writes, as one: nothing else runs in the server meanwhile."""

_REFUSED: Final = re.compile(
    r"WRONGPASS|NOAUTH|NOPERM|invalid (username-)?password|without any password", re.IGNORECASE
)

_PROCESS: Final = os.urandom(4).hex()
"""In the names of connections: pids of two containers may be equal."""

log: Final = logging.getLogger("civitas_shm.state")


class RedisStateStore:
    """See the module. An object belongs to the loop that uses it first; it connects with its first call."""

    requires: Final = ("redis", INSTALL)

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        prefix: str = "civitas_shm:state:",
        patience_s: float = 20.0,
        timeout_s: float = 5.0,
    ) -> None:
        """`url`: redis://, rediss:// (TLS) or unix://. `prefix`: of keys; each run that shares a server has its own.

        `patience_s`: how long a call may take, all its tries together; `timeout_s`: how long the server may take to
        connect or to answer. PluginError when the package `redis` is not installed.
        """
        if patience_s <= 0 or timeout_s <= 0:
            raise ValueError(f"patience_s is {patience_s} and timeout_s {timeout_s}; both need some time")
        self._vendor = import_vendor("redis", "redis", INSTALL, kind="state")
        self._url = url
        self.where: Final = re.sub(r"//[^@/]*@", "//***@", url)
        self._prefix = prefix
        self._patience_s = patience_s
        self._timeout_s = timeout_s
        self._connected: Any = None
        self._pid = 0

    # --- the protocol ---------------------------------------------------------------------------------------------

    async def get(self, agent_name: str) -> dict[str, Any] | None:
        """The last state that was set, or None. DeserializationError: what is stored is no state."""
        return (await self.read(agent_name))[0]

    async def set(self, agent_name: str, state: dict[str, Any]) -> None:
        """Keep it in place of the last one. MessageValidationError names the field that cannot be stored."""
        await self.set_many({agent_name: state})

    async def set_many(self, states: Mapping[str, dict[str, Any]]) -> None:
        """As `set` of each, in one MULTI."""
        records = {self._key(name): _record(encode(state, "state"), os.urandom(8)) for name, state in states.items()}

        async def write(client: Any) -> None:
            async with client.pipeline(transaction=True) as pipe:
                for key, record in records.items():
                    pipe.hset(key, mapping=record)
                await pipe.execute()

        await self._do(write)

    async def delete(self, agent_name: str) -> None:
        """Forget it. Unknown names are ignored."""
        await self._do(lambda client: client.delete(self._key(agent_name)))

    async def list_agents(self) -> list[str]:
        """Names with a state, sorted. Looks at every key of the database, some thousand in a millisecond."""
        pattern = re.sub(r"([\\*?\[\]])", r"\\\1", self._prefix) + "*"

        async def scan(client: Any) -> set[bytes]:
            return {key async for key in client.scan_iter(pattern, count=1000)}

        start = len(self._prefix.encode())
        return sorted(key[start:].decode(errors="replace") for key in await self._do(scan))

    async def close(self) -> None:
        """Close the connections. Idempotent; a later call connects again."""
        client, self._connected = self._connected, None
        if client is not None and self._pid == os.getpid():
            await client.aclose()

    # --- what tells ---------------------------------------------------------------------------------------------------

    async def read(self, agent_name: str) -> tuple[dict[str, Any] | None, bytes]:
        """As `get`, with the tag of the record."""
        state, tag = await self._do(lambda client: client.hmget(self._key(agent_name), "state", "tag"))
        if state is None:
            return None, b""
        try:
            return decode(state), tag or b""
        except DeserializationError as error:
            raise DeserializationError(
                f"the state of {agent_name!r} in {self.where} cannot be read: {error}. Way out: `state clear`."
            ) from None

    async def write(self, agent_name: str, state: dict[str, Any], tag: bytes, after: Collection[bytes]) -> None:
        """As `set`, if the record has still a tag of `after`. StateConflict otherwise."""
        data = encode(state, "state")
        arguments = [data, tag, repr(time.time()), tag, *after]
        written = await self._do(lambda client: client.eval(_WRITE, 1, self._key(agent_name), *arguments))
        if not written:
            raise StateConflict(agent_name, self.where)

    def plugin_spec(self) -> PluginSpec:
        """How another process builds the like."""
        config = {
            "url": self._url, "prefix": self._prefix, "patience_s": self._patience_s, "timeout_s": self._timeout_s,
        }  # fmt: skip
        return PluginSpec("redis", config)

    async def users(self) -> list[str]:
        """Who is connected to states of this prefix, this object not counted: `pid 4711 at 10.0.0.7:5531`."""
        clients = await self._do(lambda client: client.client_list())
        found = [(one.get("name", "").split(":"), one["addr"]) for one in clients]
        return [
            f"pid {name[2]} at {address}"
            for name, address in found
            if len(name) == 4 and name[1] == self._digest() and name[3] != _PROCESS
        ]

    # --- the server -----------------------------------------------------------------------------------------------

    def _client(self) -> Any:
        if self._connected is None or self._pid != os.getpid():  # a forked child must not write to the parent's socket
            client, retry = (
                import_vendor(module, "redis", INSTALL, kind="state")
                for module in ("redis.asyncio", "redis.asyncio.retry")
            )
            no_backoff = import_vendor("redis.backoff", "redis", INSTALL, kind="state").NoBackoff()
            self._pid = os.getpid()
            self._connected = client.Redis.from_url(
                self._url,
                socket_timeout=self._timeout_s,
                socket_connect_timeout=self._timeout_s,
                retry=retry.Retry(no_backoff, 0),
                client_name=f"civitas-shm-state:{self._digest()}:{os.getpid()}:{_PROCESS}",
            )
        return self._connected

    def _digest(self) -> str:
        """Of the prefix, for the name that `CLIENT LIST` shows: that may hold no blanks, and prefixes may."""
        return hashlib.blake2b(self._prefix.encode(), digest_size=6).hexdigest()

    def _key(self, agent: str) -> bytes:
        return (self._prefix + agent).encode(errors="surrogatepass")

    async def _do(self, call: Callable[[Any], Awaitable[T]]) -> T:
        """Try until it works, or waiting does not help, or the time is over."""
        until_s = time.monotonic() + self._patience_s
        wait_s = WAIT_FIRST_S
        while True:
            try:
                return await call(self._client())
            except (self._vendor.RedisError, OSError) as error:
                failure = error
            left_s = until_s - time.monotonic()
            if not self._passes(failure) or left_s <= 0:
                raise StateStoreUnavailable(self._text(failure)) from None
            if wait_s == WAIT_FIRST_S:
                log.warning("%s Trying again for %.3g s.", self._text(failure), left_s)
            await asyncio.sleep(min(left_s, wait_s * random.uniform(0.5, 1.0)))
            wait_s = min(WAIT_MAX_S, 2 * wait_s)

    def _passes(self, error: Exception) -> bool:
        """Whether it may work later."""
        errors = self._vendor.exceptions
        refused = (errors.AuthenticationError, errors.AuthorizationError)
        if isinstance(error, refused) or _REFUSED.search(str(error)):  # a ConnectionError while it connects
            return False
        passing = (errors.ConnectionError, errors.TimeoutError, errors.ReadOnlyError, OSError)
        return isinstance(error, passing) or str(error).startswith(("MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN"))

    def _text(self, error: Exception) -> str:
        return f"The states in {self.where} cannot be read or written: {type(error).__name__}: {error}."

    def __repr__(self) -> str:
        return f"RedisStateStore({self.where!r}, prefix={self._prefix!r})"


def _record(data: bytes, tag: bytes) -> dict[str, Any]:
    return {"state": data, "tag": tag, "saved_s": repr(time.time())}
