"""AgentProcess by itself: construction, and what it says when it is used where it does not run."""

from __future__ import annotations

from typing import Any

import pytest

from civitas_shm.errors import MessageValidationError
from civitas_shm.messages import Message, new_header
from civitas_shm.process import HANDLED, AgentProcess, ProcessStatus


class Agent(AgentProcess):
    def __init__(self, name: str, items: list[int], *, factor: int = 1, **rest: Any) -> None:
        super().__init__(name, **rest)
        self.items = items
        self.factor = factor


def test_an_agent_begins_with_empty_state_and_its_own_logger() -> None:
    agent = AgentProcess("a")
    assert (agent.state, agent.config, agent.status) == ({}, {}, ProcessStatus.INITIALIZING)
    assert agent.log.name == "civitas_shm.agent.a"
    assert agent.id != AgentProcess("a").id


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": ""}, "name"),
        ({"name": 7}, "name"),
        ({"name": "a", "mailbox_size": 0}, "mailbox_size of 'a' is 0"),
        ({"name": "a", "max_retries": -1}, "max_retries of 'a' is -1"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AgentProcess(**arguments)


def test_the_process_is_chosen_by_class_instance_or_keyword() -> None:
    class Pinned(AgentProcess):
        process = "w1"

    assert Pinned("a").process == "w1"
    assert Pinned("a", process="w2").process == "w2"
    agent = Pinned("a")
    agent.process = "main"
    assert agent.process == "main"
    assert AgentProcess("a").process is None


def test_a_reborn_agent_is_a_new_object_from_the_same_constructor_call() -> None:
    agent = Agent("a", [1, 2], factor=3, mailbox_size=7, process="w1")
    agent.state["spoiled"] = True
    agent.factor = 99
    agent.config = {"k": 1}
    agent.process = "w2"
    again = agent.reborn()
    assert again is not agent
    assert type(again) is Agent
    assert (again.items, again.factor, again.mailbox_size) == ([1, 2], 3, 7)
    assert again.state == {}
    assert (again.config, again.process) == ({"k": 1}, "w2")


@pytest.mark.parametrize("call", ["send", "ask"])
def test_an_agent_that_does_not_run_says_so(call: str) -> None:
    with pytest.raises(RuntimeError, match="agent 'a' is not running"):
        getattr(AgentProcess("a"), call)("b", {})


def test_reply_outside_of_handle_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="inside of handle"):
        AgentProcess("a").reply({})


@pytest.fixture
def handled() -> Any:
    message = Message.received(new_header(correlation=5), "question", "b", "a", {}, 1)
    token = HANDLED.set(message)
    yield message
    HANDLED.reset(token)


def test_a_replys_type_comes_from_the_payload_if_it_is_text(handled: Message) -> None:
    agent = AgentProcess("a")
    assert agent.reply({}).type == "reply"
    assert agent.reply({"type": "answer"}).type == "answer"
    assert agent.reply({"type": 7}).type == "reply"
    assert agent.reply({}).correlation_id == handled.correlation_id


def test_a_reply_cannot_pretend_to_come_from_the_runtime(handled: Message) -> None:
    with pytest.raises(MessageValidationError, match=r"_agency\.shutdown"):
        AgentProcess("a").reply({"type": "_agency.shutdown"})
