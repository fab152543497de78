"""Statistics of a run: counts, times and sizes, read as a stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec

from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.kernel.outcomes import Decision
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord


class RunStatistics(msgspec.Struct):
    """Statistics of a run; times in nanoseconds of event time, sizes in bytes."""

    graph_id: str
    capture_version: str
    constraints: dict[str, object]
    adapter_provenance: str
    runtime_provenance: str
    file_bytes: int
    events: int = 0
    decisions: int = 0
    kinds: dict[str, int] = {}
    outcomes: dict[str, int] = {}
    terminations: dict[str, int] = {}
    #: Episodes that were deferred, and how many of them a Pump invoked.
    deferred: int = 0
    pumped: int = 0
    #: The other deferrals: Pumps that put their episode back, and Pumps that found nothing due.
    put_back: int = 0
    idle_pumps: int = 0
    retries: int = 0
    most_retries: int = 0
    effects: int = 0
    interrupted: int = 0
    #: The earliest and the latest event time.
    first: int | None = None
    last: int | None = None
    #: The longest time between two consecutive events, and the id of the later one.
    longest_gap: int = 0
    longest_gap_before: str | None = None
    #: Events that are earlier than the event before them, and the largest such step.
    backward: int = 0
    furthest_back: int = 0
    payload_bytes: int = 0
    largest_payload: int = 0
    without_payload: int = 0

    @property
    def span(self) -> int:
        """Event time from the earliest event to the latest."""
        return 0 if self.first is None or self.last is None else self.last - self.first

    def rate(self, kind: str) -> float | None:
        """Return the events of that kind per second of event time; None where no time passes."""
        return self.kinds.get(kind, 0) / (self.span / 1e9) if self.span else None


def collect_statistics(stream: RecordStream, file_bytes: int) -> RunStatistics:
    """Read a run and collect its statistics.

    Args:
        stream: the run.
        file_bytes: bytes of the file or the journal frames that hold it.

    Raises:
        ErgoCaptureError: the run cannot be read.
    """
    found = RunStatistics(
        graph_id=stream.graph_id,
        capture_version=stream.capture_version,
        constraints=msgspec.to_builtins(stream.config),
        adapter_provenance=stream.adapter_provenance,
        runtime_provenance=stream.runtime_provenance,
        file_bytes=file_bytes,
    )
    pumps = _count_events(found, stream.events())
    _count_decisions(found, stream.decisions(), pumps)
    return found


def _count_events(found: RunStatistics, events: Iterator[ExternalEventRecord]) -> set[int]:
    kinds: Counter[str] = Counter()
    pumps: set[int] = set()
    before: int | None = None
    for index, event in enumerate(events):
        found.events += 1
        kind = event.kind.value
        kinds[kind] += 1
        if kind == "Pump":
            pumps.add(index)
        now = event.event_time.total_nanos
        found.first = now if found.first is None else min(found.first, now)
        found.last = now if found.last is None else max(found.last, now)
        if before is not None:
            if now < before:
                found.backward += 1
                found.furthest_back = max(found.furthest_back, before - now)
            elif now - before > found.longest_gap:
                found.longest_gap, found.longest_gap_before = now - before, event.event_id
        before = now
        size = len(event.payload)
        found.payload_bytes += size
        found.largest_payload = max(found.largest_payload, size)
        found.without_payload += not size
    found.kinds = dict(sorted(kinds.items()))
    return pumps


def _count_decisions(found: RunStatistics, decisions: Iterator[EpisodeInvocationRecord], pumps: set[int]) -> None:
    outcomes: Counter[str] = Counter()
    terminations: Counter[str] = Counter()
    for index, record in enumerate(decisions):
        found.decisions += 1
        outcomes[record.decision.value] += 1
        found.pumped += record.decision is Decision.Invoke and index in pumps
        if record.decision is Decision.Defer:
            found.idle_pumps += record.schedule_at is None
            found.put_back += record.schedule_at is not None and index in pumps
            found.deferred += record.schedule_at is not None and index not in pumps
        if record.termination is not None:
            terminations[record.termination.label] += 1
        found.retries += record.retry_count
        found.most_retries = max(found.most_retries, record.retry_count)
        found.effects += len(record.effects)
        found.interrupted += record.interruption is not None
    found.outcomes = dict(sorted(outcomes.items()))
    found.terminations = dict(sorted(terminations.items()))
