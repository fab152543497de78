"""The events of one session that the daemon has not said the last word on.

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
        sent = self._at(index)
        if sent is not None:
            if duplicate and sent.again:
                return False
            sent.rejected = True
        return True

    def line_of(self, index: int) -> bytes:
        """The line that the daemon counts so on this connection; empty where it is not in flight."""
        sent = self._at(index)
        return b"" if sent is None else sent.line

    def _at(self, index: int) -> _Sent | None:
        position = index - self._acked - 1
        return self._sent[position] if 0 <= position < len(self._sent) else None

    def come_back(self, count: int, last: str | None) -> list[bytes]:
        """A new connection; the lines to send on it.

        Args:
            count: how many of the events sent here are durable, those acknowledged before included.
            last: id of the session's last event.
        """
        self._acked = 0
        self._drop_durable(count - self.accepted, last)
        # Why these: their sender was told that they are not taken, and may have sent them anew.
        for sent in self._sent:
            if sent.rejected:
                self._count(sent)
        self._sent = deque(sent for sent in self._sent if not sent.rejected)
        for sent in self._sent:
            sent.again = True
        return [sent.line for sent in self._sent]

    def _drop_durable(self, count: int, last: str | None) -> None:
        """Forget the events that are durable, ``count`` of them, if they are those up to ``last``.

        Where they are not, one of them was refused and the word of it was lost with the connection. All are sent
        again then: those that are durable come back as duplicates.
        """
        taken = [number for number, sent in enumerate(self._sent) if not sent.rejected][:count]
        if count <= 0 or len(taken) < count or self._sent[taken[-1]].event_id != last:
            return
        for _ in range(taken[-1] + 1):
            self._count(self._sent.popleft())

    def _count(self, sent: _Sent) -> None:
        if sent.rejected:
            self.rejected += 1
        else:
            self.accepted += 1

    def __repr__(self) -> str:
        return f"<InFlight {len(self._sent)}, {self.accepted} accepted, {self.rejected} rejected>"
