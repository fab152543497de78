"""Wake tasks that wait for a change, without remembering the change.

The code uses **asyncio's** primitives (``Event``, ``Future``, ``Lock``, ``Queue``) for state that tasks of one event
loop share and that synchronous code may set: they cost least, and work with ``call_soon`` and ``call_soon_threadsafe``.
It uses **anyio's** for bounding, grouping and shielding tasks (task groups, cancel scopes, ``move_on_after``,
``fail_after``), and for threads, sockets and processes (except children of the daemon, see ``child_process``). So a
bounded wait is ``with anyio.move_on_after(seconds): await event.wait()``; neither ``asyncio.wait_for`` nor
``anyio.Event`` is used.
"""

from __future__ import annotations

import asyncio


class Notifier:
    """Wakes every task that is waiting now, and none that begins to wait later.

    ``asyncio.Condition`` and ``anyio.Condition`` notify only while their lock is held, which takes an ``await`` that
    synchronous callers cannot make; an ``asyncio.Event`` would have to be replaced at each notification.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def wait(self) -> asyncio.Future[None]:
        """Return a future that the next notification completes; await it."""
        waiter = asyncio.get_running_loop().create_future()
        # Drop the waiters that were cancelled, for example by a time-out: nothing else removes them.
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
