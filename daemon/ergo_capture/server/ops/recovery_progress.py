"""Says how far the recovery of a long journal is, to people and to the service manager."""

from __future__ import annotations

import time
from typing import Final

import structlog

from ergo_capture import telemetry
from ergo_capture.server.ops.systemd import Notifier

log = structlog.get_logger()

#: Seconds between two lines of the log; a recovery that is over sooner says nothing.
_LOG_SECONDS: Final = 5.0
#: Seconds between two words to the service manager, and for how long each asks.
_NOTIFY_SECONDS: Final = 1.0
_EXTEND_SECONDS: Final = 30.0


class RecoveryProgress:
    """Called with how much of how much is done; from the thread that recovers."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._notified = 0.0
        self._logged = time.monotonic()
        #: One line for people, as of now.
        self.text = "reading the journal"

    def __call__(self, done: int, total: int) -> None:
        """So many frames of so many are replayed."""
        now = time.monotonic()
        if now - self._notified < _NOTIFY_SECONDS:
            return
        self._notified = now
        self.text = f"recovering: {100 * done // max(1, total)}% of {total} frames replayed"
        self._notifier.status(self.text)
        # Why only here: a recovery that makes no step any more is not given more time.
        self._notifier.extend_timeout(_EXTEND_SECONDS)
        if now - self._logged >= _LOG_SECONDS:
            self._logged = now
            log.info(telemetry.JOURNAL_RECOVERING, done=done, total=total)

    def __repr__(self) -> str:
        return f"<RecoveryProgress {self.text!r}>"
