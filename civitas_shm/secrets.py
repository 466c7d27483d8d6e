"""Where secrets come from: Civitas's providers, and `${NAME}` in plain data.

    provider = FileSecretsProvider("/run/secrets/app")            # NAME=value lines, as docker and systemd hand over
    runtime = Runtime.from_config("topology.yaml", secrets=provider)
    config = substitute_vars({"api_key": "${MODEL_KEY}"}, {"MODEL_KEY": provider.require("MODEL_KEY")})

What a topology takes from a provider is secret whatever its name is: it is in no log, event or dump, and in no other
agent's process (`topology.secrecy`).

Rules of this file: a value is never part of an error's text, names are; files are read when they are asked, so that a
secret that was changed is the new one for the next run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from .errors import ConfigurationError

__all__ = ["EnvSecretsProvider", "FileSecretsProvider", "SecretsProvider", "substitute_vars"]

REFERENCE: Final = re.compile(
    r"\$(?P<escaped>\$\{)|\$\{(?P<name>[^}:]*)(?P<or>:-(?P<default>[^}]*))?(?P<rest>[^}]*)(?P<end>\}?)"
)
"""`${NAME}`, `${NAME:-default}`, and `$${` for the characters themselves."""
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@runtime_checkable
class SecretsProvider(Protocol):
    """Names to secrets. Both may block for as long as reading a file takes; a run asks before it starts only."""

    def get(self, name: str) -> str | None:
        """The secret of that name, or None."""
        ...

    def require(self, name: str) -> str:
        """The secret of that name; ConfigurationError, without any value, when there is none."""
        ...


class EnvSecretsProvider:
    """The environment of this process."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        """`env`: instead of `os.environ`."""
        self._env = os.environ if env is None else env

    def get(self, name: str) -> str | None:
        """The variable, or None; one that is set to the empty text is not set."""
        return self._env.get(name) or None

    def require(self, name: str) -> str:
        """The variable; ConfigurationError when it is not set."""
        value = self.get(name)
        if value is None:
            raise ConfigurationError(f"The environment variable {name!r} is not set; export {name}=...")
        return value


class FileSecretsProvider:
    """A file of `NAME=value` lines. Blank lines and those that begin with `#` say nothing, spaces around name and value
    and one pair of quotes around the value go; the last line of a name counts."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """The file is read at each question."""
        self._path = Path(path)

    def get(self, name: str) -> str | None:
        """The value of that name, or None. ConfigurationError: the file cannot be read, or a line is none."""
        return self._read().get(name) or None

    def require(self, name: str) -> str:
        """The value of that name; ConfigurationError when the file has none."""
        value = self.get(name)
        if value is None:
            raise ConfigurationError(f"{self._path} has no line {name}=...")
        return value

    def _read(self) -> dict[str, str]:
        try:
            lines = self._path.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ConfigurationError(f"The secrets in {self._path} cannot be read: {why}.") from None
        found: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            name, equals, value = line.partition("=")
            name, value = name.strip().removeprefix("export ").strip(), value.strip()
            if not equals or not NAME.match(name):
                raise ConfigurationError(f"{self._path}:{number}: this line is not NAME=value.")
            if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
                value = value[1:-1]
            found[name] = value
        return found


class SecretsFirst(Mapping[str, str]):
    """What `${NAME}` is looked up in: a provider's secrets, then the environment."""

    def __init__(self, provider: SecretsProvider, environment: Mapping[str, str]) -> None:
        if not isinstance(provider, SecretsProvider):
            raise ConfigurationError(
                f"secrets= is a {type(provider).__name__}; it needs the methods get(name) and require(name), as "
                "civitas_shm.secrets.FileSecretsProvider has them."
            )
        self._provider = provider
        self._environment = environment
        self._known: dict[str, str | None] = {}

    def is_secret(self, name: str) -> bool:
        """Whether it is the provider's."""
        return self._of_provider(name) is not None

    def _of_provider(self, name: str) -> str | None:
        if name not in self._known:
            self._known[name] = self._provider.get(name)
        return self._known[name]

    def __getitem__(self, name: str) -> str:
        value = self._of_provider(name)
        return self._environment[name] if value is None else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._environment)

    def __len__(self) -> int:
        return len(self._environment)


def substitute_vars(obj: Any, env: Mapping[str, str] | None = None) -> Any:
    """A copy of plain data with `${NAME}` in every string value replaced; keys never. `env`: instead of `os.environ`.

    `${NAME:-default}` where NAME is unset or empty; `$${` stands for the two characters. ConfigurationError names every
    variable that is not set, and what only looks like one.
    """
    environ = os.environ if env is None else env
    problems: dict[str, None] = {}
    result = _substituted(obj, environ, problems)
    if problems:
        raise ConfigurationError("; ".join(problems) + ".")
    return result


def _substituted(value: Any, env: Mapping[str, str], problems: dict[str, None]) -> Any:
    if isinstance(value, dict):
        return {key: _substituted(item, env, problems) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_substituted(item, env, problems) for item in value)
    if isinstance(value, str) and "${" in value:
        problems |= dict.fromkeys(reference_problems(value, env))
        return REFERENCE.sub(lambda match: value_of(match, env), value)
    return value


def reference_problems(text: str, env: Mapping[str, str], *, may_be_unset: bool = False) -> list[str]:
    """What stands in the way of putting variables into a text, as sentences without their full stop."""
    problems: list[str] = []
    for match in REFERENCE.finditer(text):
        name = match["name"]
        if match["escaped"]:
            continue
        if not match["end"] or match["rest"] or not NAME.match(name):
            problems.append(f"{match[0]!r} is no variable; write ${{NAME}}, or $${{ for the characters themselves")
        elif name not in env and match["or"] is None and not may_be_unset:
            problems.append(f"the environment variable {name!r} is not set; export {name}=...")
    return problems


def value_of(match: re.Match[str], env: Mapping[str, str]) -> str:
    """What stands in the place of one reference."""
    if match["escaped"]:
        return "${"
    value = env.get(match["name"], "")
    return value if match["or"] is None else value or match["default"]
