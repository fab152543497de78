"""Decides events again without an engine, from the recorded outcomes."""

from __future__ import annotations

from itertools import zip_longest

from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.events import EventLike
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.ports import DecisionLogEntry, RunResult
from ergo_capture.kernel.records import CaptureBundle, EpisodeInvocationRecord
from ergo_capture.kernel.supervisor import Run, Supervisor
from ergo_capture.kernel.validation import rehydrate


def rederive(bundle: CaptureBundle) -> list[EpisodeInvocationRecord]:
    """Decide every event again without an engine, from the recorded outcomes.

    Each episode ends as the captured record at the same position says, effects included, so that only the
    supervisor's own decisions are put to the proof. Validate the bundle first.

    Raises:
        ReplayError: InvalidPayload.
    """
    again = Rederivation(bundle.graph_id, bundle.config)
    return [
        again.decide(rehydrate(record), captured)
        for record, captured in zip_longest(bundle.events, bundle.decisions[: len(bundle.events)])
    ]


class Rederivation:
    """Decides events again, one by one, from the recorded outcomes: ``rederive`` for a bundle that is streamed."""

    def __init__(self, graph_id: str, constraints: Constraints) -> None:
        self._max_retries = constraints.max_retries
        self._supervisor = Supervisor(graph_id, constraints, _Nowhere())

    def decide(self, event: EventLike, captured: EpisodeInvocationRecord | None) -> EpisodeInvocationRecord:
        """The decision that the next event leads to, given the one captured at its place, if there is one."""
        step = self._supervisor.offer(event)
        if isinstance(step, Run):
            step = self._supervisor.settle(step, *recorded_outcome(captured, self._max_retries))
        return step.to_record()

    def __repr__(self) -> str:
        return f"<Rederivation {self._supervisor!r}>"


class _Nowhere:
    """A decision log for whoever takes the entries from the supervisor's hand."""

    def log(self, entry: DecisionLogEntry) -> None:
        pass


def recorded_outcome(
    captured: EpisodeInvocationRecord | None, max_retries: int
) -> tuple[RunTermination, int, RunResult | None]:
    """How the captured record says its episode ended, as arguments for ``Supervisor.settle``.

    An impossible outcome is corrected to what the retry rule would have led to at the least, so that it
    shows as a divergence; a deferral where we invoke settles as Completed and shows as one too.
    """
    if captured is None or captured.decision is not Decision.Invoke or captured.termination is None:
        return RunTermination.Completed, 0, None
    termination, retries = captured.termination, captured.retry_count
    retries = max_retries if termination.retryable else min(retries, max_retries)
    effects = tuple(e.effect for e in captured.effects)
    if not effects and not captured.intent_acks and captured.interruption is None:
        return termination, retries, None
    return termination, retries, RunResult(termination, effects, captured.intent_acks, captured.interruption)
