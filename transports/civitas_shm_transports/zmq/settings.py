"""What the `transport:` block of type zmq says, checked: addresses, keys, who starts the proxy.

Rules of this file: secrets are read from files that nobody else may read, or come from the environment by the topology;
they are in no text and no `repr`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from civitas_shm.errors import ConfigurationError
from civitas_shm.topology.proxied import PUB_ADDR, SUB_ADDR, address_problem

__all__ = ["Keys", "Settings", "make_keys", "read_keys", "read_settings"]

KEY_CHARS: Final = 40
"""A CURVE key in Z85."""
KEY_FILES: Final = ("server_public_key", "server_secret_key", "client_public_key", "client_secret_key")
_KNOWN: Final = frozenset({"pub_addr", "sub_addr", "start_proxy", "curve"})


@dataclass(frozen=True, slots=True)
class Keys:
    """CURVE: one pair for the proxy, one for all links of the system. Z85, 40 characters each."""

    server_public_key: str = ""
    client_public_key: str = ""
    client_secret_key: str = field(default="", repr=False)
    server_secret_key: str = field(default="", repr=False)
    """Only where the proxy is."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one link, and of the proxy if it starts one."""

    pub_addr: str = PUB_ADDR
    sub_addr: str = SUB_ADDR
    start_proxy: bool = True
    keys: Keys | None = None
    """None: nothing is encrypted, and nobody is asked who he is."""
    key_directory: str = ""
    """Where `keys` come from; the proxy reads them there itself."""


def read_settings(options: dict[str, Any]) -> Settings:
    """The settings of a `transport:` block. ConfigurationError with the way out.

    With `curve: {directory: …}` the keys are made there, if there are none and this is where the proxy is started.
    """
    unknown = sorted(options.keys() - _KNOWN)
    if unknown:
        raise ConfigurationError(f"zmq: unknown setting {unknown[0]!r}; known: {', '.join(sorted(_KNOWN))}.")
    pub_addr, sub_addr = options.get("pub_addr", PUB_ADDR), options.get("sub_addr", SUB_ADDR)
    start_proxy = options.get("start_proxy", True)
    if not isinstance(start_proxy, bool):
        raise ConfigurationError(f"zmq: start_proxy is {start_proxy!r}; it is true or false.")
    if pub_addr == sub_addr:
        raise ConfigurationError(f"zmq: pub_addr and sub_addr are both {pub_addr!r}; the proxy needs two addresses.")
    keys, directory = _curve(options.get("curve"), start_proxy)
    for name, address in (("pub_addr", pub_addr), ("sub_addr", sub_addr)):
        if problem := address_problem(address, keys is not None):
            raise ConfigurationError(f"zmq: {name}: {problem}.")
    return Settings(pub_addr, sub_addr, start_proxy, keys, directory)


def _curve(given: Any, start_proxy: bool) -> tuple[Keys | None, str]:
    if given is None:
        return None, ""
    if not isinstance(given, dict):
        raise ConfigurationError("zmq: curve is {directory: PATH}, or the keys themselves.")
    unknown = sorted(given.keys() - {"directory", *KEY_FILES})
    if unknown:
        known = ", ".join(("directory", *KEY_FILES))
        raise ConfigurationError(f"zmq: unknown setting curve.{unknown[0]}; known: {known}.")
    if "directory" in given:
        if len(given) > 1:
            raise ConfigurationError("zmq: curve has a directory and keys; give one of them.")
        directory = Path(given["directory"]).expanduser()
        if start_proxy:
            make_keys(directory)
        return read_keys(directory), str(directory)
    needed = ("server_public_key", "client_public_key", "client_secret_key")
    missing = [name for name in needed if not given.get(name)]
    if missing:
        raise ConfigurationError(f"zmq: curve.{missing[0]} is missing; give a directory, or {', '.join(needed)}.")
    if start_proxy:
        raise ConfigurationError(
            "zmq: a proxy that is started here reads its keys from a directory, so that its secret is in no list of "
            "processes: say curve: {directory: PATH}, or start_proxy: false and start it by hand."
        )
    return _checked(Keys(**{name: given.get(name, "") for name in KEY_FILES}), "the topology"), ""


def read_keys(directory: Path) -> Keys:
    """The keys of a directory; `server_secret_key` may be missing where no proxy is started."""
    found = {}
    for name in KEY_FILES:
        path = directory / name
        try:
            if name.endswith("secret_key") and path.stat().st_mode & 0o077:
                raise ConfigurationError(f"zmq: others may read {path}; say chmod 600 {path}.")
            found[name] = path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            if name != "server_secret_key":
                raise ConfigurationError(
                    f"zmq: there is no {path}. Keys are made where the proxy is started (start_proxy: true); copy "
                    f"all but server_secret_key of that directory to the other machines."
                ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"zmq: {path} cannot be read: {error}.") from error
    return _checked(Keys(**found), str(directory))


def make_keys(directory: Path) -> None:
    """Two new pairs, secrets for their owner alone; nothing where there are some. Several may do it at once."""
    import zmq

    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (directory / KEY_FILES[-1]).exists():
        return
    public, secret = zmq.curve_keypair()
    client_public, client_secret = zmq.curve_keypair()
    values = dict(zip(KEY_FILES, (public, secret, client_public, client_secret), strict=True))
    fresh = directory / f".new-{os.getpid()}"
    fresh.mkdir(mode=0o700)
    try:
        for name, value in values.items():
            descriptor = os.open(fresh / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(value + b"\n")
        for name in values:  # `link` fails where there is one: of several that make keys the first one's hold
            try:
                os.link(fresh / name, directory / name)
            except FileExistsError:
                break
    finally:
        for name in values:
            (fresh / name).unlink(missing_ok=True)
        fresh.rmdir()


def _checked(keys: Keys, where: str) -> Keys:
    for name in KEY_FILES:
        value = getattr(keys, name)
        if value and len(value) != KEY_CHARS:
            raise ConfigurationError(
                f"zmq: {name} in {where} has {len(value)} characters; a CURVE key has {KEY_CHARS}."
            )
    return keys
