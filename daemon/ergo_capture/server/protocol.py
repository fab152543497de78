"""The wire protocol ``ergo-capture.v1``, sans-I/O: bytes in, items out; messages in, bytes out.

Owns: frames and their JSON, the codes, splitting and bounding lines, the ``ergo-driver.v0`` dialect.
Not here: what is done about an item (``conversation.py``), event lines (``journal/lines.py``).

Frames are JSON Lines. A client sends hello, open, then any number of event / events, with flush and ping
in between, and close. A line that cannot be read counts as one event, because it may have been one: only
so do a client's count and ours agree afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.lines import EventFormatError, LineEvent, line_of, read_event, read_harmless, read_line
from ergo_capture.kernel.events import EventLike, ExternalEventPayloadError

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


class _EventFrame(msgspec.Struct, frozen=True, tag_field="type", tag="event"):
    event: msgspec.Raw


class _EventsFrame(msgspec.Struct, frozen=True, tag_field="type", tag="events", forbid_unknown_fields=True):
    events: list[msgspec.Raw]


_Frame = Hello | Open | Flush | Close | End | Ping | _EventFrame | _EventsFrame
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

_decode: Final = msgspec.json.Decoder(_Frame).decode
_encode: Final = msgspec.json.Encoder().encode


@dataclass(slots=True)
class FrameReader:
    """Cuts received bytes into lines and lines into items; holds at most one frame back.

    Args:
        max_frame_bytes: longest line, in bytes without its newline.
        max_events_per_frame: most events in one ``events`` frame.
        max_bad_frames: bad frames after which a connection ends; what comes after them in one read is not looked at.
    """

    max_frame_bytes: int
    max_events_per_frame: int
    max_bad_frames: int
    # Why not bytes: a client that sends byte by byte would have the line copied for each of them.
    _held: bytearray = field(default_factory=bytearray, init=False)
    #: Inside a line that was refused for its length: what still comes of it is dropped unread.
    _skipping: bool = field(default=False, init=False)

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._held) or self._skipping

    @property
    def held_bytes(self) -> int:
        """Bytes of the line that has begun and not ended."""
        return len(self._held)

    def feed(self, data: bytes) -> list[Item]:
        """The items that ``data`` completes, in order."""
        end = data.rfind(b"\n") + 1
        if not end:
            return self._hold(data)
        if self._skipping:
            start = data.index(b"\n") + 1
            self._skipping = False
            chunk = data[start:end]
        else:
            chunk = b"".join((self._held, memoryview(data)[:end])) if self._held else data[:end]
        items: list[Item] = []
        self._held = bytearray()
        if chunk:
            items = self._read(chunk)
        if end < len(data):
            items += self._hold(data[end:])
        return items

    def finish(self) -> list[Item]:
        """The items of a last line that has no newline, at the end of the stream."""
        held, self._held = bytes(self._held), bytearray()
        return self._read_slowly([held]) if held.strip() else []

    def let_go(self) -> None:
        """Give back what is held of a line; nothing more will be read."""
        self._held = bytearray()
        self._skipping = True

    def _hold(self, data: bytes) -> list[Item]:
        if self._skipping:
            return []
        self._held += data
        if len(self._held) <= self.max_frame_bytes:
            return []
        # Why here: the frame is refused before it is buffered whole.
        self._held = bytearray()
        self._skipping = True
        return [self._too_large()]

    def _read(self, chunk: bytes) -> list[Item]:
        if chunk.startswith((b'{"type":"event",', b'{"type": "event",')):
            fits = len(chunk) <= self.max_frame_bytes
            if fits or max(map(len, chunk.split(b"\n"))) <= self.max_frame_bytes:
                events = read_harmless(chunk)
                if events is not None:
                    return [EventChunk(chunk, events)]
        return self._read_slowly(chunk.split(b"\n"))

    def _read_slowly(self, lines: Iterable[bytes]) -> list[Item]:
        items: list[Item] = []
        good: list[bytes] = []
        events: list[EventLike] = []

        bad = 0

        def add(item: Item) -> None:
            nonlocal bad
            bad += type(item) is BadLine and item.bad_frame
            if good:
                items.append(EventChunk(b"".join(good), tuple(events)))
                good.clear()
                events.clear()
            items.append(item)

        for line in lines:
            # Why: the connection ends with these, and a read may hold a hundred thousand more.
            if bad >= self.max_bad_frames:
                break
            if not line.strip():
                continue
            if len(line) > self.max_frame_bytes:
                add(self._too_large())
                continue
            try:
                frame = _decode(line)
            except (ValueError, RecursionError) as error:
                add(BadLine(Code.BAD_FRAME, f"not a frame: {error}", _FRAME_HINT))
                continue
            texts: Sequence[bytes | msgspec.Raw | None]
            if type(frame) is _EventFrame:
                texts = (None,)
            elif type(frame) is _EventsFrame:
                texts = frame.events
                if len(texts) > self.max_events_per_frame:
                    message = f"{len(texts)} events in one frame, at most {self.max_events_per_frame} are taken"
                    add(BadLine(Code.LIMIT, message, "send fewer events in a frame"))
                    continue
            else:
                assert not isinstance(frame, _EventFrame | _EventsFrame)
                add(frame)
                continue
            for text in texts:
                if bad >= self.max_bad_frames:
                    break
                event = _read_one(line if text is None else text, bare=text is not None)
                if isinstance(event, BadLine):
                    add(event)
                    continue
                good.append(_whole_line(line) if text is None else line_of(text))
                events.append(event)
        if good:
            items.append(EventChunk(b"".join(good), tuple(events)))
        return items

    def _too_large(self) -> BadLine:
        return BadLine(
            Code.TOO_LARGE,
            f"a frame is longer than {self.max_frame_bytes} bytes",
            "send smaller events, or raise limits.max_frame_bytes",
        )


_FRAME_HINT: Final = 'send one JSON object a line, such as {"type":"event","event":{...}}'


def _whole_line(line: bytes) -> bytes:
    return line.strip() + b"\n"


def _read_one(text: bytes | msgspec.Raw, *, bare: bool) -> EventLike | BadLine:
    try:
        event = read_event(text) if bare else read_line(bytes(text))
    except EventFormatError as error:
        return BadLine(Code.BAD_FRAME, f"not an event: {error}", _EVENT_HINT, _event_id(text, bare=bare))
    except ExternalEventPayloadError as error:
        hint = error.hint or ""
        return BadLine(Code.INVALID_PAYLOAD, str(error), hint, _event_id(text, bare=bare), bad_frame=False)
    # Why without its payload: that stands in the line, which is kept for as long as anybody wants it.
    return LineEvent(event.event_id, event.kind, event.at)


_EVENT_HINT: Final = (
    'an event is {"event_id": string, "kind": "Pump" | "DataAvailable" | "Command", '
    '"at": {"secs": u64, "nanos": u32}, "payload": object or null}'
)


class _EventId(msgspec.Struct, frozen=True):
    event_id: str


class _FrameEventId(msgspec.Struct, frozen=True):
    event: _EventId


def _event_id(text: bytes | msgspec.Raw, *, bare: bool) -> str | None:
    """The id of an event that is refused, if it can be told."""
    try:
        if bare:
            return msgspec.json.decode(text, type=_EventId).event_id
        return msgspec.json.decode(text, type=_FrameEventId).event.event_id
    except (ValueError, RecursionError):
        return None


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
