"""For tests of your own agents, with or without pytest: see docs/testing.md.

- the pytest plug-in (`plugin`) has the fixture `runtime`, a `RuntimeUnderTest`, and runs `async def` tests that use it;
- `Probe` is an agent that records what it gets and answers as told;
- `models.FakeModelServer` is a model service that says what a test wants;
- `TransportContract` is the tests that a transport of your own has to pass.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .manual_time import ManualTime
    from .models import FakeModelServer
    from .probe import Probe
    from .transport_contract import TransportContract
    from .under_test import RuntimeUnderTest

__all__ = ["FakeModelServer", "ManualTime", "Probe", "RuntimeUnderTest", "TransportContract"]

_HOMES: Final = {
    "FakeModelServer": ".models",
    "ManualTime": ".manual_time",
    "Probe": ".probe",
    "RuntimeUnderTest": ".under_test",
    "TransportContract": ".transport_contract",
}

if not TYPE_CHECKING:  # a type checker that saw this function would believe in every misspelt name

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES[name], __name__), name)
        globals()[name] = value
        return value
