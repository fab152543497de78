"""Runs the episodes of one session, and logs its decisions in the order of its events.

An engine that answers at once decides whole chunks without waiting. Any other is asked episode by episode; with a
pipeline, up to so many runs are under way at once. That is sound because no decision depends on how a run ended: the
requests go out in order, and decisions that are known already wait for those before them. It is right only for an
engine that keeps nothing from one run to the next.

What a crash leaves in doubt: an event that is not decided may have run. Where such a run is to be repeated, that is
all there is to it. Where it must not be (``before_run``), no run begins before the decisions that are a pipeline's
length behind it are durable; so of the events that a crash left undecided, only that many from the first on may have
run, and these are not run again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from ergo_capture.engine.dialogue import NONSENSE
from ergo_capture.engine.port import Engine
from ergo_capture.journal.decision_rows import said_bytes
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.events import EventLike, ExternalEvent
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.ports import DecisionLog, DecisionLogEntry, RunResult, RuntimeInvoker
from ergo_capture.kernel.supervisor import Run, Supervisor

#: Decisions that may wait for a run before them; each keeps its event.
_MOST_WAITING: Final = 10_000

#: What a record says whose episode may or may not have run before a crash.
IN_DOUBT: Final = "in_doubt: the daemon stopped before the decision was durable; the episode was not run again"
#: What an engine may say of one run, as it is kept; half of what a frame of the journal holds.
_MOST_OF_A_RUN_BYTES: Final = 32 << 20

#: Awaited before a run begins, with the number of decisions before it that are not logged yet.
BeforeRun = Callable[[int], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Running:
    """A run that is under way."""

    run: Run
    task: asyncio.Task[tuple[RunResult, int]]


class Episodes:
    """Decides and runs, for one session.

    Args:
        engine: the graph's.
        invoker: the engine for this session alone, where it answers at once.
        graph_id: the graph.
        constraints: the session's.
        log: told of each decision, in order.
        on_logged: called after each decision that had to be waited for.
        before_run: holds a run back for as long as it must not begin.
    """

    def __init__(
        self,
        engine: Engine,
        invoker: RuntimeInvoker | None,
        graph_id: str,
        constraints: Constraints,
        log: DecisionLog,
        on_logged: Callable[[], None],
        before_run: BeforeRun,
    ) -> None:
        self._engine = engine
        self._invoker = invoker
        self._graph_id = graph_id
        self._constraints = constraints
        self._log = log
        self._on_logged = on_logged
        self._before_run = before_run
        #: The next so many events are not run but recorded as interrupted: they may have run before a crash.
        self.in_doubt = 0
        #: Runs that are under way, and what is known already but comes after one of them.
        self._waiting: deque[_Running | DecisionLogEntry] = deque()
        self._under_way = 0
        self._moved = asyncio.Event()
        #: A mistake of ours in a run; nothing is logged after it.
        self.mistake: BaseException | None = None
        self.supervisor = Supervisor(graph_id, constraints, self._own_log, invoker)

    @property
    def _own_log(self) -> DecisionLog:
        """Where the supervisor logs: straight on, unless decisions may have to wait for those before them."""
        return self._log if self._invoker is not None else self

    def take_over(self, supervisor: Supervisor) -> None:
        """Go on with a supervisor that recovery has brought to where the session stands."""
        self.supervisor = supervisor
        supervisor.rebind(self._own_log, self._invoker)

    def start_part(self) -> None:
        """Go on with a supervisor that knows nothing; nothing may be under way."""
        assert not self._waiting, "a part ended with runs under way"
        self.supervisor = Supervisor(self._graph_id, self._constraints, self._own_log, self._invoker)

    def decide_at_once(self, events: Iterable[EventLike]) -> bool:
        """Decide these without waiting, where that is possible; says whether it was."""
        if self._invoker is None or self.in_doubt:
            return False
        self.supervisor.drive_all(list(events) if not isinstance(events, list) else events)
        return True

    async def decide(self, events: Iterable[EventLike]) -> None:
        """Decide each; returns once each is offered, though runs may still be under way (``settle_all``)."""
        for event in events:
            if self.in_doubt:
                self.in_doubt -= 1
                step = self.supervisor.offer(event)
                if isinstance(step, Run):
                    self.supervisor.settle(step, RunTermination.Aborted, 0, _INTERRUPTED)
                continue
            if self._invoker is not None:
                self.supervisor.drive(event)
                continue
            while len(self._waiting) >= _MOST_WAITING:
                await self._some_settled()
            step = self.supervisor.offer(event)
            if isinstance(step, Run):
                await self._begin(step)

    async def settle_all(self) -> None:
        """Wait until every run that is under way has ended, and is logged."""
        while self._waiting:
            await self._some_settled()

    async def _some_settled(self) -> None:
        self._moved.clear()
        if self.mistake is None:
            await self._moved.wait()
        if self.mistake is not None:
            raise self.mistake

    async def _begin(self, run: Run) -> None:
        self.supervisor.detach()
        await self._before_run(len(self._waiting))
        if self._engine.pipeline == 1:
            result, retries = await self._attempt(run)
            self._log.log(self.supervisor.entry_of(run, result.termination, retries, result))
            self._on_logged()
            return
        # Why the wait before: a task's first step is what asks the engine, and tasks step in the order they are made.
        while self._under_way >= self._engine.pipeline:
            await self._some_settled()
        self._under_way += 1
        task = asyncio.create_task(self._attempt(run))
        self._waiting.append(_Running(run, task))
        task.add_done_callback(self._settle_ended)

    def _settle_ended(self, _task: object) -> None:
        """Log what is known by now, up to the first run that is still under way."""
        waiting = self._waiting
        while waiting and self.mistake is None:
            first = waiting[0]
            if isinstance(first, DecisionLogEntry):
                self._log.log(first)
            elif not first.task.done() or first.task.cancelled():
                break
            elif (mistake := first.task.exception()) is not None:
                self.mistake = mistake
                break
            else:
                result, retries = first.task.result()
                self._under_way -= 1
                self._log.log(self.supervisor.entry_of(first.run, result.termination, retries, result))
            waiting.popleft()
        self._moved.set()
        self._on_logged()

    async def _attempt(self, run: Run) -> tuple[RunResult, int]:
        """Attempt, and attempt again as rule 4 allows; the last attempt's result, and how many came before it."""
        origin, retries = run.origin, 0
        assert isinstance(origin, ExternalEvent)
        while True:
            result = await self._engine.run(self._graph_id, origin.event_id, origin, self._constraints.deadline)
            if said_bytes(result) > _MOST_OF_A_RUN_BYTES:
                result = NONSENSE
            if not self.supervisor.wants_retry(result.termination, retries):
                return result, retries
            retries += 1

    @property
    def is_settled(self) -> bool:
        """Whether no run is under way, and every decision is logged."""
        return not self._waiting

    def log(self, entry: DecisionLogEntry) -> None:
        """A deferral: logged at once, or after the runs before it (``ports.DecisionLog``)."""
        if self._waiting:
            self._waiting.append(entry)
        else:
            self._log.log(entry)

    def abandon(self) -> None:
        """The session is over: wait for nothing more."""
        for waiting in self._waiting:
            if isinstance(waiting, _Running):
                waiting.task.cancel()
        self._waiting.clear()

    def __repr__(self) -> str:
        return f"<Episodes of {self._graph_id!r} by {self._engine!r}, {self._under_way} under way>"


_INTERRUPTED: Final = RunResult(RunTermination.Aborted, interruption=IN_DOUBT)
