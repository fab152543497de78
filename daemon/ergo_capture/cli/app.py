"""The root of the command line: run one command, print its error, return its exit code.

Only the module of the command that is called is imported: ``ergo-capture send`` at the end of a pipe has to start fast.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, Final

import click

from ergo_capture.cli.commands import COMMANDS, GROUPS, module_of
from ergo_capture.cli.support.command import COMPLETION_VARIABLE, PROGRAM_NAME, Group
from ergo_capture.cli.support.output import escape_what_cannot_be_printed, print_error
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.version import PROGRAM

#: The exit code of a command after the reader of its output has gone: the shell's code for SIGPIPE. It is not 0,
#: because the command did not finish.
BROKEN_PIPE: Final = 141


class _Root(Group):
    """All commands; each is imported when it is looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the help."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None if there is none of that name."""
        del ctx
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table."""
        del ctx
        width = max(map(len, COMMANDS))
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), about) for name, about in commands.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Return the commands, or the options, that begin with what was typed."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - only when a shell asks

        items = [
            CompletionItem(name, help=about)
            for commands in GROUPS.values()
            for name, about in commands.items()
            if name.startswith(incomplete)
        ]
        return items + (click.Command.shell_complete(self, ctx, incomplete) if incomplete.startswith("-") else [])


def load_command(name: str) -> click.Command:
    """Import a command."""
    command: click.Command = getattr(importlib.import_module(module_of(name)), name)
    return command


def _print_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(PROGRAM)
        ctx.exit()


def _completion(ctx: click.Context, option: click.Parameter, shell: str | None) -> None:
    if shell is None or ctx.resilient_parsing:
        return
    from ergo_capture.cli.support import completion  # noqa: PLC0415 - only for these two options

    act = completion.install if option.name == "install_completion" else completion.show
    act(root, shell)
    ctx.exit()


def _completion_option(name: str, help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # noqa: A002 - the name that click gives it
    return click.option(
        name,
        is_flag=False,
        flag_value="current",
        metavar="[SHELL]",
        is_eager=True,
        expose_value=False,
        callback=_completion,
        help=help,
    )


@click.group(
    cls=_Root,
    name=PROGRAM_NAME,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"\b\n'{PROGRAM_NAME} COMMAND --help' explains a command.\n'{PROGRAM_NAME} help' lists the topics of the manual.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
@_completion_option(
    "--install-completion", "Install completion for the current shell, or for SHELL: bash, zsh or fish."
)
@_completion_option("--show-completion", "Print the completion script, to copy it or to change it.")
def root() -> None:
    """Capture every event and every decision of an Ergo run on disk before anything acts on it."""


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    Errors are printed to standard error as ``Error:`` and ``Try:``; an exception that is a defect is raised.

    Args:
        arguments: the command line without the program's name; by default that of this process.
    """
    escape_what_cannot_be_printed()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] in (["version"], ["-V"]):
        arguments = ["--version"]
    try:
        result = _invoke(arguments)
        # Python has no standard output if the parent process closed it.
        if sys.stdout is not None:
            sys.stdout.flush()
    except ErgoCaptureError as error:
        print_error(error.message, error.hint)
        return int(error.exit_code)
    except BrokenPipeError:
        # Replace standard output: Python flushes it again at exit, and would print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        # Any command can meet a failing disk. The operator needs the path and the reason, not a traceback.
        where = f" '{error.filename}'" if error.filename else ""
        hint = None
        if isinstance(error, PermissionError):
            hint = "check the owner and the permissions of the path"
        elif isinstance(error, FileNotFoundError) and error.filename:
            hint = "name a path that exists; a relative one begins at the working directory"
        print_error(f"{arguments[0] if arguments else PROGRAM_NAME}{where}: {error.strerror or error}", hint)
        return int(ExitCode.FAILED)
    except (KeyboardInterrupt, click.Abort):
        return 130
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.ClickException as error:
        error.show()
        return int(ExitCode.USAGE)
    return result if isinstance(result, int) else int(ExitCode.OK)


def _invoke(arguments: list[str]) -> Any:
    """Parse and run; unlike ``click.Command.main`` this never exits the process."""
    if instruction := os.environ.get(COMPLETION_VARIABLE):
        from click.shell_completion import shell_complete  # noqa: PLC0415 - only when a shell asks

        return shell_complete(root, {}, PROGRAM_NAME, COMPLETION_VARIABLE, instruction)
    with root.make_context(PROGRAM_NAME, list(arguments)) as context:
        return root.invoke(context)
