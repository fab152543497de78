"""The limits under which a supervisor decides."""

from __future__ import annotations

import msgspec

from ergo_capture.kernel.serde.complaints import invalid_integer
from ergo_capture.kernel.time import U64_MAX, EventTime


class Constraints(msgspec.Struct, frozen=True):
    """Limits on when episodes run and how often they are retried (``ergo_supervisor::Constraints``).

    Args:
        max_in_flight: episodes at once, 0 to 2**64 - 1; None for no limit.
        max_per_window: invocations in ``rate_window``, 0 to 2**64 - 1; needs ``rate_window`` to count.
        rate_window: span of event time that ``max_per_window`` is counted over.
        deadline: time an episode may take; zero aborts it without a run.
        max_retries: further attempts after a mechanical failure, 0 to 2**64 - 1.

    Raises:
        ValueError: a number is out of range.
    """

    max_in_flight: int | None = None
    max_per_window: int | None = None
    rate_window: EventTime | None = None
    deadline: EventTime | None = None
    max_retries: int = 0

    def __post_init__(self) -> None:
        for name in ("max_in_flight", "max_per_window", "max_retries"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= U64_MAX:
                raise ValueError(invalid_integer(value, f"u64 for {name}"))


NO_CONSTRAINTS = Constraints()
