"""The writing half of a connection: what is still to be said to the client, and saying it.

Owns: the order in which things are said, coalescing, the socket's writing side, waiting until all is said.
Not here: what is said (``connection.py``, ``protocol.py``), what may be acknowledged (``receipts.py``).

Whatever there is to say by the time it comes round is said in one write, so that acknowledgements coalesce by
themselves. A client that does not read stops being read: ``room`` waits while too much is unsaid.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import anyio
from anyio.abc import SocketAttribute, SocketStream, UNIXSocketStream

from ergo_capture.server.protocol import Code, ProtocolError

_SEND_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Replies:
    """Says things to one client.

    Args:
        stream: the connection.
        due: asked each time for what is to be said between rejections and replies: decisions, and one
            acknowledgement of all before them. It may add rejections.
    """

    def __init__(self, stream: UNIXSocketStream | SocketStream, due: Callable[[], list[bytes]]) -> None:
        self._stream = stream
        self._due = due
        self._loop = asyncio.get_running_loop()
        self._socket = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
        #: Said before the acknowledgement that covers them.
        self._rejects: list[bytes] = []
        #: Said after the acknowledgement of all that came before them.
        self._replies: list[bytes] = []
        #: Bytes of the two.
        self._unsaid = 0
        #: What the socket did not take of what was said.
        self._unsent = b""
        #: Whether ``_say_at_once`` is due in this turn of the loop.
        self._saying = False
        self._say = asyncio.Event()
        self._said = asyncio.Event()
        self._sending = False

    # --- what there is to say; synchronous ---

    def reply(self, data: bytes) -> None:
        """Say a frame, after the acknowledgement of all that came before it."""
        self._replies.append(data)
        self._unsaid += len(data)
        self.wake()

    def reject(self, data: bytes) -> None:
        """Say a ``reject`` frame, before the acknowledgement that covers it."""
        self._rejects.append(data)
        self._unsaid += len(data)
        self.wake()

    def wake(self) -> None:
        """There may be something to say."""
        if not self._saying:
            self._saying = True
            self._loop.call_soon(self._say_at_once)

    # --- waiting ---

    async def room(self, limit: int, patience: float) -> None:
        """Wait until no more than ``limit`` bytes are unsaid; ``patience`` in seconds, zero for no end.

        Raises:
            ProtocolError: the client did not read in time.
        """
        while self._unsaid > limit:
            with anyio.move_on_after(patience or None) as scope:
                await self._said.wait()
            if scope.cancelled_caught:
                hint = "read what the daemon sends, or send less at a time"
                raise ProtocolError(Code.LIMIT, "replies were not read in time", hint)

    async def something_said(self) -> None:
        """Wait until something more is said."""
        await self._said.wait()

    async def until_said(self) -> None:
        """Wait until there is nothing left to say."""
        while self._say.is_set() or self._sending or self._saying:
            await self._said.wait()

    # --- saying it ---

    async def write(self) -> None:
        """The writing task: says what ``_say_at_once`` could not, until cancelled."""
        while True:
            await self._say.wait()
            self._say.clear()
            self._sending = True
            data = self._unsent or self._compose()
            self._unsent = b""
            if data:
                # Why no end here: a client that closed its reading side may still be sending.
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionError):
                    await self._stream.send(data)
            self._sending = False
            self._tell_said()

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
            self._tell_said()
            return
        try:
            sent = self._socket.send(data, _SEND_FLAGS)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            # As in the task: the reading side notices when the client is really gone.
            sent = len(data)
        self._unsent = data[sent:]
        if self._unsent:
            self._say.set()
        else:
            self._tell_said()

    def _compose(self) -> bytes:
        """All there is to say now: rejections, what is due, replies."""
        due = self._due()
        rejects, self._rejects = self._rejects, []
        replies, self._replies = self._replies, []
        self._unsaid = 0
        return b"".join((*rejects, *due, *replies))

    def _tell_said(self) -> None:
        self._said.set()
        self._said = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Replies {self._unsaid} bytes unsaid{', sending' if self._sending else ''}>"
