"""New sessions on their way into the journal: from being let in until the OPEN frame is durable."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.errors import JournalFull
from ergo_capture.journal.frame import FrameKind, PendingFrame, Position
from ergo_capture.journal.payloads import Peer, SessionDescription, encode_body
from ergo_capture.journal.wal import Journal
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.failures import storage_failed
from ergo_capture.server.session.graph import Graph
from ergo_capture.server.session.parts import utc_now
from ergo_capture.server.session.session import Session
from ergo_capture.version import PROGRAM


@dataclass(slots=True, eq=False)
class Opening:
    """A session whose OPEN frame is on its way."""

    number: int
    description: SessionDescription
    graph: Graph
    #: The oldest segment that may hold the frame.
    segment: int
    _openings: Openings
    #: Where the client's connection waits for the session; cancelled where it waits no more.
    _opened: asyncio.Future[Session]

    def to_frame(self) -> PendingFrame | None:
        """What the session is."""
        return PendingFrame(FrameKind.OPEN, self.number, 0, 0, encode_body(self.description))

    def on_durable(self, position: Position) -> None:
        """There is such a session now, whether its client still waits for it or not."""
        self._openings.forget(self)
        if not self._opened.cancelled():
            self._opened.set_result(self._openings.begin(self, position.segment))
        elif not self._openings.is_stopping:
            self._openings.abandon(self._openings.begin(self, position.segment))
        # At the stop nobody is there to begin it: the next start finds it.

    def on_refused(self, error: ErgoCaptureError) -> None:
        """There is none; where the disk was full, who waits for it tries again."""
        alone = self._opened.cancelled()
        if alone or not isinstance(error, JournalFull):
            self._openings.forget(self)
        if not alone:
            self._opened.set_exception(error)


class Openings:
    """Every session that is being opened.

    Args:
        writer: makes the frames durable.
        journal: asked which segment a frame may land in.
        next_number: number of the next session in the journal.
        begin: makes the session of an opening whose frame is durable, in the segment of that sequence, and lets it live.
        abandon: told of a session that began when its client had gone.
    """

    def __init__(
        self,
        writer: Writer,
        journal: Journal,
        next_number: int,
        begin: Callable[[Opening, int], Session],
        abandon: Callable[[Session], None],
    ) -> None:
        self.begin = begin
        self.abandon = abandon
        #: Whether the daemon stops, so that no session begins for a client that has gone.
        self.is_stopping = False
        self._writer = writer
        self._journal = journal
        self._next_number = next_number
        self._under_way: dict[int, Opening] = {}

    async def open(self, graph: Graph, provenance: str, labels: dict[str, str], peer: Peer | None) -> Session:
        """A new session, once it is durable.

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
        )
        while True:
            opened: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
            opening = Opening(number, description, graph, self._journal.current_segment, self, opened)
            self._under_way.pop(number, None)
            try:
                self._writer.submit(opening, len(encode_body(description)))
                # Why noted: the frame lands in this segment or a later one, and until the session is known nothing else
                # keeps that segment.
                self._under_way[number] = opening
                return await opened
            except JournalFull:
                continue
            except ErgoCaptureError as error:
                raise storage_failed(error) from error
            except asyncio.CancelledError:
                # Its client has gone. Where the frame is still on its way, ``on_durable`` finds that out.
                if not opened.cancelled():
                    self._under_way.pop(number, None)
                    if opened.exception() is None:
                        self.abandon(opened.result())
                raise

    def forget(self, opening: Opening) -> None:
        """Its frame is not on its way any more."""
        del self._under_way[opening.number]

    def __iter__(self) -> Iterator[Opening]:
        return iter(self._under_way.values())

    def __len__(self) -> int:
        return len(self._under_way)

    def __repr__(self) -> str:
        return f"<Openings {len(self)} under way, {self._next_number} is the next session's number>"
