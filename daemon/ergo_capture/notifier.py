"""Wake tasks that wait for a change, without remembering the change.

Which primitives to use: **asyncio's** for everything that one event loop's tasks share and that synchronous code
sets or resolves (``asyncio.Event``, ``Future``, ``Lock``, ``Queue``): they cost least and are the ones that
``call_soon`` and ``call_soon_threadsafe`` work with. **anyio's** for everything that bounds, groups or shields tasks
(task groups, cancel scopes, ``move_on_after``, ``fail_after``) and for sockets and processes. So a wait is written
``with anyio.move_on_after(seconds): await event.wait()``, and ``asyncio.wait_for``, ``asyncio.timeout`` and
``anyio.Event`` are not used.
"""

from __future__ import annotations

import asyncio


class Notifier:
    """Wakes every task that waits at the moment, and none that comes later.

    ``asyncio.Condition`` and ``anyio.Condition`` notify only while their lock is held, which takes an ``await`` that
    synchronous callers cannot make; an ``asyncio.Event`` would have to be replaced at each notification.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def wait(self) -> asyncio.Future[None]:
        """Return a future that the next notification completes; await it."""
        waiter = asyncio.get_running_loop().create_future()
        # Drop the waiters that were cancelled, by a time-out perhaps: nothing else removes them.
        self._waiters = [other for other in self._waiters if not other.done()]
        self._waiters.append(waiter)
        return waiter

    def notify_all(self) -> None:
        """Wake every task that waits; does nothing if none does."""
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
