"""``ergo-capture status``.

Owns: its arguments.
Not here: the figures (``server/ops/status_model.py``), how they are laid out (``status_view.py``).
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
import typer

from ergo_capture.cli.operator import ConfigOption, OperatorLine, SocketOption, control_path
from ergo_capture.protocol.control import Status, StatusRequest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


#: Columns where nobody says how many there are.
PIPE_COLUMNS: Final = 160


def ask_status(line: OperatorLine) -> bytes:
    """The daemon's status as JSON.

    Raises:
        DaemonAway: no daemon answers.
    """
    return bytes(line.ask(StatusRequest(), Status).status)


@app.command()
def status(
    socket: SocketOption = "",
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with every figure.")] = False,
) -> int:
    """Show what the running daemon does: sessions, commits, journal, disk, refusals, what a shutdown waits for.

    Exit 1 where no daemon answers.
    """
    with OperatorLine(control_path(socket, config)) as line:
        text = ask_status(line)
    if as_json:
        typer.echo(msgspec.json.format(text, indent=2))
        return 0
    from rich.console import Console  # noqa: PLC0415 - only for people

    from ergo_capture.cli.status_view import decode_status, whole_view  # noqa: PLC0415

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        # Why: a pipe has no width, and 80 columns would cut the sessions' names.
        console.width = PIPE_COLUMNS
    console.print(whole_view(decode_status(text), columns=console.width))
    return 0
