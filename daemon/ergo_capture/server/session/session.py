"""A session: it makes events durable, decides them in its task, and publishes its last bundle when it ends.

An event is *admitted* (its id is taken and its line is queued), then *accepted* (its line is on stable storage; only
now the supervisor sees it), then decided in memory, then *decided* (its decision is on stable storage).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

import msgspec
import structlog

from ergo_capture import telemetry
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.errors import JournalFull
from ergo_capture.journal.frame import Position
from ergo_capture.journal.payloads import (
    Interruption,
    LeftOver,
    Loss,
    Publication,
    RefusedEvent,
    join_losses,
)
from ergo_capture.journal.recovery import RecoveredSession
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.notifier import Notifier
from ergo_capture.protocol.capture import Code, EventChunk, ProtocolError
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.failures import internal_error, storage_failed
from ergo_capture.server.session import parts
from ergo_capture.server.session.admission_queue import AdmissionQueue, EventBatch, Rejection
from ergo_capture.server.session.budget import Holding, size_of_deferred
from ergo_capture.server.session.decision_log import JournalDecisionLog
from ergo_capture.server.session.egress import SessionEgress
from ergo_capture.server.session.episodes import Episodes, concurrency
from ergo_capture.server.session.graph import Graph, check_of
from ergo_capture.server.session.parts import Parts, Publisher, RotationRule, is_full
from ergo_capture.storage.write_error import CaptureWriteError

#: No run begins while more bytes of effects wait for a commit: on a full disk they wait for long.
_MAX_UNCOMMITTED_BYTES: Final = 16 << 20


#: Counts by graph besides decisions: events that are refused and left over, and runs that are interrupted. Each has a
#: metric.
FATES: Final = ("refused", "left_over", "interrupted")
#: Hints for an interruption of the run, by reason.
_HINTS: Final = {
    "context_full": "raise limits.context_bytes, or let the graph write less; send what is left over, the .rest.jsonl "
    "beside the bundle, in another session"
}

log = structlog.get_logger()


class SessionState(Enum):
    """The state of a session; the values are the words in the status."""

    #: Takes events.
    OPEN = "open"
    #: Asked to end: decides what is admitted, then publishes its last bundle.
    ENDING = "ending"
    #: Its last bundle is durable.
    FINISHED = "finished"
    #: Nothing more of it can become durable; the next start recovers it.
    FAILED = "failed"


class Owner(Protocol):
    """The connection that owns a session."""

    def progress(self) -> None:
        """Look for something to tell the client, because a watermark has moved or a batch was refused."""

    def session_failed(self, error: ProtocolError) -> None:
        """End the connection, because its session has failed."""


class SessionSnapshot(msgspec.Struct, frozen=True):
    """The state of a session."""

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
    #: Events that a client was told are durable and that are missing; None where none are.
    lost: Loss | None = None
    #: How many of the decided events the adapter refused.
    refused: int = 0
    #: The reason of the run's interruption; empty for none. Events after it are left over.
    interrupted_by: str = ""
    left_over: int = 0
    #: The error for which the session can go no further; empty unless it has failed.
    failure: str = ""
    #: The error for which the bundle of an ended part waits for room on the disk; empty for none.
    delayed_by: str = ""


class Session:
    """One session's state and its task.

    Args:
        initial: the session as recovery found it, or ``RecoveredSession.new``. Events that are accepted and not
            decided are decided first.
        graph: the graph as configured now.
        writer: makes its frames durable.
        publisher: composes its bundles.
        rotation: when a part ends.
        in_doubt: how episodes in doubt are handled: ``reinvoke`` or ``interrupt``.
        events_memory: counts the memory of events that wait to be decided.
        ids_memory: counts the memory of event ids and deferred episodes.
        episodes: counts the graph's episodes by how they ended.
        intents: counts the graph's intents (``SessionEgress``).
        fates: counts for the graph what ``FATES`` names.
        on_part_over: called when a part's bundle is durable and the session goes on.
    """

    def __init__(
        self,
        initial: RecoveredSession,
        graph: Graph,
        writer: Writer,
        publisher: Publisher,
        *,
        rotation: RotationRule,
        in_doubt: str,
        events_memory: Holding,
        ids_memory: Holding,
        episodes: Counter[RunTermination],
        intents: Counter[str],
        fates: Counter[str],
        on_part_over: Callable[[], None],
    ) -> None:
        self.description = initial.description
        self.graph = graph
        self.owner: Owner | None = None
        self.last_event_id = initial.last_event_id
        #: Events on stable storage.
        self.accepted = initial.accepted
        #: Decisions on stable storage.
        self.decided = initial.decided
        #: The manifest's ``ended``: ``complete``, ``interrupted``, ``recovered`` or ``lost``; None while it is open.
        self.ended = None if initial.closing is None else initial.closing.ended
        if initial.interruption is not None and self.ended is None:
            self.ended = "interrupted"
        self.state = SessionState.OPEN if self.ended is None else SessionState.ENDING
        self._keep_empty = initial.closing is None or initial.closing.keep_empty
        #: Events that a client was told are durable and that are missing; None where none are.
        self.lost = initial.lost
        #: The error that ended it, in state ``FAILED``.
        self.failure: ErgoCaptureError | None = None
        #: The last part's publication, and the bundles of all parts, in state ``FINISHED``.
        self.publication: Publication | None = None
        self.bundles: list[str] = []
        #: The interruption of the run, after which nothing is decided; None while the run goes on.
        self.interruption = initial.interruption
        #: The reason why the client's events ended early, if it gave one; all of them are decided.
        self._ended_by: Interruption | None = None
        #: The accepted events after the interruption, in state ``FINISHED``; None where there are none.
        self.left_over: LeftOver | None = None
        #: The id of the first event that is left over.
        self._first_left_over = None if initial.left_over is None else initial.left_over.event_id
        #: Set when the task is over: the session has finished or failed.
        self.over = asyncio.Event()
        self.admission = AdmissionQueue(initial, events_memory, ids_memory, self._on_accepted, self._on_refused)
        #: Episodes by how they ended, including those of recovered parts.
        self.terminations = initial.terminations
        self._graph_terminations = episodes
        self._fates = fates
        self.decision_log = JournalDecisionLog(
            initial, self._on_decisions_durable, self.fail, self._count, self._note_refused
        )
        self.parts = Parts(initial, writer, publisher)
        #: When a part ends.
        self.rotation = rotation
        self._writer = writer
        self._on_part_over = on_part_over
        self._loop = asyncio.get_running_loop()
        #: Whether an episode must not run twice, so that a run waits for the decisions before it.
        self._at_most_once = in_doubt == "interrupt"
        #: Accepted batches that are not decided.
        self._batches: deque[EventBatch] = deque()
        if initial.undecided:
            body = initial.undecided_lines
            first, end = initial.decided, initial.accepted
            self._batches.append(EventBatch(self.admission, body, initial.undecided, first=first, end=end))
            self.admission.queued_bytes += len(body)
        #: Wakes the task.
        self._wake = asyncio.Event()
        #: Wakes the tasks that wait for a watermark or for room.
        self._moved = Notifier()
        #: Wakes the task when the part may be due by its age.
        self._rotation_timer: asyncio.TimerHandle | None = None
        contract = initial.description.contract
        self._derivation = derivation = graph.derivation(contract, initial.store)
        binding = graph.binding if derivation is None and initial.description.decided_by else None
        if derivation is not None:
            binding = derivation.binding
        #: Checks event lines at admission; None without an adapter.
        self._check = None if binding is None else check_of(binding)
        has_egress = initial.description.egress_provenance is not None
        #: The egress channels; None without any.
        self.egress = SessionEgress(initial, graph.egress, writer, self.decision_log, intents) if has_egress else None
        #: How many runs may be under way at once, and so be in doubt after a crash.
        self._most_under_way = concurrency(
            graph.engine, initial.description.constraints, derivation, has_egress=has_egress
        )
        self._episodes = Episodes(
            graph.engine,
            initial,
            self.decision_log,
            most_under_way=self._most_under_way,
            at_most_once=self._at_most_once,
            before_run=self._before_run,
            on_logged=self._on_logged,
            on_failed=self._on_run_failed,
            derivation=derivation,
            egress=self.egress,
            on_interrupted=self._on_interrupted,
        )

    # --- admission: synchronous, called by the connection ---

    def admit(self, chunk: EventChunk, max_id_bytes: int) -> tuple[EventBatch | None, list[Rejection]]:
        """Admit a chunk's events, and queue them for the journal.

        Args:
            chunk: events with their lines.
            max_id_bytes: longest event id, in bytes of UTF-8.

        Returns:
            The admitted events, None if there are none, and the rejections in the order of the chunk.

        Raises:
            ProtocolError: ``limit``: there is no memory for more ids; ``storage_failed``: the journal has failed.
        """
        try:
            self._writer.check()
        except ErgoCaptureError as error:
            raise storage_failed(error) from error
        if self.interruption is not None:
            return None, _reject_all(chunk, max_id_bytes, self.interruption)
        batch, refusals = self.admission.admit(chunk, max_id_bytes, self._check)
        if batch is not None:
            self._writer.submit(batch, len(batch.body))
        return batch, refusals

    async def room(self, limit: int) -> None:
        """Wait until fewer than ``limit`` bytes of events wait to be decided, and there is memory for more."""
        while self.failure is None and self.admission.is_full(limit):
            await self._moved.wait()

    # --- durability: called when the writer has committed or refused a frame ---

    def _on_accepted(self, batch: EventBatch, position: Position) -> None:
        self.accepted = batch.end
        self.last_event_id = batch.events[-1].event_id
        part = self.parts.current
        part.event_frames.append(position.pack())
        part.bytes += len(batch.body)
        self._batches.append(batch)
        # Notify first: the event is acknowledged before its episode begins.
        self._notify()
        self._wake.set()

    def _on_refused(self, error: ErgoCaptureError) -> None:
        if not isinstance(error, JournalFull):
            self.fail(error)
        self._wake.set()
        self._notify()

    def _count(self, termination: RunTermination, count: int) -> None:
        self.terminations[termination] += count
        self._graph_terminations[termination] += count

    def _on_decisions_durable(self, position: Position, first: int, count: int) -> None:
        self.decided = first + count
        self.parts.current.decision_frames.append(position.pack())
        if self.decision_log.waiting:
            # They did not fit in one frame. Submit the rest later, after the other submissions of the batch.
            self._loop.call_soon(self._writer.submit_lazily, self.decision_log)
        self._notify()

    def _notify(self) -> None:
        self._moved.notify_all()
        if self.owner is not None:
            self.owner.progress()

    async def until_accepted(self) -> None:
        """Wait until every admitted event is accepted or refused, or the session has failed."""
        while self.failure is None and self.accepted < self.admission.admitted:
            await self._moved.wait()

    async def until_decided(self, count: int) -> None:
        """Wait until that many decisions are on stable storage.

        Raises:
            ErgoCaptureError: the session failed first.
        """
        while self.decided < min(count, self._to_decide):
            if self.failure is not None:
                raise self.failure
            if self.decision_log.waiting:
                self._writer.submit_lazily(self.decision_log, urgent=True)
            await self._moved.wait()

    @property
    def _to_decide(self) -> int:
        """The number of events of the session that are or will be decided."""
        return self.admission.admitted if self.interruption is None else self.decision_log.logged

    # --- the task ---

    async def run(self) -> None:
        """Decide the accepted events, in order, until the session has finished or failed."""
        try:
            await self.parts.publish_recovered()
            self._on_part_over()
            while self.failure is None:
                # Clear first: a wake-up that arrives while a bundle is composed must not be lost.
                self._wake.clear()
                # Since the last look, only an event may have come.
                may_end = self.parts.current.due_since is not None or self.parts.current.is_overdue
                while self._batches and self.failure is None:
                    if may_end:
                        await self._rotate_if_due()
                    await self._decide(self._batches.popleft())
                    may_end = True
                if self.ended is not None:
                    await self._episodes.settle_all()
                    if self.admission.admitted == (
                        self.decision_log.logged if self.interruption is None else self.accepted
                    ):
                        await self._finish(self.ended)
                        return
                await self._rotate_if_due()
                if not self._batches:
                    await self._wake.wait()
        except ErgoCaptureError as error:
            self.fail(error)
        except Exception as error:  # noqa: BLE001 - the registry logs it; the other sessions must not suffer
            self.fail(internal_error("run session", error))
        finally:
            if self.egress is not None:
                await self.egress.stop()
            self._release()
            self.over.set()

    async def _decide(self, batch: EventBatch) -> None:
        if self.interruption is None:
            await self._episodes.decide(batch)
        if self.interruption is not None and self._first_left_over is None and batch.end > self.decision_log.logged:
            self._first_left_over = batch.events[self.decision_log.logged - batch.first].event_id
        self.admission.release_decided(batch, size_of_deferred(self._episodes.supervisor))
        followed = self.decision_log.is_followed
        self._writer.submit_lazily(self.decision_log, urgent=followed or self.ended is not None)
        if followed:
            self._notify()
        else:
            # There is room again. The owner need not be told: there is nothing to answer before decisions are durable.
            self._moved.notify_all()

    async def _before_run(self, unlogged: int) -> None:
        """Wait until few enough effects wait for a commit and, if runs must not be repeated, few enough are in doubt.

        Recovery takes only as many undecided events as in doubt as runs may be under way at once.
        """
        enough = self.decision_log.logged + unlogged - self._most_under_way + 1 if self._at_most_once else 0
        while self.decided < enough or self.decision_log.waiting_bytes >= _MAX_UNCOMMITTED_BYTES:
            if self.failure is not None:
                raise self.failure
            if self.decision_log.waiting:
                self._writer.submit_lazily(self.decision_log, urgent=True)
            await self._moved.wait()

    def _on_logged(self) -> None:
        # Urgent where the next run waits for it.
        self._writer.submit_lazily(self.decision_log, urgent=self._at_most_once)
        if self._episodes.is_settled:
            # Wake the task: the part may be due, and no further event may come.
            self._wake.set()

    def _on_run_failed(self, error: BaseException) -> None:
        self.fail(error if isinstance(error, ErgoCaptureError) else internal_error("run episode", error))

    def _note_refused(self, refused: RefusedEvent) -> None:
        self._fates["refused"] += 1
        log.warning(
            telemetry.EVENT_REFUSED,
            session=self.description.session,
            graph=self.description.graph,
            event_id=refused.event_id,
            error=refused.message,
        )

    def _on_interrupted(self, interruption: Interruption) -> None:
        self.interruption = interruption
        self._fates["interrupted"] += 1
        log.error(
            telemetry.SESSION_INTERRUPTED,
            session=self.description.session,
            graph=self.description.graph,
            reason=interruption.reason,
            error=interruption.message,
            hint=_HINTS.get(interruption.reason, "events behind it are in the .rest.jsonl beside the bundle"),
        )
        self.end("interrupted")
        if self.ended != "lost":
            # The client may have asked for the end earlier, while events were still undecided.
            self.ended = "interrupted"

    async def _rotate_if_due(self) -> None:
        """End the current part if it is due and may end; set a timer if only time can make it so.

        A part without events that keeps too much of the journal is moved forward instead.
        """
        if self.interruption is not None:
            return
        if self._batches and self._batches[0].position is None:
            # A part ends between two frames, and the events that recovery found undecided may begin within one.
            return
        part, rotation = self.parts.current, self.rotation
        now = self._loop.time()
        if part.is_overdue and self.decision_log.logged == part.first:
            self.parts.move_forward(self._is_empty, self._on_part_over)
        elif rotation.is_on and self.admission.is_crowded:
            part.is_overdue = True
        if part.due_since is None and rotation.is_due(part, self.decision_log.logged - part.first, now):
            part.due_since = now
        if part.due_since is not None and (self._batches or rotation.may_not_wait(part, now)):
            await self._episodes.settle_all()
            deferred = self.deferred
            if rotation.may_end(part, deferred, self._loop.time()):
                boundary = self.decision_log.logged
                await self.until_decided(boundary)
                self._episodes.start_part()
                self.admission.end_part()
                await self.parts.rotate(
                    boundary,
                    self._batches,
                    self.last_event_id,
                    forced=deferred > 0,
                    store=None if self._derivation is None else self._derivation.snapshot(),
                    refused=self.decision_log.refused,
                )
                self._on_part_over()
                return
        if (seconds := rotation.next_check(part, self.decision_log.logged - part.first, self._loop.time())) is not None:
            if self._rotation_timer is not None:
                self._rotation_timer.cancel()
            self._rotation_timer = self._loop.call_later(seconds, self._wake.set)

    def _is_empty(self) -> bool:
        """Return whether the session goes on and its current part has no events, admitted ones included."""
        first = self.parts.current.first
        return self.state is SessionState.OPEN and self.admission.next_index == self.decision_log.logged == first

    def end_part_soon(self) -> None:
        """End the current part as soon as it may end: it keeps too much of the journal. Move an empty one forward."""
        self.parts.current.is_overdue = True
        self._wake.set()

    # --- bundles of a running session ---

    async def flush(self, *, wait_for_room: bool = False) -> Publication:
        """Publish a snapshot of all events admitted by now; an ending session publishes its last bundle instead.

        Args:
            wait_for_room: whether to wait while the disk is full (P8).

        Raises:
            ErgoCaptureError: the session or the publication failed.
        """
        while True:
            await self.until_decided(self.admission.admitted)
            if self.state is not SessionState.OPEN or self.interruption is not None:
                # A snapshot after the last bundle would replace it, and its manifest would say that the session goes on.
                await self.over.wait()
                if self.publication is None:
                    raise self.failure or internal_error("publish session", RuntimeError("it ended without a bundle"))
                return self.publication
            try:
                return await self.parts.snapshot(self.decided)
            except CaptureWriteError as error:
                if not (wait_for_room and is_full(error)):
                    raise
            # Begin again: the part may have ended meanwhile, and a snapshot must not replace its bundle.
            await asyncio.sleep(parts.RETRY_SECONDS)

    async def publish_decided(self) -> None:
        """Publish the decided events of the current part, if any, without waiting for undecided ones.

        Raises:
            ErgoCaptureError: the publication failed.
        """
        if self.state is SessionState.OPEN and self.decided > self.parts.current.first:
            await self.parts.snapshot(self.decided)

    # --- ends ---

    def end(self, ended: str, *, keep_empty: bool = True, reason: str | None = None) -> None:
        """Ask the task to decide everything admitted and to publish the last bundle.

        Args:
            ended: the manifest's ``ended``: ``complete``, ``interrupted`` or ``recovered``. If acknowledged events are
                missing and no client resumed after the loss, the manifest says ``lost`` instead.
            keep_empty: whether a session without events leaves a bundle.
            reason: the reference's word for why the events ended early; None if they did not.
        """
        if self.state is SessionState.OPEN:
            self.state = SessionState.ENDING
            self._ended_by = None if reason is None else Interruption(reason=reason)
            self._keep_empty = keep_empty or self.lost is not None
            self.ended = "lost" if self.lost is not None and not self.lost.resumed else ended
            self._writer.hurry()
            self._wake.set()

    async def record_loss(self, loss: Loss) -> None:
        """Record in the journal that acknowledged events are missing.

        Raises:
            ErgoCaptureError: the journal has failed, or the daemon stops.
        """
        lost = join_losses(self.lost, loss)
        if lost != self.lost:
            self.lost = lost
            await self.parts.record_loss(lost)

    async def _finish(self, ended: str) -> None:
        await self.until_decided(self.admission.admitted)
        if self.egress is not None:
            await self.egress.finish(self.interruption)
        left_over = None
        if self._first_left_over is not None:
            left_over = LeftOver(self.decided, self._first_left_over, self.accepted - self.decided)
        self.publication = await self.parts.finish(
            self.decided,
            ended,
            keep_empty=self._keep_empty,
            interruption=self.interruption or self._ended_by,
            left_over=left_over,
        )
        self.bundles = await self.parts.bundles()
        self.left_over = left_over
        if left_over is not None:
            self._fates["left_over"] += left_over.count
        self.state = SessionState.FINISHED
        self._notify()

    def fail(self, error: ErgoCaptureError) -> None:
        """Enter the state ``FAILED``; what was accepted is safe in the journal."""
        if self.state in (SessionState.OPEN, SessionState.ENDING):
            self.state = SessionState.FAILED
            self.failure = error
            self._wake.set()
            self._notify()
            if self.owner is not None:
                self.owner.session_failed(storage_failed(error))

    def _release(self) -> None:
        """Release memory now: the session is in a reference cycle with its log, and may hold megabytes."""
        if self._rotation_timer is not None:
            self._rotation_timer.cancel()
        self._episodes.abandon()
        self.admission.close()
        if self.state is SessionState.FINISHED:
            self._episodes.start_part()

    # --- inspection ---

    @property
    def reason(self) -> str:
        """The reason for the session's interruption, in one word; empty for none, or if it is unknown."""
        interruption = self.interruption or self._ended_by
        return "" if interruption is None else interruption.reason

    @property
    def deferred(self) -> int:
        """The number of deferred episodes."""
        return self._episodes.supervisor.deferred_count

    def snapshot(self) -> SessionSnapshot:
        """Return the session's current state."""
        return SessionSnapshot(
            session=self.description.session,
            graph=self.description.graph,
            state=self.state.value,
            owned=self.owner is not None,
            admitted=self.admission.admitted,
            accepted=self.accepted,
            decided=self.decided,
            deferred=self.deferred,
            queued_bytes=self.admission.queued_bytes,
            part=self.parts.current.number,
            lost=self.lost,
            refused=self.decision_log.refused,
            interrupted_by=self.reason,
            left_over=0 if self.interruption is None else self.accepted - self.decision_log.logged,
            failure="" if self.failure is None else self.failure.message,
            delayed_by=self.parts.delayed_by,
        )


def _reject_all(chunk: EventChunk, max_id_bytes: int, interruption: Interruption) -> list[Rejection]:
    message = f"the run was interrupted: {interruption.reason}: {interruption.message}"
    hint = "open another session; this one's bundle holds what was decided"
    return [
        Rejection(offset, None if len(name.encode()) > max_id_bytes else name, Code.RUN_INTERRUPTED, message, hint)
        for offset, name in enumerate(chunk.ids)
    ]
