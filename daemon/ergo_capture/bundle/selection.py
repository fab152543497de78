"""Which events of a run are meant: by kind, decision, time, or id."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.kernel.time import EventTime


class Selection(msgspec.Struct, frozen=True):
    """What an event must be; None and empty for anything."""

    kinds: frozenset[str] = frozenset()
    decisions: frozenset[str] = frozenset()
    #: The earliest event time, and the first that is too late.
    since: EventTime | None = None
    until: EventTime | None = None
    ids: frozenset[str] = frozenset()
    #: The first and the last event by their place in the run.
    from_id: str | None = None
    to_id: str | None = None

    def wants(self, event: ExternalEventRecord, decision: EpisodeInvocationRecord | None) -> bool:
        """Whether an event inside the range is meant."""
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
    """A range begins or ends at an event that is not there."""


def select(
    stream: RecordStream, wanted: Selection
) -> Iterator[tuple[int, ExternalEventRecord, EpisodeInvocationRecord | None]]:
    """The events that are meant, each with its place and its decision, where that is there.

    Raises:
        NoSuchEvent: the range's first event, or behind it the last one, is not there; said at the end.
    """
    decisions = stream.decisions()
    begun = wanted.from_id is None
    for index, event in enumerate(stream.events()):
        decision = next(decisions, None)
        begun = begun or event.event_id == wanted.from_id
        if begun and wanted.wants(event, decision):
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
