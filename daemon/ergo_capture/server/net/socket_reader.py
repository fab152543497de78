"""The reading half of a connection: bytes as they come.

Why not the stream's own ``receive``: it gives the loop a turn before it looks, asks the loop to watch the
socket for each wait and to stop watching after it, and a time-out around it is a scope and a timer each time.
For a client with one event in flight that was a quarter of the round trip.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

#: Bytes of one read, at most.
MAX_READ_BYTES: Final = 256 << 10
#: Where reads land before they are copied; one for all, because nothing waits in between. Why: a new object of
#: this size for each read is new memory from the system each time, for a line of 200 bytes too.
_buffer: Final = memoryview(bytearray(MAX_READ_BYTES))


class Inlet:
    """Reads what one client sends; used by one task at a time.

    Args:
        raw: the connection's socket, not blocking. Whoever owns it closes it, after ``close``.
    """

    def __init__(self, raw: socket.socket) -> None:
        self._socket = raw
        self._fd = raw.fileno()
        self._loop = asyncio.get_running_loop()
        self._watched = False
        #: Whether the last look found nothing.
        self._emptied = True
        #: Whether the last read took as much as it may.
        self._filled = False
        self._waiter: asyncio.Future[None] | None = None
        #: One timer for all the waits: it looks, when it is due, whether the wait it was set for goes on.
        self._timer: asyncio.TimerHandle | None = None
        #: When the wait that is going on is over, in the loop's time; None where it has no end.
        self._deadline: float | None = None

    async def receive(self, size: int, patience: float | None = None) -> bytes:
        """At most ``size`` bytes (and MAX_READ_BYTES); none at the end of what the client sends.

        Raises:
            TimeoutError: nothing came for ``patience`` seconds; None is for ever.
            OSError: the connection is broken.
        """
        while True:
            # Why not wait as soon as a read was not filled: where data and a reset come together, uvloop tells of
            # both at once and then watches no more. A look that finds nothing costs 2 us, and finds the reset.
            if self._emptied:
                await self._until_readable(patience)
            elif self._filled:
                # A client that always has something to say must leave turns to the others.
                await asyncio.sleep(0)
            try:
                count = self._socket.recv_into(_buffer, size)
            except (BlockingIOError, InterruptedError):
                self._emptied = True
                continue
            self._emptied = False
            self._filled = count == size
            return _buffer[:count].tobytes()

    async def _until_readable(self, patience: float | None) -> None:
        if not self._watched:
            self._watched = True
            self._loop.add_reader(self._fd, self._on_readable)
        self._waiter = self._loop.create_future()
        self._deadline = None if patience is None else self._loop.time() + patience
        if self._deadline is not None and (self._timer is None or self._timer.when() > self._deadline):
            self._set_timer(self._deadline)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _on_readable(self) -> None:
        if self._waiter is None:
            # Nobody reads now: the daemon is behind with this client. Its next wait begins to watch again.
            self._watched = False
            self._loop.remove_reader(self._fd)
        elif not self._waiter.done():
            self._waiter.set_result(None)

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        waiter, deadline = self._waiter, self._deadline
        if waiter is None or waiter.done() or deadline is None:
            # The next wait that has an end sets a timer of its own.
            return
        if self._loop.time() < deadline:
            self._set_timer(deadline)
        else:
            waiter.set_exception(TimeoutError())

    def close(self) -> None:
        """Stop watching the socket; before it is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._fd)

    def __repr__(self) -> str:
        return f"<Inlet of descriptor {self._fd}{', waiting' if self._waiter else ''}>"
