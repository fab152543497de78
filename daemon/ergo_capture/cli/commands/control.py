"""``ergo-capture flush``, ``reload``, ``shutdown`` and ``metrics``: one request each to the running daemon."""

from __future__ import annotations

from pathlib import Path

import click

from ergo_capture.cli.support.command import argument, command, config_option, socket_option
from ergo_capture.cli.support.control_connection import ControlConnection, DaemonAway, control_path
from ergo_capture.protocol.control import (
    Flushed,
    FlushRequest,
    Metrics,
    MetricsRequest,
    Reloaded,
    ReloadRequest,
    ShutdownRequest,
    Stopping,
)


@command(examples=("ergo-capture flush", "ergo-capture flush 20261123T134500Z-1-9c4ef0aa"))
@argument("session", "One session; by default every open one.", default="")
@socket_option
@config_option
def flush(session: str, socket: str, config: Path | None) -> None:
    """Publish snapshots of the running daemon's open sessions, and print the paths of the bundles."""
    # Wait without a limit: composing a long session takes long, and the daemon continues meanwhile.
    with ControlConnection(control_path(socket, config), timeout=None) as daemon:
        answer = daemon.ask(FlushRequest(session or None), Flushed)
    for bundle in answer.bundles:
        click.echo(bundle)


@command(examples=("ergo-capture config check && ergo-capture reload",))
@socket_option
@config_option
def reload(socket: str, config: Path | None) -> None:
    """Let the running daemon read its configuration again.

    Print the settings that took effect, and those that take effect only after a restart. A configuration with an error
    changes nothing; exit code 78.
    """
    with ControlConnection(control_path(socket, config)) as daemon:
        answer = daemon.ask(ReloadRequest(), Reloaded)
    for setting in answer.applied:
        click.echo(f"applied {setting}")
    for setting in answer.restart:
        click.echo(f"needs a restart: {setting}")
    if not answer.applied and not answer.restart:
        click.echo("nothing has changed")


@command(examples=("ergo-capture shutdown --socket /tmp/capture.sock",))
@socket_option
@config_option
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return when the daemon has ended.")
def shutdown(socket: str, config: Path | None, *, wait: bool) -> None:
    """Stop the running daemon as SIGTERM does: everything accepted is decided and published first.

    Use `systemctl stop` for a daemon that systemd runs.
    """
    with ControlConnection(control_path(socket, config)) as daemon:
        answer = daemon.ask(ShutdownRequest(), Stopping)
        for sentence in answer.waits_for:
            click.echo(f"waits for {sentence}", err=True)
        if wait:
            try:
                for _ in daemon.lines():
                    pass
            except DaemonAway:
                # The daemon closes this connection last, so it has ended.
                return


@command(examples=("ergo-capture metrics | grep refusals",))
@socket_option
@config_option
def metrics(socket: str, config: Path | None) -> None:
    """Print the running daemon's metrics in Prometheus's text format."""
    with ControlConnection(control_path(socket, config)) as daemon:
        click.echo(daemon.ask(MetricsRequest(), Metrics).text.encode(), nl=False)
