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
        (LAST, EventTime(0, 1), LAST),
        (EventTime(U64_MAX, 0), EventTime(U64_MAX, 0), LAST),
    ],
)
def test_a_sum_is_carried_and_saturates(time: EventTime, span: EventTime, sum_: EventTime) -> None:
    """It stops at the last representable time."""
    assert time.saturating_add(span) == sum_
