"""The conversation of one client with the daemon: hello, open, events, flush, close, in this order."""

from __future__ import annotations

import socket
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

import msgspec

from ergo_capture.config.settings import LimitsConfig
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.errors import JournalFull
from ergo_capture.journal.payloads import LeftOver, Peer
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
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.failures import not_published, storage_failed
from ergo_capture.server.net.outbox import Outbox
from ergo_capture.server.session.admission_queue import EventBatch
from ergo_capture.server.session.budget import Budget
from ergo_capture.server.session.continuity import protocol_loss
from ergo_capture.server.session.registry import SessionRegistry
from ergo_capture.server.session.session import Owner, Session
from ergo_capture.version import PROGRAM

#: About the length of a ``decision`` frame.
_DECISION_BYTES: Final = 256
_FEATURES: Final = (protocol.ACKNOWLEDGED, protocol.DECIDED_BY, protocol.NOTICES)
#: Largest length of a ``refused`` frame with a short event id, in bytes.
_REFUSAL_BYTES: Final = 700
#: How many characters of the name of an unknown field are repeated.
_MAX_NAME: Final = 100
#: Memory that a decision takes while it is kept for a client, with its event.
KEPT_DECISION_BYTES: Final = 400


class Host(Protocol):
    """The daemon, as its connections use it."""

    limits: LimitsConfig
    registry: SessionRegistry
    writer: Writer
    #: Memory for incomplete lines and unread answers.
    held: Budget
    #: Refusals by code.
    refusals: Counter[str]

    async def open_session(self, request: Open, peer: Peer, client: str, owner: Owner) -> tuple[Session, bool]:
        """Open or resume a session for the client of that name; return it, and whether it was resumed."""

    def relieve(self) -> None:
        """Drop the connection that holds most memory, if all together hold more than they may."""


@dataclass(slots=True)
class _Receipt:
    """Events of one connection that are neither accepted nor rejected yet."""

    #: Number of the last of them on the connection, from 1.
    end: int
    #: None if all of them were rejected before a session saw them.
    batch: EventBatch | None
    #: Numbers of the batch's events; the others were rejected before.
    numbers: Sequence[int]


class Receipts:
    """Counts the accepted and decided events of one connection.

    A client counts the events that it sent on its connection; a session counts those that it admitted, from all its
    connections. A receipt maps a range of the former to a batch of the latter.

    Args:
        reject: called with the numbers of a batch's events, and the batch, if the journal refused the batch.
    """

    def __init__(self, reject: Callable[[Sequence[int], EventBatch], None]) -> None:
        #: Events received on this connection: admitted, rejected, or unreadable.
        self.received = 0
        self.accepted = 0
        self.decided = 0
        #: Accepted events of the session, up to ``accepted``.
        self.events = 0
        self._reject = reject
        self._unaccepted: deque[_Receipt] = deque()
        #: For each batch that is accepted and not decided: its end in the session, and ``accepted`` before it.
        self._undecided: deque[tuple[int, int]] = deque()

    @property
    def open(self) -> bool:
        """Whether any event received is neither accepted nor rejected yet."""
        return bool(self._unaccepted)

    def add(self, batch: EventBatch | None, numbers: Sequence[int] = ()) -> None:
        """Record the result of admitting the events received since the last call.

        Args:
            batch: the batch of those that were admitted; None if all were rejected.
            numbers: the numbers of the batch's events.
        """
        waiting = self._unaccepted
        if batch is None and waiting and waiting[-1].batch is None:
            # Use one receipt for any number of rejected events: no queue bounds their number.
            waiting[-1].end = self.received
        else:
            waiting.append(_Receipt(self.received, batch, numbers))

    def settle(self, decided: int) -> None:
        """Advance the counts as far as the batches and the session's count of decided events allow."""
        waiting = self._unaccepted
        while waiting:
            receipt = waiting[0]
            batch = receipt.batch
            if batch is not None and batch.refused is not None:
                self._reject(receipt.numbers, batch)
            elif batch is not None:
                if batch.position is None:
                    break
                self._undecided.append((batch.end, self.accepted))
                self.events = batch.end
            self.accepted = receipt.end
            waiting.popleft()
        undecided = self._undecided
        while undecided and decided >= undecided[0][0]:
            undecided.popleft()
        self.decided = undecided[0][1] if undecided else self.accepted

    def release(self) -> None:
        """Release the batches: the client is not told any more about their events."""
        self._unaccepted.clear()
        self._undecided.clear()


class Stage(Enum):
    """The stage of a conversation."""

    #: No frame has come yet.
    NEW = auto()
    #: The client said hello.
    GREETED = auto()
    #: The client has a session.
    OPEN = auto()
    #: A ``flush`` or a ``close`` is being answered.
    ANSWERING = auto()
    #: The client closed its session and was answered.
    CLOSED = auto()


class Conversation:
    """The state of one client's requests, and the answers to them.

    Args:
        raw: the connection's socket.
        peer: the client's process.
        host: the daemon.
        owner: the connection; it will own the session that is opened.
        on_stuck: called with the error if the client does not read.
    """

    def __init__(
        self, raw: socket.socket, peer: Peer, host: Host, owner: Owner, on_stuck: Callable[[ProtocolError], None]
    ) -> None:
        self.stage = Stage.NEW
        self.session: Session | None = None
        #: The client's name for itself, for logs only.
        self.client = ""
        self.bad_frames = 0
        self.receipts = Receipts(self._reject_batch)
        #: Whether any event of the last item was rejected.
        self.refused_last = False
        self._peer = peer
        self._host = host
        self._owner = owner
        self._limits = host.limits
        #: Whether the client speaks ``ergo-driver.v0``, which knows no answers.
        self.is_driver = False
        self._decisions_sent = 0
        #: How many refused events the client was told of on this connection, and whether of left-over ones.
        #: Whether the client takes ``note``, ``refused`` and ``left_over``.
        self._takes_notices = False
        self._refused_told = 0
        self._left_over_told = False
        self._acked = (0, 0)
        self.outbox = Outbox(
            raw,
            compose_due=self._compose_due,
            due_bytes=self._due_bytes,
            on_stuck=on_stuck,
            limit=host.limits.reply_bytes,
            timeout=host.limits.write_timeout.seconds,
        )

    # --- requests, in the order they came ---

    async def handle(self, item: Item, *, is_last: bool = True) -> bool:
        """Carry out one item; return whether the conversation is over.

        Args:
            item: the item.
            is_last: whether it is the last item of what was read.

        Raises:
            ErgoCaptureError: the connection has to end with this error.
        """
        if type(item) is EventChunk:
            self.admit(item)
        elif type(item) is BadLine:
            self._reject_line(item)
        elif type(item) is Hello:
            await self._greet(item)
        elif type(item) is Open:
            await self._open(item)
        elif type(item) is Ping:
            self.outbox.add_after_ack(protocol.encode(protocol.Pong()))
        else:
            assert isinstance(item, Flush | Close | End)
            if self.is_driver and type(item) is End and not is_last:
                raise ProtocolError(Code.BAD_FRAME, "a frame came after `end`", "send `end` as the last line")
            if self.session is None:
                frame = "flush" if type(item) is Flush else "close"
                raise _before_open(frame)
            self.stage = Stage.ANSWERING
            if type(item) is Flush:
                await self._flush(self.session)
                self.stage = Stage.OPEN
            else:
                await self._close(self.session, item if isinstance(item, End) else End())
                self.stage = Stage.CLOSED
        return self.stage is Stage.CLOSED

    async def _greet(self, hello: Hello) -> None:
        if self.stage is not Stage.NEW:
            raise ProtocolError(Code.BAD_FRAME, "hello came twice", "send hello once, as the first frame")
        self._check_name("client", hello.client)
        self._check_name("protocol", hello.protocol)
        self.client = hello.client or "unnamed"
        self.stage = Stage.GREETED
        if hello.protocol == protocol.DRIVER_PROTOCOL:
            self.is_driver = True
            await self._open(Open())
        elif hello.protocol == protocol.PROTOCOL:
            limits = {
                "max_frame_bytes": int(self._limits.max_frame_bytes),
                "max_events_per_frame": self._limits.max_events_per_frame,
                "max_id_bytes": self._limits.max_id_bytes,
            }
            self.outbox.add_before_ack(protocol.encode(protocol.Welcome(protocol.PROTOCOL, PROGRAM, limits, _FEATURES)))
        else:
            raise ProtocolError(
                Code.UNSUPPORTED_PROTOCOL,
                f"protocol {hello.protocol!r} is not spoken here",
                f"say {protocol.PROTOCOL!r} or {protocol.DRIVER_PROTOCOL!r}",
            )

    async def _open(self, request: Open) -> None:
        if self.stage is Stage.NEW:
            raise ProtocolError(Code.BAD_FRAME, "open came before hello", "send hello first")
        if self.stage is not Stage.GREETED:
            raise ProtocolError(Code.BAD_FRAME, "open came twice", "open one session on a connection")
        self._check_name("graph", request.graph)
        self._check_name("session", request.session or "")
        label_bytes = sum(len(key.encode()) + len(value.encode()) for key, value in request.labels.items())
        if label_bytes > self._limits.max_label_bytes:
            message = f"labels are longer than {self._limits.max_label_bytes} bytes"
            raise ProtocolError(Code.LIMIT, message, "send fewer or shorter labels")
        if request.session is None and (request.acknowledged is not None or request.resume_after_loss):
            message = "open says what was acknowledged, and not in which session"
            raise ProtocolError(Code.BAD_FRAME, message, "say `session` too, or leave the other fields out")
        if request.acknowledged is not None and self._is_long(request.acknowledged.last_event_id or ""):
            message = f"acknowledged.last_event_id is longer than {self._limits.max_id_bytes} bytes"
            raise ProtocolError(Code.LIMIT, message, "no accepted event has such an id; leave it out")
        session, resumed = await self._host.open_session(request, self._peer, self.client, self._owner)
        self.session = session
        self.receipts.events = session.accepted
        self.stage = Stage.OPEN
        if self.is_driver:
            return
        self._decisions_sent = session.decision_log.follow(on=request.decisions)
        self._takes_notices = request.notices
        opened = protocol.Opened(
            session=session.description.session,
            resumed=resumed,
            accepted=session.accepted,
            decided=session.decided,
            last_event_id=session.last_event_id,
            lost=msgspec.UNSET if session.lost is None else protocol_loss(session.lost),
        )
        self.outbox.add_before_ack(protocol.encode(opened))

    def _is_long(self, event_id: str) -> bool:
        return len(event_id.encode()) > self._limits.max_id_bytes

    def _check_name(self, what: str, name: str) -> None:
        if len(name.encode()) > self._limits.max_name_bytes:
            message = f"the name of the {what} is longer than {self._limits.max_name_bytes} bytes"
            raise ProtocolError(Code.LIMIT, message, "use a shorter name")

    def admit(self, chunk: EventChunk) -> None:
        """Admit a chunk of events; reject those that cannot be.

        Raises:
            ErgoCaptureError: the connection has to end with this error.
        """
        session = self.session
        if session is None:
            raise _before_open("an event")
        count, start = len(chunk.events), self.receipts.received + 1
        self.receipts.received += count
        batch, rejections = session.admit(chunk, self._limits.max_id_bytes)
        for rejection in rejections:
            self._reject(
                start + rejection.offset, rejection.event_id, rejection.code, rejection.message, rejection.hint
            )
        self.refused_last = bool(rejections)
        numbers: Sequence[int] = range(start, start + count)
        if rejections:
            refused = {rejection.offset for rejection in rejections}
            numbers = [start + offset for offset in range(count) if offset not in refused]
        if chunk.unknown is not None:
            self._note_unknown(start + chunk.unknown.offset, chunk.ids[chunk.unknown.offset], chunk.unknown.name)
        self.receipts.add(batch, numbers)
        if batch is None:
            self.outbox.wake()

    def _note_unknown(self, index: int, event_id: str, name: str) -> None:
        if self._takes_notices:
            note = protocol.Note(
                index,
                None if self._is_long(event_id) else event_id,
                f"unknown field {name[:_MAX_NAME]!r}: it is kept in the journal and is in no bundle",
                "fields of an event are event_id, kind, at, payload and semantic_kind; this note is sent once",
            )
            self.outbox.add_before_ack(protocol.encode(note))

    def _reject_line(self, line: BadLine) -> None:
        self.refused_last = True
        if self.session is None:
            raise ProtocolError(line.code, line.message, line.hint)
        self.receipts.received += 1
        event_id = line.event_id
        if event_id is not None and self._is_long(event_id):
            event_id = None
        self._reject(self.receipts.received, event_id, line.code, line.message, line.hint)
        self.receipts.add(None)
        self.outbox.wake()
        if line.bad_frame:
            self.bad_frames += 1
            if self.bad_frames >= self._limits.max_bad_frames:
                raise ProtocolError(
                    line.code,
                    f"{self.bad_frames} bad frames on one connection",
                    "correct the client; acknowledged events are safe, connect again and resume",
                )

    async def _flush(self, session: Session) -> None:
        try:
            published = await session.flush(wait_for_room=True)
        except ErgoCaptureError as error:
            if session.failure is not None:
                raise
            raise not_published(error) from error
        flushed = protocol.Flushed(published.bundle, published.manifest, published.sha256)
        self.outbox.add_after_ack(protocol.encode(flushed))

    async def _close(self, session: Session, request: End) -> None:
        ended = "interrupted" if request.interrupted else "complete"
        session.end(ended, keep_empty=request.keep_empty and not self.is_driver, reason=request.reason)
        await session.over.wait()
        if session.failure is not None:
            raise storage_failed(session.failure)
        published = session.publication
        assert published is not None
        closed = protocol.Closed(
            events=session.accepted,
            decisions=session.decided - session.decision_log.refused,
            session=session.description.session,
            bundles=session.bundles,
            bundle=published.bundle,
            manifest=published.manifest,
            sha256=published.sha256,
            terminations={ended.label: count for ended, count in session.terminations.items()},
            refused=session.decision_log.refused,
            left_over=0 if session.left_over is None else session.left_over.count,
            reason=session.reason,
        )
        self.outbox.add_after_ack(protocol.encode(closed))

    # --- answers ---

    async def until_acknowledged(self) -> None:
        """Wait until every event received is acknowledged or rejected, or the session has failed."""
        while self.receipts.open and self.session is not None and self.session.failure is None:
            await self.outbox.until_progress()

    def _compose_due(self) -> list[bytes]:
        """Return the frames that are due: decisions, and one acknowledgement; add the rejections that it covers."""
        session, receipts = self.session, self.receipts
        receipts.settle(0 if session is None else session.decided)
        if self.is_driver:
            return []
        due: list[bytes] = []
        if session is not None:
            for entry in session.decision_log.take_followed():
                self._decisions_sent += 1
                if entry is not None:
                    record = encode_decision(entry.to_record())
                    due.append(protocol.encode_decision_frame(self._decisions_sent, record))
            if self._takes_notices and session.decision_log.refused > self._refused_told:
                due += self._refused_due(session)
        if (receipts.accepted, receipts.decided) != self._acked:
            self._acked = (receipts.accepted, receipts.decided)
            due.append(protocol.encode(protocol.Ack(*self._acked, receipts.events)))
        if self._takes_notices and session is not None and session.left_over is not None and not self._left_over_told:
            self._left_over_told = True
            due.append(self._left_over(session, session.left_over))
        return due

    def _refused_due(self, session: Session) -> list[bytes]:
        """Return the refusals that are durable and not told yet, as far as the session remembers them."""
        log = session.decision_log
        due: list[bytes] = []
        for count, refused in enumerate(log.last_refused, log.refused - len(log.last_refused) + 1):
            if refused.index >= session.decided:
                break
            if count > self._refused_told:
                self._refused_told = count
                index, said = refused.index + 1, (refused.event_id, refused.code, refused.message)
                due.append(protocol.encode(protocol.Refused(index, *said, count)))
        return due

    def _left_over(self, session: Session, left: LeftOver) -> bytes:
        interruption = session.interruption
        assert interruption is not None
        reason, message = interruption.reason, interruption.message
        return protocol.encode(protocol.LeftOver(left.from_index + 1, left.event_id, left.count, reason, message))

    def _due_bytes(self) -> int:
        """Return an estimate of the size of the decisions that are due, in bytes."""
        session = self.session
        if session is None or self.is_driver:
            return 0
        refused = session.decision_log.refused - self._refused_told if self._takes_notices else 0
        return _DECISION_BYTES * session.decision_log.untaken + _REFUSAL_BYTES * refused

    def _reject_batch(self, numbers: Sequence[int], batch: EventBatch) -> None:
        error = batch.refused
        full = isinstance(error, JournalFull)
        code = Code.STORAGE_FULL if full else Code.STORAGE_FAILED
        hint = "send it again later: service resumes when there is room" if full else "connect again later"
        message = f"not journalled: {error}"
        for number, event in zip(numbers, batch.events, strict=True):
            self._reject(number, event.event_id, code, message, hint)

    def _reject(self, index: int, event_id: str | None, code: Code, message: str, hint: str) -> None:
        self._host.refusals[code] += 1
        # A driver need not read: do not drop it for unread rejections.
        if not self.is_driver:
            self.outbox.add_before_ack(protocol.encode(protocol.Reject(index, event_id, code, message, hint)))


def _before_open(frame: str) -> ProtocolError:
    return ProtocolError(Code.BAD_FRAME, f"{frame} came before open", "send hello, then open, then events")
