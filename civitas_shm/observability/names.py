"""Names of spans and attributes, in one place because the GenAI conventions of OpenTelemetry still change.

`gen_ai.*` follow the semantic conventions (status "Development" in 2026-11); `llm.cost_usd` and `civitas.*` are those
of Civitas.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "AGENT",
    "COST_USD",
    "LLM_CHAT",
    "MODEL",
    "OPERATION",
    "PROVIDER",
    "RETRIES",
    "STATUS",
    "TOKENS_IN",
    "TOKENS_OUT",
    "TOOL_CALL",
    "TOOL_NAME",
]

LLM_CHAT: Final = "civitas.llm.chat"
TOOL_CALL: Final = "civitas.tool.invoke"

AGENT: Final = "civitas.agent"
STATUS: Final = "civitas.tool.status"
RETRIES: Final = "civitas.llm.retries"
COST_USD: Final = "llm.cost_usd"

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
MODEL: Final = "gen_ai.request.model"
TOKENS_IN: Final = "gen_ai.usage.input_tokens"
TOKENS_OUT: Final = "gen_ai.usage.output_tokens"
TOOL_NAME: Final = "gen_ai.tool.name"
