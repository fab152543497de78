"""``ergo-capture shutdown``.

Owns: its arguments, waiting until the daemon has gone.
Not here: the shutdown (``server/service.py``).
"""

from __future__ import annotations

from typing import Annotated

import typer

from ergo_capture.cli.operator import ConfigOption, DaemonAway, OperatorLine, SocketOption, control_path
from ergo_capture.protocol.control import ShutdownRequest, Stopping

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def shutdown(
    socket: SocketOption = "",
    config: ConfigOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when the daemon has gone.")] = True,
) -> int:
    """Have the running daemon stop in order, as SIGTERM does: everything accepted is decided and published first.

    A daemon of systemd's is stopped with `systemctl stop`.
    """
    with OperatorLine(control_path(socket, config)) as line:
        answer = line.ask(ShutdownRequest(), Stopping)
        for sentence in answer.waits_for:
            typer.echo(f"waits for {sentence}", err=True)
        if wait:
            try:
                for _ in line.lines():
                    pass
            except DaemonAway:
                # Why this is the good end: the daemon hangs up last of all.
                return 0
    return 0
