"""The connected clients: serve and count them, and bound the memory that they hold together."""

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
from ergo_capture.server.session.budget import Budget
from ergo_capture.server.session.registry import SessionRegistry
from ergo_capture.server.session.session import Owner, Session

log = structlog.get_logger()


class Clients:
    """The clients of the daemon (``conversation.Host``); they are served after ``begin``.

    Args:
        limits: bounds on clients; may be replaced for those that come next.
        access: who may connect.
    """

    registry: SessionRegistry
    writer: Writer

    def __init__(self, limits: LimitsConfig, access: Access) -> None:
        self.limits = limits
        self.admission = Admission(access, max_clients=limits.max_clients, max_user_clients=limits.max_user_clients)
        self.connections: dict[Connection, None] = {}
        #: Counts since the start: ``clients`` admitted, sessions ``opened`` and ``resumed``.
        self.totals: Counter[str] = Counter()
        #: Refusals by code.
        self.refusals: Counter[str] = Counter()
        #: Memory for incomplete lines and unread answers.
        self.held = Budget(int(limits.held_bytes), int(limits.held_bytes))

    def begin(self, registry: SessionRegistry, writer: Writer) -> None:
        """Set the components that exist once the journal is recovered."""
        self.registry, self.writer = registry, writer

    def apply(self, limits: LimitsConfig, access: Access) -> None:
        """Apply a reloaded configuration. Connected clients stay, and count towards the limits."""
        self.limits = limits
        self.admission.access = access
        self.admission.max_clients = limits.max_clients
        self.admission.max_user_clients = limits.max_user_clients
        self.held.total = self.held.per_user = int(limits.held_bytes)

    async def serve(self, stream: UNIXSocketStream, peer: Peer) -> None:
        """Serve one admitted client until it is gone."""
        self.totals["clients"] += 1
        connection = Connection(stream, peer, self)
        self.connections[connection] = None
        try:
            await connection.serve()
        except Exception:
            # A defect in serving one client must not harm the others.
            log.exception(telemetry.CLIENT_FAILED, client=connection.conversation.client)
        finally:
            del self.connections[connection]
            error, conversation = connection.error, connection.conversation
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
        """Count and log a client that a listener refused."""
        self.refusals[error.code] += 1
        log.warning(
            telemetry.CLIENT_REFUSED,
            uid=peer.uid,
            pid=peer.pid,
            code=error.code.value,
            reason=error.message,
            hint=error.hint,
        )

    def log_accept_failed(self, error: BaseException) -> None:
        """Log the reason why the system cannot accept a connection."""
        log.error(
            telemetry.CLIENT_UNACCEPTED,
            error=str(error),
            hint="raise LimitNOFILE, or lower limits.max_clients",
        )

    async def open_session(self, request: Open, peer: Peer, client: str, owner: Owner) -> tuple[Session, bool]:
        """Open or resume a session for the client of that name; return it, and whether it was resumed.

        Raises:
            ProtocolError: the request is refused.
        """
        session, resumed = await self.registry.open(request, peer, owner)
        self.totals["resumed" if resumed else "opened"] += 1
        log.info(
            telemetry.SESSION_RESUMED if resumed else telemetry.SESSION_OPENED,
            session=session.description.session,
            graph=session.description.graph,
            client=client,
            uid=peer.uid,
        )
        return session, resumed

    def relieve(self) -> None:
        """Drop the connection that holds most memory, if all together hold more than they may."""
        # Count again: clients may have read some of their answers meanwhile.
        for connection in self.connections:
            connection.count_held()
        if self.held.exceeded:
            largest = max(self.connections, key=lambda connection: connection.holding.bytes)
            largest.drop(
                ProtocolError(
                    Code.LIMIT,
                    f"{largest.holding.bytes} bytes of an incomplete line and of unread answers are held for one client",
                    "end lines, read what the daemon sends, or raise limits.held_bytes",
                )
            )
