"""Each provider through its vendor's own package against a real HTTP server that speaks the wire form."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from civitas_shm.errors import ModelError, ModelUnavailable, TransientError
from civitas_shm.observability import names
from civitas_shm.observability.spans import SpanQueue
from civitas_shm.observability.tracer import Tracer
from civitas_shm.plugins.model import ToolCall
from civitas_shm.plugins.traced import model_of
from civitas_shm.testing.models import Answer, FakeModelServer

from .conftest import KEY

HELLO = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}]
SEARCH = {"name": "search", "description": "Looks.", "input_schema": {"type": "object", "properties": {}}}


def play(provider: Any, scene: Callable[[], Awaitable[Any]]) -> Any:
    """Run the scene and close the provider, whose connections belong to this loop."""

    async def run() -> Any:
        try:
            return await scene()
        finally:
            if hasattr(provider, "close"):
                await provider.close()

    return asyncio.run(run())


def failure_of(provider: Any, **options: Any) -> Exception:
    async def scene() -> Exception:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the caller looks at it
            await provider.chat("", HELLO, **options)
        return caught.value

    error: Exception = play(provider, scene)
    return error


def test_a_turn(make: Any, server: FakeModelServer) -> None:
    server.answer("Hello yourself.", tokens_in=7, tokens_out=3)
    provider = make(max_tokens=50, prices={"claude-sonnet-4-6": {"input": 3, "output": 15}})
    response = play(provider, lambda: provider.chat("", HELLO))
    assert (response.content, response.tokens_in, response.tokens_out) == ("Hello yourself.", 7, 3)
    assert response.tool_calls is None
    (request,) = server.requests
    assert request.api_key == KEY
    assert request.last_user_text == "hello"
    assert "be short" in str(request.body)
    assert 50 in (request.body.get("max_tokens"), request.body.get("max_completion_tokens"))
    assert not request.body.get("stream")


def test_tools_are_offered_called_and_answered(make: Any, server: FakeModelServer) -> None:
    server.answer("", tool_calls=[("search", {"q": "x"})]).answer("found")
    provider = make()

    async def scene() -> None:
        first = await provider.chat("", HELLO, [SEARCH])
        assert first.tool_calls == [ToolCall(first.tool_calls[0].id, "search", {"q": "x"})]
        turns = [*HELLO, first.as_message(), first.tool_calls[0].result({"hits": 1})]
        assert (await provider.chat("", turns, [SEARCH])).content == "found"

    play(provider, scene)
    assert "search" in str(server.requests[0].body["tools"])
    assert '{"hits": 1}' in str(server.requests[1].body["messages"][-1])


def test_options_reach_the_service(make: Any, server: FakeModelServer) -> None:
    provider = make()
    play(provider, lambda: provider.chat("", HELLO, extra_body={"service_tier": "x"}))
    assert server.requests[0].body["service_tier"] == "x"


def test_without_a_model_nothing_is_sent(make: Any, server: FakeModelServer) -> None:
    error = failure_of(make(default_model=""))
    assert isinstance(error, ValueError)
    assert "no model is named" in str(error)
    assert server.requests == []


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503, 529])
def test_a_busy_service_is_asked_again_not_before_it_wants(make: Any, server: FakeModelServer, status: int) -> None:
    server.fail(status, retry_after_s=0.8).answer("now")  # longer than any first wait of our own
    provider = make()
    assert play(provider, lambda: provider.chat("", HELLO)).content == "now"
    first, second = server.requests
    assert second.at_s - first.at_s >= 0.8


def test_retries_are_bounded_and_the_error_says_all(make: Any, server: FakeModelServer) -> None:
    for _ in range(9):
        server.fail(429, "slow down", retry_after_s=0.05)
    error = failure_of(make(max_retries=2))
    assert isinstance(error, ModelUnavailable)
    assert isinstance(error, TransientError)
    assert len(server.requests) == 3
    assert (error.status, error.retries, error.retry_after_s) == (429, 2, 0.05)
    assert "slow down" in str(error)
    assert "after 2 retries; it asks to wait 0.05 s" in str(error)


def test_a_wait_beyond_the_deadline_is_not_begun(make: Any, server: FakeModelServer) -> None:
    server.fail(429, retry_after_s=3600)
    began_s = time.monotonic()
    error = failure_of(make())
    assert isinstance(error, ModelUnavailable)
    assert (error.retries, error.retry_after_s) == (0, 3600)
    assert time.monotonic() - began_s < 30, "it waited in vain"


def test_a_cut_connection_is_tried_again(make: Any, server: FakeModelServer) -> None:
    server.cut().cut(after_bytes=20).answer("whole")
    provider = make()
    assert play(provider, lambda: provider.chat("", HELLO)).content == "whole"
    assert len(server.requests) == 3


def test_a_refusal_is_not_tried_again(make: Any, server: FakeModelServer) -> None:
    server.fail(400, "max_tokens: must be less")
    error = failure_of(make())
    assert type(error) is ModelError
    assert error.status == 400
    assert "max_tokens: must be less" in str(error)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "raw", [b'{"content": [', b"[1, 2]", b"{}", b'{"choices": [], "content": null}', b'"text"', b"null"]
)
def test_an_answer_of_another_form_is_told_and_not_paid_for_twice(
    make: Any, server: FakeModelServer, raw: bytes
) -> None:
    server.garble(raw)
    provider = make()
    if type(provider).__name__ == "LiteLLMProvider":
        pytest.skip("LiteLLM calls it a fault 500 of the service, which is tried again")
    error = failure_of(provider)
    assert isinstance(error, ModelError), repr(error)
    assert len(server.requests) == 1


def test_arguments_that_are_no_object_are_the_models_fault(make: Any, server: FakeModelServer) -> None:
    if make().__class__.__name__ == "AnthropicProvider":
        pytest.skip("there arguments are part of the answer's JSON")
    call = '[{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{not json"}}]'
    head = '{"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [{"index": 0,'
    message = (
        f'"finish_reason": "tool_calls", "message": {{"role": "assistant", "content": null, "tool_calls": {call}}}'
    )
    server.garble(f"{head} {message}}}]}}".encode())
    error = failure_of(make())
    assert type(error) is ModelError
    assert "arguments for 'f' that are no JSON object" in str(error)


def test_the_deadline_covers_all_tries(make: Any, server: FakeModelServer) -> None:
    server.fail(529, retry_after_s=0.1).answer("late", delay_s=60)
    error = failure_of(make(timeout_s=0.8))
    assert type(error) is TimeoutError
    assert "no answer within 0.8 s; the last try failed: " in str(error)
    assert len(server.requests) == 2


def test_a_cancelled_call_is_not_tried_again(make: Any, server: FakeModelServer) -> None:
    for _ in range(5):
        server.fail(529, retry_after_s=0.2)
    provider = make()

    async def scene() -> None:
        call = asyncio.create_task(provider.chat("", HELLO))
        while not server.requests:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        before = len(server.requests)
        await asyncio.sleep(0.5)
        assert len(server.requests) == before

    play(provider, scene)


def test_a_service_that_is_not_there(make: Any, server: FakeModelServer) -> None:
    server.close()
    error = failure_of(make(max_retries=1))
    assert isinstance(error, ModelUnavailable)
    assert error.status in (None, 500), "LiteLLM says 500 of a connection that was refused"
    assert error.retries == 1


# --- keys ---------------------------------------------------------------------------------------------------------


def test_the_key_is_in_no_text(make: Any, server: FakeModelServer, caplog: pytest.LogCaptureFixture) -> None:
    """What the service says back contains the key; retries are logged; the vendor's package logs at DEBUG."""
    caplog.set_level(logging.DEBUG)
    server.fail(429, f"key {KEY} is over its limit", retry_after_s=0.01).fail(401, f"Incorrect API key provided: {KEY}")
    provider = make()
    error = failure_of(provider)
    assert type(error) is ModelError
    assert server.requests[0].api_key == KEY, "nothing was tested"
    assert "is over its limit" in caplog.text, "nothing was tested"
    texts = [str(error), repr(error), repr(vars(error)), repr(provider), str(provider), caplog.text]
    assert not [text for text in texts if KEY in text]
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        assert KEY not in repr(link)
        link = link.__cause__ or link.__context__
    assert len(seen) == 1, "the vendor's exception, which holds the request, hangs on to ours"


# --- spans --------------------------------------------------------------------------------------------------------


def test_tokens_cost_and_retries_are_on_the_span(make: Any, server: FakeModelServer) -> None:
    server.fail(529, retry_after_s=0.01).answer("x", tokens_in=1000, tokens_out=100)
    provider = make(prices={"claude-sonnet-4-6": {"input": 2, "output": 8}, "gpt-4.1": {"input": 2, "output": 8}})
    queue = SpanQueue()
    model = model_of(provider, Tracer(queue), "asker", None)
    play(provider, lambda: model.chat("", HELLO))
    (span,) = queue.get_batch()
    assert span.name == names.LLM_CHAT
    assert span.attributes[names.AGENT] == "asker"
    assert span.attributes[names.TOKENS_IN] == 1000
    assert span.attributes[names.TOKENS_OUT] == 100
    assert span.attributes[names.COST_USD] == pytest.approx(0.0028)
    assert span.attributes[names.RETRIES] == 1
    assert span.end_ns > span.start_ns


def test_a_failed_call_is_a_failed_span(make: Any, server: FakeModelServer) -> None:
    server.fail(400, "no")
    queue = SpanQueue()
    provider = make()
    failure = failure_of_traced(provider, queue)
    (span,) = queue.get_batch()
    assert span.error.startswith("ModelError: ")
    assert names.TOKENS_IN not in span.attributes
    assert isinstance(failure, ModelError)


def failure_of_traced(provider: Any, queue: SpanQueue) -> Exception:
    model = model_of(provider, Tracer(queue), "asker", None)

    async def scene() -> Exception:
        with pytest.raises(ModelError) as caught:
            await model.chat("", HELLO)
        return caught.value

    error: Exception = play(provider, scene)
    return error


# --- one vendor's own ---------------------------------------------------------------------------------------------


def test_cached_tokens_count_and_cost_what_they_cost(make: Any, server: FakeModelServer) -> None:
    provider = make()
    if type(provider).__name__ != "AnthropicProvider":
        pytest.skip("only Anthropic tells them apart")
    usage = (
        '{"input_tokens": 100, "output_tokens": 0, "cache_creation_input_tokens": 200, "cache_read_input_tokens": 1000}'
    )
    server.garble(
        b'{"id": "m", "type": "message", "role": "assistant", "model": "claude-sonnet-4-6", "stop_reason": "end_turn",'
        b'"stop_sequence": null, "content": [], "usage": ' + usage.encode() + b"}"
    )
    response = play(provider, lambda: provider.chat("", HELLO))
    assert response.tokens_in == 1300
    assert response.cost_usd == pytest.approx(3e-6 * (100 + 250 + 100))


def test_twenty_calls_at_once_share_a_provider(make: Any, server: FakeModelServer) -> None:
    server.otherwise = lambda request: Answer(request.last_user_text.upper(), delay_s=0.05)
    provider = make()

    async def scene() -> list[str]:
        asks = [provider.chat("", [{"role": "user", "content": f"q{number}"}]) for number in range(20)]
        return [response.content for response in await asyncio.gather(*asks)]

    assert play(provider, scene) == [f"Q{number}" for number in range(20)]
