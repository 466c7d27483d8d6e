"""The fake model service, by plain HTTP and by the vendors' own packages, streams included."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from civitas_shm.testing.models import Answer, FakeModelServer

PATHS = ("/v1/messages", "/v1/chat/completions")


@pytest.fixture
def server() -> Iterator[FakeModelServer]:
    with FakeModelServer() as running:
        yield running


def post(server: FakeModelServer, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    try:
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("path", PATHS)
def test_what_was_put_in_line_comes_in_order_and_then_the_rest(server: FakeModelServer, path: str) -> None:
    server.answer("one").fail(429, retry_after_s=1.5).otherwise = lambda request: Answer(request.last_user_text * 2)
    say = {"model": "m", "messages": [{"role": "user", "content": "ab"}]}
    assert "one" in str(post(server, path, say)[2])
    status, headers, body = post(server, path, say)
    assert (status, headers["retry-after"], body["error"]["type"]) == (429, "1.5", "rate_limit_error")
    assert "abab" in str(post(server, path, say)[2])
    assert [request.path for request in server.requests] == [path] * 3


def test_with_a_key_only_that_one_is_served() -> None:
    with FakeModelServer(api_key="right") as server:
        assert post(server, PATHS[0], {}, **{"X-Api-Key": "right"})[0] == 200
        assert post(server, PATHS[1], {}, Authorization="Bearer right")[0] == 200
        assert post(server, PATHS[1], {}, Authorization="Bearer wrong")[0] == 401


@pytest.mark.parametrize("body", ["no mapping", [1], None])
def test_what_is_no_request_harms_nobody(server: FakeModelServer, body: Any) -> None:
    assert post(server, PATHS[0], body)[0] == 400
    assert post(server, "/v2/else", {})[0] == 404


def test_closing_ends_answers_that_are_held_back() -> None:
    server = FakeModelServer()
    server.answer("late", delay_s=3600)
    failed: list[Exception] = []

    def client() -> None:
        try:
            post(server, PATHS[0], {})
        except (OSError, http.client.HTTPException) as error:
            failed.append(error)

    thread = threading.Thread(target=client)
    thread.start()
    while not server.requests:
        pass
    server.close()
    server.close()
    thread.join()
    assert failed
    assert not [one for one in threading.enumerate() if "fake model" in one.name]


CALL = [("search", {"q": "a longer question"})]


def test_anthropics_package_understands_the_stream(server: FakeModelServer) -> None:
    anthropic = pytest.importorskip("anthropic")

    async def run() -> tuple[str, Any]:
        client = anthropic.AsyncAnthropic(api_key="any", base_url=server.url, max_retries=0)
        request = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
        async with client, client.messages.stream(**request) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            return text, await stream.get_final_message()

    server.answer("some words in pieces", tool_calls=CALL, tokens_in=11, tokens_out=22)
    text, final = asyncio.run(run())
    assert text == "some words in pieces"
    assert (final.usage.input_tokens, final.usage.output_tokens, final.stop_reason) == (11, 22, "tool_use")
    assert final.content[1].input == CALL[0][1]


def test_openais_package_understands_the_stream(server: FakeModelServer) -> None:
    openai = pytest.importorskip("openai")

    async def run() -> list[Any]:
        async with openai.AsyncOpenAI(api_key="any", base_url=f"{server.url}/v1", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x"}], stream=True,
                stream_options={"include_usage": True},
            )  # fmt: skip
            return [chunk async for chunk in stream]

    server.answer("some words in pieces", tool_calls=CALL, tokens_in=11, tokens_out=22)
    chunks = asyncio.run(run())
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "some words in pieces"
    (call,) = [call for delta in deltas for call in delta.tool_calls or ()]
    assert json.loads(call.function.arguments) == CALL[0][1]
    assert chunks[-1].usage.total_tokens == 33
