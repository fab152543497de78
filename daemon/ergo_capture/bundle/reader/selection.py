"""Select events of a run by kind, decision, time or id."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.kernel.time import EventTime


class Selection(msgspec.Struct, frozen=True):
    """What an event must match; None and empty sets match anything."""

    kinds: frozenset[str] = frozenset()
    decisions: frozenset[str] = frozenset()
    #: Event times from ``since`` to before ``until``.
    since: EventTime | None = None
    until: EventTime | None = None
    ids: frozenset[str] = frozenset()
    #: The first and the last event of the range, by their place in the run.
    from_id: str | None = None
    to_id: str | None = None

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


def select(
    stream: RecordStream, wanted: Selection
) -> Iterator[tuple[int, ExternalEventRecord, EpisodeInvocationRecord | None]]:
    """Yield the events that match, each with its index and its decision, if it has one.

    Raises:
        NoSuchEvent: the run has no such first event, or no such last event after it; raised at the end of the run.
    """
    decisions = stream.decisions()
    begun = wanted.from_id is None
    for index, event in enumerate(stream.events()):
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
