"""``ergo-capture flush``.

Owns: its arguments and output.
Not here: publishing (``server/publisher.py``).
"""

from __future__ import annotations

from typing import Annotated

import typer

from ergo_capture.cli.operator import ConfigOption, OperatorLine, SocketOption, control_path
from ergo_capture.protocol.control import Flushed, FlushRequest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def flush(
    session: Annotated[
        str, typer.Argument(metavar="SESSION", show_default=False, help="One session; by default every open one.")
    ] = "",
    socket: SocketOption = "",
    config: ConfigOption = None,
) -> int:
    """Have the running daemon publish what its sessions hold by now, and print the bundles' paths."""
    # Why without a time-out: a long session takes as long as it takes, and the daemon goes on meanwhile.
    with OperatorLine(control_path(socket, config), patience=None) as line:
        answer = line.ask(FlushRequest(session or None), Flushed)
    for bundle in answer.bundles:
        typer.echo(bundle)
    return 0
