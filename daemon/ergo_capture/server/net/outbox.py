"""Send answers to one client, and bound the bytes that wait to be sent.

All answers of a turn of the loop are sent in one write, so acknowledgements coalesce. The frames of a client that does
not read are not read either: ``room`` waits while too much is pending. If the client then takes no byte for the
time-out, it is dropped. A client that leaves only acknowledgements unread is not dropped: at most one is pending.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from typing import Final

import anyio

from ergo_capture.notifier import Notifier
from ergo_capture.pauses import within
from ergo_capture.protocol.capture import Code, ProtocolError

#: The most bytes offered to the socket at once: with fewer bytes, the progress of a slow client is noticed.
_SEND_BYTES: Final = 64 << 10
_SEND_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class _State(Enum):
    #: There is nothing to send.
    IDLE = auto()
    #: ``_send`` will be called in this turn of the loop.
    SCHEDULED = auto()
    #: The socket took only a part; ``run`` sends the rest, and what is added meanwhile.
    BLOCKED = auto()
    #: Nothing more is sent.
    RELEASED = auto()


class Outbox:
    """The frames on their way to one client.

    Args:
        raw: the connection's socket, non-blocking.
        compose_due: returns the frames that are due now: decisions, and one acknowledgement. May add rejections.
        due_bytes: returns an estimate of the size of the frames that ``compose_due`` would return.
        on_stuck: called with the error if the client did not read in time.
        limit: pending bytes above which ``room`` waits.
        timeout: seconds that more than ``limit`` may be pending without the client taking any; zero for no limit.
    """

    def __init__(
        self,
        raw: socket.socket,
        *,
        compose_due: Callable[[], list[bytes]],
        due_bytes: Callable[[], int],
        on_stuck: Callable[[ProtocolError], None],
        limit: int,
        timeout: float,
    ) -> None:
        self._socket = raw
        self._compose_due = compose_due
        self._due_bytes = due_bytes
        self._on_stuck = on_stuck
        self._limit = limit
        self._timeout = timeout or None
        self._loop = asyncio.get_running_loop()
        self._state = _State.IDLE
        self._before_ack: list[bytes] = []
        self._after_ack: list[bytes] = []
        #: Bytes in the two lists.
        self._queued = 0
        #: The part of the last write that the socket did not take.
        self._unsent = memoryview(b"")
        self._blocked = asyncio.Event()
        #: Notified when something was sent, and when nothing is left to send.
        self._sent = Notifier()

    # --- adding; synchronous ---

    def add_after_ack(self, frame: bytes) -> None:
        """Send a frame after the acknowledgement of everything received before it."""
        self._after_ack.append(frame)
        self._queued += len(frame)
        self.wake()

    def add_before_ack(self, frame: bytes) -> None:
        """Send a frame before the next acknowledgement: a rejection that it covers, or an answer to hello or open."""
        self._before_ack.append(frame)
        self._queued += len(frame)
        self.wake()

    def wake(self) -> None:
        """Send the frames that are due, at the end of this turn of the loop."""
        if self._state is _State.IDLE:
            self._state = _State.SCHEDULED
            self._loop.call_soon(self._send)

    @property
    def pending_bytes(self) -> int:
        """Bytes of composed frames that the socket has not taken."""
        return self._queued + len(self._unsent)

    # --- waiting ---

    @property
    def has_room(self) -> bool:
        """Whether at most ``limit`` bytes are pending."""
        return self._queued + len(self._unsent) + self._due_bytes() <= self._limit

    async def room(self) -> None:
        """Wait until there is room."""
        while not self.has_room:
            await self._sent.wait()

    async def until_progress(self) -> None:
        """Wait until more is sent."""
        await self._sent.wait()

    async def until_sent(self) -> None:
        """Wait until nothing is left to send."""
        while self._state in (_State.SCHEDULED, _State.BLOCKED):
            await self._sent.wait()

    # --- sending ---

    def _send(self) -> None:
        """Send the queued frames, as far as the socket takes them at once; ``run`` sends the rest.

        Sending an acknowledgement from the task instead would take two more turns of the loop.
        """
        if self._state is not _State.SCHEDULED:
            return
        # Compose first: it may add rejections.
        due = self._compose_due()
        data = b"".join((*self._before_ack, *due, *self._after_ack))
        self._before_ack, self._after_ack, self._queued = [], [], 0
        sent = 0
        if data:
            try:
                sent = self._socket.send(data, _SEND_FLAGS)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                # A client that closed its reading side may still send; reading notices when it is gone.
                sent = len(data)
        self._unsent = memoryview(data)[sent:]
        if self._unsent:
            self._state = _State.BLOCKED
            self._blocked.set()
        else:
            self._state = _State.IDLE
            self._sent.notify_all()

    async def run(self) -> None:
        """Send the bytes that the socket does not take at once, until cancelled or the client is dropped."""
        while True:
            await self._blocked.wait()
            self._blocked.clear()
            while self._unsent:
                if not await self._send_part():
                    return
                self._sent.notify_all()
            # Send what was added meanwhile.
            self._state = _State.SCHEDULED
            self._send()

    async def _send_part(self) -> bool:
        """Send a part of the unsent bytes; return False if the client is dropped."""
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent[:_SEND_BYTES], _SEND_FLAGS) :]
        except (BlockingIOError, InterruptedError):
            try:
                await within(self._timeout, lambda: anyio.wait_writable(self._socket))
            except TimeoutError:
                if not self.has_room:
                    hint = "read what the daemon sends, or send less at a time"
                    self._on_stuck(ProtocolError(Code.LIMIT, "replies were not read in time", hint))
                    return False
        except OSError:
            self._unsent = memoryview(b"")
        return True

    def release(self, last: bytes = b"") -> None:
        """Drop the pending frames and send nothing more.

        Args:
            last: a last frame, sent if no other is partly sent and the socket takes it at once.
        """
        if last and not self._unsent:
            with suppress(OSError):
                self._socket.send(last, _SEND_FLAGS)
        self._state = _State.RELEASED
        self._before_ack, self._after_ack, self._queued, self._unsent = [], [], 0, memoryview(b"")
