"""``ergo-capture help``: the manual's topics, and the help of commands."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import Any

import click

from ergo_capture import manual
from ergo_capture.cli.commands import COMMANDS
from ergo_capture.cli.support.command import argument, command, did_you_mean
from ergo_capture.cli.support.output import write_out


def _complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    """Return the topics and commands that begin with what was typed."""
    from click.shell_completion import CompletionItem  # noqa: PLC0415 - only when a shell asks

    about = dict.fromkeys(COMMANDS, "the command's options") | manual.topics()
    return [CompletionItem(name, help=text) for name, text in about.items() if name.startswith(incomplete)]


@command("help", examples=("ergo-capture help", "ergo-capture help access", "ergo-capture help verify"))
@argument("name", "A topic of the manual, or a command.", nargs=-1, metavar="[NAME]...", shell_complete=_complete)
@click.pass_context
def help(ctx: click.Context, name: tuple[str, ...]) -> None:  # noqa: A001 - the name of the command
    """List the topics of the manual, show one, or explain a command.

    On a terminal a topic is shown by the program in $PAGER, by default `less -R`; in a pipe it is plain Markdown.
    """
    topics = manual.topics()
    if not name:
        click.echo(_list_of(topics))
    elif len(name) == 1 and name[0] in topics:
        _show(manual.read(name[0]))
    elif name[0] in COMMANDS:
        click.echo(_help_of(ctx, name))
    else:
        wrong = " ".join(name)
        suggestion = did_you_mean(wrong, [*topics, *COMMANDS])
        click.echo(f"Error: no topic and no command is called {wrong!r}.{suggestion}\n\n{_list_of(topics)}", err=True)
        ctx.exit(2)


def _list_of(topics: dict[str, str]) -> str:
    width = max(map(len, topics), default=0)
    lines = [f"  {name.ljust(width)}  {title}" for name, title in topics.items()]
    lines += ["", "'ergo-capture help TOPIC' shows a topic.", "'ergo-capture --help' lists the commands."]
    return "\n".join(["Topics:", *lines])


def _help_of(ctx: click.Context, names: tuple[str, ...]) -> str:
    """Return the help of a command, as ``ergo-capture COMMAND --help`` prints it."""
    parent = ctx.find_root()
    for name in names:
        group = parent.command
        if not isinstance(group, click.Group):
            raise click.UsageError(f"{parent.command_path!r} has no command {name!r}", parent)
        _, found, _ = group.resolve_command(parent, [name])
        assert found is not None
        parent = click.Context(found, info_name=name, parent=parent)
    return parent.get_help()


def _show(text: str) -> None:
    """Print Markdown unchanged, or on a terminal rendered and through a pager."""
    if not sys.stdout.isatty():
        write_out(text.encode())
        return
    rendered = _rendered(text)
    # LESS matters if $PAGER is `less` without options: it would print the colours as escape sequences.
    environment = {"LESS": "-R"} | os.environ
    try:
        pager = subprocess.Popen(  # noqa: S603 - the user chose it
            shlex.split(os.environ.get("PAGER") or "less -R"), stdin=subprocess.PIPE, env=environment
        )
    except (OSError, ValueError):
        # There is no such program.
        click.echo(rendered, nl=False)
        return
    try:
        pager.communicate(rendered.encode(sys.stdout.encoding, sys.stdout.errors or "strict"))
    except KeyboardInterrupt:
        # Ctrl-C reaches the pager too, which decides whether to end.
        pager.wait()


def _rendered(text: str) -> str:
    """Return Markdown with the terminal's colours, in lines that fit its width."""
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.markdown import Markdown  # noqa: PLC0415

    console = Console()
    console.width = min(console.width, 100)
    with console.capture() as capture:
        console.print(Markdown(text))
    return capture.get()
