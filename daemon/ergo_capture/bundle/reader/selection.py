"""Select events of a run by kind, decision, time or id."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from itertools import chain, islice
from operator import itemgetter

import msgspec

from ergo_capture.bundle.reader.index import IndexedBundle
from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.kernel.time import EventTime


class Selection(msgspec.Struct, frozen=True):
    """The conditions on events; None and empty sets match any event."""

    kinds: frozenset[str] = frozenset()
    decisions: frozenset[str] = frozenset()
    #: Event times from ``since`` to before ``until``.
    since: EventTime | None = None
    until: EventTime | None = None
    ids: frozenset[str] = frozenset()
    #: The first and the last event of the range, by their place in the run.
    from_id: str | None = None
    to_id: str | None = None

    @property
    def is_partial(self) -> bool:
        """Whether an index may tell the places of the events."""
        return bool(self.ids) or self.from_id is not None or self.to_id is not None

    def matches(self, event: ExternalEventRecord, decision: EpisodeInvocationRecord | None) -> bool:
        """Return whether an event inside the range matches."""
        if self.kinds and event.kind.value not in self.kinds:
            return False
        if self.decisions and (decision is None or decision.decision.value not in self.decisions):
            return False
        if self.since is not None and event.event_time < self.since:
            return False
        if self.until is not None and event.event_time >= self.until:
            return False
        return not self.ids or event.event_id in self.ids


class NoSuchEvent(ErgoCaptureError):
    """A range begins or ends at an event that the run does not have."""


#: An event that was selected: its index, itself, and its decision, if it has one.
Selected = tuple[int, ExternalEventRecord, EpisodeInvocationRecord | None]


def select(stream: RecordStream, wanted: Selection) -> Iterator[Selected]:
    """Yield the events that match.

    Raises:
        NoSuchEvent: the run has no such first event, or no such last event after it; raised at the end of the run.
    """
    if isinstance(stream, IndexedBundle) and stream.knows_ids:
        if wanted.from_id is not None:
            first = next((index for index, _, _ in _all_with(stream, wanted.from_id)), None)
            if first is None:
                raise _no_such_event(f"no event {wanted.from_id!r}")
            yield from _select(stream.events(first), stream.decisions(first), wanted, first)
            return
        if wanted.ids and wanted.to_id is None:
            found = chain.from_iterable(_all_with(stream, event_id) for event_id in wanted.ids)
            yield from (one for one in sorted(found, key=itemgetter(0)) if wanted.matches(*one[1:]))
            return
    yield from _select(stream.events(), stream.decisions(), wanted)


def select_last(stream: RecordStream, wanted: Selection, most: int) -> list[Selected]:
    """Return at most ``most`` of the last events that match; of a bundle with an index, only the end is read."""
    if not isinstance(stream, IndexedBundle) or wanted.from_id is not None or wanted.to_id is not None:
        return list(deque(select(stream, wanted), min(most, sys.maxsize)))
    found: list[Selected] = []
    end = stream.count
    while end and len(found) < most:
        first = stream.block_before(end - 1)
        block = islice(zip(stream.events(first), stream.decisions(first), strict=True), end - first)
        some = [(first + n, *one) for n, one in enumerate(block) if wanted.matches(*one)]
        found[:0] = some[max(0, len(some) - (most - len(found))) :]
        end = first
    return found


def _all_with(stream: IndexedBundle, event_id: str) -> Iterator[Selected]:
    """Yield the events with an id."""
    for place in stream.candidates(event_id):
        event = next(stream.events(place))
        if event.event_id == event_id:
            yield place, event, next(stream.decisions(place), None)


def _select(
    events: Iterator[ExternalEventRecord],
    decisions: Iterator[EpisodeInvocationRecord],
    wanted: Selection,
    first: int = 0,
) -> Iterator[Selected]:
    begun = wanted.from_id is None
    for index, event in enumerate(events, first):
        decision = next(decisions, None)
        begun = begun or event.event_id == wanted.from_id
        if begun and wanted.matches(event, decision):
            yield index, event, decision
        if begun and event.event_id == wanted.to_id:
            return
    if not begun:
        raise _no_such_event(f"no event {wanted.from_id!r}")
    if wanted.to_id is not None:
        raise _no_such_event(f"no event {wanted.to_id!r}" + (f" after {wanted.from_id!r}" if wanted.from_id else ""))


def _no_such_event(what: str) -> NoSuchEvent:
    return NoSuchEvent(
        f"select events: there is {what}", op="select events", hint="`ergo-capture cat` prints the ids there are"
    )
