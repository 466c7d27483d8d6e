"""Tools that a model may call, and the registry that an agent finds them in.

class Search:
    name = "search"
    schema = {"description": "Search the web.", "input_schema": {"type": "object", ...}}

    async def execute(self, query: str) -> dict: ...

for call in response.tool_calls or []:
    tool = self.tools.get(call.name)
    messages.append(call.result(await tool.execute(**call.input)))
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

__all__ = ["ToolProvider", "ToolRegistry"]


@runtime_checkable
class ToolProvider(Protocol):
    """One tool. One object serves all agents of a process, concurrently."""

    @property
    def name(self) -> str:
        """Unique in a registry."""
        ...

    @property
    def schema(self) -> dict[str, Any]:
        """`description` and `input_schema` (JSON schema of the arguments); or that JSON schema alone."""
        ...

    async def execute(self, **arguments: Any) -> Any:
        """Do it. The arguments come from a model: do not trust them. Raises what it likes."""
        ...


class ToolRegistry:
    """Tools by name. An agent's own registry holds what the topology declares and what the agent adds."""

    def __init__(self, tools: list[ToolProvider] | None = None) -> None:
        self._tools: dict[str, ToolProvider] = {}
        for tool in tools or ():
            self.register(tool)

    def register(self, tool: ToolProvider) -> None:
        """Add a tool. ValueError when there is one of that name; TypeError when it is none."""
        if not isinstance(tool, ToolProvider):
            raise TypeError(f"{tool!r} is no tool: it needs name, schema and async execute(**arguments)")
        if tool.name in self._tools:
            raise ValueError(f"there is a tool {tool.name!r} already; deregister it first, or name this one otherwise")
        self._tools[tool.name] = tool

    def deregister(self, name: str) -> None:
        """Remove a tool; nothing happens when there is none."""
        self._tools.pop(name, None)

    def deregister_prefix(self, prefix: str) -> None:
        """Remove all whose name begins so: those of one server, for example."""
        for name in [name for name in self._tools if name.startswith(prefix)]:
            del self._tools[name]

    def get(self, name: str) -> ToolProvider | None:
        """The tool, or None."""
        return self._tools.get(name)

    def list_tools(self) -> list[ToolProvider]:
        """All, in the order in which they were added: what `chat(tools=...)` takes."""
        return list(self._tools.values())

    def names(self) -> list[str]:
        """The names, in the same order."""
        return list(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __len__(self) -> int:
        return len(self._tools)
