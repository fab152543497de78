"""The events and the request of one client that the daemon has not answered yet.

Synchronous and without a clock: the caller passes every answer of the daemon, and gets counts and lines to send.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ergo_capture.protocol.capture import Closed, Flushed, Pong

#: The answers to requests other than ``hello`` and ``open``.
RequestAnswer = Flushed | Closed | Pong


#: How many ids are remembered above the number of events that a resumed session holds.
_MORE_IDS: Final = 100_000


@dataclass(slots=True)
class _Sent:
    line: bytes
    event_id: str
    #: The caller's number of it.
    place: int = 0
    #: Whether it was sent on an earlier connection too: a duplicate then means that it had arrived.
    again: bool = False
    #: Whether it may be the first event with its id that this client sends: a duplicate then means that the session had
    #: it before this client resumed it.
    first: bool = False
    #: Whether it is known to be durable without an acknowledgement: it was rejected as a duplicate of itself.
    arrived: bool = False
    captured: bool = False
    rejected: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether a rejection has settled it."""
        return self.rejected or self.captured or self.arrived


class InFlight:
    """Counts and lines of the events that were sent.

    The daemon numbers the events of a connection from 1; ``acked``, ``is_rejected`` and ``sent`` take its numbers.

    Args:
        on_durable: called with the place of each event that is known to be durable, also if another client sent it.
    """

    def __init__(self, on_durable: Callable[[int], None] = lambda _place: None) -> None:
        self._on_durable = on_durable
        #: The numbers of events that were acknowledged as durable, and that were rejected.
        self.accepted = 0
        self.rejected = 0
        #: Events that the session held before this client resumed it.
        self.captured = 0
        #: The number of the session's events that were acknowledged, and the id of the last one; None if unknown.
        self.told_events = 0
        self.told_last: str | None = None
        self._sent: deque[_Sent] = deque()
        #: How many events of this connection the daemon has acknowledged.
        self._acked = 0
        #: Events of the session before this client that have not come back as duplicates, and the ids sent by this
        #: client, which are kept as long as there are such events.
        self._may_be_captured = 0
        self._ids: set[str] = set()

    def __len__(self) -> int:
        return len(self._sent)

    def opened(self, events: int, last: str | None) -> None:
        """Begin a session that holds ``events`` events; ``last`` is the id of the last one."""
        self.told_events, self.told_last = events, last
        self._may_be_captured = events

    def add(self, line: bytes, event_id: str, place: int = 0) -> None:
        """Add an event that is about to be sent."""
        sent = _Sent(line, event_id, place)
        if self._may_be_captured:
            sent.first = event_id not in self._ids
            self._ids.add(event_id)
            # Forget the ids: these are new events, not those that the session holds, and their number has no bound.
            if len(self._ids) > self.captured + self._may_be_captured + _MORE_IDS:
                self._forget_ids()
        self._sent.append(sent)

    def _forget_ids(self) -> None:
        self._may_be_captured, self._ids = 0, set()

    def acked(self, count: int, events: int | None = None) -> None:
        """Remove the first ``count`` events of this connection: each is durable or was rejected.

        Args:
            count: events of this connection.
            events: the number of durable events of the session, if the daemon reports it.
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
            events: the number of durable events of the session; less than was acknowledged if some are lost.
            last: id of the last of them.
        """
        self._acked = 0
        self._drop_durable(events - self.told_events, last)
        self.told_events, self.told_last = events, last
        # Do not send rejected events again: the caller knows of the rejection, and may have sent them again.
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
    """The request under way, and its answer.

    There is one request at a time. If it is not answered when the connection breaks, it is sent again on the next one.
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
        """Forget the request: it was answered or abandoned, or it failed."""
        self.line = self.answer = None

    def abandon(self, *, sent: bool) -> None:
        """Stop waiting for the answer; ``sent`` says whether the daemon may have got the request.

        The answer still comes, and must not be taken for that to the next request.
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
        """Forget the answers that were expected on this connection."""
        self._abandoned = 0

    def reconnected(self) -> bytes | None:
        """Return the request to send on a new connection, if one is under way."""
        self.sent_again |= self.line is not None
        return self.line
