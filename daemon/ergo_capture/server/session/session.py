"""One session: events in, decisions out, both durable; its supervisor runs in its task.

The life of an event: *admitted* (its id is taken, its line is queued) -> *accepted* (on stable storage;
only now the supervisor sees it) -> decided in memory -> *decided* (its decision is on stable storage).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.errors import JournalFull
from ergo_capture.journal.frame import Position
from ergo_capture.journal.lines import read_body
from ergo_capture.journal.payloads import Publication, SessionDescription
from ergo_capture.journal.recovery import RecoveredSession
from ergo_capture.kernel.events import ExternalEvent, ExternalEventKind
from ergo_capture.kernel.ports import RuntimeInvoker
from ergo_capture.notifier import Notifier
from ergo_capture.protocol.capture import EventChunk, ProtocolError
from ergo_capture.server.commit.submission import Batch
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.failures import mistake, storage_failed
from ergo_capture.server.session import parts
from ergo_capture.server.session.budget import DEFERRED_BYTES
from ergo_capture.server.session.decision_log import JournalDecisionLog
from ergo_capture.server.session.deduplication import Refusal
from ergo_capture.server.session.episodes import Episodes
from ergo_capture.server.session.graph import Graph
from ergo_capture.server.session.intake import Intake
from ergo_capture.server.session.parts import Parts, Publisher, RotationRule, is_full
from ergo_capture.storage.write_error import CaptureWriteError

#: Bytes of effects that may wait for a commit before no further run begins; a full disk can make them wait for long.
_MOST_SAID_BYTES: Final = 16 << 20


class Owner(Protocol):
    """The connection that owns a session, as the session sees it."""

    def progress(self) -> None:
        """A watermark moved, or a batch was refused: there is something to tell the client."""

    def session_failed(self, error: ProtocolError) -> None:
        """The session can go no further."""


class SessionSnapshot(msgspec.Struct, frozen=True):
    """What a session is doing."""

    session: str
    graph: str
    state: str
    owned: bool
    admitted: int
    accepted: int
    decided: int
    deferred: int
    queued_bytes: int
    part: int


class Session:
    """One session's state and its task.

    Args:
        number: the session's number in the journal.
        description: what it is; never changes.
        graph: the graph as configured now.
        writer: makes its frames durable.
        publisher: makes its bundles.
        rotation: when a part ends.
        segment: the journal segment of its OPEN frame.
        in_doubt: what becomes of an episode that may have run before a crash: ``reinvoke`` or ``interrupt``.
    """

    def __init__(
        self,
        number: int,
        description: SessionDescription,
        graph: Graph,
        writer: Writer,
        publisher: Publisher,
        *,
        rotation: RotationRule,
        segment: int,
        in_doubt: str,
    ) -> None:
        self.number = number
        self.description = description
        self.graph = graph
        self.owner: Owner | None = None
        #: What clients have brought.
        self.intake = Intake()
        self.last_event_id: str | None = None
        #: Events on stable storage.
        self.accepted = 0
        #: Decisions on stable storage.
        self.decided = 0
        #: How it is to end, or ended: ``complete``, ``interrupted``, ``recovered``; None while it is open.
        self.ended: str | None = None
        self.failure: ErgoCaptureError | None = None
        #: The last part's publication, once the session is finished.
        self.publication: Publication | None = None
        self.finished = asyncio.Event()
        #: Told when a part's bundle is durable and the session goes on.
        self.on_part_over: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._writer = writer
        self._once = in_doubt == "interrupt"
        self._batches: deque[Batch] = deque()
        self._wake = asyncio.Event()
        self._moved = Notifier()
        self._timer: asyncio.TimerHandle | None = None
        self.parts = Parts(number, description, segment, rotation, writer, publisher)
        #: Its decisions on their way to the journal.
        self.log = JournalDecisionLog(number, description, 0, self._on_decisions_durable, self.fail)
        self._episodes = self._new_episodes(graph.engine.invoker())

    def _new_episodes(self, invoker: RuntimeInvoker | None) -> Episodes:
        description = self.description
        return Episodes(
            self.graph.engine,
            invoker,
            description.graph,
            description.constraints,
            self.log,
            self._on_logged,
            self._before_run,
        )

    def _on_logged(self) -> None:
        # Why urgent: the next run waits for it.
        self._writer.submit_lazily(self.log, urgent=self._once)
        if self._episodes.mistake is not None:
            self._wake.set()
            self._progress()
        elif self._episodes.is_settled:
            # Why: the part may be due by now, and nothing more may come.
            self._wake.set()

    async def _before_run(self, unlogged: int) -> None:
        """Wait until what engines said is not too much to hold, and no more would be in doubt than may be.

        A run that begins now and must not be repeated has to be among those that are taken as in doubt after a crash.
        """
        enough = self.log.logged + unlogged - self.graph.engine.pipeline + 1 if self._once else 0
        while self.decided < enough or self.log.waiting_bytes >= _MOST_SAID_BYTES:
            if self.failure is not None:
                raise self.failure
            if self._episodes.mistake is not None:
                raise self._episodes.mistake
            if self.log.waiting:
                self._writer.submit_lazily(self.log, urgent=True)
            await self._moved.wait()

    @classmethod
    def restore(
        cls,
        recovered: RecoveredSession,
        graph: Graph,
        writer: Writer,
        publisher: Publisher,
        *,
        rotation: RotationRule,
        in_doubt: str,
    ) -> Session:
        """A session as recovery found it; what was accepted and not decided is decided first."""
        session = cls(
            recovered.number,
            recovered.description,
            graph,
            writer,
            publisher,
            rotation=rotation,
            segment=recovered.segment,
            in_doubt=in_doubt,
        )
        session.intake.take_over(recovered)
        session.last_event_id = recovered.last_event_id
        session.accepted = recovered.accepted
        session.decided = recovered.decided
        session.parts = Parts(
            recovered.number, recovered.description, recovered.segment, rotation, writer, publisher, recovered
        )
        session.log = JournalDecisionLog(
            recovered.number, recovered.description, recovered.decided, session._on_decisions_durable, session.fail
        )
        invoker = graph.engine.invoker()
        if invoker is not None:
            # Why: a scripted engine goes on where the script was.
            for event_id, count in recovered.attempts or ():
                used = ExternalEvent.mechanical(event_id, ExternalEventKind.Command)
                for _ in range(count):
                    invoker.run(graph.name, event_id, used, recovered.description.constraints.deadline)
        session._episodes = session._new_episodes(invoker)
        session._episodes.take_over(recovered.supervisor)
        if recovered.undecided:
            session._batches.append(Batch(session, b"", recovered.undecided, first=recovered.decided))
            if session._once:
                session._episodes.in_doubt = min(graph.engine.pipeline, len(recovered.undecided))
        if recovered.closing is not None:
            session.ended = recovered.closing.ended
        return session

    # --- admission: synchronous, called by the connection ---

    def admit(self, chunk: EventChunk) -> tuple[Batch | None, list[Refusal]]:
        """Take a chunk's events, all but those whose ids are taken.

        Returns the batch that is now queued (None where nothing was left of the chunk) and the refusals.

        Raises:
            ErgoCaptureError: the journal has failed.
        """
        self._writer.check()
        batch, refusals = self.intake.admit(chunk, self.description.session, self)
        if batch is not None:
            self._writer.submit(batch, len(batch.body))
        return batch, refusals

    async def room(self, limit: int) -> None:
        """Wait until fewer than ``limit`` bytes of events wait to be decided, and there is memory for more."""
        while self.failure is None and self.intake.is_full(limit):
            await self._moved.wait()

    # --- what the writer says: synchronous, between two batches ---

    def take_indices(self, count: int) -> int:
        """The index of the next frame's first event."""
        return self.intake.take_indices(count)

    def accept(self, batch: Batch, position: Position) -> None:
        """A batch is on stable storage."""
        self.accepted = batch.end
        self.last_event_id = batch.events[-1].event_id
        self.parts.add_events(position, len(batch.body))
        self._batches.append(batch)
        # Why in this order: the client hears of it before its episode is begun, not after.
        self._progress()
        self._wake.set()

    def refuse(self, batch: Batch, error: ErgoCaptureError) -> None:
        """A batch is not on stable storage; its ids are free again."""
        self.intake.refuse(batch)
        if not isinstance(error, JournalFull):
            self.fail(error)
        self._wake.set()
        self._progress()

    def _on_decisions_durable(self, position: Position, first: int, count: int) -> None:
        self.decided = first + count
        self.parts.add_decisions(position)
        if self.log.waiting:
            # Why: they were too much for one frame. And why not at once: the batch that they go with is told of first.
            self._loop.call_soon(self._writer.submit_lazily, self.log)
        self._progress()

    def fail(self, error: ErgoCaptureError) -> None:
        """Nothing more of this session can become durable; what was accepted is safe in the journal."""
        if self.failure is None:
            self.failure = error
            self._wake.set()
            self._progress()
            if self.owner is not None:
                self.owner.session_failed(storage_failed(error))

    def _progress(self) -> None:
        self._moved.notify_all()
        if self.owner is not None:
            self.owner.progress()

    # --- the task ---

    async def run(self) -> None:
        """Decide what is accepted, in order, until the session has ended or failed."""
        try:
            await self.parts.publish_recovered()
            self.on_part_over()
            while self.failure is None:
                # Why first: what wakes it while it waits for a bundle must wake it again behind that.
                self._wake.clear()
                while self._batches and self.failure is None:
                    await self._decide(self._batches.popleft())
                    await self._rotate_if_due()
                if self.ended is not None or self._episodes.mistake is not None:
                    await self._episodes.settle_all()
                if self.ended is not None and self.intake.admitted == self.log.logged:
                    await self.until_decided(self.intake.admitted)
                    self.publication = await self.parts.finish(self.decided, self.ended)
                    return
                await self._rotate_if_due()
                if not self._batches:
                    await self._wake.wait()
        except ErgoCaptureError as error:
            self.fail(error)
        except Exception as error:  # noqa: BLE001 - the registry logs it
            # Why here: a mistake of ours in one session must not cost the others anything.
            self.fail(mistake(error))
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._episodes.abandon()
            self.finished.set()

    async def _decide(self, batch: Batch) -> None:
        if not self._episodes.decide_at_once(batch.events):
            await self._episodes.decide(read_body(batch.body) if batch.body else batch.events)
        self.intake.release(batch, self.deferred_bytes)
        self._writer.submit_lazily(self.log, urgent=self.log.is_followed or self.ended is not None)
        self._progress()

    async def until_accepted(self) -> None:
        """Wait until nothing that was admitted is still on its way to the journal, or the session has failed."""
        while self.failure is None and self.accepted < self.intake.admitted:
            await self._moved.wait()

    async def until_decided(self, count: int) -> None:
        """Wait until that many decisions are on stable storage.

        Raises:
            ErgoCaptureError: the session failed first.
        """
        while self.decided < min(count, self.intake.admitted):
            if self.failure is not None:
                raise self.failure
            if self.log.waiting:
                self._writer.submit_lazily(self.log, urgent=True)
            await self._moved.wait()

    # --- ends ---

    def end(self, how: str) -> None:
        """Ask the task to finish: everything admitted is decided, the bundle published."""
        if self.ended is None:
            self.ended = how
            self._writer.hurry()
            self._wake.set()

    async def flush(self, *, ended: str = "open", wait_for_room: bool = False) -> Publication:
        """Publish everything admitted by now, and go on; wait for the last bundle where the session is about to end.

        Args:
            ended: what the manifest says of the session.
            wait_for_room: whether to wait while the disk is full (P8).

        Raises:
            ErgoCaptureError: the session or the publication failed.
        """
        while True:
            await self.until_decided(self.intake.admitted)
            if self.ended is not None:
                # A snapshot after the last bundle would replace it, and its manifest would say that the session goes on.
                await self.finished.wait()
                if self.publication is None:
                    raise self.failure or mistake(RuntimeError("it ended without a bundle"))
                return self.publication
            try:
                return await self.parts.snapshot(self.decided, ended)
            except CaptureWriteError as error:
                if not (wait_for_room and is_full(error)):
                    raise
            # Begin again: meanwhile the part may have ended, and its bundle must not become a snapshot.
            await asyncio.sleep(parts.RETRY_SECONDS)

    async def publish_decided(self) -> None:
        """Publish what is decided of the part that grows, without waiting for anything to be; nothing where it is over.

        Raises:
            ErgoCaptureError: the publication failed.
        """
        if self.ended is None and self.decided > self.parts.current.first:
            await self.parts.snapshot(self.decided, "open")

    def let_go(self) -> None:
        """Nothing is asked of the session any more: give back what it takes.

        Why not left to the collector: the session is in a cycle with its own log, and would keep megabytes until that is
        found.
        """
        self.intake.close()
        if self.failure is None:
            self._episodes.start_part()

    async def _rotate_if_due(self) -> None:
        if self.parts.is_due(self.log.logged):
            await self._episodes.settle_all()
            deferred = self.deferred
            if self.parts.may_end(deferred):
                boundary = self.log.logged
                await self.until_decided(boundary)
                self._episodes.start_part()
                await self.parts.rotate(boundary, self._batches, self.last_event_id, forced=deferred > 0)
                self.intake.end_part(boundary)
                self.on_part_over()
                return
        if (seconds := self.parts.next_check(self.log.logged)) is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(seconds, self._wake.set)

    # --- what others look at ---

    @property
    def deferred(self) -> int:
        """Episodes that are deferred."""
        return self._episodes.supervisor.deferred_count

    @property
    def deferred_bytes(self) -> int:
        """About the memory that they take."""
        return DEFERRED_BYTES * self.deferred + self._episodes.supervisor.deferred_bytes

    @property
    def state(self) -> str:
        """``open``, ``ending``, ``finished`` or ``failed``."""
        if self.failure is not None:
            return "failed"
        if self.finished.is_set():
            return "finished"
        return "open" if self.ended is None else "ending"

    def snapshot(self) -> SessionSnapshot:
        """What the session is doing now."""
        return SessionSnapshot(
            session=self.description.session,
            graph=self.description.graph,
            state=self.state,
            owned=self.owner is not None,
            admitted=self.intake.admitted,
            accepted=self.accepted,
            decided=self.decided,
            deferred=self.deferred,
            queued_bytes=self.intake.queued_bytes,
            part=self.parts.current.number,
        )

    def __repr__(self) -> str:
        return (
            f"<Session {self.description.session} {self.state}, {self.intake.admitted} admitted, "
            f"{self.accepted} accepted, {self.decided} decided>"
        )
