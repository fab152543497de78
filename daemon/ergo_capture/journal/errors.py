"""What goes wrong with a journal."""

from __future__ import annotations

from pathlib import Path

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.storage import StorageError


class JournalError(ErgoCaptureError):
    """The journal cannot be read or written."""


class JournalDamaged(JournalError):
    """A frame that was durable is not what was written."""


class JournalFailed(JournalError):
    """A write or a sync failed: nothing more can be acknowledged until the daemon is restarted."""


class JournalFull(JournalError):
    """There is no room for the batch; nothing of it was kept, and a later one may succeed."""


class Failure:
    """Why nothing more can be appended.

    Why not the exception itself: one that is raised again and again keeps every stack it was raised in.
    """

    def __init__(self, path: str | Path | None, cause: StorageError | None) -> None:
        self._path = path
        self._cause = cause

    @property
    def message(self) -> str:
        """It in words."""
        return f"append to journal '{self._path}': {'it is closed' if self._cause is None else self._cause.message}"

    def error(self) -> JournalFailed:
        """What whoever wants to append is told."""
        hint = "nothing that was not acknowledged is safe; look at the disk, then restart the daemon"
        error = JournalFailed(self.message, op="append to journal", path=self._path, hint=hint)
        error.__cause__ = self._cause
        return error

    def __repr__(self) -> str:
        return f"<Failure {self.message}>"
