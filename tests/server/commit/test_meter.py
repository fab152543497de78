"""Histograms of commits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ergo_capture.server.commit.meter import BYTES, EVENTS, SECONDS, CommitMeter, Histogram


@given(st.lists(st.floats(0, 20), max_size=600))
def test_a_histogram_counts_each_observation_under_its_first_bound(values: list[float]) -> None:
    """Checked against counting one by one."""
    histogram = Histogram((0.5, 1.0, 10.0))
    histogram.observe(values)
    snapshot = histogram.snapshot()
    below = [sum(value <= bound for value in values) for bound in (0.5, 1.0, 10.0)]
    assert list(snapshot.counts) == [below[0], below[1] - below[0], below[2] - below[1], len(values) - below[2]]
    assert abs(snapshot.sum - sum(values)) < 1e-6


def test_a_quantile_is_a_bound_that_holds() -> None:
    """None where there is no observation yet, and where no bound holds."""
    histogram = Histogram((1.0, 2.0))
    assert histogram.snapshot().quantile(0.5) is None
    histogram.observe([0.5] * 98 + [1.5] + [99.0])
    assert histogram.snapshot().quantile(0.5) == 1.0
    assert histogram.snapshot().quantile(0.99) == 2.0
    assert histogram.snapshot().quantile(1.0) is None


def test_a_meter_counts_every_commit() -> None:
    """Its seconds, bytes and events, however many come before the next snapshot; what waits is bounded."""
    meter = CommitMeter()
    assert meter.snapshot().seconds.total == 0
    for number in range(1000):
        meter.note(0.5, 100, number % 3)
        assert len(meter._fresh) < 256
    for _ in range(2):
        snapshot = meter.snapshot()
        assert snapshot.seconds.total == snapshot.bytes.total == snapshot.events.total == 1000
        assert (snapshot.seconds.sum, snapshot.bytes.sum) == (500, 100_000)
        assert snapshot.events.sum == sum(number % 3 for number in range(1000))
        assert (snapshot.seconds.bounds, snapshot.bytes.bounds, snapshot.events.bounds) == (SECONDS, BYTES, EVENTS)
