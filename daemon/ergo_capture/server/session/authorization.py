"""Who may have a session."""

from __future__ import annotations

from anyio import to_thread

from ergo_capture.journal.payloads import Peer
from ergo_capture.protocol.capture import Code, ProtocolError
from ergo_capture.server.failures import storage_failed
from ergo_capture.server.session.access import who
from ergo_capture.server.session.graph import Graph
from ergo_capture.server.session.session import Session


def check_free(session: Session) -> None:
    """Hold that a session can be taken up.

    Raises:
        ProtocolError: ``session_busy`` where it has a connection or is about to end; ``storage_failed`` where it failed.
    """
    if session.failure is not None:
        # Why: nothing decides what it would be sent, so that it would pile up, and nobody would hear why.
        raise storage_failed(session.failure)
    if session.owner is not None or session.ended is not None:
        session_id = session.description.session
        message = f"session {session_id!r} is in use" if session.ended is None else f"session {session_id!r} is ending"
        raise ProtocolError(Code.SESSION_BUSY, message, "close the other connection first, or try again")


def is_its(opened_by: Peer | None, peer: Peer | None) -> bool:
    """Whether a session of one peer may be resumed by the other: the same user, or root."""
    if peer is None or opened_by is None:
        # Why not refused where the kernel names nobody: there it named nobody at the opening either.
        return peer is opened_by or (peer is not None and peer.uid == 0)
    return peer.uid in (opened_by.uid, 0)


async def check_access(graph: Graph, peer: Peer | None) -> None:
    """Hold that the graph's allow-list lets the peer in.

    Raises:
        ProtocolError: ``forbidden``.
    """
    # Why in a thread: the group database may be on another host.
    if not graph.access.is_open and not await to_thread.run_sync(graph.access.lets_in, peer):
        raise ProtocolError(
            Code.FORBIDDEN,
            f"{who(peer)} may not use graph {graph.name!r}",
            f"ask the operator to add you to graphs.{graph.name}.users or .groups",
        )
