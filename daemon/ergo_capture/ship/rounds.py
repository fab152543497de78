"""The rounds of a shipper or an announcer, and the outage of a store or a server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from ergo_capture.backoff import Backoff
from ergo_capture.errors import ErgoCaptureError

#: Seconds until the second attempt.
_FIRST_BACK_OFF: Final = 1.0
#: Seconds between two looks for each second that one takes: a directory of many thousands takes long to list.
_PAUSE_RATIO: Final = 9.0


async def run_rounds(
    look: Callable[[], Awaitable[object]],
    work: Callable[[], Awaitable[None]],
    delay: Callable[[float], float],
    *,
    interval: float,
    stopped: asyncio.Event,
) -> None:
    """Look, work and wait, until ``stopped`` is set.

    Args:
        look: finds the work.
        work: does the work.
        delay: returns the seconds until the next round, given the seconds after a round without a failure.
        interval: the least number of seconds between two looks.
        stopped: ends the rounds, and the wait between them.
    """
    while not stopped.is_set():
        began = time.monotonic()
        await look()
        pause = max(interval, _PAUSE_RATIO * (time.monotonic() - began))
        await work()
        with anyio.move_on_after(delay(pause)):
            await stopped.wait()


def first_back_off(limit: float) -> Backoff:
    """Return a back-off of at most ``limit`` seconds."""
    return Backoff(min(_FIRST_BACK_OFF, limit), limit)


class Outage:
    """The outage of a store or a server, from its first error to its first answer.

    Args:
        limit: the longest pause between two attempts, in seconds.
    """

    def __init__(self, limit: float) -> None:
        #: The last error; None while there is no outage.
        self.error: ErgoCaptureError | None = None
        self._kind = ""
        self._began = 0.0
        self._back_off = first_back_off(limit)

    def note(self, kind: str, error: ErgoCaptureError) -> bool:
        """Note an error; return whether its kind differs from that of the last one."""
        is_new = self.error is None or kind != self._kind
        if self.error is None:
            self._began = time.monotonic()
        self.error, self._kind = error, kind
        return is_new

    def end(self) -> float | None:
        """Note an answer; return the duration of the outage in seconds, or None if there was none."""
        seconds = None if self.error is None else round(time.monotonic() - self._began, 3)
        self.error = None
        self._back_off.reset()
        return seconds

    def next_delay(self) -> float:
        """Return the seconds until the next attempt."""
        return self._back_off.next_delay()
