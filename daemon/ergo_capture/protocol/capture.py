"""The wire protocol ``ergo-capture.v1``: what a client and the daemon may say.

Frames are JSON Lines. A client sends hello, open, then any number of event / events, with flush and ping in between,
and close.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.events import EventLike

PROTOCOL: Final = "ergo-capture.v1"
DRIVER_PROTOCOL: Final = "ergo-driver.v0"


class Code(Enum):
    """Why something was refused; the same words in answers, logs and counters."""

    BAD_FRAME = "bad_frame"
    TOO_LARGE = "too_large"
    UNSUPPORTED_PROTOCOL = "unsupported_protocol"
    UNKNOWN_GRAPH = "unknown_graph"
    UNKNOWN_SESSION = "unknown_session"
    SESSION_BUSY = "session_busy"
    DUPLICATE_EVENT_ID = "duplicate_event_id"
    INVALID_PAYLOAD = "invalid_payload"
    STORAGE_FULL = "storage_full"
    STORAGE_FAILED = "storage_failed"
    SHUTTING_DOWN = "shutting_down"
    FORBIDDEN = "forbidden"
    LIMIT = "limit"


class ProtocolError(ErgoCaptureError):
    """A connection ends with this answer: a code, a sentence, a hint."""

    def __init__(self, code: Code, message: str, hint: str) -> None:
        super().__init__(message, op="serve a client", hint=hint)
        self.code = code


# --- what a client sends -------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, tag_field="type", tag="hello", forbid_unknown_fields=True):
    """The first frame: which protocol, and who speaks it (for the logs)."""

    protocol: str
    client: str = ""


class Open(msgspec.Struct, frozen=True, tag_field="type", tag="open", forbid_unknown_fields=True):
    """Open a session of a graph, or with ``session`` take one up again."""

    graph: str = "default"
    session: str | None = None
    labels: dict[str, str] = {}
    #: Whether to send every decision as a ``decision`` frame.
    decisions: bool = False


class Flush(msgspec.Struct, frozen=True, tag_field="type", tag="flush", forbid_unknown_fields=True):
    """Publish a snapshot of the session as it is now."""


class Close(msgspec.Struct, frozen=True, tag_field="type", tag="close", forbid_unknown_fields=True):
    """End the session and publish its bundle."""


class End(msgspec.Struct, frozen=True, tag_field="type", tag="end"):
    """``ergo-driver.v0``'s word for close."""


class Ping(msgspec.Struct, frozen=True, tag_field="type", tag="ping", forbid_unknown_fields=True):
    """Ask for a pong."""


Request = Hello | Open | Flush | Close | End | Ping


@dataclass(slots=True)
class EventChunk:
    """Events that came together, all well-formed: what a session admits and the journal keeps verbatim."""

    #: The event lines, newlines included.
    body: bytes
    events: Sequence[EventLike]
    ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = [event.event_id for event in self.events]


@dataclass(slots=True, frozen=True)
class BadLine:
    """One line that is refused before any session sees it."""

    code: Code
    message: str
    hint: str
    event_id: str | None = None
    #: Whether it counts towards ``limits.max_bad_frames``: a bad event does not, a bad frame does.
    bad_frame: bool = True


Item = Request | EventChunk | BadLine

_encode: Final = msgspec.json.Encoder().encode


# --- what the daemon sends -----------------------------------------------------------------------------------------


def encode(kind: str, **fields: Any) -> bytes:
    """One frame for the client."""
    return _encode({"type": kind, **fields}) + b"\n"


def encode_ack(accepted: int, decided: int) -> bytes:
    """``ack``: everything up to ``accepted`` is durable or was rejected; ``decided`` likewise, decided."""
    return b'{"type":"ack","accepted":%d,"decided":%d}\n' % (accepted, decided)


def encode_reject(index: int, event_id: str | None, code: Code, message: str, hint: str) -> bytes:
    """``reject``: the event with that number on this connection, from 1, was not taken."""
    return encode("reject", index=index, event_id=event_id, code=code.value, message=message, hint=hint)


def encode_error(error: ProtocolError) -> bytes:
    """``error``: the connection ends after this."""
    return encode("error", code=error.code.value, message=error.message, hint=error.hint)


def encode_decision_frame(index: int, record: bytes) -> bytes:
    """``decision``: the session's decision with that number, from 1, as the bundle will hold it."""
    return b'{"type":"decision","index":%d,"decision":%b}\n' % (index, record)
