"""The sessions of the daemon, by id: opening, resuming, lingering."""

from __future__ import annotations

import asyncio

import structlog
from anyio.abc import TaskGroup

from ergo_capture import telemetry
from ergo_capture.config.settings import LimitsConfig
from ergo_capture.engine.port import Engine, EngineRefused
from ergo_capture.journal.payloads import Peer
from ergo_capture.journal.recovery import Recovery
from ergo_capture.journal.wal import Journal
from ergo_capture.protocol.capture import Code, Open, ProtocolError
from ergo_capture.server.commit.segment_gc import Retirement
from ergo_capture.server.commit.writer import Writer, WriterClosed
from ergo_capture.server.session.access import who
from ergo_capture.server.session.authorization import check_access, check_free, is_its
from ergo_capture.server.session.budget import Budget
from ergo_capture.server.session.graph import Graph
from ergo_capture.server.session.parts import Publisher, RotationRule
from ergo_capture.server.session.pending_sessions import Opening, Openings
from ergo_capture.server.session.rate_limiter import Pace
from ergo_capture.server.session.session import Owner, Session
from ergo_capture.server.session.tap import Taps

log = structlog.get_logger()


class SessionRegistry:
    """Every session that is not finished.

    Args:
        graphs: what may be opened, by name.
        writer: makes frames durable.
        journal: where sessions are kept; lets segments go, once no session needs them.
        publisher: makes bundles.
        tasks: where each session's task runs.
        rotation: when a part of a session ends.
        linger: seconds that a session waits for its client to come back.
        in_doubt: what becomes of episodes that may have run before a crash: ``reinvoke`` or ``interrupt``.
        limits: how many sessions, and how much memory for what they hold.
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
        rotation: RotationRule,
        linger: float,
        in_doubt: str,
        limits: LimitsConfig,
        next_number: int,
    ) -> None:
        self.graphs = graphs
        self.sessions: dict[str, Session] = {}
        #: Sessions that are neither served nor deleted, by id, with what is wrong; see ``Recovery``.
        self.quarantined: dict[str, str] = {}
        #: The oldest segment that a quarantined session needs.
        self.quarantine_segment: int | None = None
        self.finished = 0
        self._writer = writer
        self._publisher = publisher
        self._tasks = tasks
        self._rotation = rotation
        self._linger = linger
        self._in_doubt = in_doubt
        self.limits = limits
        #: When a user's next new session may begin.
        self._pace = Pace(limits.user_opens_per_second)
        #: Memory for events that wait to be decided.
        self.queue = Budget(int(limits.queue_bytes), int(limits.user_queue_bytes))
        #: Memory for the ids of events, so that none is taken twice.
        self.ids = Budget(int(limits.ids_bytes), int(limits.user_ids_bytes))
        #: Who watches decisions.
        self.taps = Taps(self.sessions, graphs)
        #: Sessions that are being opened.
        self.openings = Openings(writer, journal, next_number, self._begin, self.linger)
        #: Deletes the segments that no session needs.
        self.retirement = Retirement(journal, self._oldest_needed)
        self._lingering: dict[str, asyncio.TimerHandle] = {}
        self._stopping = False
        #: Engines that live, in the order they were started.
        self._engines: dict[Engine, None] = {}

    def apply(self, limits: LimitsConfig, rotation: RotationRule, linger: float, graphs: dict[str, Graph]) -> None:
        """Apply a reloaded configuration; sessions that exist stay, and count.

        Args:
            limits: bounds on sessions and on the memory for what they hold.
            rotation: when a part ends, for sessions opened from now on.
            linger: seconds that a session waits for its client to come back.
            graphs: the graphs that sessions may be opened of.
        """
        self.limits, self._rotation, self._linger = limits, rotation, linger
        self._pace.rate = limits.user_opens_per_second
        self.queue.total, self.queue.per_user = int(limits.queue_bytes), int(limits.user_queue_bytes)
        self.ids.total, self.ids.per_user = int(limits.ids_bytes), int(limits.user_ids_bytes)
        self.graphs.clear()
        self.graphs.update(graphs)
        self.tend_engines()

    def tend_engines(self) -> None:
        """Have every graph's engine live, and those no more whose graph is gone and has no session left."""
        for graph in self.graphs.values():
            self._engines[graph.engine] = None
            graph.engine.start(self._tasks)
        needed = [graph.engine for graph in self.graphs.values()]
        needed += [session.graph.engine for session in self.sessions.values()]
        needed += [opening.graph.engine for opening in self.openings]
        for engine in [engine for engine in self._engines if engine not in needed]:
            del self._engines[engine]
            engine.stop()

    async def open(self, request: Open, peer: Peer | None, owner: Owner) -> tuple[Session, bool]:
        """A new session, or the one asked for; with whether it was resumed.

        Raises:
            ProtocolError: why not.
        """
        self._check_open()
        if request.session is not None:
            session = self._find(request.session, peer)
            await check_access(session.graph, peer)
            check_free(session)
            # Why: of an event that is still on its way nobody can say whether it is safe. Sent again, it would be
            # refused as a duplicate, and its client would forget it.
            await session.until_accepted()
            self._take_up(session, owner)
            return session, True
        graph = self._graph(request.graph)
        await check_access(graph, peer)
        provenance = await self._provenance(graph)
        # Why waited for and not refused: a session that is opened and left costs two syncs and a bundle, and whoever
        # opens them as fast as can be would leave little of the daemon to those who send.
        await asyncio.sleep(self._pace.reserve(None if peer is None else peer.uid, asyncio.get_running_loop().time()))
        # Why again: a reload may have come meanwhile, and with it another engine.
        while (now := self._graph(request.graph)).engine is not graph.engine:
            provenance = await self._provenance(now)
            graph = now
        graph = now
        self._check_open()
        self._check_number(peer)
        session = await self.openings.open(graph, provenance, request.labels, peer)
        session.owner = owner
        return session, False

    def _check_open(self) -> None:
        if self._stopping:
            raise ProtocolError(Code.SHUTTING_DOWN, "the daemon is stopping", "connect again in a moment")

    async def _provenance(self, graph: Graph) -> str:
        try:
            return await graph.engine.provenance(graph.runtime_provenance)
        except EngineRefused as error:
            raise ProtocolError(Code.UNKNOWN_GRAPH, error.message, error.hint or "see the daemon's log") from error

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

    def _check_number(self, peer: Peer | None) -> None:
        # Why also those that are being opened: they wait for the disk, and any number of clients can do that at once.
        if len(self.sessions) + len(self.openings) >= self.limits.max_sessions:
            message = f"{self.limits.max_sessions} sessions are open"
            raise ProtocolError(Code.LIMIT, message, "close some, or raise limits.max_sessions")
        user = None if peer is None else peer.uid
        openers = [session.description.peer for session in self.sessions.values()]
        openers += [opening.description.peer for opening in self.openings]
        if sum(user == (opener and opener.uid) for opener in openers) >= self.limits.max_user_sessions:
            message = f"{who(peer)} has {self.limits.max_user_sessions} sessions open"
            raise ProtocolError(Code.LIMIT, message, "close some, or raise limits.max_user_sessions")

    def _find(self, session_id: str, peer: Peer | None) -> Session:
        """The session of that id, if it is this peer's."""
        session = self.sessions.get(session_id)
        if session is None:
            if session_id in self.quarantined:
                raise ProtocolError(
                    Code.STORAGE_FAILED,
                    f"session {session_id!r} is quarantined: {self.quarantined[session_id]}",
                    "its operator can salvage it with `ergo-capture recover`; open a new session",
                )
            raise ProtocolError(
                Code.UNKNOWN_SESSION,
                f"session {session_id!r} is not open",
                "it may have ended: look for its bundle; open a new session without a session id",
            )
        if not is_its(session.description.peer, peer):
            raise ProtocolError(
                Code.FORBIDDEN, f"session {session_id!r} was opened by another user", "resume it as that user"
            )
        return session

    def _take_up(self, session: Session, owner: Owner) -> None:
        """Give a session without a connection to this one."""
        check_free(session)
        timer = self._lingering.pop(session.description.session, None)
        if timer is not None:
            timer.cancel()
        session.owner = owner

    def _begin(self, opening: Opening, segment: int) -> Session:
        """The session of an opening that is durable."""
        session = Session(
            opening.number,
            opening.description,
            opening.graph,
            self._writer,
            self._publisher,
            rotation=self._rotation,
            segment=segment,
            in_doubt=self._in_doubt,
        )
        self.adopt(session)
        return session

    def take_recovered(self, recovery: Recovery) -> None:
        """Take up the sessions that recovery found; each lingers until its client comes back."""
        for recovered in recovery.sessions:
            description = recovered.description
            graph = self.graphs.get(description.graph)
            if graph is None:
                reason = f"its graph {description.graph!r} is not configured any more; configure it and restart"
                recovery.quarantine(description.session, reason, recovered.segment)
                continue
            graph.engine.expect(description.runtime_provenance)
            session = Session.restore(
                recovered,
                graph,
                self._writer,
                self._publisher,
                rotation=self._rotation,
                in_doubt=self._in_doubt,
            )
            self.adopt(session)
            self.linger(session, then="interrupted" if recovery.sealed else "recovered")
        self.quarantined, self.quarantine_segment = recovery.quarantined, recovery.quarantine_segment

    def adopt(self, session: Session) -> None:
        """Take in a session, new or recovered, and start its task."""
        peer = session.description.peer
        session.intake.charge(self.queue.holding(peer), self.ids.holding(peer), session.deferred_bytes)
        self.sessions[session.description.session] = session
        self.taps.attach(session)
        session.on_part_over = self.retirement.is_due
        self._tasks.start_soon(self._live, session)

    async def _live(self, session: Session) -> None:
        await session.run()
        session.let_go()
        self.taps.session_over(session)
        if session.failure is None:
            self.sessions.pop(session.description.session, None)
            self.tend_engines()
            self.finished += 1
            log.info(
                telemetry.SESSION_FINISHED,
                session=session.description.session,
                graph=session.description.graph,
                ended=session.ended,
                events=session.accepted,
                decisions=session.decided,
            )
            self.retirement.is_due()
        elif session.failure is not self._writer.failure and not isinstance(session.failure, WriterClosed):
            # Why not where the journal has failed: that is one fact, and it is logged once. And why not at the stop:
            # what was under way then is gone on with after the next start.
            error = session.failure
            log.error(
                telemetry.SESSION_FAILED,
                session=session.description.session,
                graph=session.description.graph,
                error=error.message,
                hint=error.hint,
                exc_info=error.cause,
            )

    def linger(self, session: Session, *, then: str = "interrupted") -> None:
        """The session has no connection: end it as ``then`` unless one comes within the time."""
        session_id = session.description.session
        if self._stopping or session.ended is not None or session_id not in self.sessions:
            return
        loop = asyncio.get_running_loop()
        self._lingering[session_id] = loop.call_later(self._linger, self._linger_over, session, then)

    def _linger_over(self, session: Session, then: str) -> None:
        self._lingering.pop(session.description.session, None)
        if session.owner is None:
            session.end(then)

    def _oldest_needed(self) -> int | None:
        """The oldest segment of the journal that a session needs."""
        needed = [session.parts.segment for session in self.sessions.values()]
        needed += [opening.segment for opening in self.openings]
        if self.quarantine_segment is not None:
            needed.append(self.quarantine_segment)
        return min(needed, default=None)

    def stop(self) -> None:
        """Open and resume nothing more; sessions stay as they are."""
        self._stopping = self.openings.is_stopping = True
        for timer in self._lingering.values():
            timer.cancel()
        self._lingering.clear()

    def __repr__(self) -> str:
        return f"<SessionRegistry {len(self.sessions)} open, {self.finished} finished, {len(self.quarantined)} quarantined>"
