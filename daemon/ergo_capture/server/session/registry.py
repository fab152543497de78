"""The open sessions of the daemon: how they are opened and resumed, how they linger, and their engines."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import structlog
from anyio import CapacityLimiter, to_thread
from anyio.abc import TaskGroup

from ergo_capture import telemetry
from ergo_capture.config.settings import LimitsConfig
from ergo_capture.egress.channel import EgressLifecycleError
from ergo_capture.engine.port import Engine, EngineRefused
from ergo_capture.journal.payloads import FIXED_NOT_THE_RUN, Loss, Peer
from ergo_capture.journal.recovery import QuarantinedSession, RecoveredSession, Recovery
from ergo_capture.journal.wal import Journal
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.pauses import clock
from ergo_capture.protocol.capture import Code, Open, ProtocolError
from ergo_capture.server.commit.segment_gc import SegmentCollector
from ergo_capture.server.commit.writer import Writer, WriterClosed
from ergo_capture.server.session.access import peer_name
from ergo_capture.server.session.authorization import check_access, check_free, is_owner
from ergo_capture.server.session.budget import Budget
from ergo_capture.server.session.continuity import Finished, find_finished, loss_behind, loss_in, loss_of, lost_error
from ergo_capture.server.session.egress import SessionEgress
from ergo_capture.server.session.graph import Graph
from ergo_capture.server.session.parts import Publisher, RotationRule
from ergo_capture.server.session.pending_sessions import PendingSession, PendingSessions, RateLimiter
from ergo_capture.server.session.quarantine import Quarantine
from ergo_capture.server.session.session import Owner, Session, SessionState
from ergo_capture.server.session.tap import Taps
from ergo_capture.storage import Storage

log = structlog.get_logger()

#: The reference's reason for a driver's stream that stops without ``end``.
DRIVER_TERMINATED: Final = "driver_terminated"
#: Seconds by which the timers of the loop and ``pauses.clock`` may differ.
_CLOCK_SECONDS: Final = 0.1


class JournalHolder(msgspec.Struct, frozen=True):
    """The session that keeps the oldest segment of the journal."""

    session: str
    quarantined: bool
    segment: int
    #: Bytes of the segments that are kept for it, those that others need too included.
    bytes: int


class SessionRegistry:
    """Every session that is not finished.

    Args:
        graphs: the graphs of which sessions may be opened, by name.
        writer: makes frames durable.
        journal: the journal that the sessions are in.
        publisher: composes bundles.
        tasks: runs the sessions' tasks.
        storage: the file system.
        bundles: the directory of finished bundles.
        rotation: when a part of a session ends.
        linger: seconds that a session waits for its client to come back.
        in_doubt: how episodes in doubt are handled: ``reinvoke`` or ``interrupt``.
        limits: bounds on sessions and on their memory.
        next_number: number of the next session in the journal.
    """

    def __init__(
        self,
        graphs: dict[str, Graph],
        writer: Writer,
        journal: Journal,
        publisher: Publisher,
        tasks: TaskGroup,
        *,
        storage: Storage,
        bundles: Path,
        rotation: RotationRule,
        linger: float,
        in_doubt: str,
        limits: LimitsConfig,
        next_number: int,
    ) -> None:
        self.graphs = graphs
        self.sessions: dict[str, Session] = {}
        self.finished = 0
        #: Episodes since the start by how they ended, by graph.
        self.episodes: defaultdict[str, Counter[RunTermination]] = defaultdict(Counter)
        #: Intents since the start that were acknowledged, and dispatches that failed, by graph.
        self.intents: defaultdict[str, Counter[str]] = defaultdict(Counter)
        #: Numbers of the events and runs that ``FATES`` names, since the start, by graph.
        self.fates: defaultdict[str, Counter[str]] = defaultdict(Counter)
        #: Resumes by clients to which missing events were acknowledged.
        self.losses = 0
        self._writer = writer
        self._publisher = publisher
        self._tasks = tasks
        self._bundles = bundles
        #: One thread looks for finished sessions: clients that resume many must not take those of publications.
        self._finders = CapacityLimiter(1)
        #: Sessions whose task is to be started.
        self._starting: asyncio.Queue[Session] = asyncio.Queue()
        tasks.start_soon(self._start_tasks)
        self._rotation = rotation
        self._linger = linger
        self._in_doubt = in_doubt
        self.limits = limits
        #: Limits how fast a user may open sessions.
        self._rate_limiter = RateLimiter(limits.user_opens_per_second)
        #: Memory for events that wait to be decided.
        self.queue = Budget(int(limits.queue_bytes), int(limits.user_queue_bytes))
        #: Memory for event ids and deferred episodes.
        self.ids = Budget(int(limits.ids_bytes), int(limits.user_ids_bytes))
        #: Watchers of decisions.
        self.taps = Taps(self.sessions, graphs)
        #: Sessions that are being opened.
        self.pending = PendingSessions(writer, journal, next_number, self._start_new, self.linger)
        #: Deletes the segments that no session needs.
        self.segment_collector = SegmentCollector(journal, self._oldest_needed)
        self._journal = journal
        writer.on_segment = self._bound_journal
        #: Sessions that are neither served nor deleted.
        self.quarantine = Quarantine(
            journal.directory.parent, storage, writer, on_set_aside=self.segment_collector.request
        )
        #: Returns the oldest segments that others need, each with a session's id.
        self.kept_segments: Callable[[], Iterator[tuple[int, str]]] = lambda: iter(())
        self._lingering: dict[str, asyncio.TimerHandle] = {}
        self._stopping = False
        #: Engines that are running, in the order they were started.
        self._engines: dict[Engine, None] = {}

    def apply(self, limits: LimitsConfig, rotation: RotationRule, linger: float, graphs: dict[str, Graph]) -> None:
        """Apply a reloaded configuration. Existing sessions stay, and count towards the limits.

        Args:
            limits: bounds on sessions and on their memory.
            rotation: when a part ends, for sessions opened from now on.
            linger: seconds that a session waits for its client to come back.
            graphs: the graphs that sessions may be opened of.
        """
        self.limits, self._rotation, self._linger = limits, rotation, linger
        self._rate_limiter.rate = limits.user_opens_per_second
        self.queue.total, self.queue.per_user = int(limits.queue_bytes), int(limits.user_queue_bytes)
        self.ids.total, self.ids.per_user = int(limits.ids_bytes), int(limits.user_ids_bytes)
        self.graphs.clear()
        self.graphs.update(graphs)
        self.tend_engines()

    def tend_engines(self) -> None:
        """Start every graph's engine, and stop the engines that no graph and no session needs."""
        for graph in self.graphs.values():
            self._engines[graph.engine] = None
            egress = None if graph.egress is None else graph.egress.provenance()
            graph.engine.require(graph.adapter_provenance, egress)
            graph.engine.start(self._tasks)
        needed = [graph.engine for graph in self.graphs.values()]
        needed += [session.graph.engine for session in self.sessions.values()]
        needed += [pending.graph.engine for pending in self.pending]
        for engine in [engine for engine in self._engines if engine not in needed]:
            del self._engines[engine]
            engine.stop()

    async def open(self, request: Open, peer: Peer, owner: Owner) -> tuple[Session, bool]:
        """Open a new session, or resume the requested one.

        Args:
            request: what the client asks for.
            peer: who the client is.
            owner: the client's connection.

        Returns:
            The session, and whether it was resumed.

        Raises:
            ProtocolError: the session cannot be opened or resumed.
        """
        self._check_open()
        lost: Loss | None = None
        if request.session is not None:
            session = self._find(request.session, peer)
            if session is not None:
                await self._resume(session, request, peer, owner)
                return session, True
            lost = await self._lost_session(request.session, request, peer)
        is_decided_elsewhere = request.decided_by == "fixed"
        graph = self._graph(request.graph)
        await check_access(graph, peer)
        provenance = graph.runtime_provenance if is_decided_elsewhere else await self._provenance(graph)
        # Wait rather than refuse. Each opened session costs two syncs and a bundle: a client that opens sessions in a
        # loop would starve the others.
        now = asyncio.get_running_loop().time()
        await asyncio.sleep(self._rate_limiter.reserve(peer.uid, now))
        # A reload may have replaced the graph's engine meanwhile.
        while (current := self._graph(request.graph)).engine is not graph.engine and not is_decided_elsewhere:
            provenance = await self._provenance(current)
            graph = current
        self._check_open()
        decided_by = ""
        if is_decided_elsewhere:
            current, decided_by = current.without_engine(), FIXED_NOT_THE_RUN
        self._check_limits(peer, current)
        session = await self.pending.open(current, provenance, request.labels, peer, lost, decided_by)
        if session.egress is not None:
            await self._start_channels(session, session.egress)
        session.owner = owner
        return session, False

    async def _start_channels(self, session: Session, egress: SessionEgress) -> None:
        """Start a new session's egress channels; where one does not start, there is no session."""
        try:
            await egress.start()
        except EgressLifecycleError as error:
            session.end("interrupted", keep_empty=False)
            raise ProtocolError(Code.NO_EGRESS, error.message, error.hint or "see the daemon's log") from error
        except asyncio.CancelledError:
            # The client has gone.
            session.end("interrupted", keep_empty=False)
            raise

    def _check_open(self) -> None:
        if self._stopping:
            raise ProtocolError(Code.SHUTTING_DOWN, "the daemon is stopping", "connect again in a moment")

    async def _provenance(self, graph: Graph) -> str:
        try:
            return await graph.engine.provenance(graph.runtime_provenance)
        except EngineRefused as error:
            raise ProtocolError(Code.NO_ENGINE, error.message, error.hint or "see the daemon's log") from error

    def _graph(self, name: str) -> Graph:
        graph = self.graphs.get(name)
        if graph is None:
            known = ", ".join(sorted(self.graphs))
            raise ProtocolError(
                Code.UNKNOWN_GRAPH,
                f"graph {name!r} is not configured",
                f"open one of: {known}; or add [graphs.NAME] to the configuration",
            )
        return graph

    def _check_limits(self, peer: Peer, graph: Graph) -> None:
        # Count pending sessions too: they wait for the disk, and any number of clients can wait at once.
        if len(self.sessions) + len(self.pending) >= self.limits.max_sessions:
            message = f"{self.limits.max_sessions} sessions are open"
            raise ProtocolError(Code.LIMIT, message, "close some, or raise limits.max_sessions")
        descriptions = [session.description for session in self.sessions.values()]
        descriptions += [pending.description for pending in self.pending]
        limit = self.limits.max_egress_sessions
        if graph.egress is not None and sum(each.egress_provenance is not None for each in descriptions) >= limit:
            message = f"{limit} sessions with egress channels are open"
            raise ProtocolError(Code.LIMIT, message, "close some, or raise limits.max_egress_sessions")
        openers = [session.description.peer for session in self.sessions.values()]
        openers += [pending.description.peer for pending in self.pending]
        if sum(opener is not None and opener.uid == peer.uid for opener in openers) >= self.limits.max_user_sessions:
            message = f"{peer_name(peer)} has {self.limits.max_user_sessions} sessions open"
            raise ProtocolError(Code.LIMIT, message, "close some, or raise limits.max_user_sessions")

    def _find(self, session_id: str, peer: Peer) -> Session | None:
        session = self.sessions.get(session_id)
        if session is None:
            if session_id in self.quarantined:
                raise ProtocolError(
                    Code.STORAGE_FAILED,
                    f"session {session_id!r} is quarantined: {self.quarantined[session_id]}",
                    "its operator can salvage it with `ergo-capture recover --settle`; open a new session",
                )
            return None
        if not is_owner(peer, session.description.peer):
            raise _of_another_user(session_id)
        return session

    async def _resume(self, session: Session, request: Open, peer: Peer, owner: Owner) -> None:
        await check_access(session.graph, peer)
        check_free(session)
        # Wait for events on their way to the journal. If the client sent one again now, it would be rejected as a
        # duplicate, and the client would take it for durable.
        await session.until_accepted()
        check_free(session)
        loss = loss_in(session, request.acknowledged)
        if loss is not None:
            finished = await self._find_finished(session.description.session)
            if finished is not None and loss_behind(loss, finished) is None:
                # The journal is older than the bundle: the session had ended, with all that was acknowledged.
                raise _has_ended(session.description.session, finished)
            self._check_open()
            check_free(session)
            loss = msgspec.structs.replace(loss, resumed=request.resume_after_loss)
            self._count_loss(session.description.session, session.description.graph, loss)
            await session.record_loss(loss)
            if not loss.resumed:
                # The session lingers on. Do not quarantine it: any client could then keep segments by a false claim.
                raise lost_error(session.description.session, loss)
        elif request.resume_after_loss and session.lost is not None:
            await session.record_loss(msgspec.structs.replace(session.lost, resumed=True))
        check_free(session)
        timer = self._lingering.pop(session.description.session, None)
        if timer is not None:
            timer.cancel()
        session.owner = owner

    async def _lost_session(self, session_id: str, request: Open, peer: Peer) -> Loss | None:
        """Return the loss of a session that is not open, whose client continues in a new one; None for no loss.

        Raises:
            ProtocolError: ``unknown_session``: it is over, and its bundles hold all acknowledged events;
                ``acknowledged_lost``: they do not, and the client did not say ``resume_after_loss``.
        """
        finished = await self._find_finished(session_id)
        if finished is not None and not is_owner(peer, finished.opened_by):
            raise _of_another_user(session_id)
        told = request.acknowledged
        loss = None if told is None or not told.events else loss_of(told, session=session_id)
        if loss is not None and finished is not None:
            loss = loss_behind(loss, finished)
        if loss is None:
            if finished is not None:
                raise _has_ended(session_id, finished)
            if told is not None and request.resume_after_loss:
                return None
            hint = "it may have ended: look for its bundle; open a new session without a session id"
            raise ProtocolError(Code.UNKNOWN_SESSION, f"session {session_id!r} is not open", hint)
        loss = msgspec.structs.replace(loss, resumed=request.resume_after_loss)
        self._count_loss(session_id, request.graph, loss)
        if not loss.resumed:
            raise lost_error(session_id, loss)
        return loss

    async def _find_finished(self, session_id: str) -> Finished | None:
        return await to_thread.run_sync(find_finished, self._bundles, session_id, limiter=self._finders)

    def _count_loss(self, session_id: str, graph: str, loss: Loss) -> None:
        self.losses += 1
        log.error(
            telemetry.SESSION_LOST,
            session=session_id,
            graph=graph,
            acknowledged=loss.acknowledged,
            held=loss.held,
            last_acknowledged=loss.last_acknowledged,
            last_held=loss.last_held,
            resumed=loss.resumed,
            hint="the state directory is older than what was acknowledged: find out whether a backup was restored, or "
            "the disk lost what it had synced",
        )

    # --- the life of a session ---

    def restore(self, recovery: Recovery) -> None:
        """Start the sessions that recovery found; each lingers until its client comes back."""
        for recovered in recovery.sessions:
            description = recovered.description
            graph = self.graphs.get(description.graph)
            if graph is None:
                reason = f"its graph {description.graph!r} is not configured any more; configure it and restart"
                recovery.quarantine(
                    QuarantinedSession(
                        number=recovered.number,
                        session=description.session,
                        reason=reason,
                        first_segment=recovered.segment,
                        last_segment=recovered.last_segment,
                        is_damaged=False,
                    )
                )
                continue
            if description.decided_by:
                graph = graph.without_engine()
            graph.engine.expect(description.runtime_provenance)
            self.linger(self._start(recovered, graph), ended="interrupted" if recovery.sealed else "recovered")
        self.quarantine.restore(recovery)

    def _start_new(self, pending: PendingSession, segment: int) -> Session:
        return self._start(RecoveredSession.new(pending.number, pending.description, segment), pending.graph)

    def _start(self, initial: RecoveredSession, graph: Graph) -> Session:
        peer = initial.description.peer
        session = Session(
            initial,
            graph,
            self._writer,
            self._publisher,
            rotation=self._rotation,
            in_doubt=self._in_doubt,
            events_memory=self.queue.holding(peer),
            ids_memory=self.ids.holding(peer),
            episodes=self.episodes[graph.name],
            intents=self.intents[graph.name],
            fates=self.fates[graph.name],
            on_part_over=self.segment_collector.request,
        )
        self.sessions[session.description.session] = session
        self.taps.attach(session)
        self._starting.put_nowait(session)
        return session

    async def _start_tasks(self) -> None:
        # A new session is made in a callback of the writer, but a task group can start tasks only from a task: if
        # sniffio is installed, anyio raises everywhere else.
        while True:
            self._tasks.start_soon(self._run, await self._starting.get())

    async def _run(self, session: Session) -> None:
        await session.run()
        self.taps.session_over(session)
        error = session.failure
        if error is None:
            del self.sessions[session.description.session]
            self.tend_engines()
            self.finished += 1
            log.info(
                telemetry.SESSION_FINISHED,
                session=session.description.session,
                graph=session.description.graph,
                ended=session.ended,
                events=session.accepted,
                decisions=session.decided - session.decision_log.refused,
            )
            self.segment_collector.request()
        elif error is not self._writer.failure and not isinstance(error, WriterClosed):
            # The writer's task logs a failure of the journal, once. A session that the stop cut off has not failed: the
            # next start continues it.
            log.error(
                telemetry.SESSION_FAILED,
                session=session.description.session,
                graph=session.description.graph,
                error=error.message,
                hint=error.hint,
                exc_info=error.cause,
            )

    def leave(self, session: Session, *, may_come_back: bool, reason: str = DRIVER_TERMINATED) -> None:
        """Release a session that has lost its connection.

        Args:
            session: the session.
            may_come_back: whether its client can resume it: a driver of ``ergo-driver.v0`` does not know its id.
            reason: the reference's word for how a driver's stream ended.
        """
        if may_come_back:
            self.linger(session)
        elif not self._stopping:
            session.end("interrupted", keep_empty=False, reason=reason)

    def linger(self, session: Session, *, ended: str = "interrupted") -> None:
        """End a session that has lost its connection, unless a client resumes it in time.

        Args:
            session: the session.
            ended: the manifest's ``ended``.
        """
        session_id = session.description.session
        if not self._stopping and session.state is SessionState.OPEN and session_id in self.sessions:
            loop = asyncio.get_running_loop()
            due = clock.now() + self._linger
            self._lingering[session_id] = loop.call_later(self._linger, self._end_lingering, session, ended, due)

    def _end_lingering(self, session: Session, ended: str, due: float) -> None:
        session_id = session.description.session
        del self._lingering[session_id]
        remaining = due - clock.now()
        if remaining > _CLOCK_SECONDS:
            # The process was suspended, so the client could not come back.
            again = asyncio.get_running_loop().call_later(remaining, self._end_lingering, session, ended, due)
            self._lingering[session_id] = again
        elif session.owner is None:
            session.end(ended, keep_empty=False)

    def stop(self) -> None:
        """Open and resume no more sessions; those that are open stay as they are."""
        self._stopping = self.pending.is_stopping = True
        for timer in self._lingering.values():
            timer.cancel()
        self._lingering.clear()

    # --- the journal's segments ---

    @property
    def quarantined(self) -> dict[str, str]:
        """The reason for each session's quarantine, by id."""
        return self.quarantine.reasons

    def _oldest_needed(self) -> int | None:
        needed = [segment for segment, _ in self._needed()]
        needed += [pending.segment for pending in self.pending]
        needed += [segment for segment, _ in self.kept_segments()]
        return min(needed, default=None)

    def _needed(self) -> Iterator[tuple[int, str]]:
        """Yield the oldest segment that each session needs, with the session's id."""
        for session_id, session in self.sessions.items():
            yield session.parts.segment, session_id
        for session_id, segment in self.quarantine.segments.items():
            yield segment, session_id

    def _bound_journal(self) -> None:
        """End or move forward the parts that keep too much of the journal, because a new segment was begun."""
        kept, bytes_since = 0, {}
        for segment, size in sorted(self._journal.segments.items(), reverse=True):
            kept += size
            bytes_since[segment] = kept
        for session in self.sessions.values():
            limit, part = session.rotation.bounds.max_journal_bytes, session.parts.current
            if limit and not part.is_overdue and bytes_since.get(part.segment, 0) > limit:
                session.end_part_soon()
        self.quarantine.bound(bytes_since, self._rotation.bounds.max_journal_bytes)
        self.segment_collector.request()

    def journal_holder(self) -> JournalHolder | None:
        """Return the session that keeps the oldest segment; None if no segment before the current one is needed."""
        segment, session_id = min(self._needed(), default=(0, ""))
        current = self._journal.current_segment
        if not session_id or segment >= current:
            return None
        size = sum(size for number, size in self._journal.segments.items() if segment <= number < current)
        return JournalHolder(session_id, session_id in self.quarantined, segment, size)


def _of_another_user(session_id: str) -> ProtocolError:
    return ProtocolError(Code.FORBIDDEN, f"session {session_id!r} was opened by another user", "resume it as that user")


def _has_ended(session_id: str, finished: Finished) -> ProtocolError:
    hint = f"it has ended, with {finished.events} events: see '{finished.bundle}'; open a new session"
    return ProtocolError(Code.UNKNOWN_SESSION, f"session {session_id!r} is not open", hint)
