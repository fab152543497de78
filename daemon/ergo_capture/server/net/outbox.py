"""The writing half of a connection: what is still to be said to the client, and saying it.

Whatever there is to say by the time it comes round is said in one write, so that acknowledgements coalesce by
themselves. A client that does not read stops being read: ``room`` waits while too much is unsaid. Where that
stays so for ``patience`` seconds without a byte being taken, the client is given up. One that leaves only
acknowledgements unread is not: there is never more than one of them.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import anyio
from anyio.abc import SocketAttribute, SocketStream, UNIXSocketStream

from ergo_capture.notifier import Notifier
from ergo_capture.protocol.capture import Code, ProtocolError

#: Bytes offered to the socket at once, so that a client that reads slowly is seen to read.
_PIECE: Final = 64 << 10
_SEND_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Replies:
    """Says things to one client.

    Args:
        stream: the connection.
        due: asked each time for what is to be said between rejections and replies: decisions, and one
            acknowledgement of all before them. It may add rejections.
        on_stuck: told that the client did not read in time.
        untold: asked for the bytes that ``due`` would add now.
        limit: bytes that may wait to be said before ``room`` waits.
        patience: seconds that more than this may wait without any of it being taken; zero for no end.
    """

    def __init__(
        self,
        stream: UNIXSocketStream | SocketStream,
        due: Callable[[], list[bytes]],
        on_stuck: Callable[[ProtocolError], None],
        *,
        untold: Callable[[], int],
        limit: int,
        patience: float,
    ) -> None:
        self._due = due
        self._on_stuck = on_stuck
        self._untold = untold
        self._limit = limit
        self._patience = patience or None
        self._loop = asyncio.get_running_loop()
        self._socket = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
        #: Said before the next acknowledgement.
        self._heralds: list[bytes] = []
        #: Said after the acknowledgement of all that came before them.
        self._replies: list[bytes] = []
        #: Bytes of the two.
        self._queued = 0
        #: What the socket did not take yet of what was said.
        self._unsent = memoryview(b"")
        #: Whether ``_say_at_once`` is due in this turn of the loop.
        self._saying = False
        self._say = asyncio.Event()
        self._said = Notifier()
        self._sending = False

    # --- what there is to say; synchronous ---

    def reply(self, data: bytes) -> None:
        """Say a frame, after the acknowledgement of all that came before it."""
        self._replies.append(data)
        self._queued += len(data)
        self.wake()

    def herald(self, data: bytes) -> None:
        """Say a frame before the next acknowledgement: a rejection that it covers, or what comes before any event."""
        self._heralds.append(data)
        self._queued += len(data)
        self.wake()

    def wake(self) -> None:
        """There may be something to say."""
        if not self._saying:
            self._saying = True
            self._loop.call_soon(self._say_at_once)

    @property
    def unsaid(self) -> int:
        """Bytes that the client has not taken yet, of those that are composed."""
        return self._queued + len(self._unsent)

    # --- waiting ---

    async def room(self) -> None:
        """Wait until no more than the limit is unsaid."""
        while self.unsaid + self._untold() > self._limit:
            await self._said.wait()

    async def something_said(self) -> None:
        """Wait until something more is said."""
        await self._said.wait()

    async def until_said(self) -> None:
        """Wait until there is nothing left to say."""
        while self._say.is_set() or self._sending or self._saying:
            await self._said.wait()

    # --- saying it ---

    def say_last(self, data: bytes) -> None:
        """Say a last frame, if the client is not in the middle of another and its socket takes it at once."""
        if not self._unsent:
            with suppress(OSError):
                self._socket.send(data, _SEND_FLAGS)

    def let_go(self) -> None:
        """Give back what is held of frames; nobody will take them any more."""
        self._heralds, self._replies, self._queued, self._unsent = [], [], 0, memoryview(b"")

    async def write(self) -> None:
        """The writing task: says what ``_say_at_once`` could not, until cancelled."""
        while True:
            await self._say.wait()
            self._say.clear()
            self._sending = True
            self._unsent = self._unsent or memoryview(self._compose())
            while self._unsent:
                if not await self._send_some():
                    return
                self._said.notify_all()
            self._sending = False
            self._said.notify_all()

    async def _send_some(self) -> bool:
        """Have the socket take a part of what is unsent; False where the client is given up."""
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent[:_PIECE], _SEND_FLAGS) :]
        except (BlockingIOError, InterruptedError):
            with anyio.move_on_after(self._patience) as scope:
                await anyio.wait_writable(self._socket)
            if scope.cancelled_caught and self.unsaid + self._untold() > self._limit:
                hint = "read what the daemon sends, or send less at a time"
                self._on_stuck(ProtocolError(Code.LIMIT, "replies were not read in time", hint))
                return False
        except OSError:
            # Why no end here: a client that closed its reading side may still be sending.
            self._unsent = memoryview(b"")
        return True

    def _say_at_once(self) -> None:
        """Say what there is to say from here, where the socket takes it; else the writing task does.

        Why: an acknowledgement through the task comes two turns of the loop later.
        """
        self._saying = False
        if self._sending or self._say.is_set():
            self._say.set()
            return
        data = self._compose()
        if not data:
            self._said.notify_all()
            return
        try:
            sent = self._socket.send(data, _SEND_FLAGS)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            # As in the task: the reading side notices when the client is really gone.
            sent = len(data)
        self._unsent = memoryview(data)[sent:]
        if self._unsent:
            self._say.set()
        else:
            self._said.notify_all()

    def _compose(self) -> bytes:
        """All there is to say now: what heralds an acknowledgement, what is due, replies."""
        due = self._due()
        heralds, self._heralds = self._heralds, []
        replies, self._replies = self._replies, []
        self._queued = 0
        return b"".join((*heralds, *due, *replies))

    def __repr__(self) -> str:
        return f"<Replies {self.unsaid} bytes unsaid{', sending' if self._sending else ''}>"
