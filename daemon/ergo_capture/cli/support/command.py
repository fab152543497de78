"""Declare commands and arguments: click's, with help for arguments and with examples.

An option is declared with ``click.option``; everything else with the functions of this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from ergo_capture.cli.support.output import is_unicode

#: The name of the program, in usage lines and completion scripts.
PROGRAM_NAME: Final = "ergo-capture"
#: The environment variable with the instruction of a shell's completion function.
COMPLETION_VARIABLE: Final = "_ERGO_CAPTURE_COMPLETE"


class _NamedPath(click.Path):
    """A path that is not empty: the file system takes an empty one for the current directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; fail if it is empty, which is probably an unset variable of the shell."""
        if value == "":
            self.fail("It is empty: is a variable of the shell not set? The current directory is '.'.", param, ctx)
        return super().convert(value, param, ctx)


#: A file or directory; click passes it to the command as a ``Path``.
PATH: Final = _NamedPath(path_type=Path)
#: Like ``PATH`` for paths that the command itself reports as unreadable.
UNCHECKED_PATH: Final = _NamedPath(path_type=Path, readable=False)
#: A file, a pattern or an id: passed on as text. Shells complete it as a file name.
NAME: Final = click.Path(readable=False)


class FiniteRange(click.FloatRange):
    """A range of floats that rejects NaN, which compares as neither too small nor too large."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; fail if the text is not a number, is NaN or is outside the range."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


class Argument(click.Argument):
    """A positional argument with a description.

    Args:
        description: for the command's help.
    """

    def __init__(self, *declarations: Any, description: str = "", **attributes: Any) -> None:
        super().__init__(*declarations, **attributes)
        self.description = description


class Command(click.Command):
    """A command whose help also lists its arguments and shows examples.

    Args:
        examples: shell commands.
    """

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.examples = examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; fail if one that is not a path is not UTF-8, as in the protocol and in bundles."""
        rest = super().parse_args(ctx, args)
        for parameter in self.get_params(ctx):
            value = ctx.params.get(parameter.name or "")
            if parameter.type is click.STRING and value and not ctx.resilient_parsing:
                for text in (value,) if isinstance(value, str) else value:
                    if not is_unicode(text):
                        raise click.BadParameter(f"{text!r} is not UTF-8.", ctx, parameter)
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections on arguments and options."""
        described = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, Argument)]
        if described:
            with formatter.section("Arguments"):
                formatter.write_dl(
                    [
                        (each.human_readable_name, each.description + "  [required]" * each.required)
                        for each in described
                    ]
                )
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        with formatter.section("Options"):
            formatter.write_dl([record for option in options if (record := option.get_help_record(ctx)) is not None])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, one a line, without wrapping them."""
        del ctx
        if self.examples:
            formatter.write_paragraph()
            formatter.write("  Examples:\n" + "".join(f"    {example}\n" for example in self.examples))


class Group(click.Group):
    """A group of commands; without a command it prints its help and fails."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of their declaration."""
        del ctx
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the group's own options."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names, or fail with the closest name."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and name not in self.list_commands(ctx):
            raise click.UsageError(f"No such command {name!r}.{did_you_mean(name, self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return a sentence that suggests the closest known name; empty if none is close."""
    from difflib import get_close_matches  # noqa: PLC0415 - only for a mistyped name

    closest = get_close_matches(name, known, 1)
    return f" Did you mean {closest[0]!r}?" if closest else ""


def command(name: str | None = None, *, examples: Sequence[str] = ()) -> Callable[[Callable[..., int | None]], Command]:
    """Declare a command: the function's docstring is its help, and its return value the exit code."""
    return click.command(name, cls=Command, examples=examples)


def argument(name: str, description: str, **attributes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a positional argument; it is called ``name`` in capitals in the help unless ``metavar`` is given."""
    return click.argument(name, cls=Argument, description=description, **attributes)


def flag(
    *declarations: str,
    help: str,  # noqa: A002 - the name that click gives it
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare an option without a value."""
    return click.option(*declarations, is_flag=True, help=help)


def json_flag(one_line_for: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare ``--json`` of a command that prints one object a line."""
    return flag("--json", "as_json", help=f"Print one JSON object per {one_line_for}, one per line.")


timeout_option: Final = click.option(
    "--timeout",
    type=FiniteRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the engine may take for one attempt.",
)
graph_option: Final = click.option(
    "--graph", default="default", show_default=True, metavar="GRAPH", help="Graph to open a session of."
)
session_option: Final = click.option(
    "--session", default="", metavar="SESSION", help="Session to resume, in place of a new one."
)
window_option: Final = click.option(
    "--window",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    metavar="N",
    help="Events that may be unacknowledged at once.",
)
label_option: Final = click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label for the manifest; may be repeated."
)


def labels_from(texts: Iterable[str]) -> dict[str, str]:
    """Return labels from their text on the command line.

    Raises:
        click.BadParameter: one is not ``KEY=VALUE``.
    """
    labels = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"--label {text!r} is not KEY=VALUE")
        labels[key] = value
    return labels


def seal_option(does: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option ``--seal``, which takes a public key or a file with it, and passes the key to the command.

    The key is read before the command does anything. An empty text, such as that of an unset variable, is an error:
    the check that was asked for must not be left out.

    Args:
        does: the use of the key by the command, for the help.
    """

    def key_of(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
        if text is None:
            return None
        from ergo_capture.seal.keys import read_public_key  # noqa: PLC0415 - few commands are given a key

        return read_public_key(text)

    return click.option("--seal", metavar="PUBLIC", callback=key_of, help=f"A public key, or a file with it: {does}")


config_option: Final = click.option(
    "--config",
    type=PATH,
    metavar="FILE",
    help="Configuration file; by default the user's or the system's, if there is one.",
)
store_option: Final = click.option(
    "--store",
    default="",
    metavar="NAME|URL",
    help="A target of [ship.targets], or the URL of a store; by default the only target.",
)
state_option: Final = click.option(
    "--state-dir", type=NAME, default="", metavar="DIR", help="State directory; by default the configured one."
)
socket_option: Final = click.option(
    "--socket",
    type=NAME,
    default="",
    metavar="PATH",
    help="The daemon's capture socket; its control socket is found beside it.",
)
