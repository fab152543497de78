r"""Decode a block of whole elements at once, if the result is certain to be the same as serde's.

If msgspec decodes the block with the brackets of a list around it, the block was whole elements, because a JSON text
can be read in only one way. The result is the same as serde's, unless msgspec is more lenient. It may be so if the
block has:

* a repeated or unknown field, or lacks one that has a default. Then the block has more, or fewer, keys than the least
  number for its records. Keys are counted as quotes before colons, less those inside strings.
* an escaped key (``\u0065vent_id``). Only ``\u`` can spell a letter in another way.
* ``-0``, which is not an integer for serde, and a negative zero as a float.
* a number next to the largest f64. Its text decides whether serde reads it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import UNSET

from ergo_capture.bundle.reader.decision_texts import DecisionTexts
from ergo_capture.kernel.effects import ActionEffect
from ergo_capture.kernel.events import ExternalEventKind, TimeLike
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.records import (
    CapturedActionEffect,
    CapturedIntentAck,
    EpisodeInvocationRecord,
    ExternalEventRecord,
)
from ergo_capture.kernel.serde.numbers import CERTAINLY_IN_RANGE
from ergo_capture.kernel.time import EventTime

_BLANK_COLON: Final = re.compile(rb'"[ \t\r\n]+:')
_NEGATIVE_ZERO: Final = re.compile(rb"[\[,:\s]-0(?![.0-9eE])")


class _Time(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A time within the bounds that msgspec checks."""

    secs: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    nanos: Annotated[int, msgspec.Meta(ge=0, le=999_999_999)]


class _Event(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    event_id: str
    event_time: _Time
    kind: ExternalEventKind
    #: Empty: the numbers are decoded apart.
    payload: tuple[int, ...]
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


class _Plain(msgspec.Struct, frozen=True, gc=False):
    """The fields in which decisions that completed at once differ; the others are compared as text."""

    event_id: str
    episode_id: int
    deadline: _Time | None


@lru_cache(4)
def _texts(deadline: EventTime | None) -> DecisionTexts:
    return DecisionTexts(deadline, pretty=False)


_decode_plain: Final = msgspec.json.Decoder(list[_Plain]).decode
_PLAIN_END: Final = b'"termination":"Completed","retry_count":0,"effects":[]}'
_decode_events: Final = msgspec.json.Decoder(list[_Event]).decode
_decode_numbers: Final = msgspec.json.Decoder(list[int]).decode
_decode_decisions: Final = msgspec.json.Decoder(list[_Decision]).decode
_EVENT_KEYS: Final = 7
#: The quotes of an event: two for each key, and for each value that is a string.
_EVENT_QUOTES: Final = 2 * (_EVENT_KEYS + 3)
_DECISION_KEYS: Final = 8
_TIME_KEYS: Final = 2


class EventColumns(NamedTuple):
    """Events as one list for each of their fields."""

    ids: list[str]
    times: Sequence[TimeLike]
    kinds: list[ExternalEventKind]
    payloads: list[bytes]
    hashes: list[str]

    @classmethod
    def of(cls, record: ExternalEventRecord) -> EventColumns:
        """Return the columns of one event."""
        return cls([record.event_id], [record.event_time], [record.kind], [record.payload], [record.payload_hash])

    def __len__(self) -> int:
        return len(self.ids)


def read_event_columns(block: bytes) -> EventColumns | None:
    """Return the events of elements with commas between them, as columns; None where serde has to read them.

    The numbers of all payloads are decoded as one list, which takes a tenth less than a list for each, and what is left
    of the text, an eighth, without them. If both are JSON, and the events have as many payloads as there were brackets,
    so is the block: every bracket opened a payload.
    """
    without, numbers = _split_numbers(block)
    try:
        events = _decode_events(b"[%b]" % without)
        payloads = _payloads(numbers) if len(events) == len(numbers) else None
    except (ValueError, RecursionError):
        return None
    if payloads is None:
        return None
    columns = EventColumns(
        [event.event_id for event in events],
        [event.event_time for event in events],
        [event.kind for event in events],
        payloads,
        [event.payload_hash for event in events],
    )
    return columns if _certain_events(without, columns.ids, columns.hashes) else None


def _split_numbers(block: bytes) -> tuple[bytes, list[bytes]]:
    """Return a text with its arrays emptied, and what was in them; arrays in arrays count as one."""
    find, parts, numbers, at = block.find, [], [], 0
    while (begin := find(b"[", at) + 1) and (end := find(b"]", begin)) >= 0:
        parts.append(block[at:begin])
        numbers.append(block[begin:end])
        at = end
    parts.append(block[at:])
    return b"".join(parts), numbers


def _payloads(numbers: list[bytes]) -> list[bytes] | None:
    """Return the bytes of each array of numbers, of which only the content is given; None where serde has to read them.

    Raises:
        ValueError: they are not arrays of bytes.
    """
    filled = [text for text in numbers if text]
    # No text in UTF-8 has a byte of 255, so that one between two payloads tells them apart. A number beside it belongs to
    # one of them: a comma is on either side.
    joined = b",255,".join(filled)
    if b"-" in joined:
        return None
    # Convert through a bytearray: bytes() of a list takes more than twice as long.
    parts = bytes(bytearray(_decode_numbers(b"[%b]" % joined))).split(b"\xff") if filled else []
    if len(parts) != len(filled):
        return None
    if len(filled) == len(numbers):
        return parts
    each = iter(parts)
    return [next(each) if text else b"" for text in numbers]


def read_events(block: bytes) -> list[ExternalEventRecord] | None:
    """Return the events of elements with commas between them; None where serde has to read them."""
    columns = read_event_columns(block)
    if columns is None:
        return None
    times = [EventTime(time.secs, time.nanos) for time in columns.times]
    return list(map(ExternalEventRecord, columns.ids, times, columns.kinds, columns.payloads, columns.hashes))


def read_decisions(block: bytes) -> list[EpisodeInvocationRecord] | None:
    """Return the decisions of elements with commas between them; None where serde has to read them."""
    if block.endswith(_PLAIN_END) and (plain := _read_plain(block)) is not None:
        return plain
    try:
        decisions = _decode_decisions(b"[%b]" % block)
        if not _certain(_without_numbers(block), sum(map(_keys_of, decisions))):
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


def _read_plain(block: bytes) -> list[EpisodeInvocationRecord] | None:
    """Return the decisions if all invoke consecutive episodes, which completed at once; None if not.

    Nearly all blocks are such. Composing their text and comparing it takes a third of the time of decoding it.
    """
    try:
        decisions = _decode_plain(b"[%b]" % block)
        deadline = _time(decisions[0].deadline)
    except (ValueError, RecursionError, IndexError):
        return None
    ids, first = [decision.event_id for decision in decisions], decisions[0].episode_id
    if _texts(deadline).invoked(ids, first) != block:
        return None
    return [
        EpisodeInvocationRecord(event_id, Decision.Invoke, None, episode, deadline, RunTermination.Completed, 0)
        for episode, event_id in enumerate(ids, first)
    ]


def _time(time: _Time | None) -> EventTime | None:
    return None if time is None else EventTime(time.secs, time.nanos)


def _keys_of(decision: _Decision) -> int:
    """Return the least number of keys that the decision's text has."""
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
    """Return whether the reference certainly accepts all of the effect's numbers."""
    values = [write.value for write in effect.writes]
    values += [field.value for intent in effect.intents for field in intent.fields]
    return all(
        abs(number) < CERTAINLY_IN_RANGE
        for value in values
        for number in (value.Series or () if value.Number is UNSET else (value.Number,))
    )


def _certain(text: bytes, keys: int) -> bool:
    """Return whether serde certainly reads a block without its numbers as msgspec did, as records with that many keys."""
    found = text.count(b'":')
    if b"\\" in text:
        if b"\\u" in text:
            return False
        found -= text.count(b'\\":')
    if found != keys:
        return False
    if any(blank in text for blank in (b" :", b"\n:", b"\t:", b"\r:")) and _BLANK_COLON.search(text):
        return False
    return b"-0" not in text or _NEGATIVE_ZERO.search(text) is None


def _certain_events(text: bytes, ids: list[str], hashes: list[str]) -> bool:
    """Return whether serde certainly reads events without their payloads as msgspec did, with these ids and hashes.

    Without a backslash, keys are half of the quotes less the strings that are values, and a minus outside of strings
    is one of -0. Counting one character takes a third of what counting keys does.
    """
    if b"\\" in text:
        return _certain(text, _EVENT_KEYS * len(ids))
    if text.count(b'"') != _EVENT_QUOTES * len(ids):
        return False
    return text.count(b"-") == "".join(ids).count("-") + "".join(hashes).count("-")


def _without_numbers(block: bytes) -> bytes:
    """Return the block without the content of its arrays of numbers, which is most of it.

    The omitted text has no quote, no backslash and no minus, so the counts stay the same.
    """
    first, *rest = block.split(b"[")
    parts = [first]
    for part in rest:
        inside, _, behind = part.partition(b"]")
        harmful = b'"' in inside or b"\\" in inside or b"-" in inside
        parts.append(part if harmful else behind)
    return b"".join(parts)
