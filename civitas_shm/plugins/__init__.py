"""Plug-ins: what agents use and the core does not know: models, tools, receivers of spans, stores of state.

`model`, `tools`, `state` and `observability.spans.ExportBackend` are the protocols; `loader` finds and checks classes;
`equipment` is what an agent sees (`self.llm`, `self.tools`); `anthropic`, `openai` and `litellm` are providers.

Rules of this package: a plug-in is built in the process that uses it, when it is first used, and never in the host,
which runs no user code; nothing here imports a vendor's package before that.
"""
