"""Defects that the original has, brought back: one entry for each, sorted by its number.

How to write an entry: what stands in the sources (exactly once), what is put there instead, and the test that must
fail then, which is named `test_defect_NUMBER_...` and has an assertion or an exception that `says` (a regular
expression) finds in the lines in which pytest tells the error (`E ...`). A test that only hangs, or fails because the
changed module cannot be imported, has not seen the defect.

The numbers are those of the list of weaknesses that this project was begun with.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MUTANTS", "NOT_YET", "Mutant"]


@dataclass(frozen=True)
class Mutant:
    defect: int
    words: str
    """What was wrong there, in the original."""
    file: str
    """Below the root of the repository."""
    before: str
    after: str
    test: str
    """`path::name` below tests/."""
    says: str

    @property
    def id(self) -> str:
        return f"defect {self.defect}: {self.words}"


MUTANTS = (
    Mutant(
        30,
        "a retry puts the message behind all that wait",
        "civitas_shm/seat.py",
        "            self._answer(message, await self._code.handle(message))\n",
        "            await self.agent.send(self.agent.name, message.payload, message.type)\n",
        "unit/test_runner.py::test_defect_30_retry_runs_again_in_place_before_any_other_message",
        r"\{'handled': 2\} == \{'handled': 4\}",
    ),
    Mutant(
        34,
        "an installed OpenTelemetry SDK prints every span",
        "civitas_shm/observability/tracer.py",
        '    trace = sys.modules.get("opentelemetry.trace")\n',
        "    from opentelemetry import trace\n"
        "    from opentelemetry.sdk.trace import TracerProvider\n"
        "    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor\n\n"
        "    if not isinstance(trace.get_tracer_provider(), TracerProvider):\n"
        "        trace.set_tracer_provider(TracerProvider())\n"
        "        trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))\n",
        "unit/observability/test_tracer.py::test_defect_34_an_installed_opentelemetry_sdk_prints_nothing",
        r"assert \(1, '\{\\n",
    ),
)

NOT_YET = {
    1: "defects", 16: "defects", 22: "defects", 23: "defects", 24: "defects", 25: "talk", 26: "defects", 27: "defects",
    28: "defects", 29: "behave", 31: "stores", 32: "talk", 37: "defects", 44: "topo",
}  # fmt: skip
"""Those of the scope that have no entry so far: number and the part of the work that brings it."""
