"""Decisions as they are made, for somebody who watches: bounded, and honest about what is left out.

A tap shows at most so many decisions a second: in each tenth of a second the first of them, and then how many there
were besides. What it shows is durable. It keeps no more than it will show, so a watcher who does not read costs
nothing; and a session that nobody watches pays for one look at an empty list a chunk.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from ergo_capture.journal.payloads import SessionDescription
from ergo_capture.kernel.ports import DecisionLogEntry
from ergo_capture.protocol.capture import Code, ProtocolError
from ergo_capture.protocol.control import Skipped, TappedDecision
from ergo_capture.server.session.decision_log import JournalDecisionLog

#: A tap says what it has this often, in seconds.
TICK: Final = 0.1


class WatchedSession(Protocol):
    """A session as a tap sees it."""

    description: SessionDescription
    log: JournalDecisionLog
    #: Decisions on stable storage.
    decided: int
    #: How it ended, once it has.
    ended: str | None

    @property
    def state(self) -> str:
        """Return the session's state in one word, as the status shows it."""


@dataclass(slots=True)
class _Kept:
    session: WatchedSession
    index: int
    entry: DecisionLogEntry
    #: Decisions that were left out right after this one.
    skipped_after: int = 0


class Tap:
    """One watcher of decisions.

    Args:
        rate: most decisions a second to show.
        sleep: waits so many seconds; tests bring their own time.
    """

    def __init__(self, rate: int, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._limit = max(1, int(rate * TICK))
        self._pause = TICK if rate * TICK >= 1 else 1 / rate
        self._sleep = sleep
        self._kept: deque[_Kept] = deque()
        #: Left out before the first one kept.
        self._skipped_before = 0
        self._news = asyncio.Event()
        #: Decisions shown and not shown so far.
        self.shown = self.skipped = 0
        #: How the one session that is watched ended, once it has.
        self.ended: str | None = None

    def offer(
        self, session: WatchedSession, first: int, count: int, entries: Callable[[int], Iterable[DecisionLogEntry]]
    ) -> None:
        """A session has made ``count`` decisions, from index ``first``; ``entries(n)`` gives the first n of them.

        Why so: those that are not shown are never made into entries.
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

    def session_over(self, how: str) -> None:
        """The one session that is watched is over."""
        self.ended = how
        self._news.set()

    async def watch(self) -> AsyncIterator[Sequence[TappedDecision | Skipped]]:
        """What there is to show, tick by tick; ends when the one session that is watched is over."""
        while True:
            await self._news.wait()
            ended = self.ended is not None
            if news := self._take():
                yield news
            if not self._kept:
                self._news.clear()
                if ended:
                    return
            await self._sleep(self._pause)

    def _take(self) -> list[TappedDecision | Skipped]:
        """What is kept and durable by now."""
        news: list[TappedDecision | Skipped] = []
        left_out, self._skipped_before = self._skipped_before, 0
        while self._kept:
            kept = self._kept[0]
            if kept.index >= kept.session.decided:
                if kept.session.state != "failed":
                    break
                # Why: it never becomes durable, and then it did not happen.
                left_out += 1 + kept.skipped_after
                self.skipped += 1
                self._kept.popleft()
                continue
            if left_out:
                news.append(Skipped(left_out))
            self._kept.popleft()
            news.append(TappedDecision.of(kept.session.description.session, kept.index + 1, kept.entry))
            self.shown += 1
            left_out = kept.skipped_after
        if left_out:
            news.append(Skipped(left_out))
        return news

    def __repr__(self) -> str:
        return f"<Tap {len(self._kept)} waiting, {self.shown} shown, {self.skipped} skipped>"


class Taps:
    """Every tap, and which sessions each of them watches.

    Args:
        sessions: the sessions there are, by id.
        graphs: the graphs there are.
    """

    def __init__(self, sessions: Mapping[str, WatchedSession], graphs: Collection[str]) -> None:
        self._sessions = sessions
        self._graphs = graphs
        #: What each tap watches: a session's id or a graph's name.
        self._taps: dict[Tap, str] = {}
        self._ended_shown = self._ended_skipped = 0

    def begin(self, of: str, rate: int) -> Tap:
        """Watch a session, or every session of a graph, those to come included; ``end`` ends it.

        Raises:
            ProtocolError: there is neither.
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
        """Nobody watches by this one any more."""
        del self._taps[tap]
        self._ended_shown += tap.shown
        self._ended_skipped += tap.skipped
        for session in self._sessions.values():
            self.attach(session)

    def attach(self, session: WatchedSession) -> None:
        """Have the session tell those who watch it of its decisions, if there are any."""
        watching = self._of(session)

        def tell(first: int, count: int, entries: Callable[[int], Iterable[DecisionLogEntry]]) -> None:
            for tap in watching:
                tap.offer(session, first, count, entries)

        session.log.listener = tell if watching else None

    def session_over(self, session: WatchedSession) -> None:
        """The session is finished or has failed."""
        for tap in self._of(session):
            if self._taps[tap] == session.description.session:
                tap.session_over(session.state if session.ended is None else session.ended)

    def _of(self, session: WatchedSession) -> list[Tap]:
        names = (session.description.session, session.description.graph)
        return [tap for tap, of in self._taps.items() if of in names]

    @property
    def shown(self) -> int:
        """Decisions shown so far, by taps that are over too."""
        return self._ended_shown + sum(tap.shown for tap in self._taps)

    @property
    def skipped(self) -> int:
        """Decisions not shown so far, likewise."""
        return self._ended_skipped + sum(tap.skipped for tap in self._taps)

    def __repr__(self) -> str:
        return f"<Taps {len(self._taps)} watching>"
