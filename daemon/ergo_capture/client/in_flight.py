"""What one client has sent and the daemon has not answered: events, and the request under way.

Synchronous and without a clock: every answer of the daemon goes in, counts and lines come out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ergo_capture.protocol.capture import Closed, Flushed, Pong

#: The answers to requests other than ``hello`` and ``open``.
RequestAnswer = Flushed | Closed | Pong


#: Ids that are remembered above the number of events that a resumed session holds.
_MORE_IDS: Final = 100_000


@dataclass(slots=True)
class _Sent:
    line: bytes
    event_id: str
    #: What the caller calls it.
    place: int = 0
    #: Sent on an earlier connection too: a duplicate then means that it had arrived.
    again: bool = False
    #: The first event of its id that this client sends, as far as that matters: a duplicate then means that the session
    #: had it before this client resumed it.
    first: bool = False
    #: Known to be durable, though not by an acknowledgement: it was rejected as a duplicate of itself.
    arrived: bool = False
    captured: bool = False
    rejected: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether a rejection said what became of it."""
        return self.rejected or self.captured or self.arrived


class InFlight:
    """Counts and lines of the events that were sent.

    The daemon numbers the events of a connection from 1; ``acked``, ``is_rejected`` and ``sent`` take its numbers.

    Args:
        on_durable: called with the place of each event that is known to be durable, whoever sent it.
    """

    def __init__(self, on_durable: Callable[[int], None] = lambda _place: None) -> None:
        self._on_durable = on_durable
        #: Events acknowledged as durable, rejections not counted; and those that were rejected.
        self.accepted = 0
        self.rejected = 0
        #: Events that the session held before this client resumed it.
        self.captured = 0
        #: Events of the session that the daemon has said are durable, and the id of the last, None where it is not known.
        self.told_events = 0
        self.told_last: str | None = None
        self._sent: deque[_Sent] = deque()
        #: How many of this connection the daemon has acknowledged.
        self._acked = 0
        #: Events of the session before this client that have not come back as duplicates; and the ids sent by this
        #: client, kept as long as there may be any.
        self._may_be_captured = 0
        self._ids: set[str] = set()

    def __len__(self) -> int:
        return len(self._sent)

    def opened(self, events: int, last: str | None) -> None:
        """Begin a session that holds so many events, the last of that id."""
        self.told_events, self.told_last = events, last
        self._may_be_captured = events

    def add(self, line: bytes, event_id: str, place: int = 0) -> None:
        """Add an event that is about to be sent."""
        sent = _Sent(line, event_id, place)
        if self._may_be_captured:
            sent.first = event_id not in self._ids
            self._ids.add(event_id)
            # These are new events, and not the ones that the session holds. Their number has no bound.
            if len(self._ids) > self.captured + self._may_be_captured + _MORE_IDS:
                self._forget_ids()
        self._sent.append(sent)

    def _forget_ids(self) -> None:
        self._may_be_captured, self._ids = 0, set()

    def acked(self, count: int, events: int | None = None) -> None:
        """Remove the first ``count`` events of this connection: each is durable or was rejected.

        Args:
            count: events of this connection.
            events: the durable events of the session, if the daemon says.
        """
        for _ in range(min(count - self._acked, len(self._sent))):
            self._count(self._sent.popleft())
        self._acked = max(self._acked, count)
        if events is not None:
            self.told_events = events

    def is_rejected(self, index: int, *, duplicate: bool) -> bool:
        """Mark an event as rejected; return False if the rejection only says that it is there already."""
        sent = self.sent(index)
        if sent is None:
            return True
        if duplicate and sent.again:
            sent.arrived = True
        elif duplicate and sent.first and self._may_be_captured:
            sent.captured = True
            self._may_be_captured -= 1
            if not self._may_be_captured:
                self._forget_ids()
        else:
            sent.rejected = True
        return sent.rejected

    def sent(self, index: int) -> _Sent | None:
        """Return an event of this connection; None if it is not in flight."""
        position = index - self._acked - 1
        return self._sent[position] if 0 <= position < len(self._sent) else None

    def reconnected(self, events: int, last: str | None) -> list[bytes]:
        """Begin a new connection; return the lines to send on it.

        Args:
            events: the durable events of the session; fewer than were acknowledged where some are lost.
            last: id of the last of them.
        """
        self._acked = 0
        self._drop_durable(events - self.told_events, last)
        self.told_events, self.told_last = events, last
        # Do not send rejected events again: their sender was told, and may have sent them again.
        for sent in self._sent:
            if sent.rejected or sent.captured:
                self._count(sent)
        self._sent = deque(sent for sent in self._sent if not (sent.rejected or sent.captured))
        for sent in self._sent:
            sent.again = True
            sent.arrived = False
        return [sent.line for sent in self._sent]

    def _drop_durable(self, count: int, last: str | None) -> None:
        """Remove the first ``count`` events that no rejection was about, if ``last`` is the id of the last of them.

        If it is not, one of them was rejected and the rejection was lost with the connection. Then all are sent
        again, and those that are durable come back as duplicates.
        """
        taken = [number for number, sent in enumerate(self._sent) if not sent.is_settled][: max(count, 0)]
        if count <= 0 or len(taken) < count or self._sent[taken[-1]].event_id != last:
            return
        for _ in range(taken[-1] + 1):
            self._count(self._sent.popleft())

    def _count(self, sent: _Sent) -> None:
        if sent.rejected:
            self.rejected += 1
            return
        self._on_durable(sent.place)
        if sent.captured:
            self.captured += 1
        else:
            self.accepted += 1
            if not sent.arrived:
                self.told_events += 1
                self.told_last = sent.event_id or None


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
