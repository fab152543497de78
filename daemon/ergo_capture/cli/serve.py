"""``ergo-capture serve``.

Owns: its arguments.
Not here: the process (``server/process.py``), the daemon in it (``server/service.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve(
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Configuration file; by default the usual one, if it is there.")
    ] = None,
    socket: Annotated[
        str, typer.Option(metavar="PATH", help="Path of the socket, in place of the configured one.")
    ] = "",
    state_dir: Annotated[
        str, typer.Option(metavar="DIR", help="State directory, in place of the configured one.")
    ] = "",
) -> int:
    """Run the daemon until SIGTERM or SIGINT; a second signal stops it at once."""
    from ergo_capture import telemetry  # noqa: PLC0415 - help must not load the daemon
    from ergo_capture.config import Config, load  # noqa: PLC0415
    from ergo_capture.server.process import fill_descriptors, run  # noqa: PLC0415

    fill_descriptors()

    def reread() -> Config:
        return load(config, socket=socket, state=state_dir)

    loaded = reread()
    log = loaded.log
    telemetry.configure(log.level, log.format, burst=log.burst, window=log.window.seconds)
    return run(loaded, reread)
