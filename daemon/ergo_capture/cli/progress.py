"""A bar on the terminal for whatever takes longer than a second: bytes, rate, time left."""

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
    """Shows on standard error what is read, if that is a terminal.

    One for a whole command: a bar appears when the command has taken a second, wherever it is then.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._due = time.monotonic() + _PATIENCE
        self._bars: Progress | None = None
        self._what = ""
        self._done = self._total = 0
        #: What is read, of how many; empty for one.
        self.of = ""

    def begin(self, what: str, total: int) -> None:
        """Note what is read from now on; side by side with what was begun before, if nothing of that was read yet."""
        self._total = total if self._done else self._total + total
        self._what, self._done = what, 0
        if self._bars is not None:
            self._bars.reset(self._task, total=self._total or None, description=self._described())

    def advance(self, count: int) -> None:
        """Note that bytes were read, and bring the bar up to date."""
        self._done += count
        if (now := time.monotonic()) < self._due:
            return
        self._due = now + _UPDATE_SECONDS
        if self._bars is None:
            self._bars = _bars()
            self._task = self._bars.add_task(self._described(), total=self._total or None)
            self._bars.start()
        self._bars.update(self._task, completed=self._done, total=self._total or None)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Show what is read within the block; nothing may be printed in it."""
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
