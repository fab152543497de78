"""What one client and the daemon say to each other: hello, open, events, flush, close, in this order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from anyio.abc import SocketStream, UNIXSocketStream

from ergo_capture.config.settings import LimitsConfig
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.errors import JournalFull
from ergo_capture.journal.payloads import Peer
from ergo_capture.kernel.records import encode_decision
from ergo_capture.protocol import capture as protocol
from ergo_capture.protocol.capture import (
    BadLine,
    Close,
    Code,
    End,
    EventChunk,
    Flush,
    Hello,
    Item,
    Open,
    Ping,
    ProtocolError,
)
from ergo_capture.server.failures import not_published, storage_failed
from ergo_capture.server.net.outbox import Replies
from ergo_capture.server.net.receipts import Receipts
from ergo_capture.server.session.admission_queue import EventBatch
from ergo_capture.server.session.budget import Holding
from ergo_capture.server.session.session import Owner, Session

#: About the length of a ``decision`` frame.
_DECISION_BYTES: Final = 256
#: Memory that a decision takes while it is kept for a client, with its event.
_KEPT_BYTES: Final = 400


class Reception(Protocol):
    """The daemon, as a client meets it."""

    limits: LimitsConfig
    server_name: str

    async def open_session(self, request: Open, peer: Peer, client: str, owner: Owner) -> tuple[Session, bool]:
        """A new session, or the one asked for, for a client of that name; with whether it was resumed."""

    def release_session(self, session: Session) -> None:
        """The session has lost its connection; it lingers."""

    async def room(self) -> None:
        """Wait until the shared queue has room."""

    def count(self, code: Code) -> None:
        """Something was refused."""

    def hold(self, peer: Peer) -> Holding:
        """A count of the memory that a connection of this peer holds."""

    def relieve(self) -> None:
        """Connections hold more than they may together: let the one go that holds most."""


class Conversation:
    """One client's side of things: what it has sent so far, and what that has led to.

    Args:
        stream: where it is answered.
        peer: who it is.
        reception: the daemon.
        owner: the connection, which owns the session that is opened.
        on_stuck: told that the client does not read.
    """

    def __init__(
        self,
        stream: UNIXSocketStream | SocketStream,
        peer: Peer,
        reception: Reception,
        owner: Owner,
        on_stuck: Callable[[ProtocolError], None],
    ) -> None:
        self.session: Session | None = None
        #: Name the client gave itself, for logs only.
        self.client = ""
        self.bad_frames = 0
        self.receipts = Receipts(self._reject_batch)
        #: Whether nothing was refused of what came last.
        self.is_sound = True
        #: Whether a ``flush`` or a ``close`` was taken and is not answered.
        self.is_answering = False
        #: Whether the client has closed its session, and was told so.
        self.is_over = False
        self._peer = peer
        self._reception = reception
        self._owner = owner
        limits = self._limits = reception.limits
        self._driver = False
        self._decisions_sent = 0
        self._acked = (0, 0)
        self.replies = Replies(
            stream,
            self._due,
            on_stuck,
            untold=self._untold_bytes,
            limit=limits.reply_bytes,
            patience=limits.write_timeout.seconds,
        )

    # --- items, in the order they came ---

    async def handle(self, item: Item) -> bool:
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
            self.replies.reply(protocol.encode(protocol.Pong()))
        else:
            assert isinstance(item, Flush | Close | End)
            self.is_answering = True
            try:
                return await (self._flush() if type(item) is Flush else self._close())
            finally:
                self.is_answering = False
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
            self.replies.herald(
                protocol.encode(
                    protocol.Welcome(
                        protocol.PROTOCOL,
                        self._reception.server_name,
                        {
                            "max_frame_bytes": int(limits.max_frame_bytes),
                            "max_events_per_frame": limits.max_events_per_frame,
                            "max_id_bytes": limits.max_id_bytes,
                        },
                    )
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
        session, resumed = await self._reception.open_session(request, self._peer, self.client, self._owner)
        self.session = session
        if self._driver:
            return
        self._decisions_sent = session.log.follow(on=request.decisions)
        self.replies.herald(
            protocol.encode(
                protocol.Opened(
                    session=session.description.session,
                    resumed=resumed,
                    accepted=session.accepted,
                    decided=session.decided,
                    last_event_id=session.last_event_id,
                )
            )
        )

    def _check_name(self, what: str, name: str) -> None:
        if len(name.encode()) > self._limits.max_name_bytes:
            message = f"the name of the {what} is longer than {self._limits.max_name_bytes} bytes"
            raise ProtocolError(Code.LIMIT, message, "use a shorter name")

    def _take_events(self, chunk: EventChunk) -> None:
        session = self._expect_session("an event")
        count, start = len(chunk.events), self.receipts.received + 1
        self.receipts.received += count
        batch, refusals = session.admit(chunk, self._limits.max_id_bytes)
        for refusal in refusals:
            self._reject(start + refusal.offset, refusal.event_id, refusal.code, refusal.message, refusal.hint)
        self.is_sound = not refusals
        numbers: Sequence[int] = range(start, start + count)
        if refusals:
            refused = {refusal.offset for refusal in refusals}
            numbers = [start + offset for offset in range(count) if offset not in refused]
        self._note(batch, numbers)

    def _note(self, batch: EventBatch | None, numbers: Sequence[int] = ()) -> None:
        self.receipts.note(batch, numbers)
        if batch is None:
            self.replies.wake()

    def _take_bad_line(self, bad: BadLine) -> None:
        self.is_sound = False
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
        session = self._expect_session("flush")
        try:
            publication = await session.flush(wait_for_room=True)
        except ErgoCaptureError as error:
            if session.failure is not None:
                raise
            raise not_published(error) from error
        self.replies.reply(
            protocol.encode(protocol.Flushed(publication.bundle, publication.manifest, publication.sha256))
        )
        return False

    async def _close(self) -> bool:
        session = self._expect_session("close")
        session.end("complete")
        await session.over.wait()
        if session.failure is not None:
            raise storage_failed(session.failure)
        publication = session.publication
        assert publication is not None
        self.replies.reply(
            protocol.encode(
                protocol.Closed(
                    events=session.accepted,
                    decisions=session.decided,
                    session=session.description.session,
                    bundle=publication.bundle,
                    manifest=publication.manifest,
                    sha256=publication.sha256,
                )
            )
        )
        self.is_over = True
        return True

    # --- what is said of the session ---

    async def until_acknowledged(self) -> None:
        """Wait until the fate of all that was received is known, and said."""
        while self.receipts.open and self.session is not None and self.session.failure is None:
            await self.replies.something_said()

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
            due.append(protocol.encode(protocol.Ack(*self._acked)))
        return due

    @property
    def held_bytes(self) -> int:
        """About the memory of what the client has not taken: answers as they are, decisions as they will be told."""
        kept = 0 if self.session is None else self.session.log.kept
        return self.replies.unsaid + _KEPT_BYTES * kept

    @property
    def follows(self) -> bool:
        """Whether the client has asked for decisions."""
        return self.session is not None and self.session.log.is_followed

    def _untold_bytes(self) -> int:
        """About the bytes of the decisions that are to be told and are not composed yet."""
        return 0 if self.session is None or self._driver else _DECISION_BYTES * self.session.log.untaken

    def _reject_batch(self, numbers: Sequence[int], batch: EventBatch) -> None:
        error = batch.refused
        full = isinstance(error, JournalFull)
        code = Code.STORAGE_FULL if full else Code.STORAGE_FAILED
        hint = "send it again later: service resumes when there is room" if full else "connect again later"
        message = f"not journalled: {error}"
        for number, event in zip(numbers, batch.events, strict=True):
            self._reject(number, event.event_id, code, message, hint)

    def _reject(self, index: int, event_id: str | None, code: Code, message: str, hint: str) -> None:
        self._reception.count(code)
        if self._driver:
            # Why: its protocol knows no answers, and whoever need not read must not be given up for it.
            return
        self.replies.herald(protocol.encode(protocol.Reject(index, event_id, code, message, hint)))

    def __repr__(self) -> str:
        session = "no session" if self.session is None else self.session.description.session
        return f"<Conversation with {self.client or 'unnamed'}, {session}, {self.receipts.received} events>"
