"""The reference's ingress protocol ``ergo-driver.v0``: hello, event..., end; its lines, read and written.

A line is read as the reference's host reads it. The usual shape of lines is decoded directly; any other (a frame or a
time as an array, more than a second of nanoseconds) is read with the adapter package's copy of the reference's rules.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec

from ergo_capture.kernel.events import ExternalEventKind
from ergo_capture.kernel.records import ExternalEventRecord
from ergo_capture.protocol.capture import DRIVER_PROTOCOL, EVENT

if TYPE_CHECKING:
    from ergo_capture.adapter.events import HostedEvent

HELLO_LINE: Final = b'{"type":"hello","protocol":"%b"}\n' % DRIVER_PROTOCOL.encode()
END_LINE: Final = b'{"type":"end"}\n'


class LineKind(Enum):
    """The kind of a driver's line."""

    HELLO = auto()
    EVENT = auto()
    END = auto()
    #: The host ends the run at such a line.
    UNREADABLE = auto()


class DriverLine(NamedTuple):
    """A line of a driver."""

    kind: LineKind
    #: The protocol of a hello, the id of an event, or the reason why a line is unreadable.
    text: str = ""
    #: The event as an ``event`` frame of ``ergo-capture.v1``, newline included.
    frame: bytes = b""


class _At(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    secs: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    nanos: Annotated[int, msgspec.Meta(ge=0, le=999_999_999)]


class _Event(msgspec.Struct, frozen=True, gc=False):
    event_id: str
    kind: ExternalEventKind
    at: _At
    semantic_kind: str | None = None


class _EventLine(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag=EVENT):
    event: _Event


class _Hello(msgspec.Struct, frozen=True, tag_field="type", tag="hello"):
    protocol: str


class _End(msgspec.Struct, frozen=True, tag_field="type", tag="end"):
    pass


_decode: Final = msgspec.json.Decoder(_EventLine | _Hello | _End).decode
_encode: Final = msgspec.json.Encoder().encode


def read_driver_line(line: bytes) -> DriverLine:
    """Return the parsed line; blanks around it and a carriage return at its end are ignored."""
    try:
        found = _decode(line)
    except (ValueError, RecursionError):
        return _read_slowly(line)
    if type(found) is _EventLine:
        return DriverLine(LineKind.EVENT, found.event.event_id, line.strip() + b"\n")
    if type(found) is _Hello:
        return DriverLine(LineKind.HELLO, found.protocol)
    return DriverLine(LineKind.END)


def _read_slowly(line: bytes) -> DriverLine:
    from ergo_capture.adapter.events import HostedEvent, read_frame  # noqa: PLC0415 - few lines need it

    try:
        tag, content = read_frame(line.decode().rstrip("\r\n"), "exact")
        if not isinstance(content, HostedEvent):
            return DriverLine(LineKind.HELLO, content) if tag == "hello" else DriverLine(LineKind.END)
        return DriverLine(LineKind.EVENT, content.event_id, hosted_event_line(content))
    except (ValueError, RecursionError) as error:
        return DriverLine(LineKind.UNREADABLE, str(error))


def hosted_event_line(event: HostedEvent) -> bytes:
    """Return an event as the reference reads it as a line, newline included, with its payload in canonical form.

    Raises:
        ValueError: a string of the payload holds a lone surrogate.
    """
    from ergo_capture.adapter.canonical import write_json  # noqa: PLC0415 - few lines need it

    payload = b"null" if event.payload is None else bytes(write_json(event.payload))
    return _event_line(event.event_id, event.kind, event.at.secs, event.at.nanos, event.semantic_kind, payload)


def driver_event_line(event: ExternalEventRecord, semantic_kind: str | None) -> bytes:
    """Return a captured event as a line, newline included; newlines between the tokens of its payload become spaces.

    Args:
        event: the event.
        semantic_kind: the adapter's name for its meaning; None for none.
    """
    payload, at = event.payload.replace(b"\n", b" ") or b"null", event.event_time
    return _event_line(event.event_id, event.kind, at.secs, at.nanos, semantic_kind, payload)


def _event_line(
    event_id: str, kind: ExternalEventKind, secs: int, nanos: int, semantic_kind: str | None, payload: bytes
) -> bytes:
    return b'{"type":"event","event":{"event_id":%b,"kind":"%b","at":{"secs":%d,"nanos":%d}%b,"payload":%b}}\n' % (
        _encode(event_id),
        kind.value.encode(),
        secs,
        nanos,
        b"" if semantic_kind is None else b',"semantic_kind":' + _encode(semantic_kind),
        payload,
    )
