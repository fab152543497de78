"""Event time: unsigned seconds and nanoseconds, as Rust's ``Duration``."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ergo_capture.kernel.serde.complaints import invalid_integer

U64_MAX = (1 << 64) - 1
NANOS_PER_SEC = 1_000_000_000


class EventTime(msgspec.Struct, frozen=True, order=True, gc=False):
    """A point in event time, or a span of it (``ergo_adapter::EventTime``, ``std::time::Duration``).

    Args:
        secs: whole seconds, 0 to 2**64 - 1.
        nanos: nanoseconds, 0 to 2**32 - 1; a second or more of them is carried into ``secs``.

    Raises:
        ValueError: a field is out of range, or the carry overflows ``secs``.
    """

    secs: Annotated[int, msgspec.Meta(ge=0)] = 0
    nanos: Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)] = 0

    def __post_init__(self) -> None:
        secs, nanos = self.secs, self.nanos
        if 0 <= nanos < NANOS_PER_SEC and 0 <= secs <= U64_MAX:
            return
        if not 0 <= nanos < 1 << 32:
            raise ValueError(invalid_integer(nanos, "u32 for nanos"))
        if not 0 <= secs <= U64_MAX:
            raise ValueError(invalid_integer(secs, "u64 for secs"))
        carry, nanos = divmod(nanos, NANOS_PER_SEC)
        if secs + carry > U64_MAX:
            raise ValueError("overflow deserializing Duration")
        msgspec.structs.force_setattr(self, "secs", secs + carry)
        msgspec.structs.force_setattr(self, "nanos", nanos)

    @property
    def total_nanos(self) -> int:
        """Return the time in nanoseconds."""
        return self.secs * NANOS_PER_SEC + self.nanos

    @classmethod
    def from_nanos(cls, nanos: int) -> EventTime:
        """Return the time ``nanos`` nanoseconds after zero, or the last representable one if that is later."""
        if nanos >= (U64_MAX + 1) * NANOS_PER_SEC:
            return cls(U64_MAX, NANOS_PER_SEC - 1)
        return cls(*divmod(nanos, NANOS_PER_SEC))

    def saturating_add(self, span: EventTime) -> EventTime:
        """Return this time plus ``span``, or the last representable one (``EventTime::saturating_add``)."""
        return EventTime.from_nanos(self.total_nanos + span.total_nanos)

    def is_zero(self) -> bool:
        """Return whether this is time zero, or an empty span."""
        return self.secs == 0 and self.nanos == 0


ZERO = EventTime(0, 0)
