"""``ergo-capture metrics``.

Owns: its arguments.
Not here: the metrics (``server/ops/metrics.py``).
"""

from __future__ import annotations

import msgspec
import typer

from ergo_capture.cli.operator import ConfigOption, OperatorLine, SocketOption, control_path

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class _Answer(msgspec.Struct):
    text: str


@app.command()
def metrics(socket: SocketOption = "", config: ConfigOption = None) -> int:
    """Print the running daemon's metrics in Prometheus's text format."""
    with OperatorLine(control_path(socket, config)) as line:
        typer.echo(msgspec.json.decode(line.ask("metrics"), type=_Answer).text, nl=False)
    return 0
