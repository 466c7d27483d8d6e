"""Requests about dead letters against a store: in the host of a live run, and in the command for a dead one.

Rules of this file: one request is a bounded piece of work; each id is answered for by itself, so that one that cannot
be replayed or is gone does not keep the others; a store that cannot be read is a refusal, not a fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..dead_letters import Store
from .protocol import (
    PAYLOAD_SHOWN_MAX,
    DeadDrop,
    DeadList,
    DeadReplay,
    DeadShow,
    Letters,
    Outcomes,
    Refusal,
    Reply,
    Shown,
)

__all__ = ["LetterRequest", "answer_letters"]

LetterRequest = DeadList | DeadShow | DeadReplay | DeadDrop

SHOWN_MAX: Final = 10
"""How many are listed when an id is ambiguous."""


def answer_letters(request: LetterRequest, store: Store | None, replay: Callable[[str], str | None] | None) -> Reply:
    """What a request comes to. `store` None: the run has no letters; `replay` None: the run does not live."""
    import sqlite3

    try:
        return _answer(request, store, replay)
    except (sqlite3.Error, OSError) as error:
        return Refusal(kind="busy", text=f"its dead letters cannot be read or changed: {error}")


def _answer(request: LetterRequest, store: Store | None, replay: Callable[[str], str | None] | None) -> Reply:
    match request:
        case DeadList(skip=skip, limit=limit):
            if store is None:
                return Letters(letters=[], total=0, evicted=0)
            page = [letter.to_plain() for letter in store.letters(skip=skip, limit=limit)]
            return Letters(letters=page, total=len(store), evicted=store.evicted)
        case DeadShow(id=beginning):
            found = store.find(beginning, SHOWN_MAX) if store is not None else []
            payload = found[0].payload if len(found) == 1 else None
            return Shown(
                letters=[letter.to_plain() for letter in found],
                payload=None if payload is None else payload[:PAYLOAD_SHOWN_MAX],
            )
        case DeadDrop(ids=ids):
            return Outcomes(outcomes={id_: _drop(id_, store) for id_ in ids})
        case DeadReplay(ids=ids):
            if replay is None:
                text = (
                    "it is not alive: letters are replayed into the mailboxes of a live run (run --resume, then replay)"
                )
                return Refusal(kind="busy", text=text)
            return Outcomes(outcomes={id_: replay(id_) for id_ in ids})


def _drop(beginning: str, store: Store | None) -> str | None:
    found = store.find(beginning, 2) if store is not None and beginning else []
    if len(found) != 1:
        return f"{'no' if not found else 'more than one'} dead letter begins with {beginning!r}"
    assert store is not None
    store.drop([found[0].id])
    return None
