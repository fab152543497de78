"""One client's connection: reads frames, answers them, and owns at most one session.

Owns: the order of hello, open, events and close; counting this connection's events; what is still to be
said to the client; time-outs.
Not here: what frames look like (``protocol.py``), sessions (``session.py``), accepting (``listener.py``).

Two tasks: one reads and never waits for the client to read; the other writes whatever there is to say by
the time it comes round, so that acknowledgements coalesce by themselves. Where more than
``limits.reply_bytes`` wait unsaid, reading stops: a client that does not read harms only itself.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import anyio
from anyio.abc import SocketAttribute, SocketStream, UNIXSocketStream

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.body import Peer, Publication
from ergo_capture.journal.journal import JournalFull
from ergo_capture.kernel.records import encode_decision
from ergo_capture.server import protocol
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
from ergo_capture.server.session import Session, storage_failed
from ergo_capture.server.submission import Batch

#: Bytes asked for in one read; a chunk of this size keeps the cost per event low.
READ_BYTES: Final = 256 * 1024
_SEND_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one connection may cost; times in seconds, zero for none."""

    max_frame_bytes: int = 1 << 20
    max_events_per_frame: int = 10_000
    max_bad_frames: int = 5
    max_id_bytes: int = 1024
    max_label_bytes: int = 4096
    session_queue_bytes: int = 8 << 20
    #: Unsaid replies beyond which reading stops.
    reply_bytes: int = 1 << 20
    hello_timeout: float = 10.0
    frame_timeout: float = 30.0
    idle_timeout: float = 0.0
    write_timeout: float = 30.0


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


@dataclass(slots=True)
class _Receipt:
    """Events of this connection whose fate is still open."""

    #: Number of the last of them on this connection, from 1.
    end: int
    #: Number of the first of them.
    start: int
    batch: Batch | None


class Connection:
    """Serves one client until it goes, misbehaves, or the daemon stops."""

    def __init__(self, stream: UNIXSocketStream | SocketStream, peer: Peer | None, reception: Reception) -> None:
        self.peer = peer
        self.session: Session | None = None
        #: Name the client gave itself, for logs only.
        self.client = ""
        self.bad_frames = 0
        #: Events received on this connection: admitted, rejected, or unreadable.
        self.received = 0
        self.accepted = 0
        self.decided = 0
        self._stream = stream
        self._reception = reception
        limits = reception.limits
        self._limits = limits
        self._reader = FrameReader(limits.max_frame_bytes, limits.max_events_per_frame)
        self._driver = False
        self._decisions_sent = 0
        self._unaccepted: deque[_Receipt] = deque()
        self._undecided: deque[_Receipt] = deque()
        #: Said before the acknowledgement that covers them.
        self._rejects: list[bytes] = []
        #: Said after the acknowledgement of all that came before them.
        self._replies: list[bytes] = []
        self._unsaid = 0
        self._loop = asyncio.get_running_loop()
        self._socket = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
        #: What the socket did not take of what was said.
        self._unsent = b""
        #: Whether ``_say_at_once`` is due in this turn of the loop.
        self._saying = False
        self._say = asyncio.Event()
        self._said = asyncio.Event()
        self._sending = False
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
                tasks.start_soon(self._write)
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
                        self._reply(protocol.encode_error(self._fatal))
                    await self._until_said()
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
        while self._unsaid > self._limits.reply_bytes:
            with anyio.move_on_after(self._limits.write_timeout or None) as patience:
                await self._said.wait()
            if patience.cancelled_caught:
                hint = "read what the daemon sends, or send less at a time"
                raise ProtocolError(Code.LIMIT, "replies were not read in time", hint)

    async def _write(self) -> None:
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

    def _tell_said(self) -> None:
        self._said.set()
        self._said = asyncio.Event()

    async def _until_acknowledged(self) -> None:
        """Wait until the fate of all that was received is known, and said."""
        while self._unaccepted and self.session is not None and self.session.failure is None:
            await self._said.wait()

    async def _until_said(self) -> None:
        while self._say.is_set() or self._sending or self._saying:
            await self._said.wait()

    def _compose(self) -> bytes:
        """All there is to say now: rejections, decisions, one acknowledgement, replies."""
        self._settle_receipts()
        said, self._rejects = self._rejects, []
        replies, self._replies = self._replies, []
        self._unsaid = 0
        session = self.session
        if session is not None and not self._driver:
            for entry in session.take_followed():
                self._decisions_sent += 1
                record = encode_decision(entry.to_record())
                said.append(protocol.encode_decision_frame(self._decisions_sent, record))
        if (self.accepted, self.decided) != self._acked and not self._driver:
            self._acked = (self.accepted, self.decided)
            said.append(protocol.encode_ack(*self._acked))
        return b"".join((*said, *replies))

    def _settle_receipts(self) -> None:
        waiting = self._unaccepted
        while waiting:
            receipt = waiting[0]
            batch, session = receipt.batch, self.session
            if batch is not None and batch.refused is not None:
                self._reject_batch(receipt, batch)
            elif batch is not None and (session is None or batch.first < 0 or session.accepted < batch.end):
                break
            self.accepted = receipt.end
            waiting.popleft()
        undecided, session = self._undecided, self.session
        while undecided:
            receipt = undecided[0]
            batch = receipt.batch
            if receipt.end > self.accepted:
                break
            if batch is None or batch.refused is not None or (session is not None and session.decided >= batch.end):
                self.decided = receipt.end
                undecided.popleft()
                continue
            break

    def _reject_batch(self, receipt: _Receipt, batch: Batch) -> None:
        error = batch.refused
        full = isinstance(error, JournalFull)
        code = Code.STORAGE_FULL if full else Code.STORAGE_FAILED
        hint = "send it again later: service resumes when there is room" if full else "connect again later"
        message = f"not journalled: {error}"
        first = receipt.end - len(batch.events) + 1
        for offset, event in enumerate(batch.events):
            self._reject(first + offset, event.event_id, code, message, hint)
        batch.events = ()

    # --- what a session says; synchronous ---

    def progress(self) -> None:
        """Something moved: there may be something to say."""
        if not self._saying:
            self._saying = True
            self._loop.call_soon(self._say_at_once)

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

    def _reply(self, data: bytes) -> None:
        self._replies.append(data)
        self._unsaid += len(data)
        self.progress()

    def _reject(self, index: int, event_id: str | None, code: Code, message: str, hint: str) -> None:
        self._reception.count(code)
        data = protocol.encode_reject(index, event_id, code, message, hint)
        self._rejects.append(data)
        self._unsaid += len(data)
        self.progress()

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
            self._reply(protocol.encode("pong"))
        elif type(item) is Flush:
            publication = await self._expect_session("flush").flush()
            self._reply(protocol.encode("flushed", **_published(publication)))
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
            self._reply(
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
        self._reply(
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
        start = self.received + 1
        self.received += count
        chunk, long_ids = self._without_long_ids(chunk)
        for offset in long_ids:
            self._reject(start + offset, None, Code.LIMIT, self._long_id_message, "use shorter event ids")
        if not chunk.events:
            self._settle(start, None)
            return
        try:
            batch, refusals = session.admit(chunk)
        except ErgoCaptureError as error:
            raise storage_failed(error) from error
        kept = [offset for offset in range(count) if offset not in long_ids] if long_ids else None
        for refusal in refusals:
            offset = refusal.offset if kept is None else kept[refusal.offset]
            self._reject(start + offset, refusal.event_id, refusal.code, refusal.message, refusal.hint)
        self._settle(start, batch)

    def _settle(self, start: int, batch: Batch | None) -> None:
        receipt = _Receipt(self.received, start, batch)
        self._unaccepted.append(receipt)
        self._undecided.append(receipt)
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
        self.received += 1
        self._reject(self.received, bad.event_id, bad.code, bad.message, bad.hint)
        self._settle(self.received, None)
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
        self._reply(
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
        return f"<Connection {self.client or 'unnamed'}, {session}, {self.received} events, {self.bad_frames} bad>"


def _published(publication: Publication) -> dict[str, object]:
    return {"bundle": publication.bundle, "manifest": publication.manifest, "sha256": publication.sha256}
