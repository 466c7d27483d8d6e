"""A topology as it may be shown: plain data without what is secret, in which secrets can still be told apart.

    {"hidden": "6c1f0a9d4e2b8375"}          # in the place of a text; the same for the same secret and salt

Rules of this file: pure; whatever stands in `credentials`, behind a key whose name says so, or holds a text that came
from the environment as a secret, is hidden whole. The salt is random and goes along, so that two sides can compare what
neither shows, and nobody looks a secret up in a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..redaction import HIDDEN, SHORTEST, is_secret_name
from .model import TopologySpec

__all__ = ["NOT_SHOWN", "as_text", "show"]

NOT_SHOWN: Final = ("import_paths", "secrets", "private_variables")
"""No keys of a topology: they say where it was read."""

_DIGITS: Final = 16


def show(spec: TopologySpec, salt: str) -> dict[str, Any]:
    """The topology as plain data (`TopologySpec.to_plain`) that may be printed, logged and sent."""
    hide = _Hide(salt, spec.secrets)
    plain = {key: value for key, value in spec.to_plain().items() if key not in NOT_SHOWN}
    return plain | {
        "supervision": hide.tree(plain["supervision"]),
        "processes": [process | {"env": hide.free(process["env"])} for process in plain["processes"]],
        "transport": plain["transport"] | {"options": hide.free(plain["transport"]["options"])},
        "plugins": {
            kind: [
                plugin | {"config": hide.free(plugin["config"])} if "config" in plugin else plugin for plugin in each
            ]
            if isinstance(each, list)
            else hide.free(each)
            for kind, each in plain["plugins"].items()
        },
    }


def as_text(value: Any) -> Any:
    """The shown data with `***` for what is hidden: for people, and for `--json`."""
    if isinstance(value, Mapping):
        return HIDDEN if _is_hidden(value) else {key: as_text(item) for key, item in value.items()}
    return [as_text(item) for item in value] if isinstance(value, list) else value


def _is_hidden(value: Mapping[str, Any]) -> bool:
    return value.keys() == {"hidden"} and isinstance(value["hidden"], str) and len(value["hidden"]) == _DIGITS


class _Hide:
    def __init__(self, salt: str, secrets: Iterable[str]) -> None:
        self._salt = salt
        self._secrets = [secret for secret in secrets if len(secret) >= SHORTEST]

    def tree(self, supervisor: Mapping[str, Any]) -> dict[str, Any]:
        children = [self.tree(child) if "children" in child else self._agent(child) for child in supervisor["children"]]
        return {**supervisor, "children": children}

    def _agent(self, agent: Mapping[str, Any]) -> dict[str, Any]:
        free = {key: self.free(agent[key]) for key in ("args", "kwargs", "config", "capability_metadata")}
        credentials = {provider: self._hidden(key) for provider, key in agent["credentials"].items()}
        shown = {key: value for key, value in agent.items() if key not in NOT_SHOWN}
        return {**shown, **free, "credentials": credentials}

    def free(self, value: Any) -> Any:
        """User's own data."""
        if isinstance(value, Mapping):
            return {key: self._behind(str(key), item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.free(item) for item in value]
        if isinstance(value, str) and any(secret in value for secret in self._secrets):
            return self._hidden(value)
        return value

    def _behind(self, key: str, value: Any) -> Any:
        if not is_secret_name(key) or value is None or isinstance(value, bool):
            return self.free(value)
        if isinstance(value, Mapping):
            return {name: self._behind(key, item) for name, item in value.items()}
        return [self._behind(key, item) for item in value] if isinstance(value, list) else self._hidden(str(value))

    def _hidden(self, text: str) -> dict[str, str]:
        digest = hashlib.sha256(f"{self._salt}\0{text}".encode(errors="surrogatepass")).hexdigest()
        return {"hidden": digest[:_DIGITS]}
