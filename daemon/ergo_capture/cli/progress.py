"""A progress bar on the terminal for commands that take longer than a second: bytes, rate, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ergo_capture.bundle.reader import meter
from ergo_capture.cli.support.command import flag

if TYPE_CHECKING:
    from rich.progress import Progress

#: Seconds after which a bar appears, and between two updates of it.
_PATIENCE: Final = 1.0
_UPDATE_SECONDS: Final = 0.1

quiet_flag: Final = flag("--quiet", "-q", help="Show no progress.")


class ReadingBar:
    """Shows the progress of reading on standard error, if that is a terminal.

    There is one for a whole command. A bar appears once the command has run for a second.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._due = time.monotonic() + _PATIENCE
        self._bars: Progress | None = None
        self._what = ""
        self._done = self._total = 0
        #: The number of the file that is read, and of how many; empty for a single one.
        self.of = ""

    def begin(self, what: str, total: int) -> None:
        """Begin to show another file; if nothing of the previous one was read yet, show both together."""
        self._total = total if self._done else self._total + total
        self._what, self._done = what, 0
        if self._bars is not None:
            self._bars.reset(self._task, total=self._total or None, description=self._described())

    def advance(self, count: int) -> None:
        """Count further bytes, and update the bar."""
        self._done += count
        if not self._shown or (now := time.monotonic()) < self._due:
            return
        self._due = now + _UPDATE_SECONDS
        if self._bars is None:
            self._bars = _bars()
            self._task = self._bars.add_task(self._described(), total=self._total or None)
            self._bars.start()
        self._bars.update(self._task, completed=self._done, total=self._total or None)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Show the progress of reading within the block, in which nothing may be printed."""
        self._done = self._total = 0
        try:
            with meter.listening(self if self._shown else None):
                yield
        finally:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None

    def _described(self) -> str:
        return f"{self.of}{self._what}"


def _bars() -> Progress:
    from rich.console import Console  # noqa: PLC0415 - slow to import, and only what takes long needs it
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    # Standard output must not be redirected to the terminal.
    return Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    )
