"""The events of one session that the daemon has not said the last word on.

Owns: InFlight: what is acknowledged, what is rejected, what is to be sent again after a reconnection.
Not here: sockets (``wire.py``), waiting for room (``session.py``).

Synchronous and without a clock: every answer of the daemon goes in, counts and lines come out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(slots=True)
class _Sent:
    line: bytes
    event_id: str
    #: Sent on an earlier connection too: a duplicate then means that it had arrived.
    again: bool = False
    rejected: bool = False


class InFlight:
    """Counts and lines of what was sent.

    The daemon counts what it received on a connection, from 1; so do ``acked`` and ``rejected`` here.
    """

    def __init__(self) -> None:
        #: Events acknowledged as durable, rejections not counted; and those that were rejected.
        self.accepted = 0
        self.rejected = 0
        self._sent: deque[_Sent] = deque()
        #: How many of this connection the daemon has acknowledged.
        self._acked = 0
        #: Id of the last event that is known to be durable, of those sent here.
        self._last_acked: str | None = None

    def __len__(self) -> int:
        return len(self._sent)

    def add(self, line: bytes, event_id: str) -> None:
        """One more is sent."""
        self._sent.append(_Sent(line, event_id))

    def acked(self, count: int) -> None:
        """The daemon has said the last word on so many events of this connection."""
        for _ in range(min(count - self._acked, len(self._sent))):
            self._count(self._sent.popleft())
        self._acked = max(self._acked, count)

    def is_rejected(self, index: int, *, duplicate: bool) -> bool:
        """The daemon does not take an event of this connection; False where that says that it had it already."""
        position = index - self._acked - 1
        sent = self._sent[position] if 0 <= position < len(self._sent) else None
        if sent is not None:
            if duplicate and sent.again:
                return False
            sent.rejected = True
        return True

    def come_back(self, durable: str | None) -> list[bytes]:
        """A new connection, on which ``durable`` is the id of the session's last event; the lines to send on it."""
        self._acked = 0
        # Why not where it is the last that was acknowledged: what bears its id behind it is a duplicate of it, and
        # what lies between the two is not durable.
        if durable != self._last_acked and any(sent.event_id == durable for sent in self._sent):
            while True:
                sent = self._sent.popleft()
                self._count(sent)
                if sent.event_id == durable:
                    break
        # Why these: their sender was told that they are not taken, and may have sent them anew.
        for sent in self._sent:
            if sent.rejected:
                self._count(sent)
        self._sent = deque(sent for sent in self._sent if not sent.rejected)
        for sent in self._sent:
            sent.again = True
        return [sent.line for sent in self._sent]

    def _count(self, sent: _Sent) -> None:
        if sent.rejected:
            self.rejected += 1
        else:
            self.accepted += 1
            self._last_acked = sent.event_id

    def __repr__(self) -> str:
        return f"<InFlight {len(self._sent)}, {self.accepted} accepted, {self.rejected} rejected>"
