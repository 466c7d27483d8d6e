"""`completion`: the script that makes a shell complete our commands."""

from __future__ import annotations

import rich_click as click

__all__ = ["command"]

_HELP = """Print the completion script of a shell.

\b
bash:  eval "$(civitas-shm completion bash)"        in ~/.bashrc
zsh:   eval "$(civitas-shm completion zsh)"         in ~/.zshrc
fish:  civitas-shm completion fish > ~/.config/fish/completions/civitas-shm.fish
"""


@click.command("completion", help=_HELP)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """The help is in `_HELP`, because its lines must stay lines."""
    from click.shell_completion import get_completion_class

    from .app import app

    completion = get_completion_class(shell)
    assert completion is not None  # click brings these three
    # source_vars and source_template are what source() is made of; source() itself runs `bash --version` first,
    # which is no business of printing a text.
    script = completion(app, {}, "civitas-shm", "_CIVITAS_SHM_COMPLETE")
    click.echo(script.source_template % script.source_vars())
