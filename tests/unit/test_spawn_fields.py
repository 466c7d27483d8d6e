"""What a spawn hands over: all that a class says of itself, and nothing that its constructor would set."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import msgspec
import pytest

from civitas_shm.errors import SpawnError
from civitas_shm.process import AgentProcess
from civitas_shm.spawning import spawn_fields
from civitas_shm.topology.model import AgentSpec


class Special(AgentProcess):
    process = "main"
    overflow = "latest"
    delivery = "at_most_once"
    max_deliveries = 7
    on_crash = "redeliver"
    state_storage = "shm"

    def __init__(self, name: str) -> None:
        raise AssertionError("nobody builds it here")


def request(kind: Any = Special, name: str = "x", config: Any = None, **how: Any) -> dict[str, Any]:
    given = {"supervisor": None, "wait": True, "process": None, "restart": None, "kwargs": None, "mailbox_size": 1000}
    return spawn_fields(kind, name, config, **{**given, **how})  # type: ignore[arg-type]


def test_what_the_class_says_arrives() -> None:
    spec = msgspec.convert(request()["spec"], AgentSpec)
    plain = AgentSpec("x", spec.type)
    different = {field.name for field in fields(AgentSpec) if getattr(spec, field.name) != getattr(plain, field.name)}
    assert different == {"process", "overflow", "delivery", "max_deliveries", "on_crash", "state", "restart"}
    assert (spec.overflow, spec.delivery, spec.max_deliveries) == ("latest", "at_most_once", 7)
    assert (spec.on_crash, spec.state, spec.process) == ("redeliver", "shm", "main")


def test_what_the_call_says_goes_before_the_class() -> None:
    fields = request(config={"a": 1}, process="w1", restart="never", kwargs={"b": 2}, mailbox_size=5, supervisor="pool")
    spec = msgspec.convert(fields["spec"], AgentSpec)
    assert (spec.process, spec.restart, spec.mailbox_size) == ("w1", "temporary", 5)
    assert (spec.config, spec.kwargs, fields["supervisor"], fields["restart"]) == ({"a": 1}, {"b": 2}, "pool", "never")


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"kind": object}, "no subclass of AgentProcess"),
        ({"kind": "Special"}, "no subclass of AgentProcess"),
        ({"name": ""}, "is no name"),
        ({"name": 5}, "a name must be str, not int"),
        ({"name": "a b"}, "letters, digits"),
        ({"restart": "often"}, "restart is 'often'"),
        ({"config": {"a": object()}}, "config of 'x'.a"),
        ({"kwargs": {"a": (1,)}}, "kwargs of 'x'.a"),
    ],
)
def test_what_can_never_be_spawned_is_refused_before_anybody_is_asked(how: dict[str, Any], text: str) -> None:
    with pytest.raises(SpawnError, match=text):
        request(**how)


def test_a_class_that_no_other_process_can_import_is_refused() -> None:
    class Local(AgentProcess):
        pass

    with pytest.raises(SpawnError, match="inside of a function"):
        request(Local)
