"""One session: events in, decisions out, both durable; its supervisor runs in its task.

Owns: admission (ids, watermarks), deciding in order, the end of a session and of its parts.
Not here: sockets (``connection.py``), the shared queue (``writer.py``), bundle files (``publisher.py``),
what a crash left behind (``journal/recovery.py``).

The life of an event: *admitted* (its id is taken, its line is queued) -> *accepted* (on stable storage;
only now the supervisor sees it) -> decided in memory -> *decided* (its decision is on stable storage).
"""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.body import Closing, Publication, Rotation, SessionDescription, encode_body
from ergo_capture.journal.frame import FrameKind, PendingFrame
from ergo_capture.journal.journal import JournalFull, Position
from ergo_capture.journal.lines import read_body
from ergo_capture.journal.recovery import PendingPublication, RecoveredSession
from ergo_capture.kernel.events import ExternalEvent, ExternalEventKind
from ergo_capture.kernel.ports import DecisionLogEntry, RuntimeInvoker
from ergo_capture.server.budget import DEFERRED_BYTES, EVENT_BYTES, Holding, size_of_ids, uncounted
from ergo_capture.server.decision_log import JournalDecisionLog
from ergo_capture.server.episodes import Episodes
from ergo_capture.server.graph import Graph
from ergo_capture.server.part import Part, RotationRule
from ergo_capture.server.protocol import Code, EventChunk, ProtocolError
from ergo_capture.server.screening import Refusal, without_duplicates
from ergo_capture.server.submission import Batch, append
from ergo_capture.server.tap import Listener
from ergo_capture.server.writer import Writer


class Owner(Protocol):
    """The connection that owns a session, as the session sees it."""

    def progress(self) -> None:
        """A watermark moved, or a batch was refused: there is something to tell the client."""

    def session_failed(self, error: ProtocolError) -> None:
        """The session can go no further."""


class Publisher(Protocol):
    """Makes bundles of a session's parts."""

    async def publish(
        self, session: Session, part: Part, count: int, ended: str, *, forced: bool = False
    ) -> Publication:
        """Compose ``count`` events of the part and publish them durably."""


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
        self.ids: set[str] = set()
        self.last_event_id: str | None = None
        #: Events whose id is taken: accepted, or still queued.
        self.admitted = 0
        #: Events on stable storage.
        self.accepted = 0
        #: Decisions on stable storage.
        self.decided = 0
        #: Bytes of event lines that were admitted and not yet decided.
        self.queued_bytes = 0
        #: Memory that waiting events and known ids are counted as; the registry says out of which budget.
        self._queue, self._ids_held = uncounted(), uncounted()
        #: Of what is held for ids, the part for deferred episodes.
        self._deferred_held = 0
        #: How it is to end, or ended: ``complete``, ``interrupted``, ``recovered``; None while it is open.
        self.ended: str | None = None
        self.failure: ErgoCaptureError | None = None
        #: The last part's publication, once the session is finished.
        self.publication: Publication | None = None
        self.finished = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._writer = writer
        self._publisher = publisher
        self._rotation = rotation
        self._once = in_doubt == "interrupt"
        self._next_index = 0
        self._batches: deque[Batch] = deque()
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        #: Whether the CLOSE frame is durable already.
        self._closed = False
        self._unpublished: list[PendingPublication] = []
        self.part = Part(1, 0, segment, self._loop.time())
        self._log = JournalDecisionLog(number, description, 0, self._on_decisions_durable, self.fail)
        self._episodes = self._new_episodes(graph.engine.invoker())

    def _new_episodes(self, invoker: RuntimeInvoker | None) -> Episodes:
        description = self.description
        return Episodes(
            self.graph.engine,
            invoker,
            description.graph,
            description.constraints,
            self._log,
            self._on_logged,
            self._until_certain if self._once else None,
        )

    def _on_logged(self) -> None:
        # Why urgent: the next run waits for it.
        self._writer.submit_lazily(self._log, urgent=self._once)
        if self._episodes.mistake is not None:
            self._wake.set()
            self._progress()

    async def _until_certain(self, unlogged: int) -> None:
        """Wait until a run that begins now would be among those that are in doubt after a crash (``Certainty``)."""
        enough = self._log.logged + unlogged - self.graph.engine.pipeline + 1
        while self.decided < enough:
            if self.failure is not None:
                raise self.failure
            if self._episodes.mistake is not None:
                raise self._episodes.mistake
            if self._log.waiting:
                self._writer.submit_lazily(self._log, urgent=True)
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
        session.ids = recovered.ids
        session.last_event_id = recovered.last_event_id
        session.admitted = session.accepted = session._next_index = recovered.accepted
        session.decided = recovered.decided
        session.part = Part(recovered.part, recovered.first, recovered.segment, session._loop.time())
        session.part.event_frames = recovered.event_frames
        session.part.decision_frames = recovered.decision_frames
        session.part.bytes = recovered.event_bytes
        session._log = JournalDecisionLog(
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
        session._unpublished = recovered.unpublished
        if recovered.undecided:
            session._batches.append(Batch(session, b"", recovered.undecided, first=recovered.decided))
            if session._once:
                session._episodes.in_doubt = min(graph.engine.pipeline, len(recovered.undecided))
        if recovered.closing is not None:
            session.ended = recovered.closing.ended
            session._closed = True
        return session

    def charge(self, queue: Holding, ids: Holding) -> None:
        """Count waiting events and known ids here from now on; what is there already is counted at once."""
        self._queue, self._ids_held = queue, ids
        if self.ids:
            ids.hold(size_of_ids(self.ids))
        self._deferred_held = 0
        self._count_deferred()

    def _count_deferred(self) -> None:
        held = DEFERRED_BYTES * self._episodes.supervisor.deferred_count
        if held != self._deferred_held:
            self._ids_held.hold(held - self._deferred_held)
            self._deferred_held = held

    def discharge(self) -> None:
        """The session's task is over: nothing waits, and no id will be asked for."""
        self._queue.free()
        self._ids_held.free()
        # Why: a batch that is refused after this must not be taken off the budget again.
        self._queue, self._ids_held = uncounted(), uncounted()

    # --- admission: synchronous, called by the connection ---

    def admit(self, chunk: EventChunk) -> tuple[Batch | None, list[Refusal]]:
        """Take a chunk's events, all but those whose ids are taken.

        Returns the batch that is now queued (None where nothing was left of the chunk) and the refusals.

        Raises:
            ErgoCaptureError: the journal has failed.
        """
        events, body = chunk.events, chunk.body
        refusals: list[Refusal] = []
        fresh = set(chunk.ids)
        if len(fresh) != len(events) or not self.ids.isdisjoint(fresh):
            events, body, refusals = without_duplicates(chunk, self.ids, self.description.session)
            fresh = {event.event_id for event in events}
            if not events:
                return None, refusals
        self._writer.check()
        batch = Batch(self, body, events, held=len(body) + EVENT_BYTES * len(events))
        self._queue.hold(batch.held)
        self._ids_held.hold(size_of_ids(fresh))
        self.ids |= fresh
        self.admitted += len(events)
        self.queued_bytes += len(body)
        self._writer.submit(batch, len(body))
        return batch, refusals

    async def room(self, limit: int) -> None:
        """Wait until fewer than ``limit`` bytes of events wait to be decided, and the budget has room for more.

        A session of which nothing waits need not wait for others: ``has_room`` says whether it should ask for little.
        """
        while self.failure is None and (self.queued_bytes >= limit or (self.queued_bytes and not self._queue.has_room)):
            await self._moved.wait()

    @property
    def has_room(self) -> bool:
        """Whether there is memory for many more events to wait."""
        return self._queue.has_room

    def check_ids(self) -> None:
        """Raise where there is no memory to know more ids by.

        Raises:
            ProtocolError: no more events can be taken.
        """
        if not self._ids_held.has_room:
            raise ProtocolError(
                Code.LIMIT,
                f"there is no memory for more event ids than the {len(self.ids)} of this session and those of others",
                "close the session and open another, or raise limits.ids_bytes and limits.user_ids_bytes",
            )

    # --- what the writer says: synchronous, between two batches ---

    def take_indices(self, count: int) -> int:
        """The index of the next frame's first event."""
        first = self._next_index
        self._next_index += count
        return first

    def accept(self, batch: Batch, position: Position) -> None:
        """A batch is on stable storage."""
        self.accepted = batch.end
        self.last_event_id = batch.events[-1].event_id
        self.part.event_frames.append(position.pack())
        self.part.bytes += len(batch.body)
        self._batches.append(batch)
        # Why in this order: the client hears of it before its episode is begun, not after.
        self._progress()
        self._wake.set()

    def refuse(self, batch: Batch, error: ErgoCaptureError) -> None:
        """A batch is not on stable storage; its ids are free again."""
        if batch.first >= 0:
            self._next_index = min(self._next_index, batch.first)
        self.admitted -= len(batch.events)
        self.queued_bytes -= len(batch.body)
        ids = [event.event_id for event in batch.events]
        self.ids.difference_update(ids)
        self._queue.hold(-batch.held)
        self._ids_held.hold(-size_of_ids(ids))
        if not isinstance(error, JournalFull):
            self.fail(error)
        self._wake.set()
        self._progress()

    def _on_decisions_durable(self, position: Position, first: int, count: int) -> None:
        self.decided = first + count
        self.part.decision_frames.append(position.pack())
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
        self._moved.set()
        self._moved = asyncio.Event()
        if self.owner is not None:
            self.owner.progress()

    # --- the task ---

    async def run(self) -> None:
        """Decide what is accepted, in order, until the session has ended or failed."""
        try:
            await self._publish_left_over()
            while self.failure is None:
                while self._batches and self.failure is None:
                    await self._decide(self._batches.popleft())
                    await self._rotate_if_due()
                if self.ended is not None or self._episodes.mistake is not None:
                    await self._episodes.settle_all()
                if self.ended is not None and self.admitted == self._log.logged:
                    await self._finish(self.ended)
                    return
                await self._rotate_if_due()
                self._wake.clear()
                if not self._batches:
                    await self._wake.wait()
        except ErgoCaptureError as error:
            self.fail(error)
        except Exception as error:  # noqa: BLE001 - the registry logs it
            # Why here: a mistake of ours in one session must not cost the others anything.
            self.fail(_mistake(error))
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._episodes.abandon()
            self.finished.set()

    async def _decide(self, batch: Batch) -> None:
        if not self._episodes.decide_at_once(batch.events):
            await self._episodes.decide(read_body(batch.body) if batch.body else batch.events)
        self.queued_bytes -= len(batch.body)
        self._queue.hold(-batch.held)
        self._count_deferred()
        self._writer.submit_lazily(self._log, urgent=self._log.followed is not None or self.ended is not None)
        self._progress()

    async def until_decided(self, count: int) -> None:
        """Wait until that many decisions are on stable storage.

        Raises:
            ErgoCaptureError: the session failed first.
        """
        while self.decided < min(count, self.admitted):
            if self.failure is not None:
                raise self.failure
            if self._log.waiting:
                self._writer.submit_lazily(self._log, urgent=True)
            await self._moved.wait()

    # --- ends ---

    def end(self, how: str) -> None:
        """Ask the task to finish: everything admitted is decided, the bundle published."""
        if self.ended is None:
            self.ended = how
            self._writer.hurry()
            self._wake.set()

    async def flush(self, *, ended: str = "open") -> Publication:
        """Publish everything admitted by now, and go on; ``ended`` is what the manifest says of it.

        Raises:
            ErgoCaptureError: the session or the publication failed.
        """
        await self.until_decided(self.admitted)
        return await self._publisher.publish(self, self.part, self.decided - self.part.first, ended)

    async def _finish(self, how: str) -> None:
        await self.until_decided(self.admitted)
        if not self._closed:
            body = encode_body(Closing(how, utc_now()))
            await append(self._writer, PendingFrame(FrameKind.CLOSE, self.number, self.decided, 0, body))
        self.publication = await self._publish(self.part, self.decided - self.part.first, how, final=True)

    async def _publish(self, part: Part, count: int, how: str, *, final: bool, forced: bool = False) -> Publication:
        publication = await self._publisher.publish(self, part, count, how, forced=forced)
        publication = msgspec.structs.replace(publication, final=final)
        frame = PendingFrame(FrameKind.PUBLISHED, self.number, part.number, int(final), encode_body(publication))
        await append(self._writer, frame)
        return publication

    async def _publish_left_over(self) -> None:
        """Publish the parts that had ended and were not published when the daemon stopped."""
        for pending in self._unpublished:
            part = Part(pending.part, pending.first, pending.segment, self._loop.time())
            part.event_frames, part.decision_frames = pending.event_frames, pending.decision_frames
            await self._publish(part, pending.count, pending.ended, final=False, forced=pending.forced)
        self._unpublished = []
        if self.part.number > 1 and self.part.event_frames:
            self.part.segment = Position.unpack(self.part.event_frames[0]).segment

    async def _rotate_if_due(self) -> None:
        part, now, rule = self.part, self._loop.time(), self._rotation
        events = self._log.logged - part.first
        if part.due_since is None and rule.is_due(part, events, now):
            part.due_since = now
        if part.due_since is not None:
            await self._episodes.settle_all()
        if part.due_since is not None and rule.may_end(part, self._episodes.supervisor.deferred_count, now):
            await self._rotate()
        elif (seconds := rule.next_look(part, events, now)) is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(seconds, self._wake.set)

    async def _rotate(self) -> None:
        """End the part here: its bundle, a new part and a new supervisor."""
        forced = self._episodes.supervisor.deferred_count > 0
        boundary = self._log.logged
        await self.until_decided(boundary)
        old = self.part
        new = Part(old.number + 1, boundary, old.segment, self._loop.time())
        # Why: one accepted batch is one frame, and those not yet decided belong to the new part.
        early = len(self._batches)
        new.event_frames = old.event_frames[len(old.event_frames) - early :] if early else array("Q")
        new.bytes = sum(len(batch.body) for batch in self._batches)
        if early:
            del old.event_frames[-early:]
            old.bytes -= new.bytes
        self.part = new
        self._episodes.start_part()
        body = encode_body(Rotation(old.number, forced, utc_now(), self.description, self.last_event_id))
        position = await append(self._writer, PendingFrame(FrameKind.ROTATE, self.number, boundary, 0, body))
        await self._publish(old, boundary - old.first, "rotated", final=False, forced=forced)
        first_frames = [Position.unpack(packed).segment for packed in new.event_frames[:1]]
        new.segment = min([position.segment, *first_frames])

    # --- what others look at ---

    @property
    def state(self) -> str:
        """``open``, ``ending``, ``finished`` or ``failed``."""
        if self.failure is not None:
            return "failed"
        if self.finished.is_set():
            return "finished"
        return "open" if self.ended is None else "ending"

    def listen(self, listener: Listener | None) -> None:
        """Tell somebody of every decision as it is made, durable or not; None for nobody any more."""
        self._log.listener = listener

    def follow(self, *, on: bool) -> None:
        """Keep decisions for the owner until they are durable and taken with ``take_followed``."""
        self._log.followed = deque() if on else None

    def take_followed(self) -> list[DecisionLogEntry]:
        """The kept decisions that are durable by now."""
        followed = self._log.followed
        if not followed:
            return []
        return [followed.popleft() for _ in range(len(followed) - (self._log.logged - self.decided))]

    @property
    def untaken(self) -> int:
        """The kept decisions that are durable by now and were not taken."""
        followed = self._log.followed
        return len(followed) - (self._log.logged - self.decided) if followed else 0

    def snapshot(self) -> SessionSnapshot:
        """What the session is doing now."""
        return SessionSnapshot(
            session=self.description.session,
            graph=self.description.graph,
            state=self.state,
            owned=self.owner is not None,
            admitted=self.admitted,
            accepted=self.accepted,
            decided=self.decided,
            deferred=self._episodes.supervisor.deferred_count,
            queued_bytes=self.queued_bytes,
            part=self.part.number,
        )

    def __repr__(self) -> str:
        return (
            f"<Session {self.description.session} {self.state}, {self.admitted} admitted, "
            f"{self.accepted} accepted, {self.decided} decided>"
        )


def storage_failed(error: ErgoCaptureError) -> ProtocolError:
    """The journal's failure, in words for a client."""
    return ProtocolError(
        Code.STORAGE_FAILED,
        f"the journal has failed: {error.message}",
        "what was acknowledged is safe; connect again when the daemon has been restarted",
    )


def _mistake(error: Exception) -> ErgoCaptureError:
    mistake = ErgoCaptureError(
        f"the session's task ended with {type(error).__name__}: {error}",
        op="run session",
        hint="this is a defect of ergo-capture; what was accepted is safe in the journal, restart the daemon to go on",
    )
    mistake.__cause__ = error
    return mistake


def utc_now() -> str:
    """The wall clock as RFC 3339 in UTC: evidence, never an input of a decision."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
