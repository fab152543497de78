"""The requests of one client, and which answer is whose.

Synchronous and without a clock. Requests come one after the other: what is asked again after a reconnection is what is
not answered yet.
"""

from __future__ import annotations

from collections import deque
from typing import Any


class Requests:
    """What was asked, and what was answered."""

    def __init__(self) -> None:
        #: The request that is under way, as a line; and whether it was asked on an earlier connection too.
        self.asked: bytes | None = None
        self.asked_again = False
        self._answers: deque[dict[str, Any]] = deque()
        #: Answers to come on this connection to requests that were given up.
        self._unwanted = 0

    @property
    def is_answered(self) -> bool:
        """Whether there is an answer that nobody has taken."""
        return bool(self._answers)

    def ask(self, line: bytes) -> None:
        """One is under way."""
        self.asked, self.asked_again = line, False

    def take(self) -> dict[str, Any]:
        """The answer to the one that is under way, where it ``is_answered``."""
        return self._answers.popleft()

    def give_up(self, *, is_asked: bool) -> None:
        """Nobody waits for the answer any more; ``is_asked`` says whether the daemon may have the request."""
        # Why: the answer comes all the same, and must not be taken for that to the next request.
        self._unwanted += is_asked and not self._answers
        self._answers.clear()

    def done(self) -> None:
        """None is under way."""
        self.asked = None

    def pass_over(self) -> bool:
        """Whether the answer that has come is to a request that was given up; it is done with then."""
        if not self._unwanted:
            return False
        self._unwanted -= 1
        return True

    def answer(self, frame: dict[str, Any]) -> None:
        """The answer to the one that is under way has come."""
        self._answers.append(frame)

    def lost(self) -> None:
        """The connection is gone, and with it whatever was still to come on it."""
        self._unwanted = 0

    def again(self) -> bytes | None:
        """What is to be asked on a new connection, if anything is."""
        self.asked_again |= self.asked is not None
        return self.asked

    def __repr__(self) -> str:
        return f"<Requests {'one' if self.asked else 'none'} under way, {self._unwanted} answers unwanted>"
