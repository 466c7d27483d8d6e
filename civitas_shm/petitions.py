"""Messages that supervision itself answers: the status of a supervisor, and Civitas's protocol of dynamic supervisors.

    reply = await self.ask("root", {}, message_type="civitas.supervision.status")

| type                          | payload                                     | answer                             |
|-------------------------------|---------------------------------------------|------------------------------------|
| `civitas.supervision.status`  | ignored                                     | `supervision.status`               |
| `civitas.dynamic.spawn`       | `class_path`, `name`, `config`, `spawner`   | `{"status": "ok"}`, or             |
| `civitas.dynamic.despawn`     | `name`                                      | `{"status": "error", "reason": …}` |
| `civitas.dynamic.stop`        | `name`, `drain`, `timeout`                  |                                    |

Rules of this file: a supervisor has no mailbox, so these never become messages: the driver of the tree is asked, in
this process or through the host. The spawner is whoever asks; only the program may speak for another one. What names
no supervisor is a MessageRoutingError, as with any other name.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from .errors import CivitasError, MessageRoutingError, MessageValidationError

__all__ = ["DESPAWN", "PETITIONS", "SPAWN", "STATUS", "STOP", "Supervise", "answer_of"]

Supervise = Callable[[str, str, dict[str, Any]], Coroutine[Any, Any, Any]]
"""`await supervise(asker, what, fields)`: ask supervision for something; returns what it answers when it is done,
raises why not. `asker`: an agent; empty: the program."""

STATUS: Final = "civitas.supervision.status"
SPAWN: Final = "civitas.dynamic.spawn"
DESPAWN: Final = "civitas.dynamic.despawn"
STOP: Final = "civitas.dynamic.stop"

PETITIONS: Final = frozenset([STATUS, SPAWN, DESPAWN, STOP])


async def answer_of(
    supervise: Supervise, asker: str, supervisor: str, kind: str, payload: Mapping[str, Any]
) -> dict[str, Any]:
    """The payload of the answer to such a message."""
    if kind == STATUS:
        status: dict[str, Any] = await supervise(asker, "status", {"supervisor": supervisor})
        return status
    try:
        if kind == SPAWN:
            what, fields = "spawn", _spawn_fields(supervisor, payload)
            asker = asker or str(payload.get("spawner") or "")
        else:
            what, fields = "despawn", {"supervisor": supervisor, "name": _text(payload, "name", kind)}
            if kind == STOP:
                fields |= {"drain": payload.get("drain", "current"), "timeout_s": float(payload.get("timeout", 30.0))}
        await supervise(asker, what, fields)
    except MessageRoutingError:
        raise
    except (CivitasError, ValueError, TypeError) as error:
        return {"status": "error", "reason": str(error)}
    return {"status": "ok"}


def _spawn_fields(supervisor: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    from .loading import load_class  # both need `process`, which needs this module
    from .spawning import spawn_fields

    cls = load_class(_text(payload, "class_path", SPAWN))
    return spawn_fields(
        cls, _text(payload, "name", SPAWN), payload.get("config"), supervisor=supervisor, wait=True, process=None,
        restart=None, kwargs=None, mailbox_size=1000,
    )  # fmt: skip


def _text(payload: Mapping[str, Any], key: str, kind: str) -> str:
    value = payload.get(key)
    if not isinstance(value, str):
        raise MessageValidationError(f"{kind} needs {key!r} as text, not {value!r}.")
    return value
