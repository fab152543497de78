"""Parse the bytes of one client into items: requests, chunks of events, bad lines; sans-I/O.

A line that cannot be read counts as one event, because it may have been one: otherwise the counts of client and daemon
would differ from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from ergo_capture.journal.lines import EventFormatError, LineEvent, read_event, read_harmless, read_line, unknown_field
from ergo_capture.kernel.events import EventLike, ExternalEventPayloadError
from ergo_capture.protocol.capture import (
    EVENT,
    EVENTS,
    BadLine,
    Code,
    EventChunk,
    Item,
    Request,
    UnknownField,
    wrap_event,
)


class _EventFrame(msgspec.Struct, frozen=True, tag_field="type", tag=EVENT):
    event: msgspec.Raw


class _EventsFrame(msgspec.Struct, frozen=True, tag_field="type", tag=EVENTS, forbid_unknown_fields=True):
    events: list[msgspec.Raw]


_Frame = Request | _EventFrame | _EventsFrame
_decode: Final = msgspec.json.Decoder(_Frame).decode
_EVENT_HINT: Final = (
    'an event is {"event_id": string, "kind": "Pump" | "DataAvailable" | "Command", '
    '"at": {"secs": u64, "nanos": u32}, "payload": object or null}'
)
_FRAME_HINT: Final = 'send one JSON object a line, such as {"type":"event","event":{...}}'


@dataclass(slots=True)
class FrameReader:
    """Splits received bytes into lines and parses them; holds at most one incomplete line.

    Args:
        max_frame_bytes: longest line, in bytes without its newline.
        max_events_per_frame: most events in one ``events`` frame.
        max_bad_frames: bad frames after which a connection ends; the rest of the read is not parsed.
    """

    max_frame_bytes: int
    max_events_per_frame: int
    max_bad_frames: int
    #: The incomplete line. It is not ``bytes``: each byte of a client that sends single bytes would copy the line.
    _held: bytearray = field(default_factory=bytearray, init=False)
    #: Whether the rest of the current line is dropped, because the line was refused for its length.
    _skipping: bool = field(default=False, init=False)

    #: Whether no unknown field has come yet: the client is told of the first one.
    _known_only: bool = field(default=True, init=False)

    @property
    def mid_frame(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._held) or self._skipping

    @property
    def held_bytes(self) -> int:
        """Bytes held of a line that has begun and not ended."""
        return len(self._held)

    def feed(self, data: bytes) -> list[Item]:
        """Return the items that ``data`` completes, in order."""
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
            items = self._read_chunk(chunk)
        if end < len(data):
            items += self._hold(data[end:])
        return items

    def finish(self) -> list[Item]:
        """Return the items of a last line without a newline, at the end of the stream."""
        held, self._held = bytes(self._held), bytearray()
        return self._read_lines([held]) if held.strip() else []

    def release(self) -> None:
        """Release the incomplete line; nothing more will be read."""
        self._held = bytearray()
        self._skipping = True

    def _hold(self, data: bytes) -> list[Item]:
        if self._skipping:
            return []
        self._held += data
        if len(self._held) <= self.max_frame_bytes:
            return []
        # Refuse the line before it is buffered whole.
        self._held = bytearray()
        self._skipping = True
        return [self._too_large()]

    def _read_chunk(self, chunk: bytes) -> list[Item]:
        """Read whole lines; decode plain ``event`` lines, which nearly all are, together."""
        if chunk.startswith((b'{"type":"event",', b'{"type": "event",')):
            fits = len(chunk) <= self.max_frame_bytes
            if fits or max(map(len, chunk.split(b"\n"))) <= self.max_frame_bytes:
                events = read_harmless(chunk, known_only=self._known_only)
                if events is not None:
                    return [EventChunk(chunk, events)]
        return self._read_lines(chunk.split(b"\n"))

    def _read_lines(self, lines: Iterable[bytes]) -> list[Item]:
        """Read lines of any kind, one by one; consecutive events become one chunk."""
        items: list[Item] = []
        good: list[bytes] = []
        events: list[EventLike] = []
        unknown: UnknownField | None = None
        bad = 0

        def add(item: Item) -> None:
            nonlocal bad
            bad += type(item) is BadLine and item.bad_frame
            end_chunk()
            items.append(item)

        def end_chunk() -> None:
            nonlocal unknown
            if good:
                items.append(EventChunk(b"".join(good), tuple(events), unknown))
                good.clear()
                events.clear()
                unknown = None

        for line in lines:
            # Stop here: the connection ends, and one read may hold a hundred thousand more bad lines.
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
                event, name = _read_event(line if text is None else text, bare=text is not None)
                if isinstance(event, BadLine):
                    add(event)
                    continue
                if name is not None and self._known_only:
                    self._known_only = False
                    unknown = UnknownField(len(events), name)
                good.append(line.strip() + b"\n" if text is None else wrap_event(text))
                events.append(event)
        end_chunk()
        return items

    def _too_large(self) -> BadLine:
        return BadLine(
            Code.TOO_LARGE,
            f"a frame is longer than {self.max_frame_bytes} bytes",
            "send smaller events, or raise limits.max_frame_bytes",
        )


def _read_event(text: bytes | msgspec.Raw, *, bare: bool) -> tuple[EventLike | BadLine, str | None]:
    """Return the event, and the name of an unknown field that it has."""
    try:
        event = read_event(text) if bare else read_line(bytes(text))
        name = unknown_field(text, bare=bare)
    except EventFormatError as error:
        return BadLine(Code.BAD_FRAME, f"not an event: {error}", _EVENT_HINT, _id_of(text, bare=bare)), None
    except ExternalEventPayloadError as error:
        hint = error.hint or ""
        return BadLine(Code.INVALID_PAYLOAD, str(error), hint, _id_of(text, bare=bare), bad_frame=False), None
    # Leave the payload out: the line holds it as long as it is needed.
    return LineEvent(event.event_id, event.kind, event.at), name


class _EventId(msgspec.Struct, frozen=True):
    event_id: str


class _FrameEventId(msgspec.Struct, frozen=True):
    event: _EventId


def _id_of(text: bytes | msgspec.Raw, *, bare: bool) -> str | None:
    """Return the id of a refused event, if it can be read."""
    try:
        if bare:
            return msgspec.json.decode(text, type=_EventId).event_id
        return msgspec.json.decode(text, type=_FrameEventId).event.event_id
    except (ValueError, RecursionError):
        return None
