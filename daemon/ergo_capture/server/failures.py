"""Failures of sessions and of the journal, in the words of those who are told of them."""

from __future__ import annotations

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.errors import JournalError
from ergo_capture.protocol.capture import Code, ProtocolError


def storage_failed(error: ErgoCaptureError) -> ProtocolError:
    """The failure of the journal or of a session, in words for a client."""
    what = "journal" if isinstance(error, JournalError) else "session"
    return ProtocolError(
        Code.STORAGE_FAILED,
        f"the {what} has failed: {error.message}",
        "what was acknowledged is safe; connect again when the daemon has been restarted",
    )


def not_published(error: ErgoCaptureError) -> ProtocolError:
    """The failure of a snapshot's publication, in words for the client that asked for it; its session goes on."""
    return ProtocolError(
        Code.STORAGE_FAILED,
        f"the bundle cannot be published: {error.message}",
        f"what was acknowledged is safe; {error.hint}" if error.hint else "what was acknowledged is safe",
    )


def mistake(error: Exception) -> ErgoCaptureError:
    """An exception that nobody expected in a session's task, as an error that others can be told."""
    made = ErgoCaptureError(
        f"the session's task ended with {type(error).__name__}: {error}",
        op="run session",
        hint="this is a defect of ergo-capture; what was accepted is safe in the journal, restart the daemon to go on",
    )
    made.__cause__ = error
    return made
