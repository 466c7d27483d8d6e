"""What the environment says: Civitas's `Settings`, and the variables that stand in for options and topology keys.

The order for everything that may be said in several places: option of a command or argument of a function, environment,
topology, default. `civitas-shm config show --origin` prints what holds and who said it.

Rules of this file: plain values without pydantic, because any process may import it; a variable that is set to the
empty text is not set; what is wrong is said with the variable's name; keys are never shown.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Literal

from .errors import ConfigurationError
from .topology.bridged import LINKS, asked_for, nats_at, nats_url_problem
from .topology.model import TopologySpec
from .topology.suggest import did_you_mean
from .transport import known_transports

__all__ = ["VARIABLES", "SecretStr", "Settings", "settings", "transport_of", "with_environment", "workers_of"]

TRANSPORT: Final = "CIVITAS_SHM_TRANSPORT"
WORKERS: Final = "CIVITAS_SHM_WORKERS"
SERIALIZERS: Final = ("msgpack", "json")

VARIABLES: Final[dict[str, str]] = {
    TRANSPORT: "`transport: {type}`",
    WORKERS: "`pool: {size}`, and lowers `replicas` as `--workers` does",
    "CIVITAS_SHM_LOG_LEVEL": "`logging: {level}`",
    "LOG_LEVEL": "the same; `CIVITAS_SHM_LOG_LEVEL` goes before it",
    "CIVITAS_SHM_LOG_FORMAT": "`logging: {format}`",
    "CIVITAS_SHM_DIR": "where the run directories are; else `XDG_RUNTIME_DIR/civitas_shm`, else `/tmp/civitas_shm-UID`",
    "CIVITAS_SHM_DEBUG": "not empty: an error of the command line shows its traceback",
    "CIVITAS_SHM_SERIALIZER": "`Settings.serializer`: `msgpack` or `json`, where a `ComponentSet` is given none",
    "AGENCY_SERIALIZER": "Civitas's name for it; `CIVITAS_SHM_SERIALIZER` goes before it",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "`Settings.otel_endpoint`, and what your OpenTelemetry SDK makes of it",
    "NATS_URL": "`bridge: {servers}` of a bridge over NATS, and `Settings.nats_url`; `--nats-url` goes before it",
    "ANTHROPIC_API_KEY": "key of `type: anthropic` where its `config` has none",
    "OPENAI_API_KEY": "key of `type: openai` where its `config` has none",
    "CIVITAS_STATE_KEY": "key of an encrypted state store that is given none",
    "GEMINI_API_KEY": "`Settings.gemini_api_key`, for a topology that names it: `api_key: ${GEMINI_API_KEY}`",
    "FIDDLER_API_KEY": "`Settings.fiddler_api_key`, for an exporter of your own",
}
"""Every variable that is read by name, with what it says (docs/cli.md). Any other may stand in `${NAME}`."""


class SecretStr:
    """A text that is not shown: `repr` and `str` hide it, `get_secret_value()` gives it. As pydantic's."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def get_secret_value(self) -> str:
        """The text itself."""
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretStr) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __len__(self) -> int:
        return len(self._value)

    def __str__(self) -> str:
        return "**********" if self._value else ""

    def __repr__(self) -> str:
        return f"SecretStr('{self}')"

    def __reduce__(self) -> Any:
        raise TypeError("a SecretStr is not copied into files or messages; hand over get_secret_value() on purpose")


class Settings:
    """The environment, read once. ConfigurationError when a variable says what cannot be."""

    serializer: Literal["msgpack", "json"]
    otel_endpoint: str | None
    nats_url: str
    anthropic_api_key: SecretStr | None
    openai_api_key: SecretStr | None
    gemini_api_key: SecretStr | None
    fiddler_api_key: SecretStr | None

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        """`env`: instead of `os.environ`."""
        environ = os.environ if env is None else env
        self.serializer = _serializer(environ)
        self.otel_endpoint = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None
        self.nats_url = environ.get("NATS_URL") or "nats://localhost:4222"
        for provider in ("anthropic", "openai", "gemini", "fiddler"):
            key = environ.get(f"{provider.upper()}_API_KEY")
            setattr(self, f"{provider}_api_key", SecretStr(key) if key else None)

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


def _serializer(environ: Mapping[str, str]) -> Literal["msgpack", "json"]:
    for variable in ("CIVITAS_SHM_SERIALIZER", "AGENCY_SERIALIZER"):
        word = environ.get(variable, "")
        if word:
            if word.lower() not in SERIALIZERS:
                raise ConfigurationError(f"{variable} is {word!r}{did_you_mean(word, SERIALIZERS)}.")
            return "json" if word.lower() == "json" else "msgpack"
    return "msgpack"


def transport_of(environ: Mapping[str, str]) -> str | None:
    """The transport that the environment asks for, or None. ConfigurationError when this installation has none such."""
    word = environ.get(TRANSPORT) or None
    if word is not None and "." not in word:
        known = [*known_transports(), *LINKS]
        if word not in known:
            raise ConfigurationError(f"{TRANSPORT} is {word!r}{did_you_mean(word, known)}.")
    return word


def workers_of(environ: Mapping[str, str]) -> int | None:
    """How many processes the environment wants in the pool, or None."""
    text = environ.get(WORKERS, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= WORKERS_MAX:
        raise ConfigurationError(f"{WORKERS} is {text!r}; it must be a whole number from 1 to {WORKERS_MAX}.")
    return int(text)


WORKERS_MAX: Final = 126
"""Processes of a pool: a run has 128, host and program included."""


def with_environment(
    spec: TopologySpec,
    environ: Mapping[str, str],
    asked_transport: str | None = None,
    asked_nats_url: str | None = None,
) -> TopologySpec:
    """The topology as the environment changes it: transport and NATS servers, unless they are asked for, log level and
    log format."""
    transport = asked_transport or transport_of(environ)
    if transport is not None:
        spec = asked_for(spec, transport)
    if url := asked_nats_url or environ.get("NATS_URL"):
        if problem := nats_url_problem(url):
            raise ConfigurationError(f"{'--nats-url' if asked_nats_url else 'NATS_URL'}: {problem}.")
        spec = nats_at(spec, url)
    return replace(spec, logging=spec.logging.overridden(environ))


settings: Settings
"""As Civitas has it. Read when it is first asked for: an import that fails over the environment helps nobody."""


def __getattr__(name: str) -> Any:
    if name != "settings":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()["settings"] = Settings()
    return value
