"""A fake model service for each test, and the providers that talk to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from civitas_shm.plugins.loader import load_plugin
from civitas_shm.testing.models import FakeModelServer

KEY = "sk-test-0123456789"


@pytest.fixture
def server() -> Iterator[FakeModelServer]:
    with FakeModelServer() as running:
        yield running


MakeProvider = Callable[..., Any]

PROVIDERS = {
    "anthropic": ("anthropic", "claude-sonnet-4-6", ""),
    "openai": ("openai", "gpt-4.1", "/v1"),
    "civitas_shm.plugins.litellm.LiteLLMProvider": ("litellm", "openai/gpt-4.1", "/v1"),
}
"""Type -> package, model, path behind the server's address."""


@pytest.fixture(params=PROVIDERS)
def make(request: pytest.FixtureRequest, server: FakeModelServer, monkeypatch: pytest.MonkeyPatch) -> MakeProvider:
    """`make(**config)`: a provider that talks to the server. A package that is not there: a skip, in CI a failure."""
    package, model, path = PROVIDERS[request.param]
    try:
        __import__(package)
    except ImportError:
        text = f'{package} is not installed; pip install "civitas-shm[test]"'
        if os.environ.get("CI") == "true" and package != "litellm":
            pytest.fail(text)
        pytest.skip(text)
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_BASE_URL", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def build(**config: Any) -> Any:
        given = {"default_model": model, "api_key": KEY, "base_url": server.url + path, "timeout_s": 30} | config
        return load_plugin("model", request.param, given)

    return build
