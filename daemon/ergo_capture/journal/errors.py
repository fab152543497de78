"""Errors of the journal."""

from __future__ import annotations

from ergo_capture.errors import ErgoCaptureError


class JournalError(ErgoCaptureError):
    """The journal cannot be read or written."""


class JournalDamaged(JournalError):
    """A durable frame is not what was written."""


class JournalFailed(JournalError):
    """A write or a sync failed; nothing more can be acknowledged until the daemon is restarted."""


class JournalLost(JournalError):
    """A file of the journal was removed or replaced under the daemon; what was acknowledged may be gone."""


class JournalFull(JournalError):
    """There is no space for the batch; nothing of it was kept, and a later one may succeed."""
