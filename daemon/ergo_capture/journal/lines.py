"""Event lines: the lines of JSON in which events arrive, and which the journal holds unchanged.

A line is ``{"type":"event","event":{"event_id":S,"kind":K,"at":{"secs":N,"nanos":N},"payload":OBJECT|null}}``.
Unknown fields of the frame and of the event are ignored, as by the reference; its drivers' ``semantic_kind`` is a known
one. ``at`` allows no other fields. Lines in the journal were checked when they were accepted, and are read leniently.

The decoder checks the shape of every line in C. It does not check UTF-8 in values that it skips, and accepts numbers
beyond f64 and deep nesting; calling ``check_payload`` for each event costs more than everything else together. So
``read_harmless`` reduces a chunk to the characters that could be harmful, and only a chunk that has some is checked
line by line. It may take a harmless chunk for a harmful one, never the reverse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Final

import msgspec

from ergo_capture.kernel.events import MAX_DEPTH, EventLike, ExternalEvent, ExternalEventKind, check_payload
from ergo_capture.kernel.serde.numbers import LONG_EXPONENT, MANY_DIGITS
from ergo_capture.kernel.time import EventTime
from ergo_capture.protocol.capture import EVENT


class EventFormatError(ValueError):
    """A line is not an event line; the message says where it is wrong."""


class LineTime(msgspec.Struct, frozen=True, gc=False):
    """A time within the bounds that the decoder checks; others take the slow path through EventTime."""

    secs: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    nanos: Annotated[int, msgspec.Meta(ge=0, le=999_999_999)]


class _AnyObject(msgspec.Struct, frozen=True, gc=False):
    """A JSON object whose fields are ignored."""


class LineEvent(msgspec.Struct, frozen=True, gc=False):
    """An event without its payload, as the supervisor needs it."""

    event_id: str
    kind: ExternalEventKind
    at: LineTime | _SentTime | EventTime
    #: Says only that the payload was an object; ``read_body`` reads it from the line when an engine needs it.
    payload: object = None


class _SentTime(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    secs: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    nanos: Annotated[int, msgspec.Meta(ge=0, le=999_999_999)]


class _FastEvent(msgspec.Struct, frozen=True, gc=False):
    event_id: str
    kind: ExternalEventKind
    at: _SentTime
    payload: _AnyObject | None = None


class _KnownEvent(_FastEvent, frozen=True, gc=False, forbid_unknown_fields=True):
    semantic_kind: str | None = None


class _FastLine(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag=EVENT):
    event: _FastEvent


class _KnownLine(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag=EVENT, forbid_unknown_fields=True):
    event: _KnownEvent


_ANYTHING: Final = msgspec.Raw(b"null")


class _TimeFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    secs: msgspec.Raw = _ANYTHING
    nanos: msgspec.Raw = _ANYTHING


class _EventTimeFields(msgspec.Struct, frozen=True):
    at: _TimeFields


class _EventFields(_EventTimeFields, frozen=True, forbid_unknown_fields=True):
    event_id: msgspec.Raw = _ANYTHING
    kind: msgspec.Raw = _ANYTHING
    payload: msgspec.Raw = _ANYTHING
    semantic_kind: msgspec.Raw = _ANYTHING


class _LineTimeFields(msgspec.Struct, frozen=True, tag_field="type", tag=EVENT):
    event: _EventTimeFields


class _LineFields(msgspec.Struct, frozen=True, tag_field="type", tag=EVENT, forbid_unknown_fields=True):
    event: _EventFields


class _ExactEvent(msgspec.Struct, frozen=True, gc=False):
    event_id: str
    kind: ExternalEventKind
    at: EventTime
    payload: msgspec.Raw = msgspec.Raw(b"null")
    #: Of any type, because without an adapter the daemon ignored it.
    semantic_kind: object = None


class _ExactLine(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag=EVENT):
    event: _ExactEvent


_decode_fast: Final = msgspec.json.Decoder(_FastLine).decode_lines
_decode_known: Final = msgspec.json.Decoder(_KnownLine).decode_lines
#: Decoders that raise at an unknown field, by whether the event is bare.
_decode_fields: Final = (msgspec.json.Decoder(_LineFields).decode, msgspec.json.Decoder(_EventFields).decode)
_decode_time: Final = (msgspec.json.Decoder(_LineTimeFields).decode, msgspec.json.Decoder(_EventTimeFields).decode)
_UNKNOWN_FIELD: Final = re.compile(r"unknown field `(.*?)`(?: - at `\$[^`]*`)?\Z", re.DOTALL)
_decode_exact: Final = msgspec.json.Decoder(_ExactLine).decode
_decode_event: Final = msgspec.json.Decoder(_ExactEvent).decode

# Bytes that are kept of a chunk: digits (all as 0), e and E (as e), quotes, commas, opening brackets
# (all as [) and newlines. Quotes and commas keep neighbouring numbers apart; a plus sign is dropped.
_KEPT: Final = b'0123456789eE",[{\n'
_REDUCE: Final = bytes(
    48 if 48 <= c <= 57 else ord("e") if c == ord("E") else ord("[") if c == ord("{") else c for c in range(256)
)
_DROP: Final = bytes(set(range(256)) - set(_KEPT))
_DROP_BUT_BRACKETS: Final = bytes(set(range(256)) - set(b"[\n"))

#: A line needs more brackets than this to hold a payload of more than 127 levels: its own are three.
_TOO_MANY_BRACKETS: Final = b"[" * (MAX_DEPTH + 1)


def read_harmless(chunk: bytes, *, known_only: bool = False) -> Sequence[_FastEvent] | None:
    """Return the events of a chunk of whole lines; None unless every line is certainly a valid event.

    After None, read the lines one by one with ``read_line``: they may still be valid.

    Args:
        chunk: the lines.
        known_only: whether to return None also if a line has an unknown field.
    """
    if not (chunk.startswith(b"{") and chunk.endswith(b"}\n") and _is_utf8(chunk)):
        return None
    reduced = chunk.translate(_REDUCE, _DROP)
    if LONG_EXPONENT in reduced or MANY_DIGITS in reduced:
        return None
    outline = reduced.translate(None, _DROP_BUT_BRACKETS)
    if _TOO_MANY_BRACKETS in outline:
        return None
    # Count in the outline, which is short: counting takes 0.8 ns a byte.
    count = outline.count(b"\n")
    if not _one_value_a_line(chunk, count):
        return None
    try:
        lines: Sequence[_FastLine | _KnownLine] = _decode_known(chunk) if known_only else _decode_fast(chunk)
    except (ValueError, RecursionError):
        return None
    if len(lines) != count:
        return None
    return [line.event for line in lines]


def _one_value_a_line(chunk: bytes, count: int) -> bool:
    """Return whether no value is spread over several lines; with as many values as lines, each line then is one value.

    The decoder accepts several values on a line and one value over several lines. A string contains no raw newline, and
    a value does not contain "}" newline "{". The first bytes of a chunk are most often the first bytes of each of its
    lines, and a longer needle is found faster.
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


def unknown_field(text: bytes | msgspec.Raw, *, bare: bool) -> str | None:
    """Return the name of an unknown field of an event or of its frame; None if there is none.

    Args:
        text: a valid event, in its frame or bare.
        bare: whether it is bare.

    Raises:
        EventFormatError: the time has an unknown field.
    """
    try:
        _decode_fields[bare](text)
    except ValueError as error:
        found = _UNKNOWN_FIELD.search(str(error))
    else:
        return None
    try:
        _decode_time[bare](text)
    except ValueError as error:
        raise EventFormatError(str(error)) from error
    return None if found is None else found.group(1)


def read_line(line: bytes) -> ExternalEvent:
    """Return the event of one line, with all checks.

    Raises:
        EventFormatError: it is not an event line.
        ExternalEventPayloadError: the payload is refused.
    """
    try:
        event = _decode_exact(line).event
    except (ValueError, RecursionError) as error:
        raise EventFormatError(str(error)) from error
    return _checked(event)


def read_event(text: bytes | msgspec.Raw) -> ExternalEvent:
    """Return the event of a bare event object, with all checks.

    Raises:
        EventFormatError: it is not an event.
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
    return ExternalEvent(event.event_id, event.kind, event.at, payload, _semantic_kind(event))


def _semantic_kind(event: _ExactEvent) -> str | None:
    return event.semantic_kind if isinstance(event.semantic_kind, str) else None


def _payload_bytes(event: _ExactEvent) -> bytes:
    payload = bytes(event.payload)
    return b"" if payload == b"null" else payload


def split_lines(body: bytes) -> list[bytes]:
    """Return the lines of an EVENTS body, each with its newline."""
    # Not splitlines(): a carriage return is white space within a line.
    return [line + b"\n" for line in body.split(b"\n") if line]


class _KindEvent(msgspec.Struct, frozen=True, gc=False):
    #: Of any type, because without an adapter the daemon ignored it.
    semantic_kind: object = None


class _KindLine(msgspec.Struct, frozen=True, gc=False):
    event: _KindEvent


_decode_kinds: Final = msgspec.json.Decoder(_KindLine).decode_lines


def read_semantic_kinds(body: bytes, count: int) -> list[str | None]:
    """Return the semantic kinds of an EVENTS body, which has that many events; None for an event without one.

    Raises:
        EventFormatError: the body cannot be decoded.
    """
    if b'"semantic_kind"' not in body:
        return [None] * count
    try:
        found = [line.event.semantic_kind for line in _decode_kinds(body)]
    except (ValueError, RecursionError) as error:
        raise EventFormatError(str(error)) from error
    return [kind if isinstance(kind, str) else None for kind in found]


def read_outlines(body: bytes) -> Sequence[EventLike]:
    """Return the events of an EVENTS body without their payloads, in a third of the time of ``read_body``.

    Raises:
        EventFormatError: the body cannot be decoded.
    """
    try:
        lines: Sequence[_FastLine] = _decode_fast(body)
    except (ValueError, RecursionError):
        # The time of an accepted event may be beyond what that decoder takes.
        return [LineEvent(event.event_id, event.kind, event.at) for event in read_body(body)]
    return [line.event for line in lines]


def read_body(body: bytes) -> Iterator[ExternalEvent]:
    """Yield the events of an EVENTS frame, with their payloads. They were checked when they were accepted.

    Raises:
        EventFormatError: the body cannot be decoded.
    """
    try:
        lines = msgspec.json.Decoder(_ExactLine).decode_lines(body)
    except (ValueError, RecursionError) as error:
        raise EventFormatError(str(error)) from error
    for line in lines:
        event = line.event
        yield ExternalEvent(event.event_id, event.kind, event.at, _payload_bytes(event), _semantic_kind(event))
