"""``ergo-capture reload``.

Owns: its arguments and output.
Not here: what is read and what takes effect (``server/ops/reload.py``).
"""

from __future__ import annotations

import typer

from ergo_capture.cli.operator import ConfigOption, OperatorLine, SocketOption, control_path
from ergo_capture.protocol.control import Reloaded, ReloadRequest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def reload(socket: SocketOption = "", config: ConfigOption = None) -> int:
    """Have the running daemon read its configuration again; a bad one changes nothing, and exit 78.

    Names what took effect, and what takes effect only with a restart.
    """
    with OperatorLine(control_path(socket, config)) as line:
        answer = line.ask(ReloadRequest(), Reloaded)
    for setting in answer.applied:
        typer.echo(f"applied {setting}")
    for setting in answer.restart:
        typer.echo(f"needs a restart: {setting}")
    if not answer.applied and not answer.restart:
        typer.echo("nothing has changed")
    return 0
