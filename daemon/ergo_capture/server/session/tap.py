"""Taps: rate-limited views of decisions as they become durable, which count the decisions that they skip.

A tap shows at most a given number of decisions per second: in each tick the first ones, and then the number of those
that were skipped. It keeps no more than it will show, so a watcher that does not read costs nothing. A session without
a tap pays one test of its listener per chunk.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ergo_capture.kernel.ports import DecisionLogEntry
from ergo_capture.protocol.capture import Code, ProtocolError
from ergo_capture.protocol.control import Skipped, TappedDecision
from ergo_capture.server.session.session import Session, SessionState

#: Seconds between two batches of one tap.
TICK: Final = 0.1


@dataclass(slots=True)
class _Kept:
    session: Session
    index: int
    entry: DecisionLogEntry
    #: Decisions that were left out right after this one.
    skipped_after: int = 0


class Tap:
    """One watcher of decisions.

    Args:
        rate: most decisions to show per second.
        sleep: waits for a number of seconds; tests bring their own time.
    """

    def __init__(self, rate: int, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._limit = max(1, int(rate * TICK))
        self._pause = TICK if rate * TICK >= 1 else 1 / rate
        self._sleep = sleep
        self._kept: deque[_Kept] = deque()
        #: Decisions that were left out before the first one kept.
        self._skipped_before = 0
        self._news = asyncio.Event()
        #: Decisions shown and not shown so far.
        self.shown = self.skipped = 0
        #: The end of the one session that is watched; None before.
        self.ended: str | None = None

    def offer(
        self, session: Session, first: int, count: int, entries: Callable[[int], Iterable[DecisionLogEntry]]
    ) -> None:
        """Keep the first of a session's new decisions, as many as may be shown.

        Args:
            session: the session.
            first: index of the first decision.
            count: how many there are.
            entries: makes the first n of them; those that are not shown are never made.
        """
        taken = min(self._limit - len(self._kept), count)
        if taken > 0:
            self._kept.extend(_Kept(session, first + offset, entry) for offset, entry in enumerate(entries(taken)))
        left_out = count - max(taken, 0)
        if left_out:
            self.skipped += left_out
            if self._kept:
                self._kept[-1].skipped_after += left_out
            else:
                self._skipped_before += left_out
        self._news.set()

    def session_over(self, ended: str) -> None:
        """End ``watch`` after what is kept, because the one session that is watched is over."""
        self.ended = ended
        self._news.set()

    async def watch(self) -> AsyncIterator[Sequence[TappedDecision | Skipped]]:
        """Yield the decisions and counts to show, tick by tick; end when the one session that is watched is over."""
        while True:
            await self._news.wait()
            ended = self.ended is not None
            if news := self._take_durable():
                yield news
            if not self._kept:
                self._news.clear()
                if ended:
                    return
            await self._sleep(self._pause)

    def _take_durable(self) -> list[TappedDecision | Skipped]:
        news: list[TappedDecision | Skipped] = []
        left_out, self._skipped_before = self._skipped_before, 0
        while self._kept:
            kept = self._kept[0]
            if kept.index >= kept.session.decided:
                if kept.session.state is not SessionState.FAILED:
                    break
                # The session has failed: the decision never becomes durable, and counts as not made.
                left_out += 1 + kept.skipped_after
                self.skipped += 1
                self._kept.popleft()
                continue
            if left_out:
                news.append(Skipped(left_out))
            self._kept.popleft()
            news.append(TappedDecision.of(kept.session.description.session, kept.index, kept.entry))
            self.shown += 1
            left_out = kept.skipped_after
        if left_out:
            news.append(Skipped(left_out))
        return news


class Taps:
    """All taps, and the sessions that each of them watches.

    Args:
        sessions: the open sessions, by id.
        graphs: the names of the graphs.
    """

    def __init__(self, sessions: Mapping[str, Session], graphs: Collection[str]) -> None:
        self._sessions = sessions
        self._graphs = graphs
        #: The session's id or the graph's name that each tap watches.
        self._taps: dict[Tap, str] = {}
        self._ended_shown = self._ended_skipped = 0

    def begin(self, of: str, rate: int) -> Tap:
        """Return a tap of a session, or of every session of a graph, including later ones; end it with ``end``.

        Raises:
            ProtocolError: ``unknown_session``: there is neither a session nor a graph of that name.
        """
        if of not in self._sessions and of not in self._graphs:
            raise ProtocolError(
                Code.UNKNOWN_SESSION,
                f"{of!r} is neither an open session nor a graph",
                f"name one that `ergo-capture status` lists; graphs are {', '.join(sorted(self._graphs))}",
            )
        tap = Tap(rate)
        self._taps[tap] = of
        for session in self._sessions.values():
            self.attach(session)
        return tap

    def end(self, tap: Tap) -> None:
        """Remove a tap."""
        del self._taps[tap]
        self._ended_shown += tap.shown
        self._ended_skipped += tap.skipped
        for session in self._sessions.values():
            self.attach(session)

    def attach(self, session: Session) -> None:
        """Set the listener of the session's decision log, or remove it where no tap watches the session."""
        watching = self._taps_of(session)

        def listener(first: int, count: int, entries: Callable[[int], Iterable[DecisionLogEntry]]) -> None:
            for tap in watching:
                tap.offer(session, first, count, entries)

        session.decision_log.listener = listener if watching else None

    def session_over(self, session: Session) -> None:
        """Tell the taps of this one session that it has finished or failed."""
        for tap in self._taps_of(session):
            if self._taps[tap] == session.description.session:
                tap.session_over(session.state.value if session.ended is None else session.ended)

    def _taps_of(self, session: Session) -> list[Tap]:
        names = (session.description.session, session.description.graph)
        return [tap for tap, of in self._taps.items() if of in names]

    @property
    def shown(self) -> int:
        """Decisions shown so far, including those of taps that have ended."""
        return self._ended_shown + sum(tap.shown for tap in self._taps)

    @property
    def skipped(self) -> int:
        """Decisions not shown so far, likewise."""
        return self._ended_skipped + sum(tap.skipped for tap in self._taps)
