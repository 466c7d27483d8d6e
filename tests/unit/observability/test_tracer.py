"""Spans: where they belong, what they hold, that off is nothing, and the mirror in OpenTelemetry."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from civitas_shm.current import HANDLED
from civitas_shm.messages import Message, new_header
from civitas_shm.observability import names
from civitas_shm.observability.context import current_context
from civitas_shm.observability.spans import NO_SPAN, ExportBackend, Span, SpanQueue
from civitas_shm.observability.tracer import Tracer


@pytest.fixture
def message() -> Iterator[Message]:
    message = Message.received(new_header(), "question", "asker", "me", {}, 1)
    token = HANDLED.set(message)
    yield message
    HANDLED.reset(token)


def test_a_span_belongs_to_the_message_in_hand(message: Message) -> None:
    span = Tracer(SpanQueue()).start_span("work")
    assert (span.trace_id, span.parent_span_id) == (message.trace_id, message.span_id)
    assert len(span.span_id) == 16
    assert span.span_id != message.span_id


def test_a_span_within_a_span_is_its_child(message: Message) -> None:
    tracer = Tracer(SpanQueue())
    with tracer.start_llm_span("m") as outer:
        inner = tracer.start_tool_span("t")
        assert (inner.trace_id, inner.parent_span_id) == (message.trace_id, outer.span_id)
        assert current_context() == (outer.trace_id, outer.span_id)
    assert current_context() == (message.trace_id, message.span_id)


def test_outside_of_everything_a_span_begins_a_trace() -> None:
    first, second = Tracer(SpanQueue()).start_span("a"), Tracer(SpanQueue()).start_span("b")
    assert len(first.trace_id) == 32
    assert first.trace_id != second.trace_id
    assert first.parent_span_id is None
    assert current_context() == ("", "")


def test_what_is_named_counts(message: Message) -> None:
    span = Tracer(SpanQueue()).start_span("a", "ab" * 16, "cd" * 8, {"x": 1})
    assert (span.trace_id, span.parent_span_id, span.attributes) == ("ab" * 16, "cd" * 8, {"x": 1})


def test_the_spans_of_a_message_have_its_ids(message: Message) -> None:
    tracer = Tracer(SpanQueue())
    assert tracer.start_receive_span(message).parent_span_id == message.span_id
    assert tracer.start_send_span(message).trace_id == message.trace_id
    assert tracer.start_receive_span(message).name == "recv question"


def test_a_span_ends_once_and_keeps_nothing_after_it() -> None:
    queue = SpanQueue()
    tracer = Tracer(queue)
    span = tracer.start_llm_span("m", extra=True)
    tracer.end_llm_span(span, tokens_in=3, tokens_out=4, cost_usd=0.5)
    span.set_attribute("late", 1)
    span.set_error("late")
    span.end()
    (data,) = queue.get_batch()
    assert data.name == "civitas.llm.chat"
    assert data.attributes == {
        names.OPERATION: "chat", names.MODEL: "m", "extra": True,
        names.TOKENS_IN: 3, names.TOKENS_OUT: 4, names.COST_USD: 0.5,
    }  # fmt: skip
    assert data.error == ""
    assert len(queue) == 0


def test_an_exception_and_a_bad_status_are_errors() -> None:
    queue = SpanQueue()
    tracer = Tracer(queue)
    with pytest.raises(KeyError), tracer.start_span("a"):
        raise KeyError("gone")
    tracer.end_tool_span(tracer.start_tool_span("t"), status="refused")
    tracer.end_tool_span(tracer.start_tool_span("t"))
    assert [span.error for span in queue.get_batch()] == ["KeyError: 'gone'", "refused", ""]


def test_a_full_queue_drops_the_oldest_and_counts() -> None:
    queue = SpanQueue(maxsize=2)
    tracer = Tracer(queue)
    for name in "abc":
        tracer.start_span(name).end()
    assert [span.name for span in queue.get_batch()] == ["b", "c"]
    assert queue.dropped == 1
    with pytest.raises(ValueError, match="holds nothing"):
        SpanQueue(0)


def test_off_is_one_object_that_keeps_nothing() -> None:
    tracer = Tracer()
    span = tracer.start_llm_span("m")
    assert span is NO_SPAN is tracer.start_tool_span("t")
    assert isinstance(span, Span)
    assert not tracer.recording
    assert not span.recording
    with span as entered:
        assert entered is span
        assert current_context() == ("", "")
    span.set_attribute("a", 1)
    span.set_error("b")
    span.end()
    assert (span.attributes, span.error, span.end_ns) == ({}, "", 0)


def test_whoever_has_both_methods_can_export() -> None:
    class Console:
        def export(self, spans: list[Any]) -> None: ...
        def shutdown(self) -> None: ...

    assert isinstance(Console(), ExportBackend)
    assert not isinstance(object(), ExportBackend)


def test_off_does_not_import_opentelemetry() -> None:
    script = (
        "import sys; from civitas_shm.observability.tracer import Tracer; Tracer().start_llm_span('m').end();"
        "print([m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


WITH_PROVIDER = """
from opentelemetry import trace
from civitas_shm.observability.tracer import Tracer

tracer = Tracer()
assert not tracer.recording, "the API alone records nothing"
made = []

class Recorded(trace.NonRecordingSpan):
    attributes = None
    def set_attributes(self, attributes): self.attributes = dict(attributes)
    def set_status(self, status, description=None): self.status = status
    def end(self, end_time=None): made.append(self)

class Maker(trace.NoOpTracer):
    def start_span(self, name, context=None, **rest):
        parent = trace.get_current_span(context).get_span_context()
        own = trace.SpanContext(parent.trace_id or 7, len(made) + 1, False, trace.TraceFlags(1))
        span = Recorded(own); span.name = name; span.parent = parent
        return span

class Provider(trace.TracerProvider):
    def get_tracer(self, *args, **kwargs): return Maker()

trace.set_tracer_provider(Provider())
assert tracer.recording
span = tracer.start_span("a", "ab" * 16, "cd" * 8)
assert (span.trace_id, span.span_id) == ("ab" * 16, "0000000000000001"), "the ids are those of the mirror"
span.set_attribute("n", 1); span.set_attribute("odd", object()); span.set_error("gone wrong"); span.end(); span.end()
(mirror,) = made
assert mirror.parent.is_remote and mirror.parent.span_id == 0xCDCDCDCDCDCDCDCD
assert mirror.attributes == {"n": 1} and mirror.status.description == "gone wrong"
root = tracer.start_span("b")
assert root._mirror.parent.span_id == 0, "no parent is made up"
print("done")
"""


def test_with_a_provider_of_the_program_each_span_has_a_mirror_in_opentelemetry() -> None:
    result = subprocess.run([sys.executable, "-c", WITH_PROVIDER], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "done", result.stderr


def test_ids_are_hex_and_nothing_is_kept_back() -> None:
    queue = SpanQueue()
    tracer = Tracer(queue)
    assert len(bytes.fromhex(tracer.new_trace_id())) == 16
    assert len(bytes.fromhex(tracer.new_span_id())) == 8
    tracer.start_span("a").end()
    assert len(queue) == 1, "before any flush"
    tracer.flush()
    assert len(queue) == 1


NO_PROVIDER = """
import asyncio
import opentelemetry.sdk.trace
from civitas_shm import AgentProcess, Runtime, Supervisor

class Quiet(AgentProcess):
    async def handle(self, message):
        with self.llm_span("m"):
            return self.reply({"recording": self.tracer.recording})

async def main():
    async with Runtime(Supervisor("root", [Quiet("a")])) as runtime:
        for _ in range(20):
            assert (await runtime.ask("a", {})).payload == {"recording": False}

asyncio.run(main())
"""


def test_defect_34_an_installed_opentelemetry_sdk_prints_nothing() -> None:
    """Civitas printed each span as thirty lines of JSON as soon as the SDK could be imported."""
    pytest.importorskip("opentelemetry.sdk.trace")
    result = subprocess.run([sys.executable, "-c", NO_PROVIDER], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


WITH_SDK = """
import asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from civitas_shm import AgentProcess, Runtime, Supervisor
from civitas_shm.plugins.model import ModelResponse

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

class Parrot:
    async def chat(self, model, messages, tools=None):
        return ModelResponse("x", "parrot-1", 2, 3, 0.25)

class Asker(AgentProcess):
    async def handle(self, message):
        await self.llm.chat("parrot", [])
        return self.reply({"trace": message.trace_id, "span": message.span_id})

async def main():
    async with Runtime(Supervisor("root", [Asker("a")]), model_provider=Parrot()) as runtime:
        return (await runtime.ask("a", {})).payload

ids = asyncio.run(main())
(span,) = exporter.get_finished_spans()
assert f"{span.context.trace_id:032x}" == ids["trace"], "the trace of the message"
assert f"{span.parent.span_id:016x}" == ids["span"], "below the message in hand"
assert span.attributes["gen_ai.usage.output_tokens"] == 3 and span.attributes["llm.cost_usd"] == 0.25
print("done")
"""


def test_the_real_sdk_gets_spans_that_are_linked_to_their_message() -> None:
    """In Civitas 0.3 spans were never linked."""
    pytest.importorskip("opentelemetry.sdk.trace")
    result = subprocess.run([sys.executable, "-c", WITH_SDK], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "done", result.stderr
