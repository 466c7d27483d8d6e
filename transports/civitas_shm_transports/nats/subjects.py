"""Names to subjects. Pure.

`civitas.agent.NAME` takes frames for an agent, in the queue group GROUP: each goes to one host that has it.
`civitas.host.ID.f` takes frames for a host; `civitas.host.ID.KEY` is where the server says that nobody got frame KEY.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["FRAMES", "GROUP", "agent_subject", "host_subject"]

GROUP: Final = "civitas"
FRAMES: Final = "f"

_NOT_PLAIN: Final = re.compile(r"[^A-Za-z0-9_:@-]")


def agent_subject(name: str) -> str:
    """One token behind the prefix, so that a permission on `civitas.agent.*` means all agents: what NATS gives a
    meaning (`.`, `*`, `>`, spaces) is written `=XX`, its bytes in hex."""
    return "civitas.agent." + _NOT_PLAIN.sub(lambda found: "".join(f"={b:02X}" for b in found[0].encode()), name)


def host_subject(host: str, what: str) -> str:
    """`what`: FRAMES, a key, or `*`."""
    return f"civitas.host.{host}.{what}"
