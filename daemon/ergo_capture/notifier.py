"""Waiting for something to move, where there is nothing to remember once it has."""

from __future__ import annotations

import asyncio


class Pulse:
    """Wakes whoever waits at the moment, and nobody who comes later.

    Why not an ``asyncio.Event``: one that is set would have to be replaced for those who come next, and most beats
    wake nobody; this costs nothing then.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def wait(self) -> asyncio.Future[None]:
        """Await this for the next beat."""
        waiter = asyncio.get_running_loop().create_future()
        # Why sifted: those who gave up, at a time-out perhaps, are left behind.
        self._waiters = [other for other in self._waiters if not other.done()]
        self._waiters.append(waiter)
        return waiter

    def beat(self) -> None:
        """Something moved."""
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def __repr__(self) -> str:
        return f"<Pulse, {sum(not waiter.done() for waiter in self._waiters)} waiting>"
