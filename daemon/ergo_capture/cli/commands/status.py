"""``ergo-capture status`` and ``top``: the running daemon's status, once or continuously."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
import msgspec

from ergo_capture.cli.support.command import FiniteRange, command, config_option, flag, socket_option
from ergo_capture.cli.support.control_connection import ControlConnection, DaemonAway, DaemonRefused, control_path
from ergo_capture.cli.support.output import print_view
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.protocol.control import Status, StatusRequest

#: The width of the output to a pipe; with 80 columns the ids of sessions would be cut.
PIPE_COLUMNS: Final = 160
#: Lines of ``top`` besides the rows of sessions, when nothing is wrong.
_OTHER_LINES: Final = 22
#: Rows of sessions on the smallest screen.
_LEAST_ROWS: Final = 3


def _ask(daemon: ControlConnection) -> bytes:
    return bytes(daemon.ask(StatusRequest(), Status).status)


@command(examples=("ergo-capture status --socket /tmp/capture.sock", "ergo-capture status --json"))
@socket_option
@config_option
@flag("--json", "as_json", help="Print one JSON object with every figure.")
def status(socket: str, config: Path | None, *, as_json: bool) -> None:
    """Show the running daemon's sessions, commits, journal, disk and refusals, and what a shutdown would wait for.

    Exit code 1 if no daemon answers.
    """
    with ControlConnection(control_path(socket, config)) as daemon:
        text = _ask(daemon)
    if as_json:
        click.echo(msgspec.json.format(text, indent=2))
        return
    from rich.console import Console  # noqa: PLC0415 - JSON needs no rich

    from ergo_capture.cli.support.status_view import decode_status, whole_view  # noqa: PLC0415

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    print_view(console, whole_view(decode_status(text), columns=console.width))


@command(examples=("ergo-capture top --interval 2",))
@socket_option
@config_option
@click.option(
    "--interval",
    type=FiniteRange(min=0.1, max=3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds between two updates.",
)
def top(socket: str, config: Path | None, interval: float) -> None:
    """Watch the running daemon, with rates; q or Ctrl-C ends it. Waits for a daemon if there is none."""
    reason = "standard output is not a terminal" if not sys.stdout.isatty() else ""
    if os.environ.get("TERM", "").lower() in ("", "dumb", "unknown"):
        reason = reason or "the terminal cannot be drawn on, as TERM says"
    if reason:
        raise ErgoCaptureError(
            f"show top: {reason}",
            op="show top",
            hint="use `ergo-capture status`, or `status --json` for a program",
            exit_code=ExitCode.USAGE,
        )
    _watch(control_path(socket, config), interval)


def _watch(path: Path, interval: float) -> None:
    """Show the status of the daemon behind a control socket until q is pressed."""
    from rich.console import Console, RenderableType  # noqa: PLC0415 - JSON needs no rich
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from ergo_capture.cli.support.status_view import Rates, decode_status, whole_view  # noqa: PLC0415

    console = Console(highlight=False)
    daemon: ControlConnection | None = None
    before = None
    with _keyboard() as q_pressed_within, Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                view: RenderableType
                try:
                    daemon = daemon or ControlConnection(path)
                    status = decode_status(_ask(daemon))
                    rates = None if before is None else Rates.between(before, status)
                    rows = max(_LEAST_ROWS, console.height - _OTHER_LINES)
                    view, before = whole_view(status, rates, columns=console.width, rows=rows), status
                except (DaemonAway, DaemonRefused) as away:
                    if daemon is not None:
                        daemon.close()
                    daemon, before = None, None
                    view = Text(f"{away.message}\n{away.hint}\nwaiting for it; q ends this", style="yellow")
                live.update(view, refresh=True)
                if q_pressed_within(interval):
                    return
        except KeyboardInterrupt:
            return
        finally:
            if daemon is not None:
                daemon.close()


@contextmanager
def _keyboard() -> Iterator[Callable[[float], bool]]:
    """Read keys without echo; yield a function that waits for some seconds, and returns True early if q is pressed.

    Without a keyboard the function only waits.
    """
    if not sys.stdin.isatty():
        yield _wait
        return
    import termios  # noqa: PLC0415 - there is a terminal
    import tty  # noqa: PLC0415

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield _wait_for_q
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _wait(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _wait_for_q(seconds: float) -> bool:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        ready, _, _ = select.select([sys.stdin], [], [], left)
        if ready:
            keys = os.read(sys.stdin.fileno(), 64)
            # At the end of input the terminal is gone.
            if not keys or b"q" in keys.lower():
                return True
    return False
