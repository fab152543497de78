"""The errors that clients get when a session or the journal has failed."""

from __future__ import annotations

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.errors import JournalError, JournalLost
from ergo_capture.protocol.capture import Code, ProtocolError


def storage_failed(error: ErgoCaptureError) -> ProtocolError:
    """Return the error that ends a connection whose journal or session has failed."""
    what = "journal" if isinstance(error, JournalError) else "session"
    hint = "acknowledged events are safe; connect again after the daemon was restarted"
    if isinstance(error, JournalLost):
        hint = (
            "what was acknowledged may be lost; connect again when the daemon has been restarted, and say what it was"
        )
    return ProtocolError(Code.STORAGE_FAILED, f"the {what} has failed: {error.message}", hint)


def not_published(error: ErgoCaptureError) -> ProtocolError:
    """Return the error for a client whose ``flush`` failed; its session goes on."""
    return ProtocolError(
        Code.STORAGE_FAILED,
        f"the bundle cannot be published: {error.message}",
        f"what was acknowledged is safe; {error.hint}" if error.hint else "what was acknowledged is safe",
    )


def internal_error(op: str, error: BaseException) -> ErgoCaptureError:
    """Return an unexpected exception in operation ``op`` as an error with a hint."""
    wrapped = ErgoCaptureError(
        f"{op}: {type(error).__name__}: {error}",
        op=op,
        hint="this is a defect of ergo-capture; what was acknowledged is safe, restart the daemon to go on",
    )
    wrapped.__cause__ = error
    return wrapped
