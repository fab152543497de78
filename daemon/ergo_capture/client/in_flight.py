"""What one client has sent and the daemon has not answered: events, and the request under way.

Synchronous and without a clock: every answer of the daemon goes in, counts and lines come out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ergo_capture.protocol.capture import Closed, Flushed, Pong

#: The answers to requests other than ``hello`` and ``open``.
RequestAnswer = Flushed | Closed | Pong


@dataclass(slots=True)
class _Sent:
    line: bytes
    event_id: str
    #: Sent on an earlier connection too: a duplicate then means that it had arrived.
    again: bool = False
    rejected: bool = False


class InFlight:
    """Counts and lines of the events that were sent.

    The daemon numbers the events of a connection from 1; ``acked``, ``is_rejected`` and ``line_of`` take its numbers.
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
        """Add an event that is about to be sent."""
        self._sent.append(_Sent(line, event_id))

    def acked(self, count: int) -> None:
        """Remove the first ``count`` events of this connection: each is durable or was rejected."""
        for _ in range(min(count - self._acked, len(self._sent))):
            self._count(self._sent.popleft())
        self._acked = max(self._acked, count)

    def is_rejected(self, index: int, *, duplicate: bool) -> bool:
        """Mark an event as rejected; return False if the rejection only says that it had arrived before."""
        sent = self._at(index)
        if sent is not None:
            if duplicate and sent.again:
                return False
            sent.rejected = True
        return True

    def line_of(self, index: int) -> bytes:
        """Return the line of an event of this connection; empty if it is not in flight."""
        sent = self._at(index)
        return b"" if sent is None else sent.line

    def _at(self, index: int) -> _Sent | None:
        position = index - self._acked - 1
        return self._sent[position] if 0 <= position < len(self._sent) else None

    def reconnected(self, count: int, last: str | None) -> list[bytes]:
        """Begin a new connection; return the lines to send on it.

        Args:
            count: how many of the events sent here are durable, those acknowledged before included.
            last: id of the session's last event.
        """
        self._acked = 0
        self._drop_durable(count - self.accepted, last)
        # Do not send rejected events again: their sender was told, and may have sent them anew.
        for sent in self._sent:
            if sent.rejected:
                self._count(sent)
        self._sent = deque(sent for sent in self._sent if not sent.rejected)
        for sent in self._sent:
            sent.again = True
        return [sent.line for sent in self._sent]

    def _drop_durable(self, count: int, last: str | None) -> None:
        """Remove the first ``count`` events that were not rejected, if ``last`` is the id of the last of them.

        If it is not, one of them was rejected and the rejection was lost with the connection. Then all are sent
        again, and those that are durable come back as duplicates.
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


class PendingRequest:
    """The one request under way, and its answer.

    Requests come one after the other. One that is not answered when the connection breaks is sent again on the next.
    """

    def __init__(self) -> None:
        #: The request's line; None while there is none.
        self.line: bytes | None = None
        #: Whether it was sent on an earlier connection too.
        self.sent_again = False
        self.answer: RequestAnswer | None = None
        #: Answers to come on this connection to requests that were abandoned.
        self._abandoned = 0

    def begin(self, line: bytes) -> None:
        """Make ``line`` the request under way."""
        self.line, self.sent_again, self.answer = line, False, None

    def end(self) -> None:
        """Make it none: it was answered, abandoned, or failed."""
        self.line = self.answer = None

    def abandon(self, *, sent: bool) -> None:
        """Wait for the answer no more; ``sent`` says whether the daemon may have the request.

        The answer comes all the same, and must not be taken for that to the next request.
        """
        self._abandoned += sent and self.answer is None

    def take(self, answer: RequestAnswer) -> None:
        """Keep an answer, unless it is to an abandoned request."""
        if self._abandoned:
            self._abandoned -= 1
        else:
            self.answer = answer

    def take_closed(self, answer: Closed, request: bytes) -> None:
        """Keep the answer to ``request``, a ``close``, also if an earlier one was abandoned: a session ends once."""
        if self.line == request:
            self.answer = answer

    def disconnected(self) -> None:
        """Forget the answers that were to come on this connection."""
        self._abandoned = 0

    def reconnected(self) -> bytes | None:
        """Return the request to send on a new connection, if one is under way."""
        self.sent_again |= self.line is not None
        return self.line
