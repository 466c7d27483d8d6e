"""The command line: `app` is the door, each verb has a file of its own."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line on `sys.argv`; ends with SystemExit, like click's own entry points."""
    from .app import app

    app.main(prog_name="civitas-shm")
    raise AssertionError("click ends with SystemExit")
