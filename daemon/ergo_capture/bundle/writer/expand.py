"""Expand journal frames to the text of a bundle, many events at a time.

The encoder writes many events at once; a record object and several calls for each event took twice as long. Most of the
time is spent on the payload's array of byte values and its SHA-256. For the array, a table of pairs, three interleaved
translations and numpy were all slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise
from typing import Final

import msgspec

from ergo_capture.bundle.statistics import StatisticsCounter
from ergo_capture.bundle.writer.elements import Elements, joined, marked
from ergo_capture.journal.decision_rows import DecisionOutcome, EndOfRun, PlainRun, Refusal, read_rows
from ergo_capture.journal.lines import LineTime, read_body
from ergo_capture.kernel.records import ExternalEventRecord, encode_decision, encode_event, encode_time, inside_quotes
from ergo_capture.kernel.time import EventTime
from ergo_capture.protocol.capture import EVENT


class _Event(msgspec.Struct, frozen=True, gc=False):
    event_id: str
    kind: str
    at: LineTime
    payload: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag=EVENT):
    event: _Event


class _Element(msgspec.Struct, frozen=True, gc=False):
    """An element of ``events``, its fields in the order in which a bundle has them."""

    event_id: str
    event_time: LineTime
    kind: str
    payload: list[int]
    payload_hash: str


_decode: Final = msgspec.json.Decoder(_Line).decode_lines
_encode: Final = msgspec.json.Encoder().encode
_encode_into: Final = msgspec.json.Encoder().encode_into
_NANOS: Final = 1_000_000_000
_COMMA: Final = ord(",")
_KINDS: Final = {"Pump": "Pump", "Tick": "Pump", "DataAvailable": "DataAvailable", "Command": "Command"}


def expand_events(
    body: bytes, start: int = 0, stop: int | None = None, counter: StatisticsCounter | None = None, number: int = 0
) -> tuple[list[str], Elements]:
    """Return the ids and elements of an EVENTS body's events from ``start`` to before ``stop``.

    Args:
        body: the body.
        start: the first event.
        stop: after the last event; None for all.
        counter: counts the events.
        number: the place of event ``start`` in the bundle.

    Raises:
        EventFormatError: the body is not one that the daemon accepts.
    """
    try:
        events = [line.event for line in _decode(body)][start:stop]
        kinds = [_KINDS[event.kind] for event in events]
    except (ValueError, RecursionError, KeyError):
        # Rare: a time that only EventTime can hold, or a kind in another spelling. A damaged body raises here.
        records = [ExternalEventRecord.from_event(event) for event in read_body(body)][start:stop]
        ids = [record.event_id for record in records]
        if counter is not None:
            counter.add_events(
                ids,
                [record.kind.value for record in records],
                [record.event_time.total_nanos for record in records],
                [len(record.payload) for record in records],
            )
        sizes = [len(record.payload) for record in records]
        return ids, joined([b"," + encode_event(record) for record in records], sizes, number)
    payloads = [bytes(event.payload) for event in events]
    if b"null" in payloads:
        payloads = [b"" if payload == b"null" else payload for payload in payloads]
    ids = [event.event_id for event in events]
    sizes = list(map(len, payloads))
    if counter is not None:
        times = [event.at for event in events]
        counter.add_events(ids, kinds, [at.secs * _NANOS + at.nanos for at in times], sizes)
    # Use one buffer: joining would copy the text, and payload arrays are long.
    text = bytearray(b"]")
    places, marks = marked(sizes, number), []
    for n, after in pairwise(sorted({0, *places, len(events)})):
        if n in places:
            marks.append((len(text) - 1, n))
        some = slice(n, after)
        elements = [
            _Element(event.event_id, event.at, kind, list(payload), sha256(payload).hexdigest())
            for event, kind, payload in zip(events[some], kinds[some], payloads[some], strict=True)
        ]
        end = len(text) - 1
        _encode_into(elements, text, end)
        text[end] = _COMMA
    text.pop()
    return ids, Elements(text, len(events), marks)


_Row = PlainRun | DecisionOutcome | Refusal | EndOfRun


class DecisionTexts:
    """The decisions of a session as elements of a bundle's ``decisions``, in the order of their events.

    Args:
        bodies: the DECISIONS bodies, in order; after its end, ``next`` is called again later.
        deadline: the configured deadline, which is in every record.
        counter: counts the decisions, after their events.
    """

    def __init__(
        self, bodies: Iterator[bytes], deadline: EventTime | None, counter: StatisticsCounter | None = None
    ) -> None:
        self._bodies = bodies
        self._counter = counter or StatisticsCounter()
        self._rows: Iterator[_Row] = iter(())
        #: The place in the bundle of the next decision.
        self._number = 0
        self._deadline = deadline
        #: The next episode of the current run of plain decisions, and how many of the run are left.
        self._episode = self._left = 0
        self._after = (
            f',"deadline":{encode_time(deadline).decode()},"termination":"Completed","retry_count":0,"effects":[]}}'
        )

    def take(self, ids: list[str]) -> Elements | None:
        """Return the decisions of the next events, which have these ids; None if there are fewer."""
        texts: list[str] = []
        taken = 0
        while taken < len(ids):
            if not self._left:
                row = self._next_row()
                if row is None:
                    return None
                if isinstance(row, DecisionOutcome):
                    texts.append("," + encode_decision(row.to_record(ids[taken], self._deadline)).decode())
                    self._counter.add_decision(row)
                    taken += 1
                    continue
                if not isinstance(row, PlainRun):
                    raise ValueError("an event is refused in a session without an adapter")
                self._episode, self._left = row.episode, row.count
            count = min(self._left, len(ids) - taken)
            texts += self._plain(ids[taken : taken + count])
            self._episode += count
            self._left -= count
            self._counter.add_plain(count)
            taken += count
        number, self._number = self._number, self._number + len(texts)
        marks, parts, offset, at = [], [], 0, 0
        for place in marked(list(map(len, texts)), number):
            parts.append("".join(texts[at:place]).encode())
            offset += len(parts[-1])
            at = place
            marks.append((offset, place))
        parts.append("".join(texts[at:]).encode())
        return Elements(b"".join(parts), len(texts), marks)

    def _next_row(self) -> _Row | None:
        while (row := next(self._rows, None)) is None:
            body = next(self._bodies, None)
            if body is None:
                return None
            self._rows = read_rows(body)
        return row

    def _plain(self, ids: list[str]) -> list[str]:
        """Return the decisions of episodes that ran at once and completed."""
        # An f-string takes half the time of a bytes format.
        after = self._after
        return [
            f',{{"event_id":"{name}","decision":"Invoke","schedule_at":null,"episode_id":{episode}{after}'
            for episode, name in enumerate(inside_quotes(ids), self._episode)
        ]
