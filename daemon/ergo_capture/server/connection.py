"""One client's connection: reads frames, answers them, and owns at most one session.

Owns: the order of hello, open, events and close; time-outs; how a connection ends.
Not here: what frames look like (``protocol.py``), counting events (``receipts.py``), saying things
(``replies.py``), sessions (``session.py``), accepting (``listener.py``).

Two tasks: one reads and never waits for the client to read; the other writes (``replies.py``). Where more than
``limits.reply_bytes`` wait unsaid, reading stops: a client that does not read harms only itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final, Protocol

import anyio
from anyio.abc import SocketAttribute, SocketStream, UNIXSocketStream

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.body import Peer, Publication
from ergo_capture.journal.journal import JournalFull
from ergo_capture.kernel.records import encode_decision
from ergo_capture.server import protocol
from ergo_capture.server.budget import Holding
from ergo_capture.server.inlet import MAX_READ_BYTES, Inlet
from ergo_capture.server.limits import ConnectionLimits
from ergo_capture.server.protocol import (
    BadLine,
    Close,
    Code,
    End,
    EventChunk,
    Flush,
    FrameReader,
    Hello,
    Item,
    Open,
    Ping,
    ProtocolError,
)
from ergo_capture.server.receipts import Receipts
from ergo_capture.server.replies import Replies
from ergo_capture.server.screening import Refusal, without_long_ids
from ergo_capture.server.session import Session, storage_failed
from ergo_capture.server.submission import Batch

#: Bytes asked for in one read; a chunk of this size keeps the cost per event low.
READ_BYTES: Final = MAX_READ_BYTES
#: The same before there is a session, while there is little memory for events, and for a client of which something
#: was just refused: a refusal costs ten times what an event does, and the others wait for all that was read at once.
SMALL_READ_BYTES: Final = 16 * 1024
#: About the length of a ``decision`` frame.
_DECISION_BYTES: Final = 256


class Reception(Protocol):
    """The daemon, as a connection sees it."""

    limits: ConnectionLimits
    server_name: str

    async def open_session(self, request: Open, peer: Peer | None, owner: Connection) -> tuple[Session, bool]:
        """A new session, or the one asked for; with whether it was resumed."""

    def release_session(self, session: Session) -> None:
        """The session has lost its connection; it lingers."""

    async def room(self) -> None:
        """Wait until the shared queue has room."""

    def count(self, code: Code) -> None:
        """Something was refused."""

    def hold(self, peer: Peer | None) -> Holding:
        """A count of the memory that a connection of this peer holds."""

    def relieve(self) -> None:
        """Connections hold more than they may together: let the one go that holds most."""


class Connection:
    """Serves one client until it goes, misbehaves, or the daemon stops."""

    def __init__(self, stream: UNIXSocketStream | SocketStream, peer: Peer | None, reception: Reception) -> None:
        self.peer = peer
        self.session: Session | None = None
        #: Name the client gave itself, for logs only.
        self.client = ""
        self.bad_frames = 0
        self.receipts = Receipts(self._reject_batch)
        self._stream = stream
        self._inlet = Inlet(stream.extra(SocketAttribute.raw_socket))  # noqa: S610 - not Django's
        self._reception = reception
        limits = reception.limits
        self._limits = limits
        self._reader = FrameReader(limits.max_frame_bytes, limits.max_events_per_frame, limits.max_bad_frames)
        #: Seconds that were waited for the client since it connected or its frame began.
        self._waited = 0.0
        self._loop = asyncio.get_running_loop()
        #: Begun lines and unread answers.
        self.holding = reception.hold(peer)
        #: Whether nothing was refused of what came last.
        self._is_sound = True
        self._driver = False
        self._decisions_sent = 0
        self._replies = Replies(
            stream,
            self._due,
            self.drop,
            untold=self._untold_bytes,
            limit=limits.reply_bytes,
            patience=limits.write_timeout,
        )
        self._acked = (0, 0)
        #: What the connection ends with, once that is so.
        self.fatal: ProtocolError | None = None
        self._reading = anyio.CancelScope()
        self._living = anyio.CancelScope()
        #: Whether the daemon takes nothing more from this client; the connection stays to be answered.
        self._stopped = False
        self._told = asyncio.Event()
        #: Whether a ``flush`` or a ``close`` was taken and is not answered.
        self._answering = False
        #: Whether the client has closed its session, and was told so.
        self._closed = False

    # --- the two tasks ---

    async def serve(self) -> None:
        """Until the client is done with; the stream is closed then, the session released."""
        try:
            with self._living:
                await self._converse()
        finally:
            self.holding.free()
            session, self.session = self.session, None
            if session is not None and session.owner is self:
                session.owner = None
                self._reception.release_session(session)
            self._inlet.close()
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()

    async def _converse(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._replies.write)
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
            while self._stopped and self.fatal is None and not self._closed:
                await self._told.wait()
            # Why bounded, and not shielded: what is still unsaid may never be read, and a client that is dropped or
            # a daemon that stops does not wait for it.
            with anyio.move_on_after(self._limits.write_timeout or None):
                await self._until_acknowledged()
                if self.fatal is not None:
                    self._replies.reply(protocol.encode_error(self.fatal))
                await self._replies.until_said()
            tasks.cancel_scope.cancel()

    async def _read(self) -> None:
        while True:
            data = await self._receive()
            items = self._reader.feed(data) if data else self._reader.finish()
            if self.session is not None and b"\n" in data:
                self._waited = 0.0
            for item in items:
                # Why asked and not left to the cancellation: that reaches a task only where it next waits, and one
                # whose data has come already would take events that no shutdown waits for.
                if self._stopped or await self._handle(item):
                    return
            if not data:
                return
            self._count_held()
            await self._wait_for_room()

    async def _receive(self) -> bytes:
        limits, session = self._limits, self.session
        size = READ_BYTES if session is not None and session.intake.has_room and self._is_sound else SMALL_READ_BYTES
        if session is None:
            timeout, what = limits.hello_timeout, "no hello and open"
        elif self._reader.mid_frame:
            timeout, what = limits.frame_timeout, "a frame was begun and not ended"
        else:
            timeout, what = limits.idle_timeout, "nothing was sent"
            self._waited = 0.0
        # Why not the whole time again: a byte now and then would hold the connection for ever. Only waiting for
        # the client counts, and not the time in which we do not read.
        began = self._loop.time()
        try:
            data = await self._inlet.receive(size, max(0.0, timeout - self._waited) if timeout else None)
        except TimeoutError:
            hint = "send whole frames in time; what was acknowledged is safe, connect again to go on"
            raise ProtocolError(Code.LIMIT, f"{what} within {timeout:g} s", hint) from None
        self._waited += self._loop.time() - began
        return data

    async def _wait_for_room(self) -> None:
        session = self.session
        if session is not None:
            await session.room(self._limits.session_queue_bytes)
            await self._reception.room()
        await self._replies.room()

    def _untold_bytes(self) -> int:
        """About the bytes of the decisions that are to be told and are not composed yet."""
        return 0 if self.session is None or self._driver else _DECISION_BYTES * self.session.log.untaken

    def _count_held(self) -> None:
        held = self._reader.held_bytes + self._replies.unsaid
        if held != self.holding.bytes and not self._living.cancel_called:
            self.holding.hold(held - self.holding.bytes)
            self._reception.relieve()

    async def _until_acknowledged(self) -> None:
        """Wait until the fate of all that was received is known, and said."""
        while self.receipts.open and self.session is not None and self.session.failure is None:
            await self._replies.something_said()

    def _due(self) -> list[bytes]:
        """What is to be said between rejections and replies: decisions, and one acknowledgement."""
        session, receipts = self.session, self.receipts
        receipts.settle(session)
        due: list[bytes] = []
        if self._driver:
            return due
        if session is not None:
            for entry in session.log.take_followed():
                self._decisions_sent += 1
                record = encode_decision(entry.to_record())
                due.append(protocol.encode_decision_frame(self._decisions_sent, record))
        if (receipts.accepted, receipts.decided) != self._acked:
            self._acked = (receipts.accepted, receipts.decided)
            due.append(protocol.encode_ack(*self._acked))
        return due

    def _reject_batch(self, first: int, batch: Batch) -> None:
        error = batch.refused
        full = isinstance(error, JournalFull)
        code = Code.STORAGE_FULL if full else Code.STORAGE_FAILED
        hint = "send it again later: service resumes when there is room" if full else "connect again later"
        message = f"not journalled: {error}"
        for offset, event in enumerate(batch.events):
            self._reject(first + offset, event.event_id, code, message, hint)
        batch.events = ()

    # --- what a session says; synchronous ---

    def progress(self) -> None:
        """Something moved: there may be something to say."""
        self._replies.wake()

    def session_failed(self, error: ProtocolError) -> None:
        """The session cannot go on, and so neither can the connection."""
        self._give_up(error)

    def stop_reading(self) -> None:
        """Take nothing more from the client; what was taken is still answered."""
        self._stopped = True
        # Why not then: it takes nothing meanwhile, and looks before it takes more. A client that is not told of the
        # last bundle of its session cannot ask for it: the session is over.
        if not self._answering:
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
        self._replies.say_last(protocol.encode_error(error))
        # Why already: who holds most is asked again before this connection's task comes to its end.
        self.holding.free()
        self._living.cancel()

    def _give_up(self, error: ProtocolError) -> None:
        if self.fatal is None:
            self.fatal = error
            self._reception.count(error.code)
            self._reading.cancel()
            self._told.set()

    def _reject(self, index: int, event_id: str | None, code: Code, message: str, hint: str) -> None:
        self._reception.count(code)
        self._replies.herald(protocol.encode_reject(index, event_id, code, message, hint))

    # --- items, in the order they came ---

    async def _handle(self, item: Item) -> bool:
        """Do what the item asks for; True where the conversation is over."""
        if type(item) is EventChunk:
            self._take_events(item)
        elif type(item) is BadLine:
            self._take_bad_line(item)
        elif type(item) is Hello:
            await self._greet(item)
        elif type(item) is Open:
            await self._open(item)
        elif type(item) is Ping:
            self._replies.reply(protocol.encode("pong"))
        else:
            assert isinstance(item, Flush | Close | End)
            self._answering = True
            try:
                return await (self._flush() if type(item) is Flush else self._close())
            finally:
                self._answering = False
        return False

    def _expect_session(self, frame: str) -> Session:
        if self.session is None:
            raise ProtocolError(Code.BAD_FRAME, f"{frame} came before open", "send hello, then open, then events")
        return self.session

    async def _greet(self, hello: Hello) -> None:
        if self.client:
            raise ProtocolError(Code.BAD_FRAME, "hello came twice", "send hello once, as the first frame")
        self._check_name("client", hello.client)
        self._check_name("protocol", hello.protocol)
        self.client = hello.client or "unnamed"
        if hello.protocol == protocol.DRIVER_PROTOCOL:
            self._driver = True
            await self._open(Open())
        elif hello.protocol == protocol.PROTOCOL:
            limits = self._limits
            self._replies.herald(
                protocol.encode(
                    "welcome",
                    protocol=protocol.PROTOCOL,
                    server=self._reception.server_name,
                    limits={
                        "max_frame_bytes": limits.max_frame_bytes,
                        "max_events_per_frame": limits.max_events_per_frame,
                        "max_id_bytes": limits.max_id_bytes,
                    },
                )
            )
        else:
            raise ProtocolError(
                Code.UNSUPPORTED_PROTOCOL,
                f"protocol {hello.protocol!r} is not spoken here",
                f"say {protocol.PROTOCOL!r} or {protocol.DRIVER_PROTOCOL!r}",
            )

    async def _open(self, request: Open) -> None:
        if not self.client:
            raise ProtocolError(Code.BAD_FRAME, "open came before hello", "send hello first")
        if self.session is not None:
            raise ProtocolError(Code.BAD_FRAME, "open came twice", "open one session on a connection")
        self._check_name("graph", request.graph)
        self._check_name("session", request.session or "")
        if (
            sum(len(key.encode()) + len(value.encode()) for key, value in request.labels.items())
            > self._limits.max_label_bytes
        ):
            message = f"labels are longer than {self._limits.max_label_bytes} bytes"
            raise ProtocolError(Code.LIMIT, message, "send fewer or shorter labels")
        session, resumed = await self._reception.open_session(request, self.peer, self)
        self.session = session
        self._waited = 0.0
        if self._driver:
            return
        self._decisions_sent = session.log.follow(on=request.decisions)
        self._replies.herald(
            protocol.encode(
                "opened",
                session=session.description.session,
                resumed=resumed,
                accepted=session.accepted,
                decided=session.decided,
                last_event_id=session.last_event_id,
            )
        )

    def _check_name(self, what: str, name: str) -> None:
        if len(name.encode()) > self._limits.max_name_bytes:
            message = f"the name of the {what} is longer than {self._limits.max_name_bytes} bytes"
            raise ProtocolError(Code.LIMIT, message, "use a shorter name")

    def _take_events(self, chunk: EventChunk) -> None:
        session = self._expect_session("an event")
        count = len(chunk.events)
        start = self.receipts.received + 1
        self.receipts.received += count
        chunk, too_long = without_long_ids(chunk, self._limits.max_id_bytes)
        for refusal in too_long:
            self._refuse(start, refusal)
        if not chunk.events:
            self._is_sound = False
            self._note(None)
            return
        session.intake.check_ids()
        try:
            batch, refusals = session.admit(chunk)
        except ErgoCaptureError as error:
            raise storage_failed(error) from error
        if too_long and refusals:
            long_ids = {refusal.offset for refusal in too_long}
            kept = [offset for offset in range(count) if offset not in long_ids]
            refusals = [replace(refusal, offset=kept[refusal.offset]) for refusal in refusals]
        for refusal in refusals:
            self._refuse(start, refusal)
        self._is_sound = not refusals and not too_long
        self._note(batch)

    def _refuse(self, start: int, refusal: Refusal) -> None:
        self._reject(start + refusal.offset, refusal.event_id, refusal.code, refusal.message, refusal.hint)

    def _note(self, batch: Batch | None) -> None:
        self.receipts.note(batch)
        if batch is None:
            self.progress()

    def _take_bad_line(self, bad: BadLine) -> None:
        self._is_sound = False
        if self.session is None:
            raise ProtocolError(bad.code, bad.message, bad.hint)
        self.receipts.received += 1
        event_id = bad.event_id if bad.event_id is None or len(bad.event_id) <= self._limits.max_id_bytes else None
        self._reject(self.receipts.received, event_id, bad.code, bad.message, bad.hint)
        self._note(None)
        if bad.bad_frame:
            self.bad_frames += 1
            if self.bad_frames >= self._limits.max_bad_frames:
                raise ProtocolError(
                    bad.code,
                    f"{self.bad_frames} bad frames on one connection",
                    "mend the client; what was acknowledged is safe, connect again and resume",
                )

    async def _flush(self) -> bool:
        publication = await self._expect_session("flush").flush()
        self._replies.reply(protocol.encode("flushed", **_published(publication)))
        return False

    async def _close(self) -> bool:
        session = self._expect_session("close")
        session.end("complete")
        await session.finished.wait()
        if session.failure is not None:
            raise storage_failed(session.failure)
        publication = session.publication
        assert publication is not None
        self._replies.reply(
            protocol.encode(
                "closed",
                events=session.accepted,
                decisions=session.decided,
                session=session.description.session,
                **_published(publication),
            )
        )
        self._closed = True
        return True

    def __repr__(self) -> str:
        session = "no session" if self.session is None else self.session.description.session
        return f"<Connection {self.client or 'unnamed'}, {session}, {self.receipts.received} events, {self.bad_frames} bad>"


def _published(publication: Publication) -> dict[str, object]:
    return {"bundle": publication.bundle, "manifest": publication.manifest, "sha256": publication.sha256}
