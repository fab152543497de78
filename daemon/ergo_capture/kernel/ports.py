"""The interfaces of the supervisor: the engine that it calls and the log that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable

import msgspec

from ergo_capture.kernel.effects import ActionEffect
from ergo_capture.kernel.events import EventLike
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.records import CapturedActionEffect, CapturedIntentAck, EpisodeInvocationRecord
from ergo_capture.kernel.time import EventTime


class RunResult(msgspec.Struct, frozen=True):
    """The result of one attempt: its end and its effects (``ergo_adapter``'s reporting seam)."""

    termination: RunTermination
    effects: tuple[ActionEffect, ...] = ()
    intent_acks: tuple[CapturedIntentAck, ...] = ()
    interruption: str | None = None


#: The result of an episode that may have run before a crash and must not be repeated; replay does not run it either.
IN_DOUBT: Final = RunResult(
    RunTermination.Aborted,
    interruption="in_doubt: the daemon stopped before the decision was durable; the episode was not run again",
)


class RuntimeInvoker(Protocol):
    """An engine as the kernel sees it (``ergo_adapter::RuntimeInvoker``)."""

    def run(
        self, graph_id: str, event_id: str, event: EventLike, deadline: EventTime | None
    ) -> RunTermination | RunResult:
        """Run one attempt of an episode; a bare termination stands for a run without effects."""


class DecisionLogEntry(msgspec.Struct, frozen=True, gc=False):
    """One decision as it is logged (``ergo_supervisor::DecisionLogEntry``)."""

    graph_id: str
    event_id: str
    event: EventLike
    decision: Decision
    schedule_at: EventTime | None
    episode_id: int
    deadline: EventTime | None
    termination: RunTermination | None
    retry_count: int
    effects: tuple[CapturedActionEffect, ...] = ()
    intent_acks: tuple[CapturedIntentAck, ...] = ()
    interruption: str | None = None

    def to_record(self) -> EpisodeInvocationRecord:
        """Return the entry as a bundle keeps it."""
        return EpisodeInvocationRecord(
            self.event_id,
            self.decision,
            self.schedule_at,
            self.episode_id,
            self.deadline,
            self.termination,
            self.retry_count,
            self.effects,
            self.intent_acks,
            self.interruption,
        )


class DecisionLog(Protocol):
    """A log of decisions (``ergo_supervisor::DecisionLog``); the supervisor never reads it (SUP-7)."""

    def log(self, entry: DecisionLogEntry) -> None:
        """Keep a decision; one that was not logged did not happen."""


@runtime_checkable
class RunLengthDecisionLog(DecisionLog, Protocol):
    """A log that also takes many plain decisions in one call.

    Nearly every decision of nearly every run is an invocation that completed at the first attempt, and an entry for
    each costs more than the rest of deciding.
    """

    def log_plain(self, events: Sequence[EventLike], first_episode: int) -> None:
        """Keep one decision for each event: invoked, completed at the first attempt, no effects, consecutive episodes."""


class MemoryDecisionLog:
    """A log in memory (``ergo_supervisor::replay::MemoryDecisionLog``)."""

    def __init__(self) -> None:
        self.entries: list[DecisionLogEntry] = []

    def log(self, entry: DecisionLogEntry) -> None:
        """Keep the entry."""
        self.entries.append(entry)

    def records(self) -> list[EpisodeInvocationRecord]:
        """Return the decisions so far, in order, as a bundle keeps them."""
        return [entry.to_record() for entry in self.entries]
