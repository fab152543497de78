r"""Reads the elements of a bundle's lists, many at a time.

Owns: ``read_elements``: a stretch of a file -> records, in blocks; what decides whether a block may be decoded
in one go.
Not here: where the lists are (``outline.py``), what a record looks like to serde (``kernel/serde.py``), which
is what reads everything that is not of the common shape, and words every complaint.

A block is cut where an element seems to end and decoded with the brackets of a list around it. If that
succeeds, the block was whole elements: a JSON text can be read in one way only. It is then what serde would
have read, unless the decoder in C was more lenient. That it may have been shows:

* A repeated or unknown field, or one left out that has a default: then the block has more keys, or fewer, than
  its records need at the least. Keys are counted as quotes before colons, less those inside strings.
* A key in disguise (``\u0065vent_id``): only ``\u`` can spell a letter in another way.
* ``-0``, which is no integer to serde, and a negative zero as a float.
* A number next to the largest f64: which of those are read is decided by their text.

A block that shows any of it, or that the decoder refuses, is read element by element.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, BinaryIO, Final, Generic, TypeVar

import msgspec
from msgspec import UNSET

from ergo_capture.capture.outline import TOKENS, Stretch
from ergo_capture.kernel import serde
from ergo_capture.kernel.effects import ActionEffect
from ergo_capture.kernel.events import ExternalEventKind
from ergo_capture.kernel.numbers import CERTAINLY_IN_RANGE
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.records import (
    CapturedActionEffect,
    CapturedIntentAck,
    EpisodeInvocationRecord,
    ExternalEventRecord,
)
from ergo_capture.kernel.time import EventTime

Record = TypeVar("Record")

#: Bytes read and decoded at a time.
_BLOCK: Final = 128 * 1024
_SEEMS_END: Final = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*\{[ \t\r\n]*\Z")
_BLANK_COLON: Final = re.compile(rb'"[ \t\r\n]+:')
_NEGATIVE_ZERO: Final = re.compile(rb"[\[,:\s]-0(?![.0-9eE])")
_BLANK: Final = b" \t\r\n"


class _Time(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A time within the bounds that C can check."""

    secs: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    nanos: Annotated[int, msgspec.Meta(ge=0, le=999_999_999)]


class _Event(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    event_id: str
    event_time: _Time
    kind: ExternalEventKind
    payload: list[int]
    payload_hash: str


class _Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    event_id: str
    decision: Decision
    schedule_at: _Time | None
    episode_id: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    deadline: _Time | None
    termination: str | dict[str, str] | None
    retry_count: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    effects: tuple[CapturedActionEffect, ...]
    intent_acks: tuple[CapturedIntentAck, ...] = ()
    interruption: str | None = None


_decode_events: Final = msgspec.json.Decoder(list[_Event]).decode
_decode_decisions: Final = msgspec.json.Decoder(list[_Decision]).decode
_EVENT_KEYS: Final = 7
_DECISION_KEYS: Final = 8
_TIME_KEYS: Final = 2


def read_events(block: bytes) -> list[ExternalEventRecord] | None:
    """The events of a text of elements with commas between them; None where serde has to look itself."""
    try:
        events = _decode_events(b"[%b]" % block)
        if not _certain(block, _EVENT_KEYS * len(events)):
            return None
        return [
            ExternalEventRecord(
                event.event_id,
                EventTime(event.event_time.secs, event.event_time.nanos),
                event.kind,
                # Why not at once: bytes() takes more than twice as long for a list.
                bytes(bytearray(event.payload)),
                event.payload_hash,
            )
            for event in events
        ]
    except (ValueError, RecursionError):
        return None


def read_decisions(block: bytes) -> list[EpisodeInvocationRecord] | None:
    """The decisions of a text of elements with commas between them; None where serde has to look itself."""
    try:
        decisions = _decode_decisions(b"[%b]" % block)
        if not _certain(block, sum(map(_keys_of, decisions))):
            return None
        if not all(_in_range(captured.effect) for decision in decisions for captured in decision.effects):
            return None
        return [
            EpisodeInvocationRecord(
                decision.event_id,
                decision.decision,
                _time(decision.schedule_at),
                decision.episode_id,
                _time(decision.deadline),
                None if decision.termination is None else RunTermination.from_builtins(decision.termination),
                decision.retry_count,
                decision.effects,
                decision.intent_acks,
                decision.interruption,
            )
            for decision in decisions
        ]
    except (ValueError, RecursionError):
        return None


def _time(time: _Time | None) -> EventTime | None:
    return None if time is None else EventTime(time.secs, time.nanos)


def _keys_of(decision: _Decision) -> int:
    """How many keys the decision's text has at the least."""
    keys = _DECISION_KEYS
    if decision.schedule_at is not None:
        keys += _TIME_KEYS
    if decision.deadline is not None:
        keys += _TIME_KEYS
    if type(decision.termination) is dict:
        keys += len(decision.termination)
    if decision.effects:
        keys += sum(map(_keys_of_effect, decision.effects))
    if decision.intent_acks:
        keys += 1 + sum(4 + (ack.egress_ref is not None) for ack in decision.intent_acks)
    if decision.interruption is not None:
        keys += 1
    return keys


def _keys_of_effect(captured: CapturedActionEffect) -> int:
    effect = captured.effect
    # Each write is key, value, and the value's own tag; so is each field of an intent.
    keys = 4 + 3 * len(effect.writes)
    if effect.intents:
        keys += 1 + sum(3 + 3 * len(intent.fields) for intent in effect.intents)
    return keys


def _in_range(effect: ActionEffect) -> bool:
    """Whether none of the effect's numbers is one that the reference may refuse."""
    values = [write.value for write in effect.writes]
    values += [field.value for intent in effect.intents for field in intent.fields]
    return all(
        abs(number) < CERTAINLY_IN_RANGE
        for value in values
        for number in (value.Series or () if value.Number is UNSET else (value.Number,))
    )


def _certain(block: bytes, keys: int) -> bool:
    """Whether a text that the decoder took, and whose records need so many keys, is one that serde reads alike."""
    block = _without_numbers(block)
    found = block.count(b'":')
    if b"\\" in block:
        if b"\\u" in block:
            return False
        found -= block.count(b'\\":')
    if found != keys:
        return False
    if any(blank in block for blank in (b" :", b"\n:", b"\t:", b"\r:")) and _BLANK_COLON.search(block):
        return False
    return b"-0" not in block or _NEGATIVE_ZERO.search(block) is None


def _without_numbers(block: bytes) -> bytes:
    """The text without what stands in its arrays of plain numbers, which is most of it.

    Why that changes no answer: what is left out holds no quote, no backslash and no minus.
    """
    first, *rest = block.split(b"[")
    parts = [first]
    for part in rest:
        inside, _, behind = part.partition(b"]")
        harmful = b'"' in inside or b"\\" in inside or b"-" in inside
        parts.append(part if harmful else behind)
    return b"".join(parts)


class Reader(Generic[Record]):
    """How the elements of one list are read: many in one go, or one by one."""

    def __init__(
        self,
        name: str,
        read_block: Callable[[bytes], list[Record] | None],
        read_one: Callable[[Any, str], Record],
    ) -> None:
        self.name = name
        self.read_block = read_block
        self.read_one = read_one


EVENTS: Final = Reader("events", read_events, serde.read_event)
DECISIONS: Final = Reader("decisions", read_decisions, serde.read_decision)


def read_elements(file: BinaryIO, stretch: Stretch, reader: Reader[Record]) -> Iterator[list[Record]]:
    """The records of a list, a block at a time; ``file`` stands anywhere before the list.

    Raises:
        ElementError: an element is not one; what came before it was yielded.
        OSError: the file cannot be read.
    """
    file.seek(stretch.start)
    return _Elements(file, stretch, reader).blocks()


class ElementError(ValueError):
    """An element of a list is not one.

    ``index`` is its place in the list, ``offset`` that of its text in the file, or, for a text that is no JSON, of
    the byte where that shows; ``malformed`` is the JSON parser's word for it, None where the text is JSON.
    """

    def __init__(self, message: str, *, index: int, offset: int, malformed: str | None = None) -> None:
        super().__init__(message)
        self.index = index
        self.offset = offset
        self.malformed = malformed


class _Elements(Generic[Record]):
    def __init__(self, file: BinaryIO, stretch: Stretch, reader: Reader[Record]) -> None:
        self.file = file
        self.reader = reader
        #: What was read, how much of it is passed, and the offset of its first byte in the file.
        self.held = b""
        self.at = 0
        self.start = stretch.start
        #: Bytes of the list that are still to be read.
        self.left = stretch.end - stretch.start
        #: Elements passed.
        self.index = 0

    def blocks(self) -> Iterator[list[Record]]:
        more = self._more_than_blank()
        while more:
            self._fill(_BLOCK)
            cut = self._guess()
            records = None if cut is None else self.reader.read_block(self.held[:cut])
            if records and cut is not None:
                self.index += len(records)
                more = self._pass(cut)
                yield records
                continue
            # Why up to there: asking again for each element whether the rest is harmless would take forever.
            until = self.start + (cut or _BLOCK)
            while more and self.start + self.at < until:
                end = self._end_of_element()
                record = self._read_one(self.held[self.at : end])
                self.index += 1
                more = self._pass(end)
                yield [record]

    def _more_than_blank(self) -> bool:
        self._fill(_BLOCK)
        while self.left and not self.held.strip(_BLANK):
            self._fill(2 * len(self.held))
        return bool(self.held.strip(_BLANK))

    def _fill(self, count: int) -> None:
        """Hold so many bytes that are not passed, or all that are left."""
        parts = [self.held[self.at :]]
        self.start += self.at
        self.at = 0
        missing = min(count - len(parts[0]), self.left)
        while missing > 0:
            part = self.file.read(missing)
            if not part:
                self.left = 0
                break
            parts.append(part)
            missing -= len(part)
            self.left -= len(part)
        self.held = b"".join(parts)

    def _pass(self, end: int) -> bool:
        """Go on behind the comma at ``end``; False where the list ends there."""
        self.at = min(end + 1, len(self.held))
        return end < len(self.held)

    def _guess(self) -> int | None:
        """Where in what is held the last whole element seems to end; None where no element seems to."""
        if not self.left:
            return len(self.held)
        at = self.held.rfind(b'"event_id"')
        while at > 0:
            match = _SEEMS_END.search(self.held, max(0, at - 64), at)
            if match is not None:
                return match.start() + match[0].index(b",")
            at = self.held.rfind(b'"event_id"', 0, at)
        return None

    def _end_of_element(self) -> int:
        """Where the first element not passed certainly ends: at the comma behind it, or at the end of the list."""
        at, depth = self.at, 0
        while True:
            match = TOKENS.search(self.held, at)
            if match is None or match[1] == b"":
                if not self.left:
                    return len(self.held)
                at = (len(self.held) if match is None else match.start()) - self.at
                self._fill(2 * (len(self.held) - self.at))
                continue
            token, at = match[0], match.end()
            if token in b"[{":
                depth += 1
            elif token in b"]}":
                depth -= 1
            elif token == b"," and depth == 0:
                return match.start()

    def _read_one(self, text: bytes) -> Record:
        start, index = self.start + self.at, self.index
        try:
            # Why two brackets: an element stands that deep in a bundle, and depth is limited.
            ((*values,),) = serde.parse(f"[[{text.decode()}]]")
            if not values:
                raise ElementError(
                    "Expecting value", index=index, offset=start + len(text), malformed="Expecting value"
                )
            return self.reader.read_one(values[0], f"$.{self.reader.name}[{index}]")
        except ElementError:
            raise
        except json.JSONDecodeError as error:
            complaint, offset = _malformed(text.decode(), error)
            raise ElementError(complaint, index=index, offset=start + offset, malformed=complaint) from error
        except UnicodeDecodeError as error:
            at = start + error.start
            message = f"'utf-8' codec can't decode byte 0x{text[error.start]:02x} in position {at}: {error.reason}"
            raise ElementError(message, index=index, offset=at) from error
        except (ValueError, RecursionError) as error:
            raise ElementError(str(error), index=index, offset=start) from error


def _malformed(text: str, error: json.JSONDecodeError) -> tuple[str, int]:
    """What is wrong with an element, and at which of its bytes, as if nothing came after it."""
    try:
        serde.parse(f"[[{text}")
    except json.JSONDecodeError as alone:
        error = alone
    return error.msg, len(error.doc[2 : error.pos].encode())
