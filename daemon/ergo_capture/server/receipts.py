"""What became of the events of one connection: which are accepted, which are decided, which are still open.

Owns: counting a connection's events, and when a count may be acknowledged.
Not here: saying it (``replies.py``), a session's own watermarks (``session.py``).

A client counts what it sent on its connection; a session counts what it admitted, from all its connections.
A receipt ties a stretch of the one to a batch of the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ergo_capture.server.session import Session
from ergo_capture.server.submission import Batch


@dataclass(slots=True)
class _Receipt:
    """Events of this connection whose fate is still open."""

    #: Number of the last of them on this connection, from 1.
    end: int
    #: None where all of them were rejected before a session saw them.
    batch: Batch | None


class Receipts:
    """The counts of one connection.

    Args:
        reject: called with the number of a batch's first event and the batch, where the batch was refused.
    """

    def __init__(self, reject: Callable[[int, Batch], None]) -> None:
        #: Events received on this connection: admitted, rejected, or unreadable.
        self.received = 0
        self.accepted = 0
        self.decided = 0
        self._reject = reject
        self._unaccepted: deque[_Receipt] = deque()
        self._undecided: deque[_Receipt] = deque()

    @property
    def open(self) -> bool:
        """Whether the fate of anything received is not known yet."""
        return bool(self._unaccepted)

    def note(self, batch: Batch | None) -> None:
        """Everything received by now is in ``batch`` or in those before it, or was rejected."""
        receipt = _Receipt(self.received, batch)
        self._unaccepted.append(receipt)
        self._undecided.append(receipt)

    def settle(self, session: Session | None) -> None:
        """Move the counts as far as the session's watermarks allow."""
        waiting = self._unaccepted
        while waiting:
            receipt = waiting[0]
            batch = receipt.batch
            if batch is not None and batch.refused is not None:
                self._reject(receipt.end - len(batch.events) + 1, batch)
            elif batch is not None and (session is None or batch.first < 0 or session.accepted < batch.end):
                break
            self.accepted = receipt.end
            waiting.popleft()
        undecided = self._undecided
        while undecided:
            receipt = undecided[0]
            batch = receipt.batch
            if receipt.end > self.accepted:
                break
            if batch is None or batch.refused is not None or (session is not None and session.decided >= batch.end):
                self.decided = receipt.end
                undecided.popleft()
                continue
            break

    def let_go(self) -> None:
        """Nobody is to be told any more what becomes of events: give back their batches."""
        self._unaccepted.clear()
        self._undecided.clear()

    def __repr__(self) -> str:
        return f"<Receipts {self.received} received, {self.accepted} accepted, {self.decided} decided>"
