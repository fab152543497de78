"""Find the events in an input of ``ergo-capture send``: events and frames, a driver's stream, or a fixture.

The first line decides the form. A stream begins with a ``hello`` of ``ergo-driver.v0``, and is read as the reference
reads it: it is interrupted if it stops without ``end`` or goes on after it. A fixture is read whole before its first
event is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum, auto
from itertools import count
from typing import Any, Final, Literal

import msgspec

from ergo_capture.client.in_flight import EventLine
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.protocol.capture import (
    DRIVER_PROTOCOL,
    EVENT,
    EVENTS,
    PROTOCOL,
    REQUEST_TYPES,
    IngressReason,
    wrap_event,
)
from ergo_capture.protocol.driver import LineKind, hosted_event_line, read_driver_line


class InputRefused(ErgoCaptureError):
    """An input was refused before any event of it was sent."""


class _Id(msgspec.Struct, gc=False):
    event_id: str = ""


class _Line(msgspec.Struct):
    type: str = ""
    event: msgspec.Raw = msgspec.Raw(b"")
    events: list[msgspec.Raw] = []
    # Any type: the daemon reports which one it should be.
    event_id: Any = ""


class _EventFrame(msgspec.Struct, gc=False):
    #: Required, which a tag is not.
    type: Literal["event"]
    event: _Id


class _FixtureLine(msgspec.Struct):
    kind: str


_line: Final = msgspec.json.Decoder(_Line)
_event_frame: Final = msgspec.json.Decoder(_EventFrame)
_id: Final = msgspec.json.Decoder(_Id)
_fixture_line: Final = msgspec.json.Decoder(_FixtureLine)
_EPISODE: Final = "episode_start"
_OPENING: Final = set(b"{")
_CLOSING: Final = set(b"}")


class _Form(Enum):
    #: No line has come.
    UNKNOWN = auto()
    #: Bare events, and frames of ``ergo-capture.v1``.
    FRAMES = auto()
    #: A driver's stream.
    STREAM = auto()
    #: A driver's stream that has ended.
    ENDED = auto()
    FIXTURE = auto()


class InputForm:
    """Finds the events in the lines of one input.

    Args:
        name: the input, for messages.
    """

    def __init__(self, name: str) -> None:
        #: Whether a stream has ended, and nothing came after it: an empty line then matters too.
        self._is_at_end = False
        #: Called with each line after the end of a stream, its number, and the reason why it is refused.
        self.on_refused: Callable[[bytes, int, str], None] = lambda _line, _number, _why: None
        #: The reference's word for the interruption of a stream; None for none.
        self.interruption: IngressReason | None = None
        self._name = name
        self._form = _Form.UNKNOWN
        self._is_greeted = False
        self._behind = ""
        #: The lines of a fixture, with their numbers.
        self._fixture: list[tuple[int, bytes]] = []

    def events_of(self, lines: list[bytes], number: int) -> list[EventLine]:
        """Return the events of the next lines.

        Args:
            lines: the lines, without their newlines.
            number: the number of the first one, from 1.

        Raises:
            InputRefused: the stream is of another version of the protocol.
        """
        if self._form is _Form.FRAMES and (ids := _ids_of_frames(lines)) is not None:
            return list(map(EventLine, [line + b"\n" for line in lines], ids, count(number)))
        numbered = enumerate(lines, number)
        return [event for n, line in numbered if line or self._is_at_end for event in self._events_of(line, n)]

    def _events_of(self, line: bytes, number: int) -> list[EventLine]:
        """Return the events of the next line.

        Args:
            line: the line, without its newline; an empty one matters only while ``_is_at_end``.
            number: its number, from 1.

        Raises:
            InputRefused: the stream is of another version of the protocol.
        """
        line = line.strip()
        if self._form is _Form.ENDED:
            self.interruption, self._is_at_end = "protocol_violation", False
            if line:
                self.on_refused(line, number, self._behind)
            return []
        if self._form is _Form.UNKNOWN and line:
            self._form = self._form_of(line)
        if not line:
            return []
        if self._form is _Form.FIXTURE:
            self._fixture.append((number, line))
            return []
        if self._form is _Form.STREAM:
            return self._of_stream(line, number)
        try:
            # The usual line; any other is looked at more closely.
            return [EventLine(line + b"\n", _event_frame.decode(line).event.event_id, number)]
        except (ValueError, RecursionError):
            return list(_events_of(line, number))

    def finish(self) -> list[EventLine]:
        """Return the events that the end of the input completes.

        Raises:
            InputRefused: it is a fixture that the reference refuses.
        """
        if self._form is _Form.STREAM:
            self.interruption = "driver_terminated"
        return self._of_fixture() if self._form is _Form.FIXTURE else []

    def _form_of(self, line: bytes) -> _Form:
        found = read_driver_line(line)
        if found.kind is LineKind.HELLO:
            if found.text == DRIVER_PROTOCOL:
                return _Form.STREAM
            if found.text != PROTOCOL:
                raise InputRefused(
                    f"read '{self._name}': its hello declares the unsupported protocol '{found.text}'",
                    op="read events",
                    path=self._name,
                    hint=f"send a stream of {DRIVER_PROTOCOL}, or events alone",
                )
        try:
            is_fixture = _fixture_line.decode(line).kind in {_EPISODE, EVENT} and not _line.decode(line).type
        except (ValueError, RecursionError):
            return _Form.FRAMES
        return _Form.FIXTURE if is_fixture else _Form.FRAMES

    def _of_stream(self, line: bytes, number: int) -> list[EventLine]:
        found = read_driver_line(line)
        if found.kind is LineKind.EVENT:
            return [EventLine(found.frame, found.text, number)]
        if found.kind is LineKind.UNREADABLE:
            # The daemon reports the error in it.
            return list(_events_of(line, number))
        if found.kind is LineKind.END:
            self._form, self._behind, self._is_at_end = _Form.ENDED, "it came after `end`", True
        elif self._is_greeted:
            self._form, self._behind = _Form.ENDED, "it came after a second hello"
            self.interruption = "protocol_violation"
        self._is_greeted = True
        return []

    def _of_fixture(self) -> list[EventLine]:
        from ergo_capture.adapter.host import HostError  # noqa: PLC0415 - only for fixtures
        from ergo_capture.adapter.ingress import read_fixture  # noqa: PLC0415

        is_bound = any(b'"semantic_kind"' in line for _, line in self._fixture)
        try:
            # With an adapter the daemon reads the numbers as the reference does; without one they are not read again.
            numbers = "exact" if is_bound else "reference"
            text = self._fixture_text().decode()
            episodes = read_fixture(text, bound=is_bound, numbers=numbers, name=self._name)  # type: ignore[arg-type]
        except UnicodeDecodeError as error:
            raise self._refused(f"it is not UTF-8: {error}", "send it as UTF-8") from error
        except HostError as error:
            refusal = error.refusal
            raise self._refused(f"{refusal.code}: {refusal.detail or refusal.message}", refusal.fix) from error
        places = [number for number, line in self._fixture if _fixture_line.decode(line).kind != _EPISODE]
        events = [event for episode in episodes for event in episode.events]
        return [
            EventLine(hosted_event_line(event), event.event_id, number)
            for event, number in zip(events, places, strict=True)
        ]

    def _fixture_text(self) -> bytes:
        """Return the fixture with each line in its place, for the numbers in messages."""
        text, at = bytearray(), 1
        for number, line in self._fixture:
            text += b"\n" * (number - at) + line
            at = number
        return bytes(text)

    def _refused(self, why: str, fix: str) -> InputRefused:
        return InputRefused(f"read fixture '{self._name}': {why}", op="read events", path=self._name, hint=fix)


def _ids_of_frames(lines: list[bytes]) -> list[str] | None:
    """Return the ids of lines that are an ``event`` frame each; None if any is something else.

    One call decodes all of them. As no value has a ``}`` before a ``{``, none goes on over the end of such a line, and
    as many values as lines are one a line.
    """
    if not all(lines) or {line[0] for line in lines} != _OPENING or {line[-1] for line in lines} != _CLOSING:
        return None
    try:
        ids = [frame.event.event_id for frame in _event_frame.decode_lines(b"\n".join(lines))]
    except (ValueError, RecursionError):
        return None
    return ids if len(ids) == len(lines) else None


def _events_of(line: bytes, number: int) -> Iterator[EventLine]:
    try:
        frame = _line.decode(line)
    except (ValueError, RecursionError):
        # Send it anyway: the daemon reports the error in it.
        yield EventLine(line + b"\n", "", number)
        return
    if frame.type == EVENT:
        yield EventLine(line + b"\n", _id_of(frame.event), number)
    elif frame.type == EVENTS:
        for event in frame.events:
            yield EventLine(wrap_event(event), _id_of(event), number)
    # Frames around the events are left out: `send` writes its own.
    elif frame.type not in REQUEST_TYPES:
        # Send it even without an id: the daemon rejects and counts an unknown line, so none is dropped silently.
        yield EventLine(wrap_event(line), frame.event_id if isinstance(frame.event_id, str) else "", number)


def _id_of(event: msgspec.Raw) -> str:
    try:
        return _id.decode(event).event_id
    except (ValueError, RecursionError):
        return ""
