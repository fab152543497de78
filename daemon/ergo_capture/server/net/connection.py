"""One client's connection: it reads what the client sends, and ends when the client or the daemon ends it.

Two tasks: one reads, and never waits for the client to read; the other one sends (``outbox.py``). While more than
``limits.reply_bytes`` are pending, reading stops: a client that does not read harms only itself.
"""

from __future__ import annotations

import asyncio
import socket
from enum import Enum, auto
from typing import Final

import anyio
from anyio.abc import SocketAttribute, UNIXSocketStream

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.payloads import Peer
from ergo_capture.pauses import clock, move_on_after
from ergo_capture.protocol.capture import Code, EventChunk, ProtocolError, encode_error
from ergo_capture.server.failures import storage_failed
from ergo_capture.server.net.conversation import KEPT_DECISION_BYTES, Conversation, Host, Stage
from ergo_capture.server.net.frame_reader import FrameReader
from ergo_capture.server.session.registry import DRIVER_TERMINATED

#: Bytes of one read; a large chunk keeps the cost per event low.
READ_BYTES: Final = 256 << 10
#: Bytes of one read before there is a session, while there is little memory for events, and after a rejection: a
#: rejection costs ten times as much as an event, and the other clients wait until the whole read is handled.
SMALL_READ_BYTES: Final = 16 << 10
#: The buffer of all reads of all connections; its content is copied before the next await. A new object of this size
#: would take new memory from the system for each read, even of a line of 200 bytes.
_buffer: Final = memoryview(bytearray(READ_BYTES))


class SocketReader:
    """Reads from one socket; used by one task at a time.

    It replaces the stream's ``receive``, which yields to the loop before it reads, registers and unregisters the socket
    for each wait, and needs a scope and a timer for each time-out. For a client with one event in flight that was a
    quarter of the round trip.

    Args:
        raw: the connection's socket, non-blocking. Its owner closes it, after ``close``.
    """

    def __init__(self, raw: socket.socket) -> None:
        self._socket = raw
        self._fd = raw.fileno()
        self._loop = asyncio.get_running_loop()
        self._watched = False
        #: Whether the last read found nothing.
        self._empty = True
        #: Whether the last read filled its buffer.
        self._filled = False
        self._waiter: asyncio.Future[None] | None = None
        #: One timer for all waits: when it fires, it checks whether the current wait is over its deadline.
        self._timer: asyncio.TimerHandle | None = None
        #: When it fires.
        self._timer_due = 0.0
        #: End of the current wait; None for none. Both are times of ``pauses.clock``.
        self._deadline: float | None = None

    async def receive(self, size: int, max_wait: float | None = None) -> bytes:
        """Return the next bytes; empty at the end of the stream.

        Args:
            size: most bytes to return, at most ``READ_BYTES``.
            max_wait: seconds to wait; None for ever.

        Raises:
            TimeoutError: nothing came in time.
            OSError: the connection is broken.
        """
        while True:
            # Read before waiting, even if the last read was not filled: if data and a reset come together, uvloop
            # reports them once and stops watching. A read that finds nothing costs 2 us, and finds the reset.
            if self._empty:
                await self._until_readable(max_wait)
            elif self._filled:
                # Yield to the others: this client always has more.
                await asyncio.sleep(0)
            try:
                count = self._socket.recv_into(_buffer, size)
            except (BlockingIOError, InterruptedError):
                self._empty = True
                continue
            self._empty = False
            self._filled = count == size
            return _buffer[:count].tobytes()

    async def _until_readable(self, max_wait: float | None) -> None:
        if not self._watched:
            self._watched = True
            self._loop.add_reader(self._fd, self._on_readable)
        self._waiter = self._loop.create_future()
        self._deadline = None if max_wait is None else clock.now() + max_wait
        if self._deadline is not None and (self._timer is None or self._timer_due > self._deadline):
            self._set_timer(self._deadline)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _on_readable(self) -> None:
        if self._waiter is None:
            # No task waits: the daemon is behind with this client. The next wait watches again.
            self._watched = False
            self._loop.remove_reader(self._fd)
        elif not self._waiter.done():
            self._waiter.set_result(None)

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_later(max(0.0, due - clock.now()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        waiter, deadline = self._waiter, self._deadline
        if waiter is None or waiter.done() or deadline is None:
            # The next wait with a deadline sets a timer of its own.
            return
        if clock.now() < deadline:
            self._set_timer(deadline)
        elif self._is_readable():
            # The loop may call timers before it looks at sockets.
            waiter.set_result(None)
        else:
            waiter.set_exception(TimeoutError())

    def _is_readable(self) -> bool:
        try:
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True
        return True

    def close(self) -> None:
        """Stop watching the socket; call it before the socket is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._fd)


class _State(Enum):
    #: Frames are read and handled.
    READING = auto()
    #: The daemon stops: nothing more is read, and frames that were read are still answered.
    STOPPED = auto()
    #: Nothing more is read; pending answers are sent, and the error that ends the connection.
    ENDING = auto()
    #: The connection is closed without sending what is pending.
    DROPPED = auto()


class Connection:
    """Serves one client until it hangs up, misbehaves, or the daemon stops.

    Args:
        stream: the connection.
        peer: the client's process.
        host: the daemon.
    """

    def __init__(self, stream: UNIXSocketStream, peer: Peer, host: Host) -> None:
        raw = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
        self.conversation = Conversation(raw, peer, host, self, self.drop)
        self._stream = stream
        self._socket_reader = SocketReader(raw)
        self._host = host
        limits = host.limits
        self._limits = limits
        self._frame_reader = FrameReader(
            int(limits.max_frame_bytes), limits.max_events_per_frame, limits.max_bad_frames
        )
        self._hello_timeout = limits.hello_timeout.seconds
        self._frame_timeout = limits.frame_timeout.seconds
        self._idle_timeout = limits.idle_timeout.seconds
        self._queue_bytes = int(limits.session_queue_bytes)
        #: Seconds spent waiting for the client since it connected, or since its frame began.
        self._waited = 0.0
        self._loop = asyncio.get_running_loop()
        #: Memory for incomplete lines and unread answers.
        self.holding = host.held.holding(peer)
        #: The error that ends the connection.
        self.error: ProtocolError | None = None
        self._state = _State.READING
        self._ended = asyncio.Event()
        self._reading = anyio.CancelScope()
        self._serving = anyio.CancelScope()

    # --- the two tasks ---

    async def serve(self) -> None:
        """Serve the client until the connection ends; then release its session and close the stream."""
        try:
            with self._serving:
                await self._converse()
        finally:
            self._release()
            self.conversation.receipts.release()
            session, self.conversation.session = self.conversation.session, None
            if session is not None and session.owner is self:
                session.owner = None
                session.decision_log.leave()
                violated = self.error is not None and self.error.code in (Code.BAD_FRAME, Code.TOO_LARGE)
                self._host.registry.leave(
                    session,
                    may_come_back=not self.conversation.is_driver,
                    reason="protocol_violation" if violated else DRIVER_TERMINATED,
                )
            self._socket_reader.close()
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()

    async def _converse(self) -> None:
        conversation = self.conversation
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(conversation.outbox.run)
            with self._reading:
                try:
                    await self._read()
                except ProtocolError as error:
                    self._end(error)
                except ErgoCaptureError as error:
                    self._end(storage_failed(error))
                except OSError:
                    if self._frame_reader.mid_frame:
                        message = "the connection broke in mid-frame"
                        self._end(ProtocolError(Code.BAD_FRAME, message, "connect again and resume"))
            if self._state is _State.STOPPED and conversation.stage is not Stage.CLOSED:
                await self._ended.wait()
            # Bound the time and do not shield: pending answers may never be read, and neither a dropped client nor a
            # daemon that stops may wait for that.
            with move_on_after(self._limits.write_timeout.seconds or None):
                await conversation.until_acknowledged()
                if self.error is not None:
                    conversation.outbox.add_after_ack(encode_error(self.error))
                await conversation.outbox.until_sent()
            tasks.cancel_scope.cancel()

    async def _read(self) -> None:
        conversation, frames = self.conversation, self._frame_reader
        outbox, writer = conversation.outbox, self._host.writer
        while True:
            data = await self._receive()
            session = conversation.session
            if session is not None and b"\n" in data:
                self._waited = 0.0
            items = frames.feed(data) if data else frames.finish()
            for number, item in enumerate(items, 1):
                is_last = number == len(items) and not frames.mid_frame
                # Check the state: a cancellation reaches this task only at its next wait, and if data has come already
                # the task would take events that the shutdown does not wait for.
                if self._state is not _State.READING:
                    return
                if type(item) is EventChunk:
                    conversation.admit(item)
                elif await conversation.handle(item, is_last=is_last):
                    return
            if not data:
                return
            if conversation.session is not session:
                session = conversation.session
                self._waited = 0.0
            self._check_held()
            # Test for room before awaiting: awaiting a coroutine that returns at once costs as much as the test.
            if session is not None:
                if session.admission.is_full(self._queue_bytes):
                    await session.room(self._queue_bytes)
                if not writer.has_room:
                    await writer.room()
            if not outbox.has_room:
                await outbox.room()

    async def _receive(self) -> bytes:
        session = self.conversation.session
        size = SMALL_READ_BYTES
        if session is None:
            timeout, what = self._hello_timeout, "no hello and open"
        else:
            if session.admission.has_room and not self.conversation.refused_last:
                size = READ_BYTES
            if self._frame_reader.mid_frame:
                timeout, what = self._frame_timeout, "a frame was begun and not ended"
            else:
                timeout, what = self._idle_timeout, "nothing was sent"
                self._waited = 0.0
        # The time-out is for the whole hello or frame, so that single bytes cannot hold the connection for ever. Only
        # time spent waiting for the client counts, not time in which nothing is read.
        judged = session is None or self._frame_reader.mid_frame
        began = clock.now() if judged else 0.0
        try:
            data = await self._socket_reader.receive(size, max(0.0, timeout - self._waited) if timeout else None)
        except TimeoutError:
            hint = "send whole frames in time; acknowledged events are safe, connect again to continue"
            raise ProtocolError(Code.LIMIT, f"{what} within {timeout:g} s", hint) from None
        if judged:
            self._waited += clock.now() - began
        return data

    def count_held(self) -> None:
        """Count the memory that is held for the client now."""
        conversation = self.conversation
        session = conversation.session
        held = self._frame_reader.held_bytes + conversation.outbox.pending_bytes
        if session is not None:
            held += KEPT_DECISION_BYTES * session.decision_log.kept
        if held != self.holding.bytes and self._state is not _State.DROPPED:
            self.holding.hold(held - self.holding.bytes)

    def _check_held(self) -> None:
        self.count_held()
        budget = self._host.held
        if budget.used > budget.total:
            self._host.relieve()

    # --- what the session and the daemon call; synchronous ---

    def progress(self) -> None:
        """Send the answers that are due, because events or decisions became durable or a batch was refused."""
        self.conversation.outbox.wake()
        session = self.conversation.session
        if session is not None and session.decision_log.is_followed:
            # Decisions may be made long after their events were read, while nothing is read.
            self._check_held()

    def session_failed(self, error: ProtocolError) -> None:
        """End the connection: its session has failed."""
        self._end(error)

    def stop_reading(self) -> None:
        """Read nothing more; frames that were read are still answered."""
        if self._state is _State.READING:
            self._state = _State.STOPPED
        # Let a flush or close that is under way finish: it reads nothing, and the state is checked before the next
        # item. A client that does not get the answer to its close cannot ask again: the session is over.
        if self.conversation.stage is not Stage.ANSWERING:
            self._reading.cancel()

    def shut_down(self, failure: ErgoCaptureError | None = None) -> None:
        """Tell the client that the daemon stops, and whether its journal has failed, and end the connection."""
        self._end(
            storage_failed(failure)
            if failure is not None
            else ProtocolError(
                Code.SHUTTING_DOWN,
                "the daemon is stopping",
                "acknowledged events are safe; connect again and resume the session",
            )
        )

    def drop(self, error: ProtocolError) -> None:
        """End the connection now, without waiting until the client reads what is pending."""
        if self._state is _State.DROPPED:
            return
        self._end(error)
        self._state = _State.DROPPED
        self._release(encode_error(error))
        self._serving.cancel()

    def _release(self, last: bytes = b"") -> None:
        """Release the memory that is held for the client.

        It is not left to the garbage collector, because a connection is in reference cycles and an incomplete line may
        be long; nor to the end of the task, because ``relieve`` may look for the largest holder before that.
        """
        self._frame_reader.release()
        self.conversation.outbox.release(last)
        self.holding.free()

    def _end(self, error: ProtocolError) -> None:
        if self.error is None:
            # Keep a copy: the traceback would keep the read buffers alive.
            self.error = ProtocolError(error.code, error.message, error.hint or "", error.lost)
            self._host.refusals[error.code] += 1
            if self._state is not _State.DROPPED:
                self._state = _State.ENDING
            self._reading.cancel()
            self._ended.set()
