"""The supervisor: decide, event by event, when an episode runs.

It is a step machine: ``offer`` an event, run the episode that it returns, ``settle`` it. ``drive`` does all three.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.events import EventLike, ExternalEvent, ExternalEventKind, TimeLike
from ergo_capture.kernel.fault_runtime import FaultRuntime
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.ports import DecisionLog, DecisionLogEntry, RunLengthDecisionLog, RunResult, RuntimeInvoker
from ergo_capture.kernel.records import CapturedActionEffect
from ergo_capture.kernel.time import NANOS_PER_SEC, U64_MAX, ZERO, EventTime

_PUMP: Final = ExternalEventKind.Pump
_INVOKE: Final = Decision.Invoke
_DEFER: Final = Decision.Defer


class Run(msgspec.Struct, frozen=True, gc=False):
    """An episode to run now.

    ``trigger`` is the event that the decision is recorded for, ``origin`` the event that the engine gets. They
    differ when a pump starts a deferred episode (rule 3).
    """

    trigger: EventLike
    origin: EventLike
    episode_id: int


class Supervisor:
    """The decisions of one session (``ergo_supervisor::Supervisor``).

    Args:
        graph_id: the graph whose episodes are decided.
        constraints: the limits; fixed for the supervisor's life.
        decision_log: gets every decision, before it counts as made.
        runtime: the engine for ``drive``; None if the caller runs the episodes itself.
    """

    def __init__(
        self,
        graph_id: str,
        constraints: Constraints,
        decision_log: DecisionLog,
        runtime: RuntimeInvoker | None = None,
    ) -> None:
        self.graph_id = graph_id
        self.constraints = constraints
        self._bind(decision_log, runtime)
        self._max_in_flight = constraints.max_in_flight
        self._deadline = constraints.deadline
        # Rule 2 needs both: a window alone, or a count alone, limits nothing.
        self._window: int | None = None
        self._max_per_window = 0
        if constraints.rate_window is not None and constraints.max_per_window is not None:
            self._window = constraints.rate_window.total_nanos
            self._max_per_window = constraints.max_per_window
        self._now: TimeLike = ZERO
        self._next_episode = 0
        self._in_flight = 0
        self._recent: deque[int] = deque()
        #: Deferred episodes by (nanoseconds, episode id): rule 3's order.
        self._deferred: list[tuple[int, int, EventLike]] = []
        #: Bytes of their payloads.
        self.deferred_bytes = 0

    def offer(self, event: EventLike) -> Run | DecisionLogEntry:
        """Take the next event; return the episode to run now, or the entry of a deferral, which is logged already.

        The caller runs the episode of a ``Run`` and settles it before it offers the next event (rule 6).
        """
        at, now = event.at, self._now
        if at.secs > now.secs or (at.secs == now.secs and at.nanos > now.nanos):
            self._now = at
        if event.kind is _PUMP:
            return self._pump(event)
        episode = self._take_episode()
        if self._max_in_flight is not None and self._in_flight >= self._max_in_flight:
            return self._defer(event, event, episode, 0)
        if self._window is not None and (delay := self._rate_limit_delay()) is not None:
            return self._defer(event, event, episode, delay)
        return self._start(event, event, episode)

    def settle(
        self,
        run: Run,
        termination: RunTermination,
        retry_count: int,
        result: RunResult | None = None,
    ) -> DecisionLogEntry:
        """Log how a run ended; ``result`` holds the effects, acks and interruption of its last attempt (rule 8)."""
        self._in_flight -= 1
        entry = self.entry_of(run, termination, retry_count, result)
        self._log(entry)
        return entry

    def detach(self) -> None:
        """Count the run just returned as over, so that the next event can be offered while it still goes on.

        Decisions do not depend on how it ends. The caller does not settle it, but logs its ``entry_of`` in the order
        of the offers.
        """
        self._in_flight -= 1

    def entry_of(
        self, run: Run, termination: RunTermination, retry_count: int, result: RunResult | None = None
    ) -> DecisionLogEntry:
        """Return the log entry of a run that ended in this way."""
        trigger = run.trigger
        if result is None:
            return DecisionLogEntry(
                self.graph_id, trigger.event_id, trigger, _INVOKE, None, run.episode_id, self._deadline, termination,
                retry_count,
            )  # fmt: skip
        return DecisionLogEntry(
            self.graph_id, trigger.event_id, trigger, _INVOKE, None, run.episode_id, self._deadline, termination,
            retry_count, tuple(map(CapturedActionEffect.of, result.effects)), result.intent_acks, result.interruption,
        )  # fmt: skip

    def entry_of_deferral(self, trigger: EventLike, schedule_at: EventTime | None, episode: int) -> DecisionLogEntry:
        """Return the log entry of a deferral."""
        return DecisionLogEntry(
            self.graph_id, trigger.event_id, trigger, _DEFER, schedule_at, episode, self._deadline, None, 0
        )

    def wants_retry(self, termination: RunTermination, attempts: int) -> bool:
        """Return whether to try again after ``attempts`` retries (rule 4)."""
        return termination.retryable and attempts < self.constraints.max_retries

    def drive(self, event: EventLike) -> DecisionLogEntry:
        """Offer an event, run its episode with retries, and settle it, as the reference's ``on_event`` does."""
        step = self.offer(event)
        if type(step) is DecisionLogEntry:
            return step
        assert isinstance(step, Run)
        runtime = self._runtime
        assert runtime is not None, "drive() needs a runtime"
        origin, retries = step.origin, 0
        outcome = runtime.run(self.graph_id, origin.event_id, origin, self._deadline)
        termination = outcome.termination if type(outcome) is RunResult else outcome
        while termination.retryable and retries < self.constraints.max_retries:  # type: ignore[union-attr]
            retries += 1
            outcome = runtime.run(self.graph_id, origin.event_id, origin, self._deadline)
            termination = outcome.termination if type(outcome) is RunResult else outcome
        result = outcome if type(outcome) is RunResult else None
        return self.settle(step, termination, retries, result)  # type: ignore[arg-type]

    def drive_all(self, events: Sequence[EventLike]) -> None:
        """Drive each event in order; faster if nothing is limited and every episode is known to complete."""
        runtime = self._runtime
        plain = self._log_plain
        certain = (
            plain is not None
            and isinstance(runtime, FaultRuntime)
            and runtime.constant is RunTermination.Completed
            and self._window is None
            and self._max_in_flight is None
            and not (self._deadline is not None and self._deadline.is_zero())
            and self._next_episode + len(events) < U64_MAX
        )
        if not certain or plain is None:
            for event in events:
                self.drive(event)
            return
        start, now = 0, self._now
        secs, nanos = now.secs, now.nanos
        for index, event in enumerate(events):
            if event.kind is _PUMP:
                self._now = now
                if index > start:
                    plain(events[start:index], self._next_episode)
                    self._next_episode += index - start
                start = index + 1
                self.drive(event)
                now = self._now
                secs, nanos = now.secs, now.nanos
                continue
            at = event.at
            if at.secs > secs or (at.secs == secs and at.nanos > nanos):
                now, secs, nanos = at, at.secs, at.nanos
        self._now = now
        if start < len(events):
            plain(events[start:] if start else events, self._next_episode)
            self._next_episode += len(events) - start

    def begin_all(self, events: Sequence[EventLike], first_episode: int) -> bool:
        """Take events as if each had been offered, run and settled, for the episodes from ``first_episode`` on.

        Log nothing. If one of them may be deferred or is a Pump, take none and return False.
        """
        if self.is_limited or first_episode != self._next_episode or first_episode + len(events) >= U64_MAX:
            return False
        now = self._now
        secs, nanos = now.secs, now.nanos
        for event in events:
            if event.kind is _PUMP:
                return False
            at = event.at
            if at.secs > secs or (at.secs == secs and at.nanos > nanos):
                now, secs, nanos = at, at.secs, at.nanos
        self._now = now
        self._next_episode += len(events)
        return True

    def on_event(self, event: EventLike) -> None:
        """Drive an event and return nothing (``Supervisor::on_event``)."""
        self.drive(event)

    def rebind(self, decision_log: DecisionLog, runtime: RuntimeInvoker | None) -> None:
        """Continue with another log and engine, after a recovery through the first ones."""
        self._bind(decision_log, runtime)

    def _bind(self, decision_log: DecisionLog, runtime: RuntimeInvoker | None) -> None:
        self._log = decision_log.log
        self._log_plain = decision_log.log_plain if isinstance(decision_log, RunLengthDecisionLog) else None
        self._runtime = runtime

    @property
    def is_limited(self) -> bool:
        """Return whether an episode may be deferred, where each is over before the next event is offered.

        If not, each event but a Pump runs the next episode, and a Pump finds nothing due and takes an episode id.
        """
        return self._window is not None or self._max_in_flight == 0

    @property
    def now(self) -> EventTime:
        """Return the greatest event time seen (rule 1)."""
        return EventTime(self._now.secs, self._now.nanos)

    @property
    def deferred_count(self) -> int:
        """Return how many episodes wait for a pump."""
        return len(self._deferred)

    def _start(self, trigger: EventLike, origin: EventLike, episode: int) -> Run:
        self._in_flight += 1
        if self._window is not None:
            self._recent.append(self._now_nanos())
        return Run(trigger, origin, episode)

    def _pump(self, pump: EventLike) -> Run | DecisionLogEntry:
        deferred = self._deferred
        if not deferred or deferred[0][0] > self._now_nanos():
            return self._record_deferral(pump, None, self._take_episode())
        _, episode, origin = heapq.heappop(deferred)
        self.deferred_bytes -= _payload_bytes(origin)
        if self._max_in_flight is not None and self._in_flight >= self._max_in_flight:
            return self._defer(pump, origin, episode, 0)
        if self._window is not None and (delay := self._rate_limit_delay()) is not None:
            return self._defer(pump, origin, episode, delay)
        return self._start(pump, origin, episode)

    def _defer(self, trigger: EventLike, origin: EventLike, episode: int, delay: int) -> DecisionLogEntry:
        schedule_at = EventTime.from_nanos(self._now_nanos() + delay)
        heapq.heappush(self._deferred, (schedule_at.total_nanos, episode, origin))
        self.deferred_bytes += _payload_bytes(origin)
        return self._record_deferral(trigger, schedule_at, episode)

    def _record_deferral(self, trigger: EventLike, schedule_at: EventTime | None, episode: int) -> DecisionLogEntry:
        entry = self.entry_of_deferral(trigger, schedule_at, episode)
        self._log(entry)
        return entry

    def _rate_limit_delay(self) -> int | None:
        """Return the nanoseconds until the next invocation is allowed, or None if it is allowed now (rule 2)."""
        assert self._window is not None
        now, window, recent = self._now_nanos(), self._window, self._recent
        while recent and now - recent[0] >= window:
            recent.popleft()
        if recent and len(recent) >= self._max_per_window:
            return window - (now - recent[0])
        return None

    def _take_episode(self) -> int:
        episode = self._next_episode
        if episode < U64_MAX:
            self._next_episode = episode + 1
        return episode

    def _now_nanos(self) -> int:
        return self._now.secs * NANOS_PER_SEC + self._now.nanos


def _payload_bytes(event: EventLike) -> int:
    return len(event.payload) if isinstance(event, ExternalEvent) else 0
