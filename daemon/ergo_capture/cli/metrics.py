"""``ergo-capture metrics``.

Owns: its arguments.
Not here: the metrics (``server/ops/metrics.py``).
"""

from __future__ import annotations

import typer

from ergo_capture.cli.operator import ConfigOption, OperatorLine, SocketOption, control_path
from ergo_capture.protocol.control import Metrics, MetricsRequest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def metrics(socket: SocketOption = "", config: ConfigOption = None) -> int:
    """Print the running daemon's metrics in Prometheus's text format."""
    with OperatorLine(control_path(socket, config)) as line:
        typer.echo(line.ask(MetricsRequest(), Metrics).text, nl=False)
    return 0
