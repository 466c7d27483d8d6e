"""Which texts are secret, whose they are, and what a process says of them."""

from __future__ import annotations

import asyncio

import pytest

from civitas_shm import AgentError, AgentProcess, Message, Runtime
from civitas_shm.errors import AgentImportError
from civitas_shm.loading import construct
from civitas_shm.topology.load import load_topology_text
from civitas_shm.topology.model import AgentSpec, TopologySpec
from civitas_shm.topology.secrecy import secrets_of, secrets_of_agent

ENVIRONMENT = {"ONE": "canary-one", "A_TOKEN": "canary-token", "PATH_": "canary-none"}
TEXT = """\
transport: {type: my.own, options: {password: canary-options}}
processes: {w: {env: {DB_PASSWORD: canary-env, MODE: plain-text}}}
plugins: {models: [{type: m.X, config: {api_key: canary-plugin}}]}
supervision:
  children:
    - agent: {name: a, type: m.A, credentials: {x: "${ONE}"}, args: ["<${A_TOKEN}>"], config: {path: "${PATH_}"}}
    - agent: {name: b, type: m.B, kwargs: {deep: [{secret: canary-kwargs}]}}
"""


def spec() -> TopologySpec:
    return load_topology_text(TEXT, environment=ENVIRONMENT)


def test_each_agent_has_its_own_secrets_and_no_others() -> None:
    a, b = spec().supervision.agents()
    assert sorted(secrets_of_agent(a)) == ["canary-one", "canary-token"]
    assert secrets_of_agent(b) == ["canary-kwargs"]
    assert "canary-token" not in repr(AgentSpec("x", "m.X", secrets=a.secrets))


def test_host_and_program_know_all_of_them() -> None:
    assert set(secrets_of(spec())) == {
        f"canary-{what}" for what in ("one", "token", "options", "env", "plugin", "kwargs")
    }


@pytest.mark.parametrize(
    ("plugins", "private"),
    [
        ("", ["ANTHROPIC_API_KEY"]),
        ("plugins: {models: [{type: anthropic}]}\n", []),
        ("plugins: {models: [{type: anthropic, config: {api_key: other}}]}\n", ["ANTHROPIC_API_KEY"]),
        ("plugins: {models: [{type: m.X, config: {key: '${ANTHROPIC_API_KEY}'}}]}\n", []),
    ],
)
def test_a_variable_of_credentials_is_private_unless_something_else_reads_it(plugins: str, private: list[str]) -> None:
    text = f"{plugins}supervision: {{children: [{{name: a, type: m.A, credentials: {{x: '${{ANTHROPIC_API_KEY}}'}}}}]}}"
    assert load_topology_text(text, environment={"ANTHROPIC_API_KEY": "canary"}).private_variables == private


class Careless(AgentProcess):
    async def handle(self, message: Message) -> Message | None:
        raise RuntimeError(f"cannot log in with {self.get_credential('x')}")


def test_who_asks_an_agent_that_fails_over_its_key_does_not_learn_it(capfd: pytest.CaptureFixture[str]) -> None:
    node = {"name": "careless", "type": "Careless", "credentials": {"x": "canary-1234"}}
    config = {"supervision": {"children": [{"agent": node}]}}

    async def scenario() -> str:
        async with Runtime.from_config_dict(config, {"Careless": Careless}, log_format="text") as runtime:
            with pytest.raises(AgentError) as caught:
                await runtime.ask("careless", {})
            letters = [f"{letter.cause} {letter.traceback}" for letter in runtime.dead_letters()]
            return f"{caught.value} {caught.value.__dict__} {letters}"

    said = asyncio.run(scenario()) + "".join(capfd.readouterr())
    assert said.count("cannot log in with ***") >= 4, said
    assert "canary" not in said


class Refuses(AgentProcess):
    def __init__(self, name: str, password: str) -> None:
        raise ValueError(f"{password} is too short")


def test_a_constructor_that_fails_over_a_password_does_not_tell_it() -> None:
    with pytest.raises(AgentImportError) as caught:
        construct(Refuses, AgentSpec("a", "m.Refuses", kwargs={"password": "canary-1234"}))
    assert "password='***'" in str(caught.value)
    assert "*** is too short" in str(caught.value)
    assert "canary" not in str(caught.value)
