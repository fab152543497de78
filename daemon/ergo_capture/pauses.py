"""A clock and time-outs that leave out the time in which this process did not run.

When a process was suspended (SIGSTOP, a suspended virtual machine, a host short of memory), all its time-outs have
passed, although the bytes that it waited for are in the socket. So time-outs for clients and engines use ``clock``,
which stands still meanwhile, and ``move_on_after`` and ``within`` of this module.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self, TypeVar

import anyio

T = TypeVar("T")

#: Seconds between two beats.
_BEAT_SECONDS: Final = 0.5
#: Seconds that a beat may be late before it counts as a pause.
_LATE_SECONDS: Final = 1.0
#: The least number of seconds that a limit leaves after a pause.
_AFTER_SECONDS: Final = 1.0


class RunningClock:
    """A monotonic clock that stands still while the process does not run, to the precision of a beat.

    It stands still only while ``beat`` runs.
    """

    def __init__(self) -> None:
        self._count = 0
        self._seconds = 0.0
        #: The last pause.
        self._last_pause = 0.0
        #: The time of the last beat, and the time until which there cannot have been a pause since, by
        #: ``time.monotonic``. Without beats the latter is infinite.
        self._last_beat = 0.0
        self._beat_due = math.inf
        self._beating = 0

    def now(self) -> float:
        """Return the time in seconds; only differences are meaningful."""
        now = time.monotonic()
        if now > self._beat_due:
            self._count_pause(now)
        return now - self._seconds

    def pauses(self) -> int:
        """Return how many pauses there were, including one that has just ended."""
        now = time.monotonic()
        if now > self._beat_due:
            self._count_pause(now)
        return self._count

    def _count_pause(self, now: float) -> None:
        self._count += 1
        self._last_pause = now - self._last_beat
        self._seconds += self._last_pause
        self._begin_beat(now)

    def _begin_beat(self, now: float) -> None:
        self._last_beat, self._beat_due = now, now + _BEAT_SECONDS + _LATE_SECONDS

    async def beat(self, on_pause: Callable[[float], None]) -> None:
        """Notice pauses until cancelled.

        Args:
            on_pause: called with the seconds of each pause.
        """
        self._beating += 1
        seen = self._count
        try:
            while True:
                if self.pauses() != seen:
                    seen = self._count
                    on_pause(self._last_pause)
                self._begin_beat(time.monotonic())
                await asyncio.sleep(_BEAT_SECONDS)
        finally:
            self._beating -= 1
            if not self._beating:
                self._beat_due = math.inf


#: The clock of this process.
clock: Final = RunningClock()


class move_on_after:  # noqa: N801 - stands for anyio's function
    """Cancel the block after ``seconds`` without pauses, like ``anyio.move_on_after``.

    After a pause the block has at least another second, because what it waits for may have come meanwhile.

    Args:
        seconds: the limit; None for none.
    """

    def __init__(self, seconds: float | None) -> None:
        self._scope = anyio.CancelScope()
        self._seconds = seconds
        #: The time at which the block is cancelled, on ``clock``, and the number of pauses at the last check.
        self._due = 0.0
        self._pauses = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def cancelled_caught(self) -> bool:
        """Whether the block was cancelled and has ended."""
        return self._scope.cancelled_caught

    def __enter__(self) -> Self:
        self._scope.__enter__()
        if self._seconds is not None:
            self._pauses, self._due = clock.pauses(), clock.now() + self._seconds
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)
        return self

    def _look(self) -> None:
        pauses, now = clock.pauses(), clock.now()
        if pauses != self._pauses:
            self._pauses, self._due = pauses, max(self._due, now + _AFTER_SECONDS)
        if now < self._due:
            self._timer = asyncio.get_running_loop().call_later(self._due - now, self._look)
        else:
            self._scope.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._timer is not None:
            self._timer.cancel()
        return bool(self._scope.__exit__(kind, error, trace))


async def within(seconds: float | None, function: Callable[[], Awaitable[T]]) -> T:
    """Await ``function`` for at most ``seconds`` without pauses, and return its result.

    Args:
        seconds: the limit; None for none.
        function: the coroutine function.

    Raises:
        TimeoutError: the time has passed.
    """
    with move_on_after(seconds):
        return await function()
    raise TimeoutError
