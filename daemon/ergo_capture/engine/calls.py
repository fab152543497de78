"""Threads for calls that may never come back.

Why not the threads that everything else uses: a call that hangs can be given up, but not ended. There it would leave
one more thread behind each time, without limit, and the process could not end before the last of them does.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final

_Job = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class CallThreads:
    """Calls functions in threads of its own, which do not keep the process from ending.

    Args:
        most: calls that may be under way at once, those that were given up included.
    """

    def __init__(self, most: int) -> None:
        self._most: Final = most
        self._free = asyncio.Semaphore(most)
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._threads = 0
        self._busy = 0

    async def call(self, function: Callable[[], Any]) -> Any:
        """What the function returns or raises; being cancelled gives the call up, and does not end it."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._busy += 1
        if self._busy > self._threads:
            self._threads += 1
            threading.Thread(target=self._work, name=f"engine-{self._threads}", daemon=True).start()
        self._jobs.put((function, answer, loop))
        return await answer

    def _work(self) -> None:
        while True:
            function, answer, loop = self._jobs.get()
            result, error = None, None
            try:
                result = function()
            except BaseException as raised:  # noqa: BLE001 - whoever waits gets it
                error = raised
            # Why suppressed: the daemon may be gone by now, and then nobody wants to know.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._come_back, answer, result, error)
            del function, answer, result, error

    def _come_back(self, answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._busy -= 1
        self._free.release()
        if answer.done():
            return
        if error is None:
            answer.set_result(result)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            answer.set_exception(error)
        else:
            # Why: a future takes no StopIteration, and SystemExit in a call is no reason for the daemon to end.
            answer.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))

    @property
    def busy(self) -> int:
        """Calls that have not come back, waited for or not."""
        return self._busy

    def __repr__(self) -> str:
        return f"<CallThreads {self._busy} of {self._most} busy>"
