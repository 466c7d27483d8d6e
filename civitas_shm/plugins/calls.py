"""One call of a service, with its deadline and its retries: what all model providers have in common.

Guarantees:
- the deadline covers all tries and the waits between them; it ends in a builtin TimeoutError;
- a cancelled call is not tried again and leaves no request behind;
- what the vendor's package raises does not come out: it holds the request with its key. The error that comes out has
  its text, less every secret.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from ..errors import ModelError, ModelUnavailable, PluginError
from ..observability import names
from ..observability.context import OPEN_SPAN
from ..redaction import redact
from .retry import Failure, RetryPolicy, asked_wait_s, is_retryable, next_wait_s

__all__ = ["Caller", "Garbled", "explain", "import_vendor"]

log: Final = logging.getLogger("civitas_shm.plugins")

TEXT_CHARACTERS: Final = 500
"""Of what a service says; some answer an error with a whole web page."""

T = TypeVar("T")


class Garbled(Exception):
    """There was an answer, but not of the form that was agreed. Private to providers."""


class Caller:
    """Makes the calls of one provider. `explain` puts a vendor's exception into our words; None: it is no such."""

    def __init__(
        self,
        provider: str,
        policy: RetryPolicy,
        timeout_s: float,
        explain: Callable[[Exception], Failure | None],
        secrets: Callable[[], list[str | None]],
    ) -> None:
        if policy.max_retries < 0:
            raise ValueError(f"max_retries is {policy.max_retries}; it cannot be negative")
        if timeout_s <= 0:
            raise ValueError(f"timeout_s is {timeout_s}; a call needs some time")
        self._provider = provider
        self._policy = policy
        self._timeout_s = timeout_s
        self._explain = explain
        self._secrets = secrets

    async def call(self, model: str, attempt: Callable[[float], Awaitable[T]]) -> T:
        """The result of `attempt(seconds left)`. ModelError, ModelUnavailable, or TimeoutError at the deadline."""
        deadline_s = time.monotonic() + self._timeout_s
        retries = 0
        failure: Failure | None = None
        while True:
            left_s = deadline_s - time.monotonic()
            limit = asyncio.timeout(max(0.0, left_s))
            try:
                async with limit:
                    return await attempt(left_s)
            except Exception as error:
                if isinstance(error, TimeoutError) and limit.expired():
                    pass
                else:
                    failure = self._explain(error)
                    if failure is None:
                        raise
            if limit.expired():  # raised here, not above: there the vendor's exception would hang on to it
                raise self._late(model, failure)
            assert failure is not None
            left_s = deadline_s - time.monotonic()
            wait_s = next_wait_s(self._policy, failure, retries, left_s, time.time(), random.random())
            if wait_s is None:
                raise self._error(model, failure, retries)
            retries += 1
            self._note(failure, retries, wait_s)
            await asyncio.sleep(wait_s)

    def _note(self, failure: Failure, retries: int, wait_s: float) -> None:
        log.warning(
            "%s: %s (%s); retry %d of %d in %.3g s",
            self._provider, self._clean(failure.text), failure.status or failure.type_name, retries,
            self._policy.max_retries, wait_s,
        )  # fmt: skip
        span = OPEN_SPAN.get()
        if span is not None and span.name == names.LLM_CHAT:
            span.set_attribute(names.RETRIES, retries)

    def _late(self, model: str, failure: Failure | None) -> TimeoutError:
        last = "" if failure is None else f"; the last try failed: {self._clean(failure.text)}"
        return TimeoutError(f"{self._provider}, model {model!r}: no answer within {self._timeout_s:.3g} s{last}")

    def _error(self, model: str, failure: Failure, retries: int) -> ModelError:
        text = self._clean(failure.text)
        if not is_retryable(failure):
            return ModelError(
                self._provider, model, text,
                status=failure.status, type_name=failure.type_name, request_id=failure.request_id,
            )  # fmt: skip
        return ModelUnavailable(
            self._provider, model, text,
            status=failure.status, type_name=failure.type_name, request_id=failure.request_id,
            retries=retries, retry_after_s=asked_wait_s(failure.headers, time.time()),
        )  # fmt: skip

    def _clean(self, text: str) -> str:
        text = redact(text, self._secrets())
        return text if len(text) <= TEXT_CHARACTERS else f"{text[:TEXT_CHARACTERS]}…"


def explain(vendor: Any, error: Exception) -> Failure | None:
    """In our words, for packages made by the generator that anthropic's and openai's come from."""
    if isinstance(error, Garbled):
        return Failure(str(error), "", garbled=True)
    if isinstance(error, vendor.APIStatusError):
        response = error.response
        return Failure(
            _said(error), _type_name(error), response.status_code,
            {name.lower(): value for name, value in response.headers.items()},
            getattr(error, "request_id", None) or "",
        )  # fmt: skip
    if isinstance(error, vendor.APIResponseValidationError):
        return Failure(f"its answer is not understood: {error}", type(error).__name__, garbled=True)
    if isinstance(error, vendor.APIConnectionError):
        cause = error.__cause__
        text = f"no answer: {error}" + (f" {type(cause).__name__}: {cause}" if cause is not None else "")
        return Failure(text, type(error).__name__)
    if isinstance(error, json.JSONDecodeError):  # of the answer's body: the package lets it through
        return Failure(f"its answer is no JSON: {error}", type(error).__name__, garbled=True)
    return None


def _said(error: Any) -> str:
    """The service's own sentence, without the dictionary around it."""
    inner = _inner(error)
    message = inner.get("message")
    return str(message) if message else str(error)


def _type_name(error: Any) -> str:
    inner = _inner(error)
    return str(inner.get("type") or inner.get("code") or type(error).__name__)


def _inner(error: Any) -> dict[str, Any]:
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        nested = body.get("error", body)
        return nested if isinstance(nested, dict) else body
    return {}


def import_vendor(module: str, plugin: str, install: str, *, kind: str = "model") -> Any:
    """A vendor's package, imported now. PluginError with the line to paste when it is not there."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
    raise PluginError(kind, plugin, f"the package {package!r} is not installed: pip install {install}")
