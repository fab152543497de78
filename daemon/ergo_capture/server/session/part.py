"""A part of a session: the stretch that becomes one bundle, and the rule that ends it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field


@dataclass(slots=True)
class Part:
    """The stretch of a session that becomes one bundle."""

    #: From 1; more than one only where the session was rotated.
    number: int
    #: Index of the part's first event in the session.
    first: int
    #: The oldest journal segment that holds a frame of it.
    segment: int
    #: Loop time it began, in seconds; only rotation by age looks at it.
    began: float
    #: Packed positions of the frames that hold the part, in order.
    event_frames: array[int] = field(default_factory=lambda: array("Q"))
    decision_frames: array[int] = field(default_factory=lambda: array("Q"))
    #: Bytes of event lines.
    bytes: int = 0
    #: Loop time at which a bound was passed; None before.
    due_since: float | None = None


@dataclass(frozen=True, slots=True)
class RotationRule:
    """When a part ends: after the first chunk that reaches a bound; zero turns a bound off.

    It ends at a moment when nothing is deferred, so that its bundle replays on its own. After
    ``force_after`` seconds without such a moment it ends all the same, and its manifest says so.
    """

    max_events: int = 0
    max_bytes: int = 0
    #: Seconds.
    max_age: float = 0.0
    #: Seconds.
    force_after: float = 60.0

    def is_due(self, part: Part, events: int, now: float) -> bool:
        """Whether a part with that many decided events has reached a bound."""
        return bool(
            events
            and (
                (self.max_events and events >= self.max_events)
                or (self.max_bytes and part.bytes >= self.max_bytes)
                or (self.max_age and now - part.began >= self.max_age)
            )
        )

    def may_end(self, part: Part, deferred: int, now: float) -> bool:
        """Whether a part that is due ends now, with that many episodes deferred."""
        return not deferred or (part.due_since is not None and now - part.due_since >= self.force_after)

    def next_look(self, part: Part, events: int, now: float) -> float | None:
        """Seconds until time alone can change the answer; None where it cannot."""
        if part.due_since is not None:
            return max(0.0, part.due_since + self.force_after - now)
        return max(0.0, part.began + self.max_age - now) if self.max_age and events else None
