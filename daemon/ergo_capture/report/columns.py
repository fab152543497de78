"""The data of the page: one list for each property of a bundle's events and decisions.

JavaScript has no 64-bit integers: those from 2**53 on are written as text, so that the page shows them exactly.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.kernel.events import ExternalEventKind
from ergo_capture.kernel.explanation import to_builtins
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.kernel.time import NANOS_PER_SEC, EventTime
from ergo_capture.report.packing import Piece, join

Key = TypeVar("Key")

#: How many events are added together.
_TOGETHER: Final = 512
#: Integers below this are exact in JavaScript.
_EXACT: Final = 1 << 53
#: Event times that are shown as dates: from 2000 to 2200, in seconds since 1970. It is enough that most times of a run
#: are: some feeds begin with an event at time 0, which must not turn all others into seconds.
_DATES: Final = (946_684_800, 7_258_118_400)


def pack_columns(stream: RecordStream, about: Mapping[str, Any]) -> bytes:
    """Return the packed JSON object of a run's events and decisions as columns, by name.

    Args:
        stream: the run.
        about: other items of the object.

    Raises:
        BundleFormatError: an event or a decision is malformed.
        ErgoCaptureError: the file cannot be read.
    """
    columns = _Columns()
    events, records = stream.events(), stream.decisions()
    while batch := list(islice(events, _TOGETHER)):
        decided: list[EpisodeInvocationRecord | None] = list(islice(records, len(batch)))
        columns.add(batch, decided + [None] * (len(batch) - len(decided)))
    return columns.finished(about)


class _Names(Generic[Key]):
    """Numbers for words, from 0 in the order of their first use."""

    def __init__(self) -> None:
        self.numbers: dict[Key, int] = {}

    def numbers_of(self, words: Sequence[Key]) -> list[int]:
        numbers = self.numbers
        try:
            return [numbers[word] for word in words]
        except KeyError:
            return [numbers.setdefault(word, len(numbers)) for word in words]


class _Columns:
    """The columns while they are built: packed, so that memory hardly grows with the run."""

    def __init__(self) -> None:
        self.kinds: _Names[ExternalEventKind] = _Names()
        self.decisions: _Names[Decision | None] = _Names()
        self.terminations: _Names[RunTermination | None] = _Names()
        names = ("secs", "nanos", "id", "kind", "payload", "decision", "episode", "termination", "retries")
        self.columns = {name: _Column(f'"{name}":['.encode()) for name in names}
        #: The rare fields of decisions, by place: the time when due, effects, acknowledgements, an interruption.
        self.more = _Column(b'"more":{')
        #: The number of events so far, of those with a date, and the supervisor's clock, in nanoseconds.
        self.count = 0
        self.dates = 0
        self.clock = 0
        #: Waiting deferred episodes: the place where each began to wait, and the clock there.
        self.waiting: dict[int, tuple[int, int]] = {}
        self.spans: list[_Span] = []

    def add(self, events: Sequence[ExternalEventRecord], records: Sequence[EpisodeInvocationRecord | None]) -> None:
        """Add the next events, with the decision of each if there is one."""
        columns, first_date, last_date = self.columns, *_DATES
        secs = [event.event_time.secs for event in events]
        self.dates += sum([first_date <= second < last_date for second in secs])
        columns["secs"].add([_exact(second) for second in secs])
        columns["nanos"].add([event.event_time.nanos for event in events])
        columns["id"].add([event.event_id for event in events])
        columns["kind"].add(self.kinds.numbers_of([event.kind for event in events]))
        columns["payload"].add([event.payload_text for event in events])
        columns["decision"].add(
            self.decisions.numbers_of([None if record is None else record.decision for record in records])
        )
        columns["episode"].add([None if record is None else _exact(record.episode_id) for record in records])
        columns["termination"].add(
            self.terminations.numbers_of([None if record is None else record.termination for record in records])
        )
        columns["retries"].add([0 if record is None else _exact(record.retry_count) for record in records])
        for place, (event, record) in enumerate(zip(events, records, strict=True), self.count):
            at = event.event_time
            self.clock = max(self.clock, at.secs * NANOS_PER_SEC + at.nanos)
            if record is None:
                continue
            if self.waiting or record.decision is Decision.Defer:
                self._follow(place, event, record)
            if (
                record.schedule_at is not None
                or record.effects
                or record.intent_acks
                or record.interruption is not None
            ):
                self.more.add_text(b'"%d":%b' % (place, msgspec.json.encode(_more(record))))
        self.count += len(events)

    def _follow(self, place: int, event: ExternalEventRecord, record: EpisodeInvocationRecord) -> None:
        """Record the places where a deferred episode begins to wait and where it runs."""
        if record.decision is Decision.Defer:
            # A Pump does not defer an episode: it found nothing due, or put back an episode that waits already.
            if record.schedule_at is not None and event.kind is not ExternalEventKind.Pump:
                self.waiting.setdefault(record.episode_id, (place, self.clock))
        elif (began := self.waiting.pop(record.episode_id, None)) is not None:
            self.spans.append(_Span(began[0], began[1], place, self.clock))

    def finished(self, about: Mapping[str, Any]) -> bytes:
        """Return the packed object, after the last event was added."""
        spans = sorted([*self.spans, *(_Span(*began, None, self.clock + 1) for began in self.waiting.values())])
        rest = {
            **about,
            "kinds": [kind.value for kind in self.kinds.numbers],
            "decisions": ["" if decision is None else decision.value for decision in self.decisions.numbers],
            "terminations": ["" if ended is None else ended.label for ended in self.terminations.numbers],
            "dates": 2 * self.dates > self.count,
            "spans": [(span.began, span.ended, row) for span, row in zip(spans, _rows(spans), strict=True)],
        }
        last = Piece()
        for column in self.columns.values():
            column.piece.write(b"],")
        self.more.piece.write(b"},")
        last.write(msgspec.json.encode(rest)[1:])
        return join([_opening(), *(column.piece for column in self.columns.values()), self.more.piece, last])


def _opening() -> Piece:
    piece = Piece()
    piece.write(b"{")
    return piece


class _Column:
    """A sequence of JSON values, packed."""

    def __init__(self, begin: bytes) -> None:
        self.piece = Piece()
        self.piece.write(begin)
        self._separator = b""

    def add(self, values: list[Any]) -> None:
        """Append values; at least one."""
        self.add_text(msgspec.json.encode(values)[1:-1])

    def add_text(self, text: bytes) -> None:
        """Append the text of values, or of a member."""
        self.piece.write(self._separator + text)
        self._separator = b","


class _Span(NamedTuple):
    """A deferred episode: the places where it began to wait and where it ran, and the clock there."""

    began: int
    began_at: int
    #: None where it never ran.
    ended: int | None
    ended_at: int


def _rows(spans: Sequence[_Span]) -> list[int]:
    """Return the lowest free row for each span, so that there are as many rows as episodes wait at once."""
    rows: list[int] = []
    free: list[int] = []
    taken: list[tuple[int, int]] = []
    for span in spans:
        while taken and taken[0][0] <= span.began_at:
            heapq.heappush(free, heapq.heappop(taken)[1])
        row = heapq.heappop(free) if free else len(taken)
        heapq.heappush(taken, (span.ended_at, row))
        rows.append(row)
    return rows


def _more(record: EpisodeInvocationRecord) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if record.schedule_at is not None:
        found["due"] = _time(record.schedule_at)
    if record.effects:
        found["effects"] = to_builtins(record.effects)
    if record.intent_acks:
        found["acks"] = to_builtins(record.intent_acks)
    if record.interruption is not None:
        found["interruption"] = record.interruption
    return found


def _time(time: EventTime) -> tuple[int | str, int]:
    return _exact(time.secs), time.nanos


def _exact(number: int) -> int | str:
    return number if number < _EXACT else str(number)
