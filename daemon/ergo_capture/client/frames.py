"""What a client hears and says beside events: errors, rejections, bundles; and an event as a line.

Owns: those types, ``event_line``.
Not here: the conversation (``session.py``), what the frames mean (``server/protocol.py``, README).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.events import ExternalEvent

encode: Final = msgspec.json.Encoder().encode


class ClientError(ErgoCaptureError):
    """The daemon refused, or cannot be reached; ``code`` is the protocol's, ``unreachable`` or ``misuse``."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message, op="talk to the daemon", hint=hint or None)
        self.code = code


class Reject(msgspec.Struct, frozen=True):
    """One event that the daemon did not take."""

    #: None where the line could not be read as far as that.
    event_id: str | None
    code: str
    message: str
    #: The line as it was sent.
    line: bytes = b""


class Published(msgspec.Struct, frozen=True):
    """A bundle that the daemon published, from ``flushed`` or ``closed``."""

    bundle: str
    manifest: str
    sha256: str
    #: Counts of the whole session; zero in answer to a flush.
    events: int = 0
    decisions: int = 0
    session: str = ""


def error_in(frame: dict[str, Any]) -> ClientError:
    """What an ``error`` frame says."""
    return ClientError(frame["code"], frame["message"], frame.get("hint", ""))


def event_line(event: ExternalEvent) -> bytes:
    """An event as the line that travels; newlines between the tokens of its payload become spaces."""
    return b'{"type":"event","event":{"event_id":%b,"kind":"%b","at":{"secs":%d,"nanos":%d},"payload":%b}}\n' % (
        encode(event.event_id),
        event.kind.value.encode(),
        event.at.secs,
        event.at.nanos,
        event.payload.replace(b"\n", b" ") if event.payload else b"null",
    )
