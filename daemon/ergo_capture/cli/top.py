"""``ergo-capture top``: the status, again and again, with rates.

Owns: the screen, the keys, going on when the daemon is away and comes back.
Not here: what is shown (``status_view.py``).
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from ergo_capture.cli.operator import ConfigOption, DaemonAway, DaemonRefused, OperatorLine, SocketOption, control_path
from ergo_capture.cli.status import ask_status
from ergo_capture.errors import ErgoCaptureError, ExitCode

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

#: Lines that are no rows of sessions, when nothing is wrong.
_OTHER_LINES: Final = 22
#: Rows of sessions, however small the screen.
_LEAST_ROWS: Final = 3


@app.command()
def top(
    socket: SocketOption = "",
    config: ConfigOption = None,
    interval: Annotated[
        float, typer.Option(min=0.1, max=3600, metavar="SECONDS", help="Seconds from one look to the next.")
    ] = 1.0,
) -> int:
    """Watch the running daemon, with rates; q or Ctrl-C ends it. Waits where there is no daemon."""
    if not sys.stdout.isatty():
        raise ErgoCaptureError(
            "show top: standard output is not a terminal",
            op="show top",
            hint="use `ergo-capture status`, or `status --json` for a program",
            exit_code=ExitCode.USAGE,
        )
    watch(control_path(socket, config), interval)
    return 0


def watch(path: Path, interval: float) -> None:
    """Show the daemon behind that control socket until somebody has seen enough."""
    from rich.console import Console, RenderableType  # noqa: PLC0415 - only here
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from ergo_capture.cli.status_view import Rates, decode_status, whole_view  # noqa: PLC0415

    console = Console(highlight=False)
    line: OperatorLine | None = None
    before = None
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                view: RenderableType
                try:
                    line = line or OperatorLine(path)
                    status = decode_status(ask_status(line))
                    rates = None if before is None else Rates.between(before, status)
                    rows = max(_LEAST_ROWS, console.height - _OTHER_LINES)
                    view, before = whole_view(status, rates, columns=console.width, rows=rows), status
                except (DaemonAway, DaemonRefused) as away:
                    if line is not None:
                        line.close()
                    line, before = None, None
                    view = Text(f"{away.message}\n{away.hint}\nwaiting for it; q ends this", style="yellow")
                live.update(view, refresh=True)
                if pressed(interval):
                    return
        except KeyboardInterrupt:
            return
        finally:
            if line is not None:
                line.close()


class _Keys:
    """Whether q was pressed; call it to wait."""

    def __call__(self, seconds: float) -> bool:
        """Wait so long, or until q is pressed; says whether it was."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            ready, _, _ = select.select([sys.stdin], [], [], left)
            if ready:
                pressed = os.read(sys.stdin.fileno(), 64)
                if not pressed:
                    # The other end of the keyboard is gone: nobody watches.
                    return True
                if b"q" in pressed.lower():
                    return True
        return False


@contextmanager
def _keys() -> Iterator[_Keys | _NoKeys]:
    """The keyboard, key by key and unseen; as it was again afterwards."""
    if not sys.stdin.isatty():
        yield _NoKeys()
        return
    import termios  # noqa: PLC0415 - there is a terminal
    import tty  # noqa: PLC0415

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield _Keys()
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class _NoKeys:
    """No keyboard: only Ctrl-C ends it."""

    def __call__(self, seconds: float) -> bool:
        """Wait so long."""
        time.sleep(seconds)
        return False
