"""The sessions of the daemon, by id: opening, resuming, lingering, and letting go of the journal.

Owns: which sessions there are, who may have them, and when the journal's segments are free.
Not here: a session's own life (``session.py``), connections (``connection.py``).
"""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime

from anyio import to_thread
from anyio.abc import TaskGroup

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.body import Peer, SessionDescription, encode_body
from ergo_capture.journal.frame import FrameKind, PendingFrame
from ergo_capture.journal.journal import Journal
from ergo_capture.journal.recovery import Recovery
from ergo_capture.server.graph import Graph
from ergo_capture.server.part import RotationRule
from ergo_capture.server.protocol import Code, Open, ProtocolError
from ergo_capture.server.session import Owner, Publisher, Session, storage_failed, utc_now
from ergo_capture.server.submission import append
from ergo_capture.server.writer import Writer
from ergo_capture.version import PROGRAM


class SessionRegistry:
    """Every session that is not finished.

    Args:
        graphs: what may be opened, by name.
        writer: makes frames durable.
        journal: asked to let segments go, once no session needs them.
        publisher: makes bundles.
        tasks: where each session's task runs.
        rotation: when a part of a session ends.
        linger: seconds that a session waits for its client to come back.
        max_sessions: sessions at once.
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
        max_sessions: int,
        next_number: int,
    ) -> None:
        self.graphs = graphs
        self.sessions: dict[str, Session] = {}
        #: Sessions whose journal is damaged, by id, with what is wrong: they are neither served nor deleted.
        self.quarantined: dict[str, str] = {}
        #: The oldest segment that a quarantined session needs.
        self.quarantine_segment: int | None = None
        self.finished = 0
        self._writer = writer
        self._journal = journal
        self._publisher = publisher
        self._tasks = tasks
        self._rotation = rotation
        self._linger = linger
        self._max_sessions = max_sessions
        self._next_number = next_number
        self._lingering: dict[str, asyncio.TimerHandle] = {}
        self._stopping = False
        #: The oldest segment that may hold the OPEN frame of a session that is being opened, by its number.
        self._opening: dict[int, int] = {}

    async def open(self, request: Open, peer: Peer | None, owner: Owner) -> tuple[Session, bool]:
        """A new session, or the one asked for; with whether it was resumed.

        Raises:
            ProtocolError: why not.
        """
        if self._stopping:
            raise ProtocolError(Code.SHUTTING_DOWN, "the daemon is stopping", "connect again in a moment")
        if request.session is not None:
            return self._resume(request.session, peer, owner), True
        graph = self.graphs.get(request.graph)
        if graph is None:
            known = ", ".join(sorted(self.graphs))
            raise ProtocolError(
                Code.UNKNOWN_GRAPH,
                f"graph {request.graph!r} is not configured",
                f"open one of: {known}; or add [graphs.NAME] to the configuration",
            )
        if len(self.sessions) >= self._max_sessions:
            message = f"{self._max_sessions} sessions are open"
            raise ProtocolError(Code.LIMIT, message, "close some, or raise limits.max_sessions")
        session = await self._begin(graph, request.labels, peer)
        session.owner = owner
        return session, False

    def _resume(self, session_id: str, peer: Peer | None, owner: Owner) -> Session:
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
        opened_by = session.description.peer
        if peer is not None and opened_by is not None and peer.uid not in (opened_by.uid, 0):
            raise ProtocolError(
                Code.FORBIDDEN, f"session {session_id!r} was opened by another user", "resume it as that user"
            )
        if session.owner is not None or session.ended is not None:
            message = (
                f"session {session_id!r} is in use" if session.ended is None else f"session {session_id!r} is ending"
            )
            raise ProtocolError(Code.SESSION_BUSY, message, "close the other connection first, or try again")
        timer = self._lingering.pop(session_id, None)
        if timer is not None:
            timer.cancel()
        session.owner = owner
        return session

    async def _begin(self, graph: Graph, labels: dict[str, str], peer: Peer | None) -> Session:
        number, self._next_number = self._next_number, self._next_number + 1
        description = SessionDescription(
            session=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{number}-{secrets.token_hex(4)}",
            graph=graph.name,
            constraints=graph.constraints,
            adapter_provenance=graph.adapter_provenance,
            runtime_provenance=graph.runtime_provenance,
            engine=graph.engine.name,
            labels=labels,
            peer=peer,
            opened_at=utc_now(),
            program=PROGRAM,
        )
        # Why noted before: the frame lands in this segment or a later one, and until the session is known here
        # nothing else keeps that segment.
        self._opening[number] = self._journal.current_segment
        try:
            position = await append(self._writer, PendingFrame(FrameKind.OPEN, number, 0, 0, encode_body(description)))
        except ErgoCaptureError as error:
            raise storage_failed(error) from error
        finally:
            del self._opening[number]
        session = Session(
            number,
            description,
            graph,
            self._writer,
            self._publisher,
            rotation=self._rotation,
            segment=position.segment,
        )
        self.adopt(session)
        return session

    def take_recovered(self, recovery: Recovery, *, in_doubt: str) -> None:
        """Take up the sessions that recovery found; each lingers until its client comes back."""
        self.quarantined.update(recovery.quarantined)
        self.quarantine_segment = recovery.quarantine_segment
        for recovered in recovery.sessions:
            description = recovered.description
            graph = self.graphs.get(description.graph)
            if graph is None:
                self.quarantined[description.session] = (
                    f"its graph {description.graph!r} is not configured any more; configure it and restart"
                )
                known = self.quarantine_segment
                self.quarantine_segment = recovered.segment if known is None else min(known, recovered.segment)
                continue
            session = Session.restore(
                recovered, graph, self._writer, self._publisher, rotation=self._rotation, in_doubt=in_doubt
            )
            self.adopt(session)
            self.linger(session, then="interrupted" if recovery.sealed else "recovered")

    def adopt(self, session: Session) -> None:
        """Take in a session, new or recovered, and start its task."""
        self.sessions[session.description.session] = session
        self._tasks.start_soon(self._live, session)

    async def _live(self, session: Session) -> None:
        await session.run()
        if session.failure is None:
            self.sessions.pop(session.description.session, None)
            self.finished += 1
            await self.retire_segments()

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

    async def retire_segments(self) -> None:
        """Delete the journal's segments that no session needs any more."""
        needed = [session.part.segment for session in self.sessions.values()]
        needed += self._opening.values()
        if self.quarantine_segment is not None:
            needed.append(self.quarantine_segment)
        oldest = min([*needed, self._journal.current_segment])
        # Why in a thread: deleting a large file takes milliseconds.
        await to_thread.run_sync(self._journal.retire, oldest)

    def stop(self) -> None:
        """Open and resume nothing more; sessions stay as they are."""
        self._stopping = True
        for timer in self._lingering.values():
            timer.cancel()
        self._lingering.clear()

    def __repr__(self) -> str:
        return f"<SessionRegistry {len(self.sessions)} open, {self.finished} finished, {len(self.quarantined)} quarantined>"
