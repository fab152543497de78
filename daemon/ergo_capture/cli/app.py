"""The commands put together, and what happens to their errors.

Owns: the list of commands, ``Error:`` and ``Try:``, exit codes, closed pipes.
Not here: any command.

Only the module of the command that is called is imported. Why: ``ergo-capture send`` at the end of a pipe
should start before the pipe has anything to say.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Final

import typer

from ergo_capture.errors import ErgoCaptureError, ExitCode

#: Each command is the module of its name beside this one.
COMMANDS: Final = (
    "serve",
    "send",
    "status",
    "top",
    "tap",
    "flush",
    "reload",
    "shutdown",
    "metrics",
    "verify",
    "replay",
    "info",
    "cat",
    "tail",
    "diff",
    "extract",
    "report",
    "doctor",
    "recover",
    "simulate",
    "demo",
    "bench",
    "bundles",
    "journal",
    "config",
    "systemd",
)

#: The exit code of a command whose reader went away: the shell's for SIGPIPE. Why not 0: not all was checked or said.
BROKEN_PIPE: Final = 141


def _version(wanted: bool) -> None:
    if wanted:
        from ergo_capture.version import PROGRAM  # noqa: PLC0415 - only here

        typer.echo(PROGRAM)
        raise typer.Exit


def whole_app() -> typer.Typer:
    """Every command in one application: for the help, and for a command that is not there."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
        ] = False,
    ) -> None:
        """Capture events and decisions of the Ergo graph engine so that no crash loses them."""
        _ = version

    for name in COMMANDS:
        part = _part(name)
        if part.registered_callback or part.registered_groups or len(part.registered_commands) > 1:
            app.add_typer(part, name=name)
        else:
            app.registered_commands += part.registered_commands
    return app


def _part(name: str) -> typer.Typer:
    part: typer.Typer = importlib.import_module(f"ergo_capture.cli.{name}").app
    return part


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; prints errors, raises none."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["help"]:
        # Why: many try this first, and `help verify` next.
        arguments = [*arguments[1:], "--help"]
    known = bool(arguments) and arguments[0] in COMMANDS
    try:
        if known:
            result = _part(arguments[0])(arguments[1:], standalone_mode=False, prog_name=f"ergo-capture {arguments[0]}")
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
