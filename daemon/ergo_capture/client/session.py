"""A session with the daemon that survives the daemon's restarts.

Events that are not acknowledged are kept. When the connection breaks, the client connects again with back-off,
resumes its session, learns which event was the last to become durable, and continues with the one after it.
An event that is sent twice because its acknowledgement was lost is rejected by the daemon as a duplicate, and the
client then knows that it is durable. So each event is in the bundle exactly once, whichever side fails.

The client also remembers how many events of the session were acknowledged, and says so when it resumes. If the daemon
holds fewer, because its state directory is older, it refuses, and every call raises ``acknowledged_lost``, unless
``resume_after_loss`` is set.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from os import PathLike, fspath
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

import anyio
import msgspec
from anyio.abc import TaskGroup

from ergo_capture.client.connection import LOST, MISUSE, UNREACHABLE, ClientError, Connection, error_of, invalid_frame
from ergo_capture.client.in_flight import EventLine, InFlight, PendingRequest, RequestAnswer
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.notifier import Notifier
from ergo_capture.protocol import capture as protocol
from ergo_capture.protocol.capture import (
    DECIDED_BY,
    Acknowledged,
    Code,
    IngressReason,
    LeftOver,
    Lost,
    Refused,
    event_line,
)

#: How many bytes are collected for one write; a sender waits while there are more.
_SEND_BYTES: Final = 128 * 1024
_CLOSE: Final = protocol.encode(protocol.Close())
_FLUSH: Final = protocol.encode(protocol.Flush())
_PING: Final = protocol.encode(protocol.Ping())

_Answer = TypeVar("_Answer", bound=RequestAnswer)


class Reject(msgspec.Struct, frozen=True):
    """An event that the daemon rejected."""

    #: None if the line cannot be read that far.
    event_id: str | None
    code: str
    message: str
    #: The line as it was sent.
    line: bytes = b""
    hint: str = ""
    #: The caller's number of the event, from ``send_line``.
    place: int = 0


class Note(msgspec.Struct, frozen=True):
    """An event that was accepted and probably contains a mistake, such as an unknown field."""

    event_id: str | None
    message: str
    hint: str = ""
    #: The caller's number of the event, from ``send_line``.
    place: int = 0


class Published(msgspec.Struct, frozen=True):
    """A bundle that the daemon published, in answer to a flush or a close."""

    bundle: str
    manifest: str
    #: SHA-256 of the bundle file, in hex.
    sha256: str
    #: Counts of the whole session; zero in answer to a flush.
    events: int = 0
    decisions: int = 0
    session: str = ""
    #: The bundles of all parts of a session that was closed, in order, ``bundle`` last; empty from an older daemon.
    bundles: tuple[str, ...] = ()
    #: Episodes by ``Completed``, ``TimedOut``, ``Aborted`` or ``Failed(KIND)``, in answer to a close; empty from an
    #: older daemon.
    terminations: dict[str, int] = {}
    #: Durable events of the session that are not decided: refused, and left over after an interruption of the run.
    refused: int = 0
    left_over: int = 0
    #: The reason for the session's interruption, in one word; empty for none, or if it is unknown.
    reason: str = ""


class _State(Enum):
    #: No session was asked for.
    NEW = auto()
    #: ``open`` was sent and not answered; events may be queued.
    OPENING = auto()
    OPEN = auto()
    #: The connection is broken; events may be queued.
    RECONNECTING = auto()
    #: The daemon closed the session, as it was asked to.
    CLOSED = auto()
    #: The daemon refused to continue, or cannot be reached any more.
    FAILED = auto()


#: The states in which nothing can be sent. Built once: every event is checked against it.
_WITHOUT_SESSION: Final = (_State.NEW, _State.CLOSED)


class CaptureClient:
    """One session with the daemon.

    Args:
        path: the daemon's socket.
        name: the client's name in the daemon's log.
        window: how many events may be unacknowledged at once.
        give_up_after: seconds to keep trying to reach the daemon again; zero for no second attempt.
        resume_after_loss: whether to continue if the daemon has lost acknowledged events; ``lost`` is then the loss.
        on_reject: called for each event that the daemon rejects.
        on_note: called if an accepted event probably contains a mistake; at most once for each connection.
        on_refused: called for each event that was accepted and is refused when its turn comes.
        on_durable: called for each event that is durable, with the ``place`` that ``send_line`` was given.
        on_decision: called with each decision record, if ``open`` asked for them.
        on_reconnect: called when the session was resumed, with the number of times that has happened.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        name: str = "ergo-capture-client",
        window: int = 1024,
        give_up_after: float = 60.0,
        resume_after_loss: bool = False,
        on_reject: Callable[[Reject], None] | None = None,
        on_note: Callable[[Note], None] | None = None,
        on_refused: Callable[[Refused], None] | None = None,
        on_durable: Callable[[int], None] | None = None,
        on_decision: Callable[[dict[str, Any]], None] | None = None,
        on_reconnect: Callable[[int], None] | None = None,
    ) -> None:
        self.reconnects = 0
        #: Events of the session that were durable before this client resumed it.
        self.resumed_after = 0
        #: The known loss of the session; None for none.
        self.lost: Lost | None = None
        #: The number of the session's events that were refused when their turn came, as far as the daemon has reported.
        self.refused = 0
        #: Events that are not decided because the run was interrupted; None for none.
        self.left_over: LeftOver | None = None
        #: Whether the run was interrupted: further events are rejected.
        self.is_interrupted = False
        self._state = _State.NEW
        self._connection = Connection(fspath(path), name, give_up_after, resume_after_loss=resume_after_loss)
        self._window = window
        self._on_reject = on_reject or (lambda _reject: None)
        self._on_note = on_note or (lambda _note: None)
        self._on_refused = on_refused or (lambda _refused: None)
        self._on_decision = on_decision or (lambda _decision: None)
        self._on_reconnect = on_reconnect or (lambda _times: None)
        self._in_flight = InFlight(on_durable)
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        self._changed = Notifier()
        self._request = PendingRequest()
        #: Held by the task whose request is under way.
        self._requesting = asyncio.Lock()
        self._sending_due = asyncio.Event()
        self._tasks: TaskGroup
        #: The request by which the session is closed.
        self._closing = _CLOSE
        #: The answer to ``close``, once it has come.
        self._closed: Published | None = None
        #: The error that every call raises in the state FAILED.
        self._failure: ClientError | None = None

    @property
    def path(self) -> str:
        """Return the path of the daemon's socket."""
        return self._connection.path

    @property
    def session(self) -> str | None:
        """Return the session's id, once it was opened."""
        return self._connection.session

    @property
    def last_event_id(self) -> str | None:
        """Return the id of the last event that was durable when the session was opened or resumed."""
        return self._connection.last_event_id

    @property
    def limits(self) -> dict[str, int]:
        """Return the daemon's limits: bytes and counts, by name."""
        return self._connection.limits

    @property
    def accepted(self) -> int:
        """Return how many events were acknowledged as durable, without those that were rejected."""
        return self._in_flight.accepted

    @property
    def rejected(self) -> int:
        """Return how many events the daemon rejected."""
        return self._in_flight.rejected

    @property
    def already_captured(self) -> int:
        """Return how many events were duplicates of those that the session held before this client resumed it."""
        return self._in_flight.captured

    @property
    def acknowledged(self) -> Acknowledged:
        """Return the events that were acknowledged, for ``open`` when another client resumes the session."""
        return Acknowledged(self._in_flight.told_events, self._in_flight.told_last)

    # --- connecting ---

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        try:
            await self._connection.connect()
        except BaseException:
            await self._tasks.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            with anyio.CancelScope(shield=True):
                await self._connection.hang_up()

    async def open(
        self,
        graph: str = "default",
        *,
        session: str | None = None,
        labels: dict[str, str] | None = None,
        decisions: bool = False,
        acknowledged: Acknowledged | None = None,
        decided_by: Literal["engine", "fixed"] = "engine",
    ) -> str:
        """Open a session of ``graph``, or resume ``session``; return its id.

        Args:
            graph: the graph whose episodes the events lead to.
            session: id of a session to resume; None for a new one.
            labels: free text by name, for the session's manifest.
            decisions: whether to report each decision to ``on_decision``.
            acknowledged: the events that were acknowledged to an earlier client of the session that is resumed.
            decided_by: ``fixed`` for a new session whose episodes run elsewhere.

        Raises:
            ClientError: ``acknowledged_lost`` if the daemon holds fewer events than that; another refusal
                (``unknown_graph``, ``no_engine``, ``no_egress``, ``unknown_session``, ``session_busy``, ...);
                ``misuse`` if a session is open already.
        """
        if self._state is not _State.NEW:
            raise ClientError(MISUSE, "open a session: this client has one already", "use a client for each session")
        if decided_by != "engine" and DECIDED_BY not in self._connection.features:
            message = f"the daemon at '{self.path}' does not know sessions without an engine"
            raise ClientError(Code.UNSUPPORTED_PROTOCOL, message, "it is older than this program: update it")
        request = protocol.Open(graph, session, labels or {}, decisions, decided_by=decided_by)
        self._state = _State.OPENING
        self._connection.told = acknowledged
        try:
            opened = await self._connection.open(request)
        except BaseException:
            self._state = _State.NEW
            raise
        self._state = _State.OPEN
        self.resumed_after = opened.accepted
        self._in_flight.opened(opened.accepted, opened.last_event_id)
        self._note_loss(opened)
        self._tasks.start_soon(self._read_forever)
        self._tasks.start_soon(self._send_forever)
        return opened.session

    def _note_loss(self, opened: protocol.Opened) -> None:
        if opened.lost is not msgspec.UNSET:
            self.lost = opened.lost

    # --- events ---

    async def send(self, event: ExternalEvent) -> None:
        """Queue one event to be sent; wait while the window is full.

        Raises:
            ClientError: the daemon cannot be reached any more, or ended the session; ``misuse`` if none is open.
        """
        await self.send_lines([EventLine(event_line(event), event.event_id)])

    async def send_line(self, line: bytes, event_id: str, place: int = 0) -> None:
        """Queue one event line, newline included, to be sent unchanged; wait while the window is full.

        Args:
            line: the line.
            event_id: the id of its event.
            place: a number by which a rejection names the event, such as that of a line in a file.

        Raises:
            ClientError: as ``send``.
        """
        await self.send_lines([EventLine(line, event_id, place)])

    async def send_lines(self, lines: Sequence[EventLine]) -> None:
        """Queue event lines, in order, to be sent unchanged; wait while the window is full.

        A caller that is cancelled may have sent some of them: the first ones.

        Raises:
            ClientError: as ``send``.
        """
        sent = 0
        while sent < len(lines):
            while (room := self._window - len(self._in_flight)) <= 0 or self._outgoing_bytes >= _SEND_BYTES:
                await self._wait()
            self._check()
            some = lines[sent : sent + room]
            self._in_flight.add(some)
            self._put([event.line for event in some])
            sent += len(some)

    def _put(self, lines: list[bytes]) -> None:
        self._outgoing += lines
        self._outgoing_bytes += sum(map(len, lines))
        self._sending_due.set()

    async def drain(self) -> None:
        """Wait until everything sent is acknowledged or rejected.

        Raises:
            ClientError: as ``send``.
        """
        while self._in_flight:
            await self._wait()

    # --- requests ---

    async def flush(self) -> Published:
        """Let the daemon publish a snapshot of the session; return the bundle.

        Raises:
            ClientError: as ``send``.
        """
        answer = await self._ask(_FLUSH, protocol.Flushed)
        return Published(answer.bundle, answer.manifest, answer.sha256)

    async def settled(self) -> None:
        """Wait until an answer has come: a rejection, an acknowledgement, or the answer to a request.

        Raises:
            ClientError: as ``send``.
        """
        await self._wait()

    async def close(
        self, *, interrupted: bool = False, keep_empty: bool = True, reason: IngressReason | None = None
    ) -> Published:
        """End the session, wait until its bundle is published, and return the bundle; another call returns the same.

        Args:
            interrupted: whether the events ended early; the manifest says so.
            keep_empty: whether a session without events leaves a bundle. A daemon of 0.1.0 ignores both.
            reason: the reference's word for why the events ended early.

        Raises:
            ClientError: as ``send``; ``unknown_session`` if the session ended while no client was connected.
        """
        await self.drain()
        async with self._requesting:
            if self._closed is None:
                self._check()
                if interrupted or not keep_empty:
                    end = protocol.End(interrupted=interrupted, reason=reason, keep_empty=keep_empty)
                    self._closing = protocol.encode(end)
                await self._ask_alone(self._closing)
            assert self._closed is not None
            return self._closed

    async def ping(self) -> None:
        """Wait for an answer from the daemon.

        Raises:
            ClientError: as ``send``.
        """
        await self._ask(_PING, protocol.Pong)

    async def _ask(self, line: bytes, kind: type[_Answer]) -> _Answer:
        async with self._requesting:
            self._check()
            answer = await self._ask_alone(line)
        if not isinstance(answer, kind):
            raise invalid_frame(f"a {type(answer).__name__} came for a {kind.__name__}")
        return answer

    async def _ask_alone(self, line: bytes) -> RequestAnswer:
        self._request.begin(line)
        self._put([line])
        try:
            while self._request.answer is None:
                await self._wait()
        except asyncio.CancelledError:
            self._request.abandon(sent=self._state is _State.OPEN)
            raise
        else:
            return self._request.answer
        finally:
            self._request.end()

    # --- tasks ---

    async def _read_forever(self) -> None:
        try:
            while True:
                try:
                    for answer in await self._connection.read():
                        self._take(answer)
                except LOST:
                    if self._state is _State.CLOSED:
                        return
                    if not self._connection.patience:
                        raise ClientError(UNREACHABLE, f"the daemon at '{self.path}' is gone") from None
                    await self._reconnect()
        except ClientError as error:
            self._state, self._failure = _State.FAILED, error
            self._changed.notify_all()

    async def _reconnect(self) -> None:
        """Resume the session on a new connection, and queue the events that are not known to be durable."""
        self._state = _State.RECONNECTING
        self._request.disconnected()
        self._connection.told = self.acknowledged
        opened = await self._connection.reopen()
        self.reconnects += 1
        self._outgoing = self._in_flight.reconnected(opened.accepted, opened.last_event_id)
        self._note_loss(opened)
        if (request := self._request.reconnected()) is not None:
            self._outgoing.append(request)
        self._outgoing_bytes = sum(map(len, self._outgoing))
        self._state = _State.OPEN
        self._changed.notify_all()
        self._sending_due.set()
        self._on_reconnect(self.reconnects)

    def _take(self, answer: protocol.Answer) -> None:
        match answer:
            case protocol.Ack():
                self._in_flight.acked(answer.accepted, answer.events)
                self._changed.notify_all()
            case protocol.Reject(index, event_id, code, message, hint):
                self.is_interrupted |= code == Code.RUN_INTERRUPTED
                if self._in_flight.is_rejected(index, duplicate=code == Code.DUPLICATE_EVENT_ID):
                    sent = self._in_flight.sent(index)
                    line, place = (b"", 0) if sent is None else (sent.line, sent.place)
                    self._on_reject(Reject(event_id, code, message, line, hint, place))
            case protocol.Note(index, event_id, message, hint):
                sent = self._in_flight.sent(index)
                self._on_note(Note(event_id, message, hint, 0 if sent is None else sent.place))
            case protocol.Refused():
                # After a resume, the daemon sends again all refusals that the session remembers.
                if answer.count > self.refused:
                    self.refused = answer.count
                    self._on_refused(answer)
            case protocol.LeftOver():
                self.left_over, self.is_interrupted = answer, True
            case protocol.DecisionFrame():
                self._on_decision(answer.decision)
            case protocol.Error():
                if self._may_pass(answer.code) and self._connection.patience:
                    raise anyio.EndOfStream
                raise error_of(answer)
            case protocol.Closed():
                self._state = _State.CLOSED
                self._closed = Published(
                    answer.bundle,
                    answer.manifest,
                    answer.sha256,
                    answer.events,
                    answer.decisions,
                    answer.session,
                    tuple(answer.bundles),
                    answer.terminations,
                    answer.refused,
                    answer.left_over,
                    answer.reason,
                )
                self._request.take_closed(answer, self._closing)
                self._changed.notify_all()
            case protocol.Flushed() | protocol.Pong():
                self._request.take(answer)
                self._changed.notify_all()
            case protocol.Welcome() | protocol.Opened():
                raise invalid_frame(f"a {type(answer).__name__} came twice")

    def _may_pass(self, code: str) -> bool:
        """Return whether to try again on a new connection after an ``error`` frame.

        A request that failed because the disk was full is sent once more; after a second failure it is given up.
        """
        return code == Code.SHUTTING_DOWN or (code == Code.STORAGE_FAILED and not self._request.sent_again)

    async def _send_forever(self) -> None:
        # Only this task writes to the socket: a sender that is cancelled would leave half a line.
        while True:
            await self._sending_due.wait()
            self._sending_due.clear()
            # Let senders that are ready now join this write.
            await asyncio.sleep(0)
            # While the session is being resumed, nothing may come between ``hello`` and the answer to ``open``.
            if self._state is not _State.OPEN or not self._outgoing:
                continue
            data, self._outgoing, self._outgoing_bytes = b"".join(self._outgoing), [], 0
            self._changed.notify_all()
            # Ignore a broken connection: the reading task notices it, reconnects, and sends unsettled events again.
            with suppress(*LOST):
                await self._connection.send(data)

    async def _wait(self) -> None:
        """Wait until something changes.

        Raises:
            ClientError: the session has failed or was closed.
        """
        self._check()
        await self._changed.wait()
        if self._request.answer is None:
            self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._state in _WITHOUT_SESSION:
            what = "is closed" if self._state is _State.CLOSED else "was not opened"
            raise ClientError(
                MISUSE, f"the session {what}", "open() a session before anything else; one for each client"
            )


async def stream(
    path: str | PathLike[str], events: Iterable[ExternalEvent], *, graph: str = "default", window: int = 1024
) -> Published:
    """Send events in a new session, close it, and return the published bundle.

    Raises:
        ClientError: as ``CaptureClient``.
    """
    async with session_of(path, graph=graph, window=window) as client:
        for event in events:
            await client.send(event)
        return await client.close()


@asynccontextmanager
async def session_of(
    path: str | PathLike[str], *, graph: str = "default", window: int = 1024, **options: Any
) -> AsyncIterator[CaptureClient]:
    """Connect, open a session, and yield the client; ``options`` are those of ``CaptureClient``."""
    async with CaptureClient(path, window=window, **options) as client:
        await client.open(graph)
        yield client
