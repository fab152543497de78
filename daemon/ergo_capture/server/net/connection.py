"""One client's connection: reads what it sends, and ends when the client or the daemon wants it to.

Two tasks: one reads and never waits for the client to read; the other writes (``replies.py``). Where more than
``limits.reply_bytes`` wait unsaid, reading stops: a client that does not read harms only itself.
"""

from __future__ import annotations

import asyncio
from typing import Final

import anyio
from anyio.abc import SocketAttribute, SocketStream, UNIXSocketStream

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.payloads import Peer
from ergo_capture.protocol import capture as protocol
from ergo_capture.protocol.capture import Code, ProtocolError
from ergo_capture.server.failures import storage_failed
from ergo_capture.server.net.conversation import Conversation, Reception
from ergo_capture.server.net.frame_reader import FrameReader
from ergo_capture.server.net.socket_reader import MAX_READ_BYTES, Inlet

#: Bytes asked for in one read; a chunk of this size keeps the cost per event low.
READ_BYTES: Final = MAX_READ_BYTES
#: The same before there is a session, while there is little memory for events, and for a client of which something
#: was just refused: a refusal costs ten times what an event does, and the others wait for all that was read at once.
SMALL_READ_BYTES: Final = 16 * 1024


class Connection:
    """Serves one client until it goes, misbehaves, or the daemon stops."""

    def __init__(self, stream: UNIXSocketStream | SocketStream, peer: Peer, reception: Reception) -> None:
        self.conversation = Conversation(stream, peer, reception, self, self.drop)
        self._stream = stream
        self._inlet = Inlet(stream.extra(SocketAttribute.raw_socket))  # noqa: S610 - not Django's
        self._reception = reception
        limits = reception.limits
        self._limits = limits
        self._reader = FrameReader(int(limits.max_frame_bytes), limits.max_events_per_frame, limits.max_bad_frames)
        #: Seconds that were waited for the client since it connected or its frame began.
        self._waited = 0.0
        self._loop = asyncio.get_running_loop()
        #: Begun lines and unread answers.
        self.holding = reception.hold(peer)
        #: What the connection ends with, once that is so.
        self.fatal: ProtocolError | None = None
        self._reading = anyio.CancelScope()
        self._living = anyio.CancelScope()
        #: Whether the daemon takes nothing more from this client; the connection stays to be answered.
        self._stopped = False
        self._told = asyncio.Event()

    # --- the two tasks ---

    async def serve(self) -> None:
        """Until the client is done with; the stream is closed then, the session released."""
        try:
            with self._living:
                await self._converse()
        finally:
            self._let_go()
            self.conversation.receipts.let_go()
            session, self.conversation.session = self.conversation.session, None
            if session is not None and session.owner is self:
                session.owner = None
                session.log.leave()
                self._reception.release_session(session)
            self._inlet.close()
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()

    async def _converse(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.conversation.replies.write)
            with self._reading:
                try:
                    await self._read()
                except ProtocolError as error:
                    self._give_up(error)
                except ErgoCaptureError as error:
                    self._give_up(storage_failed(error))
                except OSError:
                    if self._reader.mid_frame:
                        message = "the connection broke in mid-frame"
                        self._give_up(ProtocolError(Code.BAD_FRAME, message, "connect again and resume"))
            while self._stopped and self.fatal is None and not self.conversation.is_over:
                await self._told.wait()
            # Why bounded, and not shielded: what is still unsaid may never be read, and a client that is dropped or
            # a daemon that stops does not wait for it.
            with anyio.move_on_after(self._limits.write_timeout.seconds or None):
                await self.conversation.until_acknowledged()
                if self.fatal is not None:
                    self.conversation.replies.reply(protocol.encode_error(self.fatal))
                await self.conversation.replies.until_said()
            tasks.cancel_scope.cancel()

    async def _read(self) -> None:
        while True:
            data = await self._receive()
            items = self._reader.feed(data) if data else self._reader.finish()
            session = self.conversation.session
            if session is not None and b"\n" in data:
                self._waited = 0.0
            for item in items:
                # Why asked and not left to the cancellation: that reaches a task only where it next waits, and one
                # whose data has come already would take events that no shutdown waits for.
                if self._stopped or await self.conversation.handle(item):
                    return
            if self.conversation.session is not session:
                self._waited = 0.0
            if not data:
                return
            self.count_held()
            self._reception.relieve()
            await self._wait_for_room()

    async def _receive(self) -> bytes:
        limits, session = self._limits, self.conversation.session
        is_trusted = session is not None and session.admission.has_room and self.conversation.is_sound
        if session is None:
            timeout, what = limits.hello_timeout.seconds, "no hello and open"
        elif self._reader.mid_frame:
            timeout, what = limits.frame_timeout.seconds, "a frame was begun and not ended"
        else:
            timeout, what = limits.idle_timeout.seconds, "nothing was sent"
            self._waited = 0.0
        # Why not the whole time again: a byte now and then would hold the connection for ever. Only waiting for
        # the client counts, and not the time in which we do not read.
        began = self._loop.time()
        try:
            patience = max(0.0, timeout - self._waited) if timeout else None
            data = await self._inlet.receive(READ_BYTES if is_trusted else SMALL_READ_BYTES, patience)
        except TimeoutError:
            hint = "send whole frames in time; what was acknowledged is safe, connect again to go on"
            raise ProtocolError(Code.LIMIT, f"{what} within {timeout:g} s", hint) from None
        self._waited += self._loop.time() - began
        return data

    async def _wait_for_room(self) -> None:
        session = self.conversation.session
        if session is not None:
            await session.room(self._limits.session_queue_bytes)
            await self._reception.room()
        await self.conversation.replies.room()

    def count_held(self) -> None:
        """Count what is held now."""
        change = self._reader.held_bytes + self.conversation.held_bytes - self.holding.bytes
        if change and not self._living.cancel_called:
            self.holding.hold(change)

    # --- what a session says; synchronous ---

    def progress(self) -> None:
        """Something moved: there may be something to say."""
        self.conversation.replies.wake()
        if self.conversation.follows:
            # Why here too: events that were read before are decided long after, while nothing more is read.
            self.count_held()
            self._reception.relieve()

    def session_failed(self, error: ProtocolError) -> None:
        """The session cannot go on, and so neither can the connection."""
        self._give_up(error)

    def stop_reading(self) -> None:
        """Take nothing more from the client; what was taken is still answered."""
        self._stopped = True
        # Why not then: it takes nothing meanwhile, and looks before it takes more. A client that is not told of the
        # last bundle of its session cannot ask for it: the session is over.
        if not self.conversation.is_answering:
            self._reading.cancel()

    def shut_down(self) -> None:
        """The daemon stops: the client is told, and the connection ends."""
        self._give_up(
            ProtocolError(
                Code.SHUTTING_DOWN,
                "the daemon is stopping",
                "what was acknowledged is safe; connect again and resume the session",
            )
        )

    def drop(self, error: ProtocolError) -> None:
        """End the connection now, without waiting for what was said to be read."""
        if self._living.cancel_called:
            return
        self._give_up(error)
        self.conversation.replies.say_last(protocol.encode_error(error))
        # Why already: who holds most is asked again before this connection's task comes to its end.
        self._let_go()
        self._living.cancel()

    def _let_go(self) -> None:
        """Give back the memory that is held for the client.

        Why not left to the collector: a connection is in cycles with its parts, and a begun line in it is long.
        """
        self._reader.let_go()
        self.conversation.replies.let_go()
        self.holding.free()

    def _give_up(self, error: ProtocolError) -> None:
        if self.fatal is None:
            # Why another: what was raised leads by its traceback to all that was read.
            self.fatal = ProtocolError(error.code, error.message, error.hint or "")
            self._reception.count(error.code)
            self._reading.cancel()
            self._told.set()

    def __repr__(self) -> str:
        return f"<Connection, {self.conversation!r}{', stopped' if self._stopped else ''}, {self.holding.bytes} bytes held>"
