"""Event lines: the JSON Lines in which events arrive, are journalled verbatim, and are read back.

A line is ``{"type":"event","event":{"event_id":S,"kind":K,"at":{"secs":N,"nanos":N},"payload":OBJECT|null}}``.
Fields that we do not know are ignored, ``semantic_kind`` of the reference's drivers among them.

Why a screen: the decoder checks the shape of every line in C, but it neither checks UTF-8 in values that
it skips nor refuses numbers beyond f64 or deep nesting, and asking ``check_payload`` for each event costs
more than everything else together. So the chunk is reduced to the few characters that could do harm, and
only a chunk that shows any of them is checked line by line. The screen may be wrong in one direction only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final

import msgspec

from ergo_capture.kernel.events import MAX_DEPTH, ExternalEvent, ExternalEventKind, check_payload
from ergo_capture.kernel.serde.numbers import LONG_EXPONENT, MANY_DIGITS
from ergo_capture.kernel.time import EventTime


class EventFormatError(ValueError):
    """A line is not an event line; the message says where."""


class LineTime(msgspec.Struct, frozen=True, gc=False):
    """A time within the bounds that C can check; rarer ones take the slow path through EventTime."""

    secs: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    nanos: Annotated[int, msgspec.Meta(ge=0, le=999_999_999)]


class _AnyObject(msgspec.Struct, frozen=True, gc=False):
    """A JSON object of which nothing is kept."""


class LineEvent(msgspec.Struct, frozen=True, gc=False):
    """An event as the supervisor needs it, its payload left in the line."""

    event_id: str
    kind: ExternalEventKind
    at: LineTime | EventTime
    #: Only says that it was an object: ``with_payload`` reads it from the line when an engine wants it.
    payload: object = None


class _FastEvent(msgspec.Struct, frozen=True, gc=False):
    event_id: str
    kind: ExternalEventKind
    at: LineTime
    payload: _AnyObject | None = None


class _FastLine(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="event"):
    event: _FastEvent


class _ExactEvent(msgspec.Struct, frozen=True, gc=False):
    event_id: str
    kind: ExternalEventKind
    at: EventTime
    payload: msgspec.Raw = msgspec.Raw(b"null")


class _ExactLine(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="event"):
    event: _ExactEvent


_decode_fast: Final = msgspec.json.Decoder(_FastLine).decode_lines
_decode_exact: Final = msgspec.json.Decoder(_ExactLine).decode
_decode_event: Final = msgspec.json.Decoder(_ExactEvent).decode

# What is left of a chunk for the screen: digits (all as 0), e and E (as e), quotes, commas, opening brackets
# (all as [) and newlines. Quotes and commas keep numbers apart that only stand near each other; a plus may go.
_KEPT: Final = b'0123456789eE",[{\n'
_REDUCE: Final = bytes(
    48 if 48 <= c <= 57 else ord("e") if c == ord("E") else ord("[") if c == ord("{") else c for c in range(256)
)
_DROP: Final = bytes(set(range(256)) - set(_KEPT))
_DROP_BUT_BRACKETS: Final = bytes(set(range(256)) - set(b"[\n"))

#: A line needs more brackets than this to hold a payload of more than 127 levels: its own are three.
_TOO_MANY_BRACKETS: Final = b"[" * (MAX_DEPTH + 1)


def read_harmless(chunk: bytes) -> list[_FastEvent] | None:
    """The events of a chunk of whole lines, if every line is certainly an event that is fine.

    None says nothing about the chunk but that its lines want ``read_line`` one by one.
    """
    if not (chunk.startswith(b"{") and chunk.endswith(b"}\n") and _is_utf8(chunk)):
        return None
    reduced = chunk.translate(_REDUCE, _DROP)
    if LONG_EXPONENT in reduced or MANY_DIGITS in reduced:
        return None
    outline = reduced.translate(None, _DROP_BUT_BRACKETS)
    if _TOO_MANY_BRACKETS in outline:
        return None
    # Why counted here: counting single bytes takes 0.8 ns for each byte there is, and by now few are left.
    count = outline.count(b"\n")
    if not _one_value_a_line(chunk, count):
        return None
    try:
        lines = _decode_fast(chunk)
    except (ValueError, RecursionError):
        return None
    if len(lines) != count:
        return None
    return [line.event for line in lines]


def _one_value_a_line(chunk: bytes, count: int) -> bool:
    """Whether no value can be spread over ``count`` lines; with as many values as lines, each line then is one.

    Why: the decoder takes values as they come, several on a line or one over several lines. A raw newline
    cannot stand inside a string, and "}" newline "{" not inside a value. The first bytes of a chunk are most
    often those of each of its lines, and a longer needle is found faster.
    """
    return chunk.count(b"}\n" + chunk[:16]) == count - 1 or chunk.count(b"}\n{") == count - 1


def _is_utf8(chunk: bytes) -> bool:
    if chunk.isascii():
        return True
    try:
        chunk.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_line(line: bytes) -> ExternalEvent:
    """The event of one line, checked exactly.

    Raises:
        EventFormatError: not an event line.
        ExternalEventPayloadError: the payload is refused.
    """
    try:
        event = _decode_exact(line).event
    except (ValueError, RecursionError) as error:
        raise EventFormatError(str(error)) from error
    return _checked(event)


def read_event(text: bytes | msgspec.Raw) -> ExternalEvent:
    """The event of a bare event object, checked exactly.

    Raises:
        EventFormatError: not an event.
        ExternalEventPayloadError: the payload is refused.
    """
    try:
        event = _decode_event(text)
    except (ValueError, RecursionError) as error:
        raise EventFormatError(str(error)) from error
    return _checked(event)


def _checked(event: _ExactEvent) -> ExternalEvent:
    payload = _payload_bytes(event)
    check_payload(payload)
    return ExternalEvent(event.event_id, event.kind, event.at, payload)


def _payload_bytes(event: _ExactEvent) -> bytes:
    payload = bytes(event.payload)
    return b"" if payload == b"null" else payload


def read_body(body: bytes) -> Iterator[ExternalEvent]:
    """The events of an EVENTS frame, with their payloads; they were checked when they were accepted.

    Raises:
        EventFormatError: the body is not what was accepted.
    """
    try:
        lines = msgspec.json.Decoder(_ExactLine).decode_lines(body)
    except (ValueError, RecursionError) as error:
        raise EventFormatError(str(error)) from error
    for line in lines:
        event = line.event
        yield ExternalEvent(event.event_id, event.kind, event.at, _payload_bytes(event))
