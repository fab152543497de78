"""Tell the service manager that the daemon makes progress: in recovery, and while it serves.

While the daemon serves, progress is that of the writer. A writer is healthy if it is idle or if its commit is younger
than half of the watchdog's time. A writer that waits longer is *stalled*: that is logged and shown in the status, and
WATCHDOG=1 is not sent, so that the service manager restarts the daemon.

Restarting is right even if the disk is at fault: a daemon whose commits do not return serves no client, and
acknowledged events are safe. A failed unit is visible, and the socket keeps its clients until the daemon is back. If
the event loop hangs, nothing is sent either.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import anyio
import structlog

from ergo_capture import telemetry
from ergo_capture.pauses import clock
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.ops.systemd import SystemdNotifier

log = structlog.get_logger()

#: Seconds between two checks, at most.
_CHECK_SECONDS: Final = 5.0
#: Seconds after which a commit counts as stalled without a watchdog.
_STALLED_SECONDS: Final = 15.0
#: Seconds between two log lines on a recovery; a shorter recovery logs none.
_RECOVERY_LOG_SECONDS: Final = 5.0
#: Seconds between two messages to the service manager during recovery.
_RECOVERY_NOTIFY_SECONDS: Final = 1.0


class RecoveryProgress:
    """Reports the progress of recovery; called from the thread that recovers.

    Args:
        notifier: extends the time-out at each step; a recovery without progress gets no more time.
        on_progress: called with one line for the status.
    """

    def __init__(self, notifier: SystemdNotifier, on_progress: Callable[[str], None]) -> None:
        self._notifier = notifier
        self._on_progress = on_progress
        self._notified = 0.0
        self._logged = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` frames are replayed."""
        now = time.monotonic()
        if now - self._notified < _RECOVERY_NOTIFY_SECONDS:
            return
        self._notified = now
        text = f"recovering: {100 * done // max(1, total)}% of {total} frames replayed"
        self._on_progress(text)
        self._notifier.status(text)
        self._notifier.extend_timeout()
        if now - self._logged >= _RECOVERY_LOG_SECONDS:
            self._logged = now
            log.info(telemetry.JOURNAL_RECOVERING, done=done, total=total)


class Watchdog:
    """Watches the writer while the daemon serves.

    Args:
        notifier: notified at each check.
        writer: the writer.
        describe: returns one line on the daemon for ``systemctl status``.
    """

    def __init__(self, notifier: SystemdNotifier, writer: Writer, describe: Callable[[], str]) -> None:
        self._notifier = notifier
        self._writer = writer
        self._describe = describe
        self._stalled_after = notifier.watchdog_seconds / 2 or _STALLED_SECONDS
        self._interval = min(_CHECK_SECONDS, self._stalled_after / 2)
        self._stalled = False
        self._pauses = clock.pauses()

    async def run(self) -> None:
        """Check the writer at intervals until cancelled."""
        while True:
            self.check()
            await anyio.sleep(self._interval)

    def check(self) -> None:
        """Check the writer once, and tell the service manager."""
        # If this process was suspended, the commit thread has not run either.
        pauses, self._pauses = self._pauses, clock.pauses()
        busy = self._writer.busy_seconds if self._pauses == pauses else 0.0
        if busy < self._stalled_after:
            if self._stalled:
                log.warning(telemetry.WRITER_RESUMED)
            self._stalled = False
            broken = self._writer.disk_error
            self._notifier.status(f"not ready: {broken}" if broken is not None else self._describe())
            self._notifier.watchdog()
            return
        if not self._stalled:
            self._stalled = True
            log.error(
                telemetry.WRITER_STALLED,
                seconds=round(busy, 1),
                hint="the disk does not answer; acknowledged events are safe, clients wait",
            )
        self._notifier.status(f"the disk has not answered for {busy:.0f} s; {self._describe()}")
