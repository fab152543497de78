"""Authorization of clients to open and resume sessions."""

from __future__ import annotations

from anyio import to_thread

from ergo_capture.journal.payloads import Peer
from ergo_capture.protocol.capture import Code, ProtocolError
from ergo_capture.server.failures import storage_failed
from ergo_capture.server.session.access import peer_name
from ergo_capture.server.session.graph import Graph
from ergo_capture.server.session.session import Session, SessionState


def check_free(session: Session) -> None:
    """Raise unless the session can be resumed now.

    Raises:
        ProtocolError: ``session_busy`` where it has a connection or is about to end; ``storage_failed`` where it failed.
    """
    session_id, hint = session.description.session, "close the other connection first, or try again"
    if session.failure is not None:
        # Its task has ended: events would be queued and never decided.
        raise storage_failed(session.failure)
    if session.state is not SessionState.OPEN:
        raise ProtocolError(Code.SESSION_BUSY, f"session {session_id!r} is ending", hint)
    if session.owner is not None:
        raise ProtocolError(Code.SESSION_BUSY, f"session {session_id!r} is in use", hint)


def is_owner(peer: Peer, opened_by: Peer | None) -> bool:
    """Return whether a peer may resume a session that another opened: as the same user, or as root."""
    return peer.uid == 0 or (opened_by is not None and peer.uid == opened_by.uid)


async def check_access(graph: Graph, peer: Peer) -> None:
    """Raise unless the graph's allow-list admits the peer.

    Raises:
        ProtocolError: ``forbidden``.
    """
    # In a thread: the group database may be on another host.
    if not graph.access.is_open and not await to_thread.run_sync(graph.access.admits, peer):
        raise ProtocolError(
            Code.FORBIDDEN,
            f"{peer_name(peer)} may not use graph {graph.name!r}",
            f"ask the operator to add you to graphs.{graph.name}.users or .groups",
        )
