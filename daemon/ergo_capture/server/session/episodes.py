"""Run the episodes of one session, and log its decisions in the order of its events.

With an engine that answers at once, whole chunks are decided without waiting. Any other engine is asked episode by
episode; with a pipeline, several runs are under way at once. That is sound because no decision depends on how a run
ended: requests are sent in order, and a decision that is known early waits for those before it. The engine must keep
nothing from one run to the next. The supervisor counts each run as over when the next event is offered, so decisions
are the same as without a pipeline; this module keeps the runs under way within ``max_in_flight``.

After a crash an undecided event is *in doubt*: its episode may have run. If episodes may be repeated, it is run again.
If not, ``before_run`` delays each run until the decision that is a pipeline's length before it is durable. So only the
first undecided events, as many as may be under way at once, can have run; they are recorded as interrupted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from ergo_capture import telemetry
from ergo_capture.engine.port import INVALID_REPLY, Engine, SessionPart
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.decision_rows import Refusal, said_bytes
from ergo_capture.journal.derivation import Derivation
from ergo_capture.journal.lines import read_body
from ergo_capture.journal.payloads import Interruption
from ergo_capture.journal.recovery import RecoveredSession
from ergo_capture.journal.session_frames import PendingOutcome
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.events import EventLike, ExternalEvent, ExternalEventKind
from ergo_capture.kernel.ports import IN_DOUBT, DecisionLogEntry, RunResult
from ergo_capture.kernel.records import CapturedIntentAck
from ergo_capture.kernel.supervisor import Run, Supervisor
from ergo_capture.server.session.admission_queue import EventBatch
from ergo_capture.server.session.decision_log import JournalDecisionLog
from ergo_capture.server.session.egress import SessionEgress

log = structlog.get_logger()

#: How many decisions may wait for an earlier run; each keeps its event in memory.
_MAX_WAITING: Final = 10_000
#: Largest answer of an engine to one run, in bytes: half of what a frame of the journal holds.
_MAX_RUN_BYTES: Final = 32 << 20
#: Events with a derived payload, of about 50 us each, after which other tasks get a turn.
_TURN_EVENTS: Final = 64


def concurrency(engine: Engine, constraints: Constraints, derivation: Derivation | None, *, has_egress: bool) -> int:
    """Return how many runs of one session may be under way at once: the engine's pipeline, within ``max_in_flight``.

    It is one if effects may write what the next payload is merged with, or if intents are sent.
    """
    if has_egress:
        return 1
    adapter = None if derivation is None else derivation.binding.adapter
    if adapter is not None and adapter.writable:
        return 1
    limit = constraints.max_in_flight
    # Zero defers every episode, so that nothing runs.
    return engine.pipeline if limit is None else max(1, min(engine.pipeline, limit))


@dataclass(slots=True, eq=False)
class _RunUnderWay:
    run: Run
    task: asyncio.Task[tuple[RunResult, int]]


class Episodes:
    """Decides the events of one session, and runs their episodes.

    Args:
        engine: the graph's engine.
        initial: the session as recovery found it, or a new one.
        log: receives each decision, in order.
        most_under_way: how many runs may be under way at once (``concurrency``).
        at_most_once: whether no episode may run twice: as many undecided events, from the first, are then recorded as
            interrupted.
        before_run: awaited before a run begins, with the number of decisions before it that are not logged.
        on_logged: called after each decision that had to be waited for.
        on_failed: called when a run has raised an exception; nothing is logged after it.
        derivation: how payloads are derived from what was sent; None where they are not.
        egress: the session's egress channels; None where it has none.
        on_interrupted: called when the run is interrupted; nothing is decided after it.
    """

    def __init__(
        self,
        engine: Engine,
        initial: RecoveredSession,
        log: JournalDecisionLog,
        *,
        most_under_way: int,
        at_most_once: bool,
        before_run: Callable[[int], Awaitable[None]],
        on_logged: Callable[[], None],
        on_failed: Callable[[BaseException], None],
        derivation: Derivation | None = None,
        egress: SessionEgress | None = None,
        on_interrupted: Callable[[Interruption], None] = lambda _interruption: None,
    ) -> None:
        self._engine = engine
        self._graph_id = initial.description.graph
        self._of = SessionPart(initial.description.session, initial.part)
        self._constraints = initial.description.constraints
        self._log = log
        self._before_run = before_run
        self._on_logged = on_logged
        self._on_failed = on_failed
        self._derivation = derivation
        self._egress = egress
        #: The outcome of the first undecided event, whose episode ran before the start; None where there is none.
        self._outcome = initial.outcome
        self._on_interrupted = on_interrupted
        #: Kinds of effects that egress channels carry out.
        self._routed = () if initial.description.contract is None else initial.description.contract.routed
        #: The interruption of the run; None while it goes on. After one that recovery found nothing is decided here.
        self.interruption: Interruption | None = None
        #: The engine, where it answers at once.
        self._invoker = engine.invoker()
        if self._invoker is not None:
            # A scripted engine continues its script at the next attempt.
            for event_id, count in initial.attempts or ():
                event = ExternalEvent.mechanical(event_id, ExternalEventKind.Command)
                for _ in range(count):
                    self._invoker.run(self._graph_id, event_id, event, self._constraints.deadline)
        #: How many of the next events are recorded as interrupted.
        is_in_doubt = at_most_once and initial.outcome is None
        self._in_doubt = min(most_under_way, len(initial.undecided)) if is_in_doubt else 0
        #: Runs that are under way, and decisions that wait for one of them.
        self._waiting: deque[_RunUnderWay | DecisionLogEntry] = deque()
        self._under_way = 0
        self._most_under_way = most_under_way
        self._settled = asyncio.Event()
        #: The exception that a run raised.
        self._failure: BaseException | None = None
        #: Where the supervisor logs: to ``self`` where decisions may have to wait for those before them.
        self._supervisor_log = self if self._invoker is None else log
        self.supervisor = initial.supervisor
        self.supervisor.rebind(self._supervisor_log, self._invoker)

    def start_part(self) -> None:
        """Continue with a new supervisor; no run may be under way."""
        assert not self._waiting, "a part ended with runs under way"
        self._engine.end_part(self._of)
        self._of = SessionPart(self._of.session, self._of.part + 1)
        self.supervisor = Supervisor(self._graph_id, self._constraints, self._supervisor_log, self._invoker)

    async def decide(self, batch: EventBatch) -> None:
        """Decide a batch. On return each event was offered to the supervisor; runs may still be under way.

        If the run is interrupted, the events after that are not decided.
        """
        if self._derivation is not None:
            await self._derive(batch, self._derivation)
        elif self._invoker is not None and not self._in_doubt:
            events = batch.events
            self.supervisor.drive_all(events if isinstance(events, list) else list(events))
        else:
            for event in read_body(batch.body) if batch.body else batch.events:
                await self._decide(event)

    async def _derive(self, batch: EventBatch, derivation: Derivation) -> None:
        for number, hosted in enumerate(derivation.read(batch.body), 1):
            if self.interruption is not None:
                return
            bound = derivation.bind(hosted)
            if isinstance(bound, Refusal):
                await self.settle_all()
                self._in_doubt = max(0, self._in_doubt - 1)
                self._log.refuse(hosted.event_id, bound)
            else:
                await self._decide(bound.event)
            if number % _TURN_EVENTS == 0:
                await asyncio.sleep(0)

    async def _decide(self, event: EventLike) -> None:
        if self._outcome is not None:
            await self._go_on(event, self._outcome)
            return
        if self._in_doubt:
            self._in_doubt -= 1
            step = self.supervisor.offer(event)
            if isinstance(step, Run):
                self.supervisor.settle(step, IN_DOUBT.termination, 0, IN_DOUBT)
            return
        if self._invoker is not None:
            self._apply(self.supervisor.drive(event))
            return
        while len(self._waiting) >= _MAX_WAITING:
            await self._some_settled()
        step = self.supervisor.offer(event)
        if isinstance(step, Run):
            await self._begin(step)

    async def _go_on(self, event: EventLike, pending: PendingOutcome) -> None:
        """Decide an event whose episode ran before the start: send the intents that have no ack yet."""
        self._outcome = None
        step = self.supervisor.offer(event)
        assert isinstance(step, Run), "an event with an outcome was invoked"
        self.supervisor.detach()
        await self._conclude(step, pending.outcome.to_result(), pending.outcome.retry_count, pending.acks)

    async def _conclude(
        self, run: Run, result: RunResult, retries: int, acks: tuple[CapturedIntentAck, ...] | None = None
    ) -> None:
        """Send the intents of an episode that has ended, and log its decision; ``acks`` as the journal holds them."""
        interruption = None
        if self._egress is not None:
            result, interruption = await self._egress.carry_out(self._log.logged, retries, result, acks)
        entry = self.supervisor.entry_of(run, result.termination, retries, result)
        self._log.log(entry)
        if interruption is None:
            self._apply(entry)
        else:
            self._interrupt(interruption)
        self._on_logged()

    def _apply(self, entry: DecisionLogEntry) -> None:
        """Write the effects of a decision to the context store."""
        if entry.effects and self._derivation is not None:
            interruption = self._derivation.settle(captured.effect for captured in entry.effects)
            if interruption is not None:
                self._interrupt(interruption)

    def _interrupt(self, interruption: Interruption) -> None:
        """Interrupt the run after the decision that was logged last."""
        self.interruption = interruption
        self._log.end_run(interruption)
        self._on_interrupted(interruption)

    async def settle_all(self) -> None:
        """Wait until every run that is under way has ended and is logged.

        Raises:
            Exception: the exception that a run raised.
        """
        while self._waiting:
            await self._some_settled()

    @property
    def is_settled(self) -> bool:
        """Whether no run is under way, and every decision is logged."""
        return not self._waiting

    def abandon(self) -> None:
        """Cancel the runs that are under way."""
        for waiting in self._waiting:
            if isinstance(waiting, _RunUnderWay):
                waiting.task.cancel()
        self._waiting.clear()

    async def _some_settled(self) -> None:
        self._settled.clear()
        if self._failure is None:
            await self._settled.wait()
        if self._failure is not None:
            raise self._failure

    async def _begin(self, run: Run) -> None:
        self.supervisor.detach()
        await self._before_run(len(self._waiting))
        if self._most_under_way == 1:
            result, retries = await self._attempt(run)
            await self._conclude(run, result, retries)
            return
        # A task's first step sends the request, and tasks take their first steps in the order they are created. So
        # waiting here, before the task is created, keeps the requests in order.
        while self._under_way >= self._most_under_way:
            await self._some_settled()
        self._under_way += 1
        task = asyncio.create_task(self._attempt(run))
        self._waiting.append(_RunUnderWay(run, task))
        task.add_done_callback(self._settle)

    def _settle(self, _task: object) -> None:
        """Log the decisions that are known, up to the first run that is still under way."""
        waiting = self._waiting
        while waiting and self._failure is None:
            first = waiting[0]
            if isinstance(first, DecisionLogEntry):
                self._log.log(first)
            elif not first.task.done() or first.task.cancelled():
                break
            elif (error := first.task.exception()) is not None:
                self._failure = error
                self._on_failed(error)
                break
            else:
                result, retries = first.task.result()
                self._under_way -= 1
                self._log.log(self.supervisor.entry_of(first.run, result.termination, retries, result))
            waiting.popleft()
        self._settled.set()
        self._on_logged()

    async def _attempt(self, run: Run) -> tuple[RunResult, int]:
        """Run an episode, again as often as rule 4 allows; return the last result and the number of retries."""
        origin, retries = run.origin, 0
        assert isinstance(origin, ExternalEvent)
        while True:
            result = await self._engine.run(
                self._graph_id, origin.event_id, origin, self._constraints.deadline, self._of
            )
            if said_bytes(result) > _MAX_RUN_BYTES or (result.effects and not self._may_apply(origin, result)):
                result = INVALID_REPLY
            if not self.supervisor.wants_retry(result.termination, retries):
                return result, retries
            retries += 1

    def _may_apply(self, origin: ExternalEvent, result: RunResult) -> bool:
        """Return whether the adapter accepts the effects of a run; log the reason if not."""
        if self._derivation is None:
            return True
        try:
            self._derivation.binding.check_effects(result.effects, self._routed)
        except ErgoCaptureError as error:
            log.error(  # noqa: TRY400 - the engine's fault
                telemetry.ENGINE_FAILED,
                graph=self._graph_id,
                engine=self._engine.name,
                event_id=origin.event_id,
                error=f"the adapter refuses its effects, and the episode Failed(RuntimeError): {error.message}",
                hint=error.hint,
            )
            return False
        return True

    def log(self, entry: DecisionLogEntry) -> None:
        """Log a deferral (``ports.DecisionLog``), after the runs before it."""
        if self._waiting:
            self._waiting.append(entry)
        else:
            self._log.log(entry)
