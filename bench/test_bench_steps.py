"""Single steps on the way of a message, in this process: what an optimisation should be compared on."""

from __future__ import annotations

import asyncio

from agents import PAYLOAD
from pytest_benchmark.fixture import BenchmarkFixture

from civitas_shm import Message
from civitas_shm.messages import new_header
from civitas_shm.serializer import decode, encode
from civitas_shm.transport import MailboxSpec, load_transport

ENCODED = encode(PAYLOAD)
NESTED = {"items": [{"id": number, "tags": ["a", "b"], "score": number / 7} for number in range(100)]}


def test_bench_encode_a_payload_of_64_bytes(benchmark: BenchmarkFixture) -> None:
    benchmark(encode, PAYLOAD)


def test_bench_decode_a_payload_of_64_bytes(benchmark: BenchmarkFixture) -> None:
    assert benchmark(decode, ENCODED) == PAYLOAD


def test_bench_encode_a_nested_payload_of_100_items(benchmark: BenchmarkFixture) -> None:
    benchmark(encode, NESTED)


def test_bench_make_a_received_message(benchmark: BenchmarkFixture) -> None:
    header = new_header(mailbox=1, sender=2, payload_len=len(ENCODED))
    message = benchmark(Message.received, header, "message", "a", "b", PAYLOAD, 1)
    assert message.payload is PAYLOAD


def test_bench_post_take_and_release_in_process(benchmark: BenchmarkFixture, loop: asyncio.Runner) -> None:
    port = load_transport("in_process").create()
    port.start(loop.get_loop())
    mailbox = port.add_mailbox(MailboxSpec("sink"))

    def once() -> None:
        port.post(mailbox, ENCODED, "message", mailbox)
        token = port.take(mailbox)[0]
        port.release(mailbox, token)

    benchmark(once)
    port.stop()
