"""The commands put together, and what happens to their errors.

Owns: the root of the command line, running one command, ``Error:`` and ``Try:``, exit codes, closed pipes.
Not here: which commands there are (``commands.py``), any command.

Only the module of the command that is called is imported. Why: ``ergo-capture send`` at the end of a pipe
should start before the pipe has anything to say.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, MutableMapping
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command

from ergo_capture.cli.commands import COMMANDS, EXAMPLES, GROUPS
from ergo_capture.errors import ErgoCaptureError, ExitCode

#: The exit code of a command whose reader went away: the shell's for SIGPIPE. Why not 0: not all was checked or said.
BROKEN_PIPE: Final = 141

_SETTINGS: Final = {"help_option_names": ["--help", "-h"]}


def _version(wanted: bool) -> None:
    if wanted:
        from ergo_capture.version import PROGRAM  # noqa: PLC0415 - only here

        typer.echo(PROGRAM)
        raise typer.Exit


class _Commands(MutableMapping[str, Any]):
    """Every command by its name; imported when it is looked up."""

    def __getitem__(self, name: str) -> Any:
        if name not in COMMANDS:
            raise KeyError(name)
        return _command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)

    def __setitem__(self, name: str, command: Any) -> None:
        raise NotImplementedError

    def __delitem__(self, name: str) -> None:
        raise NotImplementedError


class _Root(TyperGroup):
    """All commands, listed by what they are for."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Commands()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list in the help; no command is imported for it."""
        del ctx
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))


def whole_app() -> typer.Typer:
    """Every command in one application: for the help, for completion, and for a command that is not there."""
    app = typer.Typer(
        cls=_Root,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=_SETTINGS,
        epilog="ergo-capture COMMAND --help explains a command and its options.",
    )

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
        ] = False,
    ) -> None:
        """Every event and every decision of an Ergo run, on disk before anything acts on it."""
        _ = version

    return app


def _command(name: str) -> Any:
    """A command with its examples, or a group of them."""
    part = _part(name)
    # Why plain: it is there 100 ms earlier, and can be read at any width and through any pipe.
    part.rich_markup_mode = None
    command = get_command(part)
    command.name = name
    command.context_settings = _SETTINGS
    for path, one in [
        (name, command),
        *((f"{name} {sub}", one) for sub, one in getattr(command, "commands", {}).items()),
    ]:
        if path in EXAMPLES:
            one.epilog = "\b\nExamples:\n" + "\n".join(f"  {example}" for example in EXAMPLES[path])
    return command


def _part(name: str) -> typer.Typer:
    part: typer.Typer = importlib.import_module(f"ergo_capture.cli.{name}").app
    return part


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; prints errors, raises none."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["help"]:
        # Why: many try this first, and `help verify` next.
        arguments = [*arguments[1:], "--help"]
    elif arguments[:1] in (["version"], ["-V"]):
        arguments = ["--version"]
    known = bool(arguments) and arguments[0] in COMMANDS
    try:
        if known:
            name = f"ergo-capture {arguments[0]}"
            result = _command(arguments[0])(arguments[1:], standalone_mode=False, prog_name=name)
        else:
            result = whole_app()(arguments, standalone_mode=False, prog_name="ergo-capture")
        # Why asked: whoever calls us may have closed it, and then Python has none.
        if sys.stdout is not None:
            sys.stdout.flush()
    except ErgoCaptureError as error:
        _complain(error.message, error.hint)
        return int(error.exit_code)
    except (BrokenPipeError, SystemExit) as leaving:
        # Why also SystemExit: typer makes one of a broken pipe, whatever it is told.
        if not isinstance(leaving, BrokenPipeError) and not isinstance(leaving.__context__, BrokenPipeError):
            raise
        # Why: whoever read our output has seen enough. Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        # Why here too: a disk may fail under any command, and a traceback helps nobody with that.
        where = f" '{error.filename}'" if error.filename else ""
        hint = "check the owner and the permissions of the path" if isinstance(error, PermissionError) else None
        _complain(f"{arguments[0] if arguments else 'ergo-capture'}{where}: {error.strerror or error}", hint)
        return int(ExitCode.FAILED)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except typer.Exit as leaving:
        return leaving.exit_code
    except Exception as error:
        # Why by its looks: which library a usage error comes from depends on the version of typer.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return int(ExitCode.USAGE)
    return result if isinstance(result, int) else int(ExitCode.OK)


def _complain(message: str, hint: str | None) -> None:
    typer.echo(f"Error: {message}", err=True)
    if hint:
        typer.echo(f"Try: {hint}", err=True)
