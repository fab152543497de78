"""How fast the sessions of a user may follow each other."""

from __future__ import annotations

from typing import Final

#: Seconds' worth of sessions that may come at once after a pause.
_BURST_SECONDS: Final = 5.0


class Pace:
    """A token bucket for each user.

    Args:
        rate: how many a second, on average; 0 for as many as come.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        #: When each user's bucket is full again, in the caller's seconds.
        self._full: dict[int | None, float] = {}

    def reserve(self, user: int | None, now: float) -> float:
        """Take the user's next place, and return the seconds until then.

        Places are given in the order in which they are asked for, and one that is not used is lost.
        """
        if not self.rate:
            return 0.0
        full = max(self._full.get(user, now), now) + 1 / self.rate
        self._full[user] = full
        return max(0.0, full - now - _BURST_SECONDS)

    def __repr__(self) -> str:
        return f"<Pace of {self.rate:g} a second, {len(self._full)} users>"
