"""Exponential back-off with jitter, for operations that are repeated until they succeed."""

from __future__ import annotations

import random
from typing import Final

#: The least fraction of a delay that remains after jitter.
_LEAST: Final = 0.5


class Backoff:
    """Delays that double from ``first`` to ``longest``, each shortened at random by up to half.

    The jitter prevents that all clients of a restarted daemon connect at the same moment.

    Args:
        first: seconds, before jitter.
        longest: seconds, before jitter.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def next_delay(self) -> float:
        """Return the seconds to wait before the next attempt."""
        delay, self._next = self._next, min(2 * self._next, self._longest)
        return delay * random.uniform(_LEAST, 1.0)  # noqa: S311 - nothing secret depends on it

    def reset(self) -> None:
        """Begin with ``first`` again."""
        self._next = self._first
