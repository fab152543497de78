"""``ergo-capture serve``: run the daemon."""

from __future__ import annotations

from pathlib import Path

import click

from ergo_capture.cli.support.command import NAME, command, config_option


@command(
    examples=(
        "ergo-capture serve --socket /tmp/capture.sock --state-dir /tmp/capture",
        "ergo-capture serve --config capture.toml",
    )
)
@config_option
@click.option(
    "--socket", type=NAME, default="", metavar="PATH", help="Path of the socket, in place of the configured one."
)
@click.option(
    "--state-dir", type=NAME, default="", metavar="DIR", help="State directory, in place of the configured one."
)
def serve(config: Path | None, socket: str, state_dir: str) -> int:
    """Run the daemon until SIGTERM or SIGINT; a signal more than a second later stops it at once."""
    from ergo_capture.server.init_process import fork_as_init  # noqa: PLC0415 - help must not load the daemon

    fork_as_init()
    from ergo_capture import telemetry  # noqa: PLC0415
    from ergo_capture.config import Config, load  # noqa: PLC0415
    from ergo_capture.server.process import fill_descriptors, run  # noqa: PLC0415

    fill_descriptors()

    def reread() -> Config:
        return load(config, socket=socket, state=state_dir)

    loaded = reread()
    log = loaded.log
    telemetry.configure(log.level, log.format, burst=log.burst, window=log.window.seconds)
    return run(loaded, reread)
