"""Tells the service manager that the daemon lives, from what the writer does and not from a clock alone.

A writer that has nothing to do is well, and so is one whose commit is younger than half of the watchdog's time.
One that waits longer is *stalled*: that is logged, stands in the status, and WATCHDOG=1 is held back, so that
the service manager ends the daemon and starts it again when its time is up.

Why restart for a disk that may be at fault: nobody is served by a daemon whose commits do not come back; whatever
it had acknowledged is safe; a failed unit is seen, and its clients are kept by the socket and go on when it is back.
A loop that hangs sends nothing at all and ends alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
import structlog

from ergo_capture import telemetry
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.ops.systemd import Notifier

log = structlog.get_logger()

#: Seconds between two looks, at most.
_LOOK_SECONDS: Final = 5.0
#: Seconds after which a commit counts as stalled where there is no watchdog to go by.
_STALLED_SECONDS: Final = 15.0


class Watchdog:
    """Looks after the writer for as long as the daemon serves.

    Args:
        notifier: told how it goes.
        writer: looked at.
        describe: one line for people, as of now.
    """

    def __init__(self, notifier: Notifier, writer: Writer, describe: Callable[[], str]) -> None:
        self._notifier = notifier
        self._writer = writer
        self._describe = describe
        limit = notifier.watchdog_seconds
        self._stalled_after = limit / 2 or _STALLED_SECONDS
        self._pause = min(_LOOK_SECONDS, self._stalled_after / 2)
        #: Whether the last look found the writer stalled.
        self.stalled = False

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await anyio.sleep(self._pause)

    def look(self) -> None:
        """See how the writer is, and tell."""
        busy = self._writer.busy_seconds
        if busy < self._stalled_after:
            if self.stalled:
                log.warning(telemetry.WRITER_RESUMED)
            self.stalled = False
            self._notifier.status(self._describe())
            self._notifier.watchdog()
            return
        if not self.stalled:
            self.stalled = True
            log.error(
                telemetry.WRITER_STALLED,
                seconds=round(busy, 1),
                hint="the disk does not answer; what was acknowledged is safe, clients wait",
            )
        self._notifier.status(f"the disk has not answered for {busy:.0f} s; {self._describe()}")

    def __repr__(self) -> str:
        return f"<Watchdog {'stalled' if self.stalled else 'content'}, every {self._pause:g} s>"
