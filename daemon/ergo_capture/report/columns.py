"""The data of the page: one list for each property of a bundle's events and decisions.

JavaScript has no 64-bit integers: those from 2**53 are given as text, so that the page shows them exactly.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, Final

from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.kernel.explanation import to_builtins
from ergo_capture.kernel.outcomes import Decision
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.kernel.time import EventTime

#: Integers below this are exact in JavaScript.
_EXACT: Final = 1 << 53
#: Event times that are taken for dates: from 2000 to 2200, in seconds since 1970. Most of a run's are enough: an event
#: at time 0 among them, which some feeds begin with, must not turn all others into seconds.
_DATES: Final = (946_684_800, 7_258_118_400)


def columns_of(stream: RecordStream) -> dict[str, Any]:
    """Return the events and decisions of a run as columns, by name.

    Raises:
        BundleFormatError: an event or a decision is malformed.
        ErgoCaptureError: the file cannot be read.
    """
    columns = _Columns()
    records = stream.decisions()
    for event in stream.events():
        columns.add(event, next(records, None))
    return columns.finished()


class _Names:
    """Numbers for words, from 0 in the order of their first use."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))

    @property
    def names(self) -> list[str]:
        return list(self.numbers)


class _Columns:
    """The columns while they are built."""

    def __init__(self) -> None:
        self.kinds, self.decisions, self.terminations = _Names(), _Names(), _Names()
        names = ("secs", "nanos", "id", "kind", "payload", "decision", "episode", "termination", "retries")
        self.rows: dict[str, list[Any]] = {name: [] for name in names}
        #: What few decisions have, by place: when the episode is due, effects, acknowledgements, an interruption.
        self.more: dict[str, dict[str, Any]] = {}
        #: The supervisor's clock at each place, in nanoseconds.
        self.clock: list[int] = []
        #: Places at which deferred episodes began to wait, by episode.
        self.waiting: dict[int, int] = {}
        #: For each episode that waited: the places where it began to wait and where it ran.
        self.spans: list[tuple[int, int | None]] = []

    def add(self, event: ExternalEventRecord, record: EpisodeInvocationRecord | None) -> None:
        """Add the next event, and its decision if there is one."""
        rows, place = self.rows, len(self.clock)
        now = event.event_time.total_nanos
        self.clock.append(max(now, self.clock[-1]) if self.clock else now)
        rows["secs"].append(_exact(event.event_time.secs))
        rows["nanos"].append(event.event_time.nanos)
        rows["id"].append(event.event_id)
        rows["kind"].append(self.kinds.number(event.kind.value))
        # A bundle may hold bytes that no daemon accepts, and the page shows them too.
        rows["payload"].append(event.payload.decode(errors="backslashreplace"))
        rows["decision"].append(self.decisions.number("" if record is None else record.decision.value))
        rows["episode"].append(None if record is None else _exact(record.episode_id))
        rows["termination"].append(self.terminations.number(_ended(record)))
        rows["retries"].append(0 if record is None else _exact(record.retry_count))
        if record is not None:
            self._follow(place, event, record)
            if more := _more(record):
                self.more[str(place)] = more

    def _follow(self, place: int, event: ExternalEventRecord, record: EpisodeInvocationRecord) -> None:
        """Record where a deferred episode begins to wait, and where it runs."""
        if record.decision is Decision.Defer:
            # A Pump defers nothing new: it found nothing due, or put back an episode that waits already.
            if record.schedule_at is not None and event.kind.value != "Pump":
                self.waiting.setdefault(record.episode_id, place)
        elif (began := self.waiting.pop(record.episode_id, None)) is not None:
            self.spans.append((began, place))

    def finished(self) -> dict[str, Any]:
        """Return all columns, after the last event was added."""
        spans = sorted([*self.spans, *((began, None) for began in self.waiting.values())])
        first, last = _DATES
        seconds = [int(secs) for secs in self.rows["secs"]]
        dates = sum(first <= secs < last for secs in seconds)
        return {
            **self.rows,
            "kinds": self.kinds.names,
            "decisions": self.decisions.names,
            "terminations": self.terminations.names,
            "more": self.more,
            "dates": 2 * dates > len(seconds),
            "spans": [(*span, row) for span, row in zip(spans, _rows(spans, self.clock), strict=True)],
        }


def _rows(spans: Sequence[tuple[int, int | None]], clock: Sequence[int]) -> list[int]:
    """Return a row for each span, the lowest that is free: there are as many rows as episodes that wait at once."""
    rows: list[int] = []
    free: list[int] = []
    taken: list[tuple[int, int]] = []
    for began, ended in spans:
        while taken and taken[0][0] <= clock[began]:
            heapq.heappush(free, heapq.heappop(taken)[1])
        row = heapq.heappop(free) if free else len(taken)
        if ended is None:
            heapq.heappush(taken, (clock[-1] + 1, row))
        else:
            heapq.heappush(taken, (clock[ended], row))
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


def _ended(record: EpisodeInvocationRecord | None) -> str:
    return "" if record is None or record.termination is None else record.termination.label
