"""Sessions whose OPEN frame is not durable yet, and the limit on the rate at which a user may open sessions."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.errors import JournalFull
from ergo_capture.journal.frame import FrameKind, PendingFrame, Position
from ergo_capture.journal.payloads import Loss, Peer, SessionDescription, encode_body
from ergo_capture.journal.wal import Journal
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.failures import storage_failed
from ergo_capture.server.session.graph import Graph
from ergo_capture.server.session.parts import utc_now
from ergo_capture.server.session.session import Session
from ergo_capture.version import PROGRAM

#: After a pause, as many sessions may be opened at once as the rate allows in this many seconds.
_BURST_SECONDS: Final = 5.0


@dataclass(slots=True, eq=False)
class PendingSession:
    """A session whose OPEN frame is not durable yet; a ``Submission`` to the writer."""

    number: int
    description: SessionDescription
    graph: Graph
    #: The oldest segment that may hold the frame.
    segment: int
    _pending: PendingSessions
    #: Awaited by the client's connection; cancelled when the connection has ended.
    _opened: asyncio.Future[Session]

    def to_frame(self) -> PendingFrame:
        """Return the OPEN frame."""
        return PendingFrame(FrameKind.OPEN, self.number, 0, 0, encode_body(self.description))

    def on_durable(self, position: Position) -> None:
        """Start the session, even if its client has gone."""
        pending = self._pending
        pending.remove(self)
        if not self._opened.cancelled():
            self._opened.set_result(pending.start(self, position.segment))
        elif not pending.is_stopping:
            pending.abandon(pending.start(self, position.segment))
        # While the daemon stops there is no task group to start it in: the next start recovers it.

    def on_refused(self, error: ErgoCaptureError) -> None:
        """Pass the error to the connection, which tries again if the disk is full."""
        alone = self._opened.cancelled()
        if alone or not isinstance(error, JournalFull):
            self._pending.remove(self)
        if not alone:
            self._opened.set_exception(error)


class PendingSessions:
    """The sessions that are being opened.

    Args:
        writer: makes the OPEN frames durable.
        journal: asked for the segment that a frame may land in.
        next_number: number of the next session in the journal.
        start: makes and starts the session of an OPEN frame, given the sequence number of the frame's segment.
        abandon: called with a session that was started after its client had gone.
    """

    def __init__(
        self,
        writer: Writer,
        journal: Journal,
        next_number: int,
        start: Callable[[PendingSession, int], Session],
        abandon: Callable[[Session], None],
    ) -> None:
        self.start = start
        self.abandon = abandon
        #: Whether the daemon stops: no session is started for a client that has gone.
        self.is_stopping = False
        self._writer = writer
        self._journal = journal
        self._next_number = next_number
        self._by_number: dict[int, PendingSession] = {}

    async def open(
        self,
        graph: Graph,
        provenance: str,
        labels: dict[str, str],
        peer: Peer,
        lost: Loss | None = None,
        decided_by: str = "",
    ) -> Session:
        """Return a new session once its OPEN frame is durable; waits while the disk is full.

        Args:
            graph: the graph as configured.
            provenance: the engine's provenance.
            labels: the client's labels.
            peer: who opens the session.
            lost: the loss of the client's earlier session; None for none.
            decided_by: the maker of the decisions; empty for the graph's engine.

        Raises:
            ProtocolError: ``storage_failed``.
        """
        number, self._next_number = self._next_number, self._next_number + 1
        description = SessionDescription(
            session=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{number}-{secrets.token_hex(4)}",
            graph=graph.name,
            constraints=graph.constraints,
            adapter_provenance=graph.adapter_provenance,
            runtime_provenance=provenance,
            engine=graph.engine.name,
            labels=labels,
            peer=peer,
            opened_at=utc_now(),
            program=PROGRAM,
            lost=lost,
            decided_by=decided_by,
            # An engine elsewhere sees what was sent.
            contract=None if decided_by else graph.contract,
            egress_provenance=graph.egress_provenance,
        )
        while True:
            opened: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
            pending = PendingSession(number, description, graph, self._journal.current_segment, self, opened)
            self._by_number.pop(number, None)
            try:
                self._writer.submit(pending, len(encode_body(description)))
                # The frame lands in this segment or a later one. Until the session is started, only this entry keeps
                # the segment from being deleted.
                self._by_number[number] = pending
                return await opened
            except JournalFull:
                continue
            except ErgoCaptureError as error:
                raise storage_failed(error) from error
            except asyncio.CancelledError:
                # The client has gone. If the frame is still on its way, ``on_durable`` sees the cancelled future.
                if not opened.cancelled():
                    self._by_number.pop(number, None)
                    if opened.exception() is None:
                        self.abandon(opened.result())
                raise

    def remove(self, pending: PendingSession) -> None:
        """Remove a session whose frame is durable or was refused."""
        del self._by_number[pending.number]

    def __iter__(self) -> Iterator[PendingSession]:
        return iter(self._by_number.values())

    def __len__(self) -> int:
        return len(self._by_number)


class RateLimiter:
    """Limits how fast each user may open sessions, with one token bucket a user.

    Args:
        rate: sessions per second, on average; 0 for no limit.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        #: When each user's bucket is full again, on the caller's clock in seconds.
        self._full: dict[int | None, float] = {}

    def reserve(self, user: int | None, now: float) -> float:
        """Reserve the user's next turn, and return the seconds until it comes.

        Turns are given in the order of the calls. A turn that is not used is lost.
        """
        if not self.rate:
            return 0.0
        full = max(self._full.get(user, now), now) + 1 / self.rate
        self._full[user] = full
        return max(0.0, full - now - _BURST_SECONDS)
