"""Streams between agents: a question that is answered in chunks, at the speed of who reads them.

    async for chunk in self.stream("model", {"prompt": "..."}):      # the reader: `reader.Stream`
        ...
    async with self.stream_reply() as out:                           # the writer, in its handler: `writer.StreamReply`
        await out.send({"delta": "Hello"})

The question is an ordinary message: committed, answered by a handler, handed over again when its process dies. The
chunks are replies to it; they go straight to the reader's process, through no mailbox, and are not committed: they live
as long as their reader.

    reader                                          writer
    question, `credits` in its header    ------>    its handler begins
                                         <------    open: where credits and cancel go to
                                         <------    chunk 1, chunk 2 … at most as many as it has credits for
    credit: chunks up to number N may come ----->
    cancel                               ------>    or, instead, by the writer:
                                         <------    end, with the number of chunks; or the failed reply of any ask

Guarantees:
- nothing is dropped and nothing waits for room: a credit is a place that the reader's process keeps free, see `places`;
- chunks come in order and once; a gap is an error, never a hole;
- a reader that leaves the loop (or whose process dies) is known to the writer as soon as its loop turns: `emit` raises,
  the body of `stream_reply` is cancelled. A writer that ends, fails or is stopped ends the reader's loop;
- when the writer's process dies, its successor answers the question anew. What the reader has had already is compared
  with what comes again (`hash`, REMEMBERED chunks) and not given out twice. As long as both agree the reader notices
  nothing; at the first chunk that differs it gets StreamInterrupted: two answers are never glued together.

Not promised: what was sent and not yet read does not survive the death of the *reader's* process. Its handler is run
again and asks again.
"""

from __future__ import annotations

__all__: list[str] = []
