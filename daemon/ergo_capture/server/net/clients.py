"""Everybody who is connected: serving them, counting them, and what their connections ask of the daemon."""

from __future__ import annotations

from collections import Counter

import structlog
from anyio.abc import UNIXSocketStream

from ergo_capture import telemetry
from ergo_capture.config.settings import LimitsConfig
from ergo_capture.journal.payloads import Peer
from ergo_capture.protocol.capture import Code, Open, ProtocolError
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.net.connection import Connection
from ergo_capture.server.net.listener import Admission
from ergo_capture.server.session.access import Access
from ergo_capture.server.session.budget import Budget, Holding
from ergo_capture.server.session.registry import SessionRegistry
from ergo_capture.server.session.session import Owner, Session
from ergo_capture.version import PROGRAM

log = structlog.get_logger()


class Clients:
    """The clients of the daemon; served once ``begin`` was called.

    Args:
        limits: bounds on clients; may be replaced for those that come next.
        access: who may connect.
    """

    def __init__(self, limits: LimitsConfig, access: Access) -> None:
        self.limits = limits
        self.admission = Admission(access, max_clients=limits.max_clients, max_user_clients=limits.max_user_clients)
        self.server_name = PROGRAM
        self.connections: dict[Connection, None] = {}
        #: What was counted: clients let in, sessions ``opened`` and ``resumed``.
        self.totals: Counter[str] = Counter()
        #: Refusals by code.
        self.refusals: Counter[str] = Counter()
        #: Memory for begun lines and unread answers.
        self.held = Budget(int(limits.held_bytes), int(limits.held_bytes))
        self._registry: SessionRegistry
        self._writer: Writer

    def apply(self, limits: LimitsConfig, access: Access) -> None:
        """Apply a reloaded configuration; clients that are connected stay, and count."""
        self.limits = limits
        self.admission.access = access
        self.admission.max_clients = limits.max_clients
        self.admission.max_user_clients = limits.max_user_clients
        self.held.total = self.held.per_user = int(limits.held_bytes)

    def begin(self, registry: SessionRegistry, writer: Writer) -> None:
        """Have sessions, and a writer for their events."""
        self._registry, self._writer = registry, writer

    async def serve(self, stream: UNIXSocketStream, peer: Peer) -> None:
        """Serve one client that was let in, until it is gone."""
        self.totals["clients"] += 1
        connection = Connection(stream, peer, self)
        self.connections[connection] = None
        try:
            await connection.serve()
        except Exception:
            # Why here: a mistake of ours that one client brings out must not cost the others anything.
            log.exception(telemetry.CLIENT_FAILED, client=connection.conversation.client)
        finally:
            del self.connections[connection]
            error, conversation = connection.fatal, connection.conversation
            misbehaved = error is not None and error.code is not Code.SHUTTING_DOWN
            (log.warning if misbehaved else log.info)(
                telemetry.CLIENT_GONE,
                client=conversation.client,
                uid=peer.uid,
                pid=peer.pid,
                events=conversation.receipts.received,
                bad_frames=conversation.bad_frames,
                code=None if error is None else error.code.value,
                reason=None if error is None else error.message,
            )

    def log_refused(self, peer: Peer, error: ProtocolError) -> None:
        """Count and log whom a listener turned away."""
        self.count(error.code)
        log.warning(
            telemetry.CLIENT_REFUSED,
            uid=peer.uid,
            pid=peer.pid,
            code=error.code.value,
            reason=error.message,
            hint=error.hint,
        )

    def log_accept_failed(self, error: BaseException) -> None:
        """Log why a listener is given no more connections."""
        log.error(
            telemetry.CLIENT_UNACCEPTED,
            error=str(error),
            hint="raise LimitNOFILE, or lower limits.max_clients",
        )

    # --- what a connection asks for (``conversation.Reception``) ---

    async def open_session(self, request: Open, peer: Peer, client: str, owner: Owner) -> tuple[Session, bool]:
        """A new session, or the one asked for."""
        session, resumed = await self._registry.open(request, peer, owner)
        self.totals["resumed" if resumed else "opened"] += 1
        log.info(
            telemetry.SESSION_RESUMED if resumed else telemetry.SESSION_OPENED,
            session=session.description.session,
            graph=session.description.graph,
            client=client,
            uid=peer.uid,
        )
        return session, resumed

    def release_session(self, session: Session) -> None:
        """The session has lost its connection."""
        self._registry.linger(session)

    async def room(self) -> None:
        """Wait until the writer's queue has room."""
        await self._writer.room()

    def count(self, code: Code) -> None:
        """Count a refusal."""
        self.refusals[code.value] += 1

    def hold(self, peer: Peer) -> Holding:
        """A count of the memory that a connection holds."""
        return self.held.holding(peer)

    def relieve(self) -> None:
        """Where connections hold too much together, let the one go that holds most."""
        if self.held.exceeded:
            # Why again: what was unsaid when it was counted, a client may have read since, and said nothing more.
            for connection in self.connections:
                connection.count_held()
        if self.held.exceeded:
            greediest = max(self.connections, key=lambda connection: connection.holding.bytes)
            greediest.drop(
                ProtocolError(
                    Code.LIMIT,
                    f"{greediest.holding.bytes} bytes of a begun line and of unread answers are held for one client",
                    "end lines, read what the daemon sends, or raise limits.held_bytes",
                )
            )

    def __repr__(self) -> str:
        return f"<Clients {len(self.connections)} connected, {self.totals['clients']} so far>"
