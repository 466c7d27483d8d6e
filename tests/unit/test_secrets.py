"""Where secrets come from, and that what a provider gave is kept as one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from civitas_shm import AgentProcess, Message, Runtime, SecretsProvider, substitute_vars
from civitas_shm.errors import ConfigurationError, TopologyError
from civitas_shm.secrets import EnvSecretsProvider, FileSecretsProvider, SecretsFirst
from civitas_shm.topology.load import load_topology_data
from civitas_shm.topology.secrecy import secrets_of_agent


class Mine:
    """Nothing is inherited."""

    def get(self, name: str) -> str | None:
        return {"STREET": "canary-street"}.get(name)

    def require(self, name: str) -> str:
        value = self.get(name)
        assert value is not None
        return value


def test_the_protocol_is_structural_and_what_is_no_provider_is_refused(tmp_path: Path) -> None:
    for provider in (Mine(), EnvSecretsProvider({}), FileSecretsProvider(tmp_path / "x")):
        assert isinstance(provider, SecretsProvider)
    assert not isinstance({}, SecretsProvider)
    with pytest.raises(ConfigurationError, match=r"secrets= is a dict; it needs the methods get\(name\) and require"):
        Runtime.from_config_dict({}, secrets={})  # type: ignore[arg-type]


def test_the_environment_as_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIVITAS_TEST_SECRET", "canary-env")
    assert EnvSecretsProvider().require("CIVITAS_TEST_SECRET") == "canary-env"
    assert EnvSecretsProvider({"A": ""}).get("A") is None
    with pytest.raises(ConfigurationError, match="variable 'A' is not set"):
        EnvSecretsProvider({"A": ""}).require("A")


def test_a_file_of_lines_is_read_at_each_question(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    path.write_text("# of the team\n\nONE=1\n export TWO = ' a=b '\nTHREE=\"x\nONE=2\nNONE=\n", "utf-8")
    provider = FileSecretsProvider(path)
    assert [provider.get(name) for name in ("ONE", "TWO", "THREE", "NONE", "FOUR")] == ["2", " a=b ", '"x', None, None]
    path.write_text("FOUR=4")
    assert (provider.require("FOUR"), provider.get("ONE")) == ("4", None)
    with pytest.raises(ConfigurationError, match=r"secrets has no line ONE=\.\.\."):
        provider.require("ONE")


def test_what_is_no_file_of_secrets_is_refused_without_a_value(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    with pytest.raises(ConfigurationError, match="No such file"):
        FileSecretsProvider(path).get("A")
    for data in (b"A=1\ncanary value\n", b"A=1\ncanary x=2\n", b"\xff\xfe canary"):
        path.write_bytes(data)
        with pytest.raises(ConfigurationError, match=r"not NAME=value|not UTF-8") as caught:
            FileSecretsProvider(path).get("A")
        assert "canary" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_variables_are_put_into_plain_data() -> None:
    data = {"a": "${X}/${Y:-z}", "${X}": ["$${X}", ("${X}", 1)], "n": None}
    assert substitute_vars(data, {"X": "1", "Y": ""}) == {"a": "1/z", "${X}": ["${X}", ("1", 1)], "n": None}
    assert data["a"] == "${X}/${Y:-z}", "a copy"


def test_all_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        substitute_vars({"a": "${ONE}", "b": ["${TWO}", "${ONE}"], "c": "${no name}"}, {})
    assert [name in str(caught.value) for name in ("'ONE'", "'TWO'", "'${no name}' is no variable")] == [True] * 3
    assert str(caught.value).count("'ONE'") == 1


def test_a_topology_takes_its_variables_from_a_provider_first_and_keeps_them_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Teller(AgentProcess):
        async def handle(self, message: Message) -> Message:
            return self.reply({"config": self.config})

    config = {"street": "${STREET}", "town": "${TOWN}"}
    system = {"supervision": {"children": [{"agent": {"name": "a", "type": "Teller", "config": config}}]}}
    monkeypatch.setenv("STREET", "of the environment")
    monkeypatch.setenv("TOWN", "canary-none")

    async def scene() -> dict[str, str]:
        async with Runtime.from_config_dict(system, {"Teller": Teller}, secrets=Mine()) as runtime:
            said: dict[str, str] = (await runtime.call("a", {}))["config"]
            return said

    assert asyncio.run(scene()) == {"street": "canary-street", "town": "canary-none"}
    spec = load_topology_data(system, agent_types=["Teller"], environment=SecretsFirst(Mine(), {"TOWN": "canary-none"}))
    (agent,) = spec.supervision.agents()
    assert secrets_of_agent(agent) == ["canary-street"], "its name does not say so; where it comes from does"
    with pytest.raises(TopologyError, match="'TOWN' is not set"):
        load_topology_data(system, agent_types=["Teller"], environment=SecretsFirst(Mine(), {}))
