"""`${VAR}` in the strings of a topology, and Civitas's `!ENV VAR`. `$${` stands for the two characters themselves.

    api_key: ${MODEL_KEY}              # must be set
    path: ${DATA:-/var/lib}/books      # where DATA is unset or empty, what is behind :-
    api_key: !ENV MODEL_KEY            # the same as ${MODEL_KEY}; !ENV "${A}-${B}" may hold several

Rules of this file: every string value, quoted or not, keys never; a variable that is not set is a problem, because an
empty text in its place would be found much later. What comes out is a `Variable`: the schema may read it as a number
where it wants one (quotes say nothing here: inside of braces YAML demands them); in an agent's `config` it is text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..redaction import is_secret_name
from ..secrets import NAME, REFERENCE, SecretsFirst, reference_problems, value_of
from .check import Checker
from .keytypes import Variable
from .yaml12 import EnvironmentTag, Path

__all__ = ["Variables"]


class Variables:
    """What is put into one document; problems go to the checker."""

    def __init__(self, checker: Checker, environment: Mapping[str, str], *, may_be_unset: bool = False) -> None:
        """`may_be_unset`: a variable that is not set is no problem, and nothing is said about what it stands in."""
        self._checker = checker
        self._environment = environment
        self._may_be_unset = may_be_unset
        self._used: dict[str, list[Path]] = {}

    def put_in(self, data: Any, path: Path = ()) -> Any:
        """The data with variables replaced."""
        if isinstance(data, dict):
            return {key: self.put_in(value, (*path, key)) for key, value in data.items()}
        if isinstance(data, list):
            return [self.put_in(value, (*path, index)) for index, value in enumerate(data)]
        if isinstance(data, EnvironmentTag) and "${" not in data:
            return self._text(f"${{{data}}}", path)
        return self._text(data, path) if isinstance(data, str) and "${" in data else data

    def secrets(self) -> list[str]:
        """Values that must not be shown: of variables, or behind keys, whose name says so; of all credentials; and what
        a provider of secrets gave."""
        found = {
            self._environment[name]
            for name, places in self._used.items()
            if name in self._environment
            and (
                is_secret_name(name)
                or (isinstance(self._environment, SecretsFirst) and self._environment.is_secret(name))
                or any(_private(place) or is_secret_name(_key(place)) for place in places)
            )
        }
        return sorted(found - {""})

    def private(self) -> list[str]:
        """Names of variables that only agents' credentials use: nobody else has to have them."""
        return sorted(name for name, places in self._used.items() if all(map(_private, places)))

    def _text(self, text: str, path: Path) -> Any:
        names = [match["name"] for match in REFERENCE.finditer(text) if not match["escaped"]]
        for name in filter(NAME.match, names):
            self._used.setdefault(name, []).append(path)
        problems = dict.fromkeys(reference_problems(text, self._environment, may_be_unset=self._may_be_unset))
        if problems:
            self._checker.at_value(path, "; ".join(problems))
        if reference_problems(text, self._environment):
            self._checker.unknown_values.add(path)
            return text
        return Variable(REFERENCE.sub(lambda match: value_of(match, self._environment), text))


def _private(path: Path) -> bool:
    return len(path) > 1 and path[-2] == "credentials"


def _key(path: Path) -> str:
    return next((part for part in reversed(path) if isinstance(part, str)), "")
