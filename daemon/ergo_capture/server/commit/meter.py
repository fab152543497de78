"""Histograms of commits: their duration, bytes and events."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

#: Bounds in seconds: from a disk with a battery-backed cache to one that is about to fail.
SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Bounds in bytes: from one small event to the most that is read at once from many clients.
BYTES: Final = tuple(float(1 << power) for power in range(8, 27, 2))
#: Bounds in events.
EVENTS: Final = (0.0, 1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0)

#: Commits that are sorted into buckets at once. Each takes about a microsecond of the event loop.
_FRESH: Final = 256


class HistogramSnapshot(msgspec.Struct, frozen=True):
    """The number of observations in each bucket."""

    #: Upper bounds of the buckets, inclusive.
    bounds: tuple[float, ...]
    #: Observations by bucket, not cumulated; the last bucket has no bound.
    counts: tuple[int, ...]
    sum: float

    @property
    def total(self) -> int:
        """The number of observations."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """Return the bound of the bucket that holds this quantile, 0 to 1; None if there is none."""
        wanted, seen = share * self.total, 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            seen += count
            if seen and seen >= wanted:
                return bound
        return None


class Histogram:
    """Counts observations by size.

    Args:
        bounds: upper bounds of the buckets, ascending.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, values: Iterable[float]) -> None:
        """Count values."""
        for value in values:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def snapshot(self) -> HistogramSnapshot:
        """Return the counts as of now."""
        return HistogramSnapshot(self._bounds, tuple(self._counts), self._sum)


class CommitMeterSnapshot(msgspec.Struct, frozen=True):
    """Commits since the start."""

    seconds: HistogramSnapshot
    bytes: HistogramSnapshot
    events: HistogramSnapshot


class CommitMeter:
    """Measures commits. Noting one costs an append; the histograms are updated every few hundred commits."""

    def __init__(self) -> None:
        self._fresh: list[tuple[float, int, int]] = []
        self._seconds = Histogram(SECONDS)
        self._bytes = Histogram(BYTES)
        self._events = Histogram(EVENTS)

    def note(self, seconds: float, size: int, events: int) -> None:
        """Note a commit: its duration in seconds, its size in bytes, and its number of events."""
        self._fresh.append((seconds, size, events))
        if len(self._fresh) >= _FRESH:
            self._sort_in()

    def _sort_in(self) -> None:
        if self._fresh:
            seconds, sizes, events = zip(*self._fresh, strict=True)
            self._seconds.observe(seconds)
            self._bytes.observe(sizes)
            self._events.observe(events)
            self._fresh.clear()

    def snapshot(self) -> CommitMeterSnapshot:
        """Return the histograms as of now."""
        self._sort_in()
        return CommitMeterSnapshot(self._seconds.snapshot(), self._bytes.snapshot(), self._events.snapshot())
