"""What the environment says, and what goes before what."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import civitas_shm.config as config
from civitas_shm import AgentProcess, Message, Runtime
from civitas_shm.config import VARIABLES, SecretStr, Settings, transport_of, with_environment, workers_of
from civitas_shm.errors import ConfigurationError, TopologyError
from civitas_shm.topology.load import load_topology_text
from civitas_shm.topology.model import LoggingSpec, TopologySpec, TransportSpec
from civitas_shm.topology.parts import only_process

ROOT = Path(__file__).parents[2]


def test_settings_have_the_defaults_of_civitas() -> None:
    settings = Settings({})
    assert (settings.serializer, settings.otel_endpoint) == ("msgpack", None)
    assert settings.nats_url == "nats://localhost:4222"
    assert settings.anthropic_api_key is settings.openai_api_key is settings.gemini_api_key is None
    assert settings.fiddler_api_key is None


def test_settings_say_what_the_environment_says() -> None:
    settings = Settings(
        {
            "AGENCY_SERIALIZER": "JSON",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://o:4317",
            "NATS_URL": "nats://n",
            "OPENAI_API_KEY": "k",
        }
    )
    assert (settings.serializer, settings.otel_endpoint, settings.nats_url) == ("json", "http://o:4317", "nats://n")
    assert settings.openai_api_key == SecretStr("k")
    assert Settings({"AGENCY_SERIALIZER": "json", "CIVITAS_SHM_SERIALIZER": "msgpack"}).serializer == "msgpack"
    assert Settings({"AGENCY_SERIALIZER": ""}).serializer == "msgpack"


def test_an_unknown_serializer_is_refused_by_the_name_of_its_variable() -> None:
    with pytest.raises(ConfigurationError, match="AGENCY_SERIALIZER is 'mspgack'; did you mean 'msgpack'"):
        Settings({"AGENCY_SERIALIZER": "mspgack"})


def test_the_settings_of_the_process_are_read_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(config, "settings", raising=False)
    monkeypatch.setenv("AGENCY_SERIALIZER", "json")
    assert config.settings.serializer == "json"
    monkeypatch.delattr(config, "settings")
    with pytest.raises(AttributeError, match="setings"):
        _ = config.setings  # type: ignore[attr-defined]


def test_a_key_is_not_shown_and_not_copied() -> None:
    key = SecretStr("canary-1")
    assert key.get_secret_value() == "canary-1"
    settings = Settings({"GEMINI_API_KEY": "canary-1"})
    assert "canary" not in f"{key} {key!r} {settings!r} {vars(settings)}"
    assert (len(key), key == SecretStr("canary-1"), key == "canary-1", hash(key)) == (8, True, False, hash("canary-1"))
    with pytest.raises(TypeError, match="get_secret_value"):
        pickle.dumps(key)


def test_the_environment_goes_before_the_topology_and_options_before_both() -> None:
    spec = TopologySpec(transport=TransportSpec("in_process", arena_mb=7), logging=LoggingSpec("ERROR", {"a": "DEBUG"}))
    assert with_environment(spec, {}) == spec
    environ = {"CIVITAS_SHM_TRANSPORT": "shm", "LOG_LEVEL": "info", "CIVITAS_SHM_LOG_FORMAT": "json"}
    changed = with_environment(spec, environ)
    assert changed.transport == TransportSpec("shm", arena_mb=7)
    assert changed.logging == LoggingSpec("INFO", {"a": "DEBUG"}, "json")
    assert with_environment(spec, environ, "in_process").transport.type == "in_process"
    assert with_environment(spec, environ | {"CIVITAS_SHM_LOG_LEVEL": "debug"}).logging.level == "DEBUG"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"CIVITAS_SHM_TRANSPORT": "smh"}, "CIVITAS_SHM_TRANSPORT is 'smh'; did you mean 'shm'"),
        ({"CIVITAS_SHM_LOG_LEVEL": "loud"}, "CIVITAS_SHM_LOG_LEVEL is 'loud'; allowed: DEBUG"),
        ({"CIVITAS_SHM_LOG_FORMAT": "xml"}, "CIVITAS_SHM_LOG_FORMAT is 'xml'; allowed: text, json"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_of_its_variable(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        with_environment(TopologySpec(), environ)


def test_a_transport_of_ones_own_is_an_import_path_in_the_environment_too() -> None:
    assert transport_of({"CIVITAS_SHM_TRANSPORT": "my.own"}) == "my.own"


def test_workers_are_a_number() -> None:
    assert [workers_of({"CIVITAS_SHM_WORKERS": text}) for text in ("", "1", "126")] == [None, 1, 126]
    for text in ("0", "127", "-1", "two", "1.5", "٣", "9" * 50):
        with pytest.raises(ConfigurationError, match="CIVITAS_SHM_WORKERS is"):
            workers_of({"CIVITAS_SHM_WORKERS": text})


# --- a runtime from data ----------------------------------------------------------------------------------------------


class Echo(AgentProcess):
    async def handle(self, message: Message) -> Message:
        return self.reply({"config": self.config, "said": message.payload["say"]})


def system(**agent: Any) -> dict[str, Any]:
    return {"supervision": {"children": [{"agent": {"name": "echo", "type": "Echo", **agent}}]}}


def test_a_topology_in_a_dict_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAID", "hello")

    async def scenario() -> dict[str, Any]:
        async with Runtime.from_config_dict(system(config={"a": "${SAID}"}), {"Echo": Echo}) as runtime:
            return (await runtime.ask("echo", {"say": 1})).payload

    assert asyncio.run(scenario()) == {"config": {"a": "hello"}, "said": 1}


def test_a_dict_is_checked_as_a_file_is() -> None:
    with pytest.raises(TopologyError, match=r"agent\.replcas: unknown key 'replcas'; did you mean 'replicas'"):
        Runtime.from_config_dict(system(replcas=2), {"Echo": Echo})


def test_the_environment_goes_before_a_dict_and_an_argument_before_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIVITAS_SHM_TRANSPORT", "shm")
    monkeypatch.setenv("CIVITAS_SHM_WORKERS", "3")
    runtime = Runtime.from_config_dict(system() | {"transport": "in_process"}, {"Echo": Echo})
    assert (runtime._given.transport.type, runtime._workers) == ("shm", 3)
    asked = Runtime.from_config_dict(system(), {"Echo": Echo}, transport="in_process", workers=2)
    assert (asked._given.transport.type, asked._workers) == ("in_process", 2)


def test_a_part_of_a_topology_is_the_agents_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_topology_text(
        "supervision: {children: [{name: a, type: m.A, process: w}, {name: b, type: m.B}, "
        "supervisor: {name: s, children: [{name: c, type: m.C, process: w}]}, {type: dynamic_supervisor, name: d}]}"
    )
    assert only_process(spec, "*") is spec
    assert [agent.name for agent in only_process(spec, "w").supervision.agents()] == ["a", "c"]
    untagged = only_process(spec, None).supervision
    assert ([agent.name for agent in untagged.agents()], len(untagged.dynamic_supervisors())) == (["b"], 1)
    assert [one.name for one in untagged.all_supervisors()] == ["root", "d"]
    with pytest.raises(ConfigurationError, match="process_filter='v': no agent has process 'v'; allowed: w"):
        only_process(spec, "v")
    config_ = system(process="w")
    with pytest.raises(ConfigurationError, match="every agent names a process"):
        Runtime.from_config_dict(config_, {"Echo": Echo}, process_filter=None)


# --- documents --------------------------------------------------------------------------------------------------------


def test_the_table_of_variables_in_the_documents_is_the_one_of_the_source() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for variable, meaning in VARIABLES.items():
        assert f"| `{variable}` | {meaning} |" in text, variable


def test_every_variable_that_is_read_by_name_is_in_the_table() -> None:
    """Less those of the system and of the service manager, and our own marks between processes."""
    others = {
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "XDG_RUNTIME_DIR",
        "CIVITAS_SHM_ARGV",
        "OPENAI_BASE_URL",
    }
    others |= {"CIVITAS_SHM_RUN", "CIVITAS_SHM_WORKER", "CIVITAS_SHM_CGROUP", "CIVITAS_SHM_TEST_SESSION"}
    others |= {"LOG_LEVELS", "LOG_BYTES_MAX"}  # names in Python
    command = [
        "grep",
        "-rhoE",
        r'"(CIVITAS_|AGENCY_|NATS_|OTEL_|LOG_)[A-Z_]+"',
        "civitas_shm",
        "transports",
        "--include=*.py",
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {name.strip('"') for name in found} - others <= set(VARIABLES)


def test_settings_cost_no_pydantic() -> None:
    code = "import civitas_shm.config, sys; print([m for m in ('yaml', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_nats_url_goes_before_the_topology_and_an_option_before_both() -> None:
    spec = load_topology_text(
        "transport: {type: nats, servers: 'nats://file:1', token: t}\nsupervision: {children: [{name: a, type: m.A}]}"
    )

    def servers(environ: dict[str, str], **asked: str) -> object:
        bridge = with_environment(spec, environ, **asked).bridge
        assert bridge is not None
        assert bridge.options["token"] == "t"
        return bridge.options["servers"]

    assert servers({}) == "nats://file:1"
    assert servers({"NATS_URL": "nats://environment:2"}) == "nats://environment:2"
    assert servers({"NATS_URL": "nats://environment:2"}, asked_nats_url="tls://flag:3") == "tls://flag:3"
    assert with_environment(spec, {}, "shm").bridge is None
    with pytest.raises(ConfigurationError, match="NATS_URL: 'x:y' is no address"):
        with_environment(spec, {"NATS_URL": "x:y"})
