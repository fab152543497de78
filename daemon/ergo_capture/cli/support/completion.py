"""Shell completion: print or install the script that asks this program for completions.

The scripts are click's. They are installed in the usual places of each shell.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click
from click.shell_completion import get_completion_class

from ergo_capture.cli.support.command import COMPLETION_VARIABLE, PROGRAM_NAME
from ergo_capture.errors import ErgoCaptureError

SHELLS: Final = ("bash", "zsh", "fish")

#: How many ancestors of this process are examined; there may be wrappers between the shell and this program.
_MOST_ANCESTORS: Final = 8
_ZSH_SETUP: Final = "fpath+=~/.zfunc; autoload -Uz compinit; compinit"


def show(root: click.Command, shell: str) -> None:
    """Print the completion script of a shell; ``current`` stands for the one that runs this program.

    Raises:
        click.UsageError: the shell is unknown.
    """
    click.echo(_script(root, _shell(shell)))


def install(root: click.Command, shell: str) -> None:
    """Write the completion script below the home directory, and load it from the shell's start-up file.

    Raises:
        click.UsageError: the shell is unknown.
        OSError: a file cannot be written.
    """
    shell = _shell(shell)
    try:
        home = Path.home()
    except RuntimeError as error:
        raise ErgoCaptureError(
            f"install completion: user {os.geteuid()} has no home directory",
            op="install completion",
            hint="set HOME, or print the script with --show-completion",
        ) from error
    path = {
        "bash": home / ".bash_completions" / f"{PROGRAM_NAME}.sh",
        "zsh": home / ".zfunc" / f"_{PROGRAM_NAME}",
        "fish": home / ".config/fish/completions" / f"{PROGRAM_NAME}.fish",
    }[shell]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_script(root, shell) + "\n", encoding="utf-8")
    if shell == "bash":
        _append_line(home / ".bashrc", f"source '{path}'")
    elif shell == "zsh":
        _append_line(home / ".zshrc", _ZSH_SETUP)
    click.echo(f"{shell} completion installed in {path}")
    click.echo("Completion will take effect once you restart the terminal")


def _script(root: click.Command, shell: str) -> str:
    kind = get_completion_class(shell)
    assert kind is not None
    return kind(root, {}, PROGRAM_NAME, COMPLETION_VARIABLE).source().strip()


def _append_line(path: Path, line: str) -> None:
    """Append a line to a file unless the file has it already."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""
    if line not in text:
        start = "\n" if text and not text.endswith("\n") else ""
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{start}{line}\n")


def _shell(name: str) -> str:
    if name == "current":
        name = _running_shell()
    if name not in SHELLS:
        raise click.UsageError(f"no completion for the shell {name!r}; name one of {', '.join(SHELLS)}")
    return name


def _running_shell() -> str:
    """Return the closest ancestor of this process that is a known shell, or else the user's login shell."""
    process = os.getppid()
    for _ in range(_MOST_ANCESTORS):
        try:
            # The name is in parentheses and may hold anything; the parent's id is the second field after it.
            name, _, rest = Path(f"/proc/{process}/stat").read_text(errors="replace").partition("(")[2].rpartition(")")
            process = int(rest.split()[1])
        except (OSError, ValueError, IndexError):
            break
        if name in SHELLS:
            return name
    return Path(os.environ.get("SHELL", "")).name
