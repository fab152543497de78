"""The events and the request of one client that the daemon has not answered yet.

Synchronous and without a clock: the caller passes every answer of the daemon, and gets counts and lines to send.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum, auto
from itertools import islice
from typing import Final, NamedTuple

from ergo_capture.protocol.capture import Closed, Flushed, Pong

#: The answers to requests other than ``hello`` and ``open``.
RequestAnswer = Flushed | Closed | Pong


#: How many ids are remembered above the number of events that a resumed session holds.
_MORE_IDS: Final = 100_000


class EventLine(NamedTuple):
    """An event line, newline included, the id of its event, and the caller's number of it."""

    line: bytes
    #: Empty if the line has none.
    event_id: str
    #: A rejection names the event by it; that of a line in a file, for example.
    place: int = 0


class _Fate(Enum):
    """The meaning of a rejection."""

    REJECTED = auto()
    #: A duplicate of itself: it had arrived on an earlier connection, so it is durable.
    ARRIVED = auto()
    #: A duplicate of an event that the session had before this client resumed it.
    CAPTURED = auto()


class InFlight:
    """Counts and lines of the events that were sent.

    The daemon numbers the events of a connection from 1; ``acked``, ``is_rejected`` and ``sent`` take its numbers.

    Args:
        on_durable: called with the place of each event that is known to be durable, also if another client sent it.
    """

    def __init__(self, on_durable: Callable[[int], None] | None = None) -> None:
        self._on_durable = on_durable
        #: The numbers of events that were acknowledged as durable, and that were rejected.
        self.accepted = 0
        self.rejected = 0
        #: Events that the session held before this client resumed it.
        self.captured = 0
        #: The number of the session's events that were acknowledged, and the id of the last one; None if unknown.
        self.told_events = 0
        self.told_last: str | None = None
        self._sent: deque[EventLine] = deque()
        #: How many events of this connection the daemon has acknowledged.
        self._acked = 0
        #: How many events of this connection were sent on an earlier one too; they come first.
        self._sent_again = 0
        #: The rejections, by the daemon's number of the event.
        self._fates: dict[int, _Fate] = {}
        #: Events of the session before this client that have not come back as duplicates, and the ids sent by this
        #: client, which are kept as long as there are such events.
        self._may_be_captured = 0
        self._ids: set[str] = set()
        #: The numbers of the events in flight that are the first with their ids: a duplicate among them was captured.
        self._firsts: set[int] = set()

    def __len__(self) -> int:
        return len(self._sent)

    def opened(self, events: int, last: str | None) -> None:
        """Begin a session that holds ``events`` events; ``last`` is the id of the last one."""
        self.told_events, self.told_last = events, last
        self._may_be_captured = events

    def add(self, lines: Sequence[EventLine]) -> None:
        """Add events that are about to be sent."""
        if self._may_be_captured:
            for number, sent in enumerate(lines, self._acked + len(self._sent) + 1):
                if sent.event_id not in self._ids:
                    self._firsts.add(number)
                    self._ids.add(sent.event_id)
            # Forget the ids: these are new events, not those that the session holds, and their number has no bound.
            if len(self._ids) > self.captured + self._may_be_captured + _MORE_IDS:
                self._forget_ids()
        self._sent.extend(lines)

    def _forget_ids(self) -> None:
        self._may_be_captured, self._ids, self._firsts = 0, set(), set()

    def acked(self, count: int, events: int | None = None) -> None:
        """Remove the first ``count`` events of this connection: each is durable or was rejected.

        Args:
            count: events of this connection.
            events: the number of durable events of the session, if the daemon reports it.
        """
        self._remove(min(count - self._acked, len(self._sent)))
        self._acked = max(self._acked, count)
        if events is not None:
            self.told_events = events

    def _remove(self, count: int) -> None:
        """Count the first events in flight, and remove them."""
        if count <= 0:
            return
        removed = [self._sent.popleft() for _ in range(count)]
        if self._fates or self._firsts or self._on_durable is not None:
            for number, sent in enumerate(removed, self._acked + 1):
                self._count(sent, self._fates.pop(number, None))
                self._firsts.discard(number)
        else:
            self.accepted += count
            self.told_events += count
            self.told_last = removed[-1].event_id or None
        self._acked += count

    def is_rejected(self, index: int, *, duplicate: bool) -> bool:
        """Mark an event as rejected; return False if the rejection only says that it is there already."""
        if self.sent(index) is None:
            return True
        fate = _Fate.REJECTED
        if duplicate and index <= self._sent_again:
            fate = _Fate.ARRIVED
        elif duplicate and index in self._firsts:
            fate = _Fate.CAPTURED
            self._may_be_captured -= 1
            if not self._may_be_captured:
                self._forget_ids()
        self._fates[index] = fate
        return fate is _Fate.REJECTED

    def sent(self, index: int) -> EventLine | None:
        """Return an event of this connection; None if it is not in flight."""
        position = index - self._acked - 1
        return self._sent[position] if 0 <= position < len(self._sent) else None

    def reconnected(self, events: int, last: str | None) -> list[bytes]:
        """Begin a new connection; return the lines to send on it.

        Args:
            events: the number of durable events of the session; less than was acknowledged if some are lost.
            last: id of the last of them.
        """
        self._remove(self._count_durable(events - self.told_events, last))
        self.told_events, self.told_last = events, last
        again: list[EventLine] = []
        for number, sent in enumerate(self._sent, self._acked + 1):
            fate = self._fates.get(number)
            # Do not send rejected events again: the caller knows of the rejection, and may have sent them again.
            if fate in (_Fate.REJECTED, _Fate.CAPTURED):
                self._count(sent, fate)
            else:
                again.append(sent)
        self._sent, self._sent_again, self._acked = deque(again), len(again), 0
        self._fates, self._firsts = {}, set()
        return [sent.line for sent in again]

    def _count_durable(self, count: int, last: str | None) -> int:
        """Return how many of the first events in flight are settled if the daemon holds ``count`` more than it told.

        It holds the first ``count`` that no rejection was about, if ``last`` is the id of the last of them. If it is
        not, one of them was rejected and the rejection was lost with the connection. Then all are sent again, and those
        that are durable come back as duplicates.
        """
        if count <= 0:
            return 0
        unsettled = (n for n in range(len(self._sent)) if self._acked + 1 + n not in self._fates)
        place = next(islice(unsettled, count - 1, None), None)
        return 0 if place is None or self._sent[place].event_id != last else place + 1

    def _count(self, sent: EventLine, fate: _Fate | None) -> None:
        if fate is _Fate.REJECTED:
            self.rejected += 1
            return
        if self._on_durable is not None:
            self._on_durable(sent.place)
        if fate is _Fate.CAPTURED:
            self.captured += 1
        else:
            self.accepted += 1
            if fate is None:
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
