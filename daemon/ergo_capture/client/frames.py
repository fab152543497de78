"""What a client hears and says beside events: errors, rejections, bundles; and an event as a line."""

from __future__ import annotations

from typing import Any, Final, TypeVar

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


class Opened(msgspec.Struct, frozen=True):
    """A session that was opened or resumed."""

    session: str
    #: Events of it that are durable, and the id of the last of them.
    accepted: int
    last_event_id: str | None


class Ack(msgspec.Struct, frozen=True):
    """How many events of this connection are durable or rejected."""

    accepted: int


class _Error(msgspec.Struct, frozen=True):
    code: str
    message: str
    hint: str = ""


_Kind = TypeVar("_Kind")


def read_as(kind: type[_Kind], frame: object) -> _Kind:
    """What a frame, or a field of one, says, as such a thing.

    Raises:
        ClientError: ``bad_frame``.
    """
    try:
        return msgspec.convert(frame, type=kind)
    except msgspec.ValidationError as error:
        raise no_frame(str(error)) from error


def error_in(frame: dict[str, Any]) -> ClientError:
    """What an ``error`` frame says."""
    said = read_as(_Error, frame)
    return ClientError(said.code, said.message, said.hint)


def no_frame(why: str) -> ClientError:
    """The error of a client whose daemon talks nonsense."""
    message = f"the daemon said something that is no frame of ergo-capture.v1: {why}"
    return ClientError("bad_frame", message, "look whether it is ergo-capture that listens on this socket")


def event_line(event: ExternalEvent) -> bytes:
    """An event as the line that travels; newlines between the tokens of its payload become spaces."""
    return b'{"type":"event","event":{"event_id":%b,"kind":"%b","at":{"secs":%d,"nanos":%d},"payload":%b}}\n' % (
        encode(event.event_id),
        event.kind.value.encode(),
        event.at.secs,
        event.at.nanos,
        event.payload.replace(b"\n", b" ") if event.payload else b"null",
    )
