"""What became of the events of one connection: which are accepted, which are decided, which are still open.

A client counts what it sent on its connection; a session counts what it admitted, from all its connections.
A receipt ties a stretch of the one to a batch of the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ergo_capture.server.session.admission_queue import EventBatch
from ergo_capture.server.session.session import Session


@dataclass(slots=True)
class _Receipt:
    """Events of this connection whose fate is still open."""

    #: Number of the last of them on this connection, from 1.
    end: int
    #: None where all of them were rejected before a session saw them.
    batch: EventBatch | None
    #: The numbers of the batch's events; the others were rejected before.
    numbers: Sequence[int]


class Receipts:
    """The counts of one connection.

    Args:
        reject: called with the numbers of a batch's events and the batch, where the batch was refused.
    """

    def __init__(self, reject: Callable[[Sequence[int], EventBatch], None]) -> None:
        #: Events received on this connection: admitted, rejected, or unreadable.
        self.received = 0
        self.accepted = 0
        self.decided = 0
        self._reject = reject
        self._unaccepted: deque[_Receipt] = deque()
        #: Of each batch that is accepted and not decided: its end in the session, and ``accepted`` before it.
        self._undecided: deque[tuple[int, int]] = deque()

    @property
    def open(self) -> bool:
        """Whether the fate of anything received is not known yet."""
        return bool(self._unaccepted)

    def note(self, batch: EventBatch | None, numbers: Sequence[int] = ()) -> None:
        """Of what was received since the last note, the events with these numbers are in ``batch``, the others rejected."""
        waiting = self._unaccepted
        if batch is None and waiting and waiting[-1].batch is None:
            # Why: what is rejected takes no room in any queue, so that there may be any number of it.
            waiting[-1].end = self.received
        else:
            waiting.append(_Receipt(self.received, batch, numbers))

    def settle(self, session: Session | None) -> None:
        """Move the counts as far as the session's watermarks allow."""
        waiting = self._unaccepted
        while waiting:
            receipt = waiting[0]
            batch = receipt.batch
            if batch is not None and batch.refused is not None:
                self._reject(receipt.numbers, batch)
            elif batch is not None:
                if batch.position is None:
                    break
                self._undecided.append((batch.end, self.accepted))
            self.accepted = receipt.end
            waiting.popleft()
        undecided = self._undecided
        while undecided and session is not None and session.decided >= undecided[0][0]:
            undecided.popleft()
        self.decided = undecided[0][1] if undecided else self.accepted

    def let_go(self) -> None:
        """Nobody is to be told any more what becomes of events: give back their batches."""
        self._unaccepted.clear()
        self._undecided.clear()

    def __repr__(self) -> str:
        return f"<Receipts {self.received} received, {self.accepted} accepted, {self.decided} decided>"
