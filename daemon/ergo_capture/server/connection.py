"""One client's connection: reads frames, answers them, and owns at most one session.

Owns: the order of hello, open, events and close; time-outs; how a connection ends.
Not here: what frames look like (``protocol.py``), counting events (``receipts.py``), saying things
(``replies.py``), sessions (``session.py``), accepting (``listener.py``).

Two tasks: one reads and never waits for the client to read; the other writes (``replies.py``). Where more than
``limits.reply_bytes`` wait unsaid, reading stops: a client that does not read harms only itself.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

import anyio
from anyio.abc import SocketStream, UNIXSocketStream

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.body import Peer, Publication
from ergo_capture.journal.journal import JournalFull
from ergo_capture.kernel.records import encode_decision
from ergo_capture.server import protocol
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
from ergo_capture.server.session import Session, storage_failed
from ergo_capture.server.submission import Batch

#: Bytes asked for in one read; a chunk of this size keeps the cost per event low.
READ_BYTES: Final = 256 * 1024


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
        self._reception = reception
        limits = reception.limits
        self._limits = limits
        self._reader = FrameReader(limits.max_frame_bytes, limits.max_events_per_frame)
        self._driver = False
        self._decisions_sent = 0
        self._replies = Replies(stream, self._due)
        self._acked = (0, 0)
        self._fatal: ProtocolError | None = None
        self._reading = anyio.CancelScope()
        #: Whether the daemon takes nothing more from this client; the connection stays to be answered.
        self._stopped = False
        self._told = asyncio.Event()

    # --- the two tasks ---

    async def serve(self) -> None:
        """Until the client is done with; the stream is closed then, the session released."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._replies.write)
                with self._reading:
                    try:
                        await self._read()
                    except ProtocolError as error:
                        self._give_up(error)
                    except ErgoCaptureError as error:
                        self._give_up(storage_failed(error))
                    except (anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionError):
                        pass
                while self._stopped and self._fatal is None:
                    await self._told.wait()
                # Why bounded: what is still unsaid may never be read.
                with anyio.move_on_after(self._limits.write_timeout or None, shield=True):
                    await self._until_acknowledged()
                    if self._fatal is not None:
                        self._replies.reply(protocol.encode_error(self._fatal))
                    await self._replies.until_said()
                tasks.cancel_scope.cancel()
        finally:
            session, self.session = self.session, None
            if session is not None and session.owner is self:
                session.owner = None
                self._reception.release_session(session)
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()

    async def _read(self) -> None:
        while True:
            data = await self._receive()
            items = self._reader.feed(data) if data else self._reader.finish()
            for item in items:
                if await self._handle(item):
                    return
            if not data:
                return
            await self._wait_for_room()

    async def _receive(self) -> bytes:
        limits = self._limits
        if self.session is None:
            timeout, what = limits.hello_timeout, "no hello and open"
        elif self._reader.mid_frame:
            timeout, what = limits.frame_timeout, "a frame was begun and not ended"
        else:
            timeout, what = limits.idle_timeout, "nothing was sent"
        try:
            if not timeout:
                return await self._stream.receive(READ_BYTES)
            with anyio.fail_after(timeout):
                return await self._stream.receive(READ_BYTES)
        except TimeoutError:
            hint = "send whole frames in time; what was acknowledged is safe, connect again to go on"
            raise ProtocolError(Code.LIMIT, f"{what} within {timeout:g} s", hint) from None
        except anyio.EndOfStream:
            return b""

    async def _wait_for_room(self) -> None:
        session = self.session
        if session is not None:
            await session.room(self._limits.session_queue_bytes)
            await self._reception.room()
        await self._replies.room(self._limits.reply_bytes, self._limits.write_timeout)

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
            for entry in session.take_followed():
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

    def _give_up(self, error: ProtocolError) -> None:
        if self._fatal is None:
            self._fatal = error
            self._reception.count(error.code)
            self._reading.cancel()
            self._told.set()

    def _reject(self, index: int, event_id: str | None, code: Code, message: str, hint: str) -> None:
        self._reception.count(code)
        self._replies.reject(protocol.encode_reject(index, event_id, code, message, hint))

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
        elif type(item) is Flush:
            publication = await self._expect_session("flush").flush()
            self._replies.reply(protocol.encode("flushed", **_published(publication)))
        else:
            assert isinstance(item, Close | End)
            return await self._close()
        return False

    def _expect_session(self, frame: str) -> Session:
        if self.session is None:
            raise ProtocolError(Code.BAD_FRAME, f"{frame} came before open", "send hello, then open, then events")
        return self.session

    async def _greet(self, hello: Hello) -> None:
        if self.client:
            raise ProtocolError(Code.BAD_FRAME, "hello came twice", "send hello once, as the first frame")
        self.client = hello.client or "unnamed"
        if hello.protocol == protocol.DRIVER_PROTOCOL:
            self._driver = True
            await self._open(Open())
        elif hello.protocol == protocol.PROTOCOL:
            limits = self._limits
            self._replies.reply(
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
        if sum(len(key) + len(value) for key, value in request.labels.items()) > self._limits.max_label_bytes:
            message = f"labels are longer than {self._limits.max_label_bytes} bytes"
            raise ProtocolError(Code.LIMIT, message, "send fewer or shorter labels")
        session, resumed = await self._reception.open_session(request, self.peer, self)
        self.session = session
        if self._driver:
            return
        session.follow(on=request.decisions)
        self._decisions_sent = session.decided
        self._replies.reply(
            protocol.encode(
                "opened",
                session=session.description.session,
                resumed=resumed,
                accepted=session.accepted,
                decided=session.decided,
                last_event_id=session.last_event_id,
            )
        )

    def _take_events(self, chunk: EventChunk) -> None:
        session = self._expect_session("an event")
        count = len(chunk.events)
        start = self.receipts.received + 1
        self.receipts.received += count
        chunk, long_ids = self._without_long_ids(chunk)
        for offset in long_ids:
            self._reject(start + offset, None, Code.LIMIT, self._long_id_message, "use shorter event ids")
        if not chunk.events:
            self._note(None)
            return
        try:
            batch, refusals = session.admit(chunk)
        except ErgoCaptureError as error:
            raise storage_failed(error) from error
        kept = [offset for offset in range(count) if offset not in long_ids] if long_ids else None
        for refusal in refusals:
            offset = refusal.offset if kept is None else kept[refusal.offset]
            self._reject(start + offset, refusal.event_id, refusal.code, refusal.message, refusal.hint)
        self._note(batch)

    def _note(self, batch: Batch | None) -> None:
        self.receipts.note(batch)
        if batch is None:
            self.progress()

    @property
    def _long_id_message(self) -> str:
        return f"the event id is longer than {self._limits.max_id_bytes} bytes"

    def _without_long_ids(self, chunk: EventChunk) -> tuple[EventChunk, frozenset[int]]:
        limit = self._limits.max_id_bytes
        # Why a quarter: a character takes four bytes at the most, so shorter ids need no encoding.
        if max(map(len, chunk.ids)) <= limit // 4:
            return chunk, frozenset()
        long_ids = frozenset(offset for offset, event_id in enumerate(chunk.ids) if len(event_id.encode()) > limit)
        if not long_ids:
            return chunk, long_ids
        lines = chunk.body.split(b"\n")
        kept = [offset for offset in range(len(chunk.events)) if offset not in long_ids]
        body = b"".join(lines[offset] + b"\n" for offset in kept)
        return EventChunk(body, [chunk.events[offset] for offset in kept]), long_ids

    def _take_bad_line(self, bad: BadLine) -> None:
        if self.session is None:
            raise ProtocolError(bad.code, bad.message, bad.hint)
        self.receipts.received += 1
        self._reject(self.receipts.received, bad.event_id, bad.code, bad.message, bad.hint)
        self._note(None)
        if bad.bad_frame:
            self.bad_frames += 1
            if self.bad_frames >= self._limits.max_bad_frames:
                raise ProtocolError(
                    bad.code,
                    f"{self.bad_frames} bad frames on one connection",
                    "mend the client; what was acknowledged is safe, connect again and resume",
                )

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
        return True

    def __repr__(self) -> str:
        session = "no session" if self.session is None else self.session.description.session
        return f"<Connection {self.client or 'unnamed'}, {session}, {self.receipts.received} events, {self.bad_frames} bad>"


def _published(publication: Publication) -> dict[str, object]:
    return {"bundle": publication.bundle, "manifest": publication.manifest, "sha256": publication.sha256}
