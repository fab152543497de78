"""Event time behaves as the reference's ``Duration``."""

from __future__ import annotations

import pytest

from ergo_capture import EventTime
from ergo_capture.kernel.time import NANOS_PER_SEC, U64_MAX

LAST = EventTime(U64_MAX, NANOS_PER_SEC - 1)


@pytest.mark.parametrize(
    ("time", "span", "sum_"),
    [
        (EventTime(1, 2), EventTime(3, 4), EventTime(4, 6)),
        (EventTime(0, NANOS_PER_SEC - 1), EventTime(0, 1), EventTime(1, 0)),
        (EventTime(U64_MAX - 1, 0), EventTime(1, 5), EventTime(U64_MAX, 5)),
        (LAST, EventTime(0, 1), LAST),
        (EventTime(U64_MAX, 0), EventTime(U64_MAX, 0), LAST),
    ],
)
def test_a_sum_is_carried_and_saturates(time: EventTime, span: EventTime, sum_: EventTime) -> None:
    """It stops at the last representable time."""
    assert time.saturating_add(span) == sum_


@pytest.mark.parametrize(
    ("secs", "nanos", "time"),
    [
        (0, NANOS_PER_SEC, (1, 0)),
        (0, (1 << 32) - 1, (4, 294_967_295)),
        (U64_MAX - 1, NANOS_PER_SEC, (U64_MAX, 0)),
        (U64_MAX, NANOS_PER_SEC - 1, (U64_MAX, NANOS_PER_SEC - 1)),
    ],
)
def test_nanoseconds_are_carried_into_seconds(secs: int, nanos: int, time: tuple[int, int]) -> None:
    """A second or more of them, up to the last representable time."""
    built = EventTime(secs, nanos)
    assert (built.secs, built.nanos) == time


@pytest.mark.parametrize(
    ("secs", "nanos", "message"),
    [
        (0, -1, "invalid value: integer `-1`, expected u32 for nanos"),
        (0, 1 << 32, "invalid value: integer `4294967296`, expected u32 for nanos"),
        (-1, 0, "invalid value: integer `-1`, expected u64 for secs"),
        (U64_MAX + 1, 1, "invalid value: integer `18446744073709551616`, expected u64 for secs"),
        (U64_MAX, NANOS_PER_SEC, "overflow deserializing Duration"),
        (U64_MAX - 1, 2 * NANOS_PER_SEC, "overflow deserializing Duration"),
    ],
)
def test_a_time_that_no_duration_holds_is_refused(secs: int, nanos: int, message: str) -> None:
    """The words are serde's; the field that is out of range is named."""
    with pytest.raises(ValueError, match=f"^{message}$"):
        EventTime(secs, nanos)


def test_only_time_zero_is_zero() -> None:
    """A nanosecond is not zero, and neither is a second."""
    assert EventTime(0, 0).is_zero()
    assert not EventTime(0, 1).is_zero()
    assert not EventTime(1, 0).is_zero()
