"""A model service on this machine that speaks the wire forms of Anthropic and OpenAI and says what a test wants.

    with FakeModelServer() as server:
        server.fail(429, retry_after_s=0.2)
        server.answer("Paris")
        provider = AnthropicProvider(api_key="any", base_url=server.url, default_model="m")
        ...
        assert server.requests[-1].body["messages"]

What was put in line (`answer`, `fail`, `cut`, ...) is used up in order, one for each request; when nothing is left,
`otherwise` answers, which repeats the last user's words. `POST /v1/messages` is Anthropic's form, and
`POST /v1/chat/completions` OpenAI's (there `base_url` is `server.url + "/v1"`); both stream when the request says so.

Promises: standard library only; a free port of the loopback interface; nothing is left after `close`; a request is in
`requests` before it is answered. Threads, not asyncio: it serves tests and other processes whatever their loop does.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

__all__ = ["Answer", "FakeModelServer", "Request"]

WAIT_S: Final = 0.05
"""How often a slow answer looks whether the server is being closed."""

_ERROR_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sent."""

    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: dict[str, Any]
    at_s: float
    """CLOCK_MONOTONIC."""

    @property
    def api_key(self) -> str:
        """The key that came with it, in either vendor's header."""
        return self.headers.get("x-api-key") or self.headers.get("authorization", "").removeprefix("Bearer ")

    @property
    def last_user_text(self) -> str:
        """The last thing that the user said."""
        for message in reversed(self.body.get("messages", [])):
            content = message.get("content")
            if message.get("role") == "user" and isinstance(content, str):
                return content
            if message.get("role") == "user" and isinstance(content, list):
                return "".join(part.get("text", "") for part in content if isinstance(part, dict))
        return ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server does with one request."""

    text: str = ""
    tool_calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    """(name, input) each."""
    tokens_in: int = 10
    tokens_out: int = 5
    status: int = 200
    message: str = ""
    """Of an error."""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    cut_after_bytes: int | None = None
    """Close the connection after so many bytes of the body; -1: before the first byte of the answer."""
    raw: bytes | None = None
    """The body instead of a well-formed one."""
    content_type: str = "application/json"


class FakeModelServer:
    """See above. All methods may be called from any thread."""

    def __init__(self, *, api_key: str | None = None) -> None:
        """With `api_key`, requests that bring another one are refused with 401."""
        self.requests: list[Request] = []
        self.otherwise: Callable[[Request], Answer] = lambda request: Answer(f"echo: {request.last_user_text}")
        self._api_key = api_key
        self._line: deque[Answer] = deque()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.url: Final = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(WAIT_S,), name="fake model server")
        self._thread.start()

    # --- what it shall say ----------------------------------------------------------------------------------------

    def then(self, answer: Answer) -> Self:
        """Put one answer in line."""
        with self._lock:
            self._line.append(answer)
        return self

    def answer(
        self,
        text: str = "",
        *,
        tool_calls: list[tuple[str, dict[str, Any]]] | None = None,
        tokens_in: int = 10,
        tokens_out: int = 5,
        delay_s: float = 0.0,
    ) -> Self:
        """Say this."""
        calls = tuple(tool_calls or ())
        return self.then(Answer(text, calls, tokens_in, tokens_out, delay_s=delay_s))

    def fail(
        self,
        status: int,
        message: str = "",
        *,
        retry_after_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> Self:
        """An error as the vendors send it: 429 (rate), 529 (overloaded), 401, 400, 500 ..."""
        more = {} if retry_after_s is None else {"retry-after": f"{retry_after_s:g}"}
        text = message or _ERROR_TYPES.get(status, "api_error").replace("_", " ")
        return self.then(Answer(status=status, message=text, headers=more | (headers or {})))

    def cut(self, after_bytes: int = -1) -> Self:
        """Close the connection: at once, or in the middle of the body."""
        return self.then(Answer("cut off", cut_after_bytes=after_bytes))

    def garble(self, raw: bytes = b'{"content": [', content_type: str = "application/json") -> Self:
        """Status 200 with a body that is not what was agreed."""
        return self.then(Answer(raw=raw, content_type=content_type))

    # --- life -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End it, and every answer that is being held back. Idempotent."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- for the handler ------------------------------------------------------------------------------------------

    def _next(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            if self._api_key is not None and request.api_key != self._api_key:
                return Answer(status=401, message=f"invalid x-api-key: {request.api_key}")
            answer = self._line.popleft() if self._line else None
        return self.otherwise(request) if answer is None else answer


class _Server(ThreadingHTTPServer):
    # Not daemons: `server_close` then waits for the answers that are being written, so that no socket is left.
    daemon_threads = False
    owner: FakeModelServer

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        for connection in list(self._open):  # kept alive by a client that is gone or idle
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed meanwhile
                continue
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 60

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            given = json.loads(data)
        except ValueError:
            given = None
        body: dict[str, Any] = given if isinstance(given, dict) else {}
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.path, headers, body, time.monotonic())
        answer = self.server.owner._next(request)
        if self.server.owner._closing.wait(answer.delay_s):
            self.close_connection = True
            return
        if not isinstance(given, dict):
            answer = Answer(status=400, message="the request's body is no JSON object")
        form = _FORMS.get(self.path.partition("?")[0])
        if form is None:
            answer = Answer(status=404, message=f"no such path: {self.path}")
            form = _Anthropic
        streams = body.get("stream") is True and answer.status == 200 and answer.raw is None
        if streams:
            self._send(answer, b"".join(form.events(request, answer)), "text/event-stream; charset=utf-8")
        elif answer.raw is not None:
            self._send(answer, answer.raw, answer.content_type)
        else:
            plain = form.error(answer) if answer.status >= 400 else form.body(request, answer)
            self._send(answer, json.dumps(plain).encode(), "application/json")

    def _send(self, answer: Answer, body: bytes, content_type: str) -> None:
        if answer.cut_after_bytes is not None and answer.cut_after_bytes < 0:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in {
            "content-type": content_type,
            "content-length": str(len(body)),
            "request-id": f"req_{len(self.server.owner.requests):04d}",
            "x-request-id": f"req_{len(self.server.owner.requests):04d}",
            **answer.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if answer.cut_after_bytes is not None:
            self.close_connection = True
            body = body[: answer.cut_after_bytes]
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


# --- wire forms ---------------------------------------------------------------------------------------------------


def _event(data: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def _pieces(text: str) -> list[str]:
    """As a model streams: a few characters at a time."""
    return [text[start : start + 4] for start in range(0, len(text), 4)]


class _Anthropic:
    """`POST /v1/messages`."""

    @staticmethod
    def error(answer: Answer) -> dict[str, Any]:
        kind = _ERROR_TYPES.get(answer.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": answer.message}}

    @staticmethod
    def body(request: Request, answer: Answer) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": answer.text}] if answer.text else []
        for number, (name, arguments) in enumerate(answer.tool_calls, 1):
            content.append({"type": "tool_use", "id": f"toolu_{number:04d}", "name": name, "input": arguments})
        return {
            "id": "msg_0001",
            "type": "message",
            "role": "assistant",
            "model": request.body.get("model", ""),
            "content": content,
            "stop_reason": "tool_use" if answer.tool_calls else "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": answer.tokens_in, "output_tokens": answer.tokens_out},
        }

    @classmethod
    def events(cls, request: Request, answer: Answer) -> Iterator[bytes]:
        whole = cls.body(request, answer)
        usage = {"input_tokens": answer.tokens_in, "output_tokens": 1}
        start = {**whole, "content": [], "stop_reason": None, "usage": usage}
        yield _event({"type": "message_start", "message": start}, "message_start")
        for index, block in enumerate(whole["content"]):
            is_text = block["type"] == "text"
            empty = {**block, "text": ""} if is_text else {**block, "input": {}}
            opening = {"type": "content_block_start", "index": index, "content_block": empty}
            yield _event(opening, "content_block_start")
            for piece in _pieces(block["text"] if is_text else json.dumps(block["input"])):
                kind, key = ("text_delta", "text") if is_text else ("input_json_delta", "partial_json")
                delta = {"type": "content_block_delta", "index": index, "delta": {"type": kind, key: piece}}
                yield _event(delta, "content_block_delta")
            yield _event({"type": "content_block_stop", "index": index}, "content_block_stop")
        end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
        yield _event(
            {"type": "message_delta", "delta": end, "usage": {"output_tokens": answer.tokens_out}}, "message_delta"
        )
        yield _event({"type": "message_stop"}, "message_stop")


class _OpenAI:
    """`POST /v1/chat/completions`."""

    @staticmethod
    def error(answer: Answer) -> dict[str, Any]:
        kind = _ERROR_TYPES.get(answer.status, "server_error")
        return {"error": {"message": answer.message, "type": kind, "param": None, "code": None}}

    @staticmethod
    def _calls(answer: Answer) -> list[dict[str, Any]]:
        return [
            {
                "id": f"call_{number:04d}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for number, (name, arguments) in enumerate(answer.tool_calls, 1)
        ]

    @staticmethod
    def _usage(answer: Answer) -> dict[str, int]:
        total = answer.tokens_in + answer.tokens_out
        return {"prompt_tokens": answer.tokens_in, "completion_tokens": answer.tokens_out, "total_tokens": total}

    @classmethod
    def body(cls, request: Request, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
        if answer.tool_calls:
            message["tool_calls"] = cls._calls(answer)
        reason = "tool_calls" if answer.tool_calls else "stop"
        return {
            "id": "chatcmpl-0001",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": request.body.get("model", ""),
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
            "usage": cls._usage(answer),
        }

    @classmethod
    def events(cls, request: Request, answer: Answer) -> Iterator[bytes]:
        whole = cls.body(request, answer)
        head = {key: whole[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}

        def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
            return _event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

        yield chunk({"role": "assistant", "content": ""})
        for piece in _pieces(answer.text):
            yield chunk({"content": piece})
        for index, call in enumerate(cls._calls(answer)):
            yield chunk({"tool_calls": [{"index": index, **call}]})
        yield chunk({}, whole["choices"][0]["finish_reason"])
        if (request.body.get("stream_options") or {}).get("include_usage"):
            yield _event({**head, "choices": [], "usage": cls._usage(answer)})
        yield _event("[DONE]")


_FORMS: Final[dict[str, type[_Anthropic] | type[_OpenAI]]] = {
    "/v1/messages": _Anthropic,
    "/v1/chat/completions": _OpenAI,
}
