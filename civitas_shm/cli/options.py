"""Options that several verbs share, and the types of values that click does not have."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import rich_click as click

__all__ = [
    "DEFAULT_TOPOLOGY",
    "ChaosType",
    "OverrideType",
    "RunNameType",
    "cores",
    "refuse",
    "run_name",
    "topology_options",
    "topology_path",
]

DEFAULT_TOPOLOGY: Final = "topology.yaml"

NAME_MAX: Final = 64
"""Of a run: it becomes part of file names in /dev/shm and of a directory's name."""

if TYPE_CHECKING:
    from ..host.protocol import Chaos

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # generic in newer versions of click only

Function = TypeVar("Function", bound=Callable[..., Any])

_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0}
_TIME: Final = r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)(ms|s|m)?"

CHAOS_MIN_S: Final = 0.01
CHAOS_MAX_S: Final = 86_400.0


def topology_options(function: Function) -> Function:
    """`[TOPOLOGY]`, `-t`, `--set`, `--workers`, `--transport`: what says which system is meant."""
    for decorate in reversed(
        [
            click.argument("topology", required=False, type=click.Path()),
            click.option(
                "-t",
                "--topology",
                "topology_option",
                type=click.Path(),
                metavar="FILE",
                help=f"The topology; {DEFAULT_TOPOLOGY} unless given.",
            ),
            click.option(
                "--set",
                "overrides",
                multiple=True,
                type=OverrideType(),
                help="Change the config of an agent for this time; may be repeated.",
            ),
            click.option("--transport", metavar="NAME", help="Instead of the topology's: shm, in_process, nats."),
            click.option("--workers", type=click.IntRange(1, 126), metavar="N", help="Processes of the pool."),
        ]
    ):
        function = decorate(function)
    return function


def refuse(why: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """For an option of Civitas that has no place here: a usage error with the reason, when it is given."""

    def callback(ctx: click.Context, option: click.Parameter, value: Any) -> None:
        if value is not None:
            raise click.BadParameter(why, ctx, option)

    return callback


def topology_path(argument: str | None, option: str | None) -> str:
    """The one file that argument and option mean."""
    if argument is not None and option is not None and argument != option:
        raise click.UsageError(f"TOPOLOGY is {argument!r} and --topology is {option!r}; give one of them")
    return argument or option or DEFAULT_TOPOLOGY


def run_name(path: str) -> str:
    """The name of a run of that file: of the file's stem, or of its directory where the file has the default name.

    The same file gives the same name whatever the working directory is, so that `--resume` finds the run again.
    """
    file = Path(path).resolve()
    stem = file.parent.name if file.name == DEFAULT_TOPOLOGY else file.stem
    slug = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:NAME_MAX].strip("-")
    return slug or "run"


def cores() -> list[int]:
    """The cores that this process may use (taskset and cpusets counted), in order."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class RunNameType(ParamType):
    """The name of a run."""

    name = "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from ..topology.keytypes import run_name_problem

        problem = run_name_problem(value)
        if problem is not None:
            self.fail(problem, param, ctx)
        return str(value)


class OverrideType(ParamType):
    """`AGENT.KEY=VALUE`; its form is checked here, whether it fits the topology by the loader."""

    name = "AGENT.KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from ..topology import overrides

        try:
            overrides.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


class ChaosType(ParamType):
    """`kill=0.5s`, `stop=0.3s/0.2s` or both, with a comma between, as a `Chaos`."""

    name = "kill=INTERVAL,stop=INTERVAL/DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Chaos:
        from ..host.protocol import Chaos

        if isinstance(value, Chaos):
            return value
        given: dict[str, Any] = {}
        for part in value.split(","):
            match = re.fullmatch(rf"(?:kill={_TIME}|stop={_TIME}/{_TIME})", part)
            if match is None:
                self.fail(
                    f"{part!r} has not the form kill=INTERVAL or stop=INTERVAL/DURATION, for example kill=0.5s, "
                    "stop=0.3s/200ms or both with a comma between",
                    param,
                    ctx,
                )
            kill_s, stop_s, stop_for_s = (_seconds(*match.group(at, at + 1)) for at in (1, 3, 5))
            given |= {"kill_s": kill_s} if kill_s is not None else {"stop_s": stop_s, "stop_for_s": stop_for_s}
            for what, time_s in (("interval", kill_s), ("interval", stop_s), ("duration", stop_for_s)):
                if time_s is not None and not CHAOS_MIN_S <= time_s <= CHAOS_MAX_S:
                    self.fail(f"{part!r}: the {what} is {time_s:g} s; it must be from 10 ms to a day", param, ctx)
        if len(given) != sum({"kill": 1, "stop": 2}[part[:4]] for part in value.split(",")):
            self.fail(f"{value!r} says kill or stop twice", param, ctx)
        return Chaos(**given)


def _seconds(number: str | None, unit: str | None) -> float | None:
    return None if number is None else float(number) * _UNITS_S[unit or "s"]
