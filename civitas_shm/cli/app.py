"""The group of verbs, and the one place where an error becomes a sentence and an exit code.

Rules of this file:
- a verb's file is imported when the verb is used (or its help is shown), and imports what it needs inside its function:
  `--help`, `version` and completion stay fast and work where the runtime cannot be imported;
- an error that we raise on purpose is printed to stderr as it is, without a traceback; `CIVITAS_SHM_DEBUG=1` shows one;
- exit codes: 0 done, 2 usage (click's own), 130 interrupted; all others are `CivitasError.exit_code`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import rich_click as click

from .. import __version__
from ..errors import CivitasError

__all__ = ["EXIT_INTERRUPTED", "app"]

EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, what shells expect."""

VERBS: Final = (
    "run",
    "ps",
    "stop",
    "ask",
    "send",
    "suspend",
    "resume",
    "logs",
    "top",
    "why",
    "mailbox",
    "dead",
    "delays",
    "state",
    "plan",
    "topology",
    "config",
    "init",
    "sim",
    "doctor",
    "gc",
    "version",
    "completion",
)
"""In the order of the help; each is `command` in `civitas_shm.cli.VERB`."""


class Verbs(click.RichGroup):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of use, not of the alphabet."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of that name."""
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f".{cmd_name}", __package__).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        """As click does, with a suggestion for a verb that does not exist."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from ..topology.suggest import did_you_mean

            ctx.fail(f"there is no command {args[0]!r}{did_you_mean(args[0], VERBS)}")
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, *positional: Any, **keywords: Any) -> Any:
        """click's, with our errors turned into exit codes. Ends with SystemExit like click's."""
        try:
            return super().main(args, *positional, **keywords)
        except CivitasError as error:
            if os.environ.get("CIVITAS_SHM_DEBUG"):
                raise
            print(error, file=sys.stderr)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
def app() -> None:
    """Agents in pinned OS processes, mailboxes in shared memory.

    A topology file says which agents there are and where they run. `run` runs it, `plan` shows what `run` would do,
    `init` makes a first one.
    """
