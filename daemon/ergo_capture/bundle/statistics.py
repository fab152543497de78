"""Statistics of a run: counts, times and sizes, counted while a run is read or while its bundle is composed."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from itertools import islice
from operator import sub
from typing import Annotated, Any, Final, Protocol

import msgspec

from ergo_capture.bundle.manifest import Manifest
from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.records import CAPTURE_FORMAT_VERSION
from ergo_capture.kernel.time import EventTime

#: Version of the summary in a manifest; readers ignore any other version.
_SUMMARY_VERSION: Final = 1
#: How many events are counted at a time.
_CHUNK: Final = 1_000
#: Largest number in a summary: some readers of JSON cannot hold a larger one.
_MAX_NUMBER: Final = (1 << 63) - 1
#: The bounds hold for what a manifest says.
_Number = Annotated[int, msgspec.Meta(ge=0, le=_MAX_NUMBER)]


class RunStatistics(msgspec.Struct):
    """Statistics of a run; times in nanoseconds of event time, sizes in bytes."""

    graph_id: str
    capture_version: str
    constraints: dict[str, object]
    adapter_provenance: str
    runtime_provenance: str
    file_bytes: int
    events: _Number = 0
    decisions: _Number = 0
    kinds: dict[str, _Number] = {}
    outcomes: dict[str, _Number] = {}
    terminations: dict[str, _Number] = {}
    #: Deferred episodes, and how many of them a Pump invoked.
    deferred: _Number = 0
    pumped: _Number = 0
    #: The other deferrals: Pumps that put their episode back, and Pumps that found nothing due.
    put_back: _Number = 0
    idle_pumps: _Number = 0
    retries: _Number = 0
    most_retries: _Number = 0
    effects: _Number = 0
    interrupted: _Number = 0
    #: The earliest and the latest event time.
    first: _Number | None = None
    last: _Number | None = None
    #: The longest time between two consecutive events, and the id of the later one.
    longest_gap: _Number = 0
    longest_gap_before: str | None = None
    #: Events that are earlier than the event before them, and the largest such step.
    backward: _Number = 0
    furthest_back: _Number = 0
    payload_bytes: _Number = 0
    largest_payload: _Number = 0
    without_payload: _Number = 0

    @property
    def span(self) -> int:
        """Event time from the earliest event to the latest."""
        return 0 if self.first is None or self.last is None else self.last - self.first

    def rate(self, kind: str) -> float | None:
        """Return the events of that kind per second of event time; None where no time passes."""
        return self.kinds.get(kind, 0) / (self.span / 1e9) if self.span else None


class DecisionFacts(Protocol):
    """The fields of a decision that are counted."""

    @property
    def decision(self) -> Decision:
        """The decision: whether its episode was invoked."""

    @property
    def schedule_at(self) -> EventTime | None:
        """The event time at which a deferred episode is due; None for any other decision."""

    @property
    def termination(self) -> RunTermination | None:
        """The termination of the episode; None if it was not invoked."""

    @property
    def retry_count(self) -> int:
        """Its retries."""

    @property
    def effects(self) -> Sequence[object]:
        """Its effects."""

    @property
    def interruption(self) -> str | None:
        """The reason of an interruption; None for none."""


class StatisticsCounter:
    """Counts events and decisions as they come: an event before its decision."""

    def __init__(self) -> None:
        self._events = self._decisions = 0
        self._kinds: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._terminations: Counter[str] = Counter()
        self._first: int | None = None
        self._last: int | None = None
        #: Time of the event before.
        self._before: int | None = None
        self._longest_gap = self._backward = self._furthest_back = 0
        self._longest_gap_before: str | None = None
        self._payload_bytes = self._largest_payload = self._without_payload = 0
        #: Indices of the Pumps whose decisions are still to come, in order.
        self._pumps: deque[int] = deque()
        self._pumped = self._deferred = self._put_back = self._idle_pumps = 0
        self._retries = self._most_retries = self._effects = self._interrupted = 0

    def add_events(self, ids: Sequence[str], kinds: list[str], nanos: list[int], sizes: list[int]) -> None:
        """Count events.

        Args:
            ids: their ids.
            kinds: their kinds, as a bundle has them.
            nanos: their times, in nanoseconds.
            sizes: bytes of their payloads.
        """
        if not kinds:
            return
        counts = Counter(kinds)
        self._kinds.update(counts)
        if "Pump" in counts:
            self._pumps.extend(index for index, kind in enumerate(kinds, self._events) if kind == "Pump")
        self._events += len(kinds)
        earliest, latest, largest = min(nanos), max(nanos), max(sizes)
        self._first = earliest if self._first is None else min(self._first, earliest)
        self._last = latest if self._last is None else max(self._last, latest)
        # The first event has no gap.
        times = nanos if self._before is None else [self._before, *nanos]
        skipped = len(nanos) - len(times) + 1
        self._before = nanos[-1]
        gaps = list(map(sub, times[1:], times))
        if gaps:
            self._count_gaps(gaps, ids, skipped)
        self._payload_bytes += sum(sizes)
        self._largest_payload = max(self._largest_payload, largest)
        self._without_payload += sizes.count(0)

    def _count_gaps(self, gaps: list[int], ids: Sequence[str], skipped: int) -> None:
        longest = max(gaps)
        if longest > self._longest_gap:
            self._longest_gap, self._longest_gap_before = longest, ids[gaps.index(longest) + skipped]
        shortest = min(gaps)
        if shortest < 0:
            self._backward += sum(gap < 0 for gap in gaps)
            self._furthest_back = max(self._furthest_back, -shortest)

    def add_plain(self, count: int) -> None:
        """Count decisions to invoke episodes that completed at the first attempt, without effects."""
        self._decisions += count
        self._outcomes["Invoke"] += count
        self._terminations["Completed"] += count
        while self._pumps and self._pumps[0] < self._decisions:
            self._pumps.popleft()
            self._pumped += 1

    def add_decision(self, record: DecisionFacts) -> None:
        """Count any decision."""
        is_pump = bool(self._pumps) and self._pumps[0] == self._decisions
        if is_pump:
            self._pumps.popleft()
        self._decisions += 1
        self._outcomes[record.decision.value] += 1
        self._pumped += is_pump and record.decision is Decision.Invoke
        if record.decision is Decision.Defer:
            self._idle_pumps += record.schedule_at is None
            self._put_back += record.schedule_at is not None and is_pump
            self._deferred += record.schedule_at is not None and not is_pump
        if record.termination is not None:
            self._terminations[record.termination.label] += 1
        self._retries += record.retry_count
        self._most_retries = max(self._most_retries, record.retry_count)
        self._effects += len(record.effects)
        self._interrupted += record.interruption is not None

    def counts(self) -> dict[str, Any]:
        """Return the fields of ``RunStatistics`` that were counted."""
        names = [name for name in RunStatistics.__struct_fields__ if hasattr(self, f"_{name}")]
        counted = {name: getattr(self, f"_{name}") for name in names}
        for name in ("kinds", "outcomes", "terminations"):
            counted[name] = dict(sorted(counted[name].items()))
        return counted

    def summary(self, constraints: Constraints) -> dict[str, Any] | None:
        """Return the summary of a bundle for its manifest; None if a number is too large for other readers."""
        counted = self.counts()
        if any(isinstance(value, int) and value > _MAX_NUMBER for value in counted.values()):
            return None
        about = {"capture_version": CAPTURE_FORMAT_VERSION, "constraints": msgspec.to_builtins(constraints)}
        return {"version": _SUMMARY_VERSION, **about, **counted}


def collect_statistics(stream: RecordStream, file_bytes: int) -> RunStatistics:
    """Read a run and collect its statistics.

    Args:
        stream: the run.
        file_bytes: bytes of the file or the journal frames that hold it.

    Raises:
        ErgoCaptureError: the run cannot be read.
    """
    counter = StatisticsCounter()
    events = stream.events()
    while chunk := list(islice(events, _CHUNK)):
        counter.add_events(
            [event.event_id for event in chunk],
            [event.kind.value for event in chunk],
            [event.event_time.total_nanos for event in chunk],
            [len(event.payload) for event in chunk],
        )
    for record in stream.decisions():
        counter.add_decision(record)
    return RunStatistics(
        graph_id=stream.graph_id,
        capture_version=stream.capture_version,
        constraints=msgspec.to_builtins(stream.config),
        adapter_provenance=stream.adapter_provenance,
        runtime_provenance=stream.runtime_provenance,
        file_bytes=file_bytes,
        **counter.counts(),
    )


def summarized(manifest: Manifest) -> RunStatistics | None:
    """Return the statistics in a manifest's summary; None if there is none that this version can read."""
    summary = manifest.summary
    if not isinstance(summary, dict) or summary.get("version") != _SUMMARY_VERSION:
        return None
    about = {
        "graph_id": manifest.graph,
        "adapter_provenance": manifest.adapter_provenance,
        "runtime_provenance": manifest.runtime_provenance,
        "file_bytes": manifest.stored[0],
    }
    try:
        limits = msgspec.to_builtins(msgspec.convert(summary.get("constraints"), Constraints))
        return msgspec.convert(summary | about | {"constraints": limits}, RunStatistics)
    except msgspec.ValidationError:
        return None
