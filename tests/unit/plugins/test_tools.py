"""ToolRegistry."""

from __future__ import annotations

from typing import Any

import pytest

from civitas_shm.plugins.tools import ToolProvider, ToolRegistry


class Tool:
    def __init__(self, name: str) -> None:
        self.name = name
        self.schema: dict[str, Any] = {}

    async def execute(self, **arguments: Any) -> Any:
        return arguments


def test_tools_are_found_by_name_in_the_order_in_which_they_came() -> None:
    a, b = Tool("a"), Tool("b")
    registry = ToolRegistry([b])
    registry.register(a)
    assert isinstance(a, ToolProvider)
    assert registry.names() == ["b", "a"]
    assert registry.list_tools() == [b, a]
    assert registry.get("a") is a
    assert registry.get("c") is None
    assert "a" in registry
    assert len(registry) == 2


def test_a_second_tool_of_that_name_is_refused() -> None:
    registry = ToolRegistry([Tool("a")])
    with pytest.raises(ValueError, match="there is a tool 'a' already"):
        registry.register(Tool("a"))


def test_what_is_no_tool_is_refused() -> None:
    with pytest.raises(TypeError, match="is no tool: it needs name, schema and async execute"):
        ToolRegistry([object()])  # type: ignore[list-item]


def test_tools_are_removed_by_name_and_by_prefix() -> None:
    registry = ToolRegistry([Tool("mcp://a/x"), Tool("mcp://a/y"), Tool("mcp://b/x"), Tool("z")])
    registry.deregister("z")
    registry.deregister("not there")
    registry.deregister_prefix("mcp://a/")
    assert registry.names() == ["mcp://b/x"]
