"""An engine whose outcomes are given beforehand."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.events import EventLike
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.time import EventTime


class FaultRuntime:
    """Outcomes per event id, used up in order, and a default (``ergo_adapter::FaultRuntimeHandle``).

    Args:
        default: how an attempt ends for which no outcome is scheduled.
        schedule: outcomes by event id; each attempt takes the next one.
    """

    def __init__(
        self,
        default: RunTermination = RunTermination.Completed,
        schedule: Mapping[str, Iterable[RunTermination]] | None = None,
    ) -> None:
        self.default = default
        self._schedule = {event_id: deque(outcomes) for event_id, outcomes in (schedule or {}).items()}

    @classmethod
    def from_json(cls, text: bytes | str) -> FaultRuntime:
        """Return the runtime that ``{"default": ..., "schedule": {event id: [...]}}`` describes.

        Other fields are ignored. ``default`` may be absent, which means Completed, and so may ``schedule``.

        Raises:
            ErgoCaptureError: not such an object; the message says where.
        """
        try:
            plan = msgspec.json.decode(text, type=dict[str, object])
            return cls.from_builtins(plan)
        except (ValueError, RecursionError) as error:
            raise ErgoCaptureError(
                f"read outcomes: {error}",
                op="read outcomes",
                hint='write {"default": "Completed", "schedule": {"event-id": ["TimedOut", {"Failed": "RuntimeError"}]}}',
            ) from error

    @classmethod
    def from_builtins(cls, plan: Mapping[str, object]) -> FaultRuntime:
        """Return the runtime that a decoded object describes, as ``from_json``.

        Raises:
            ValueError: an outcome is not a termination, or the schedule is not an object of lists.
        """
        schedule = plan.get("schedule") or {}
        if not isinstance(schedule, dict):
            raise ValueError("`schedule` must be an object of lists")  # noqa: TRY004 - one kind of error for bad JSON
        outcomes: dict[str, list[RunTermination]] = {}
        for event_id, values in schedule.items():
            if not isinstance(values, list):
                raise ValueError(f"`schedule.{event_id}` must be a list")  # noqa: TRY004 - as above
            outcomes[event_id] = [RunTermination.from_builtins(value) for value in values]
        return cls(RunTermination.from_builtins(plan.get("default", "Completed")), outcomes)

    @property
    def constant(self) -> RunTermination | None:
        """Return how every attempt ends; None if any outcome is scheduled."""
        return None if any(self._schedule.values()) else self.default

    def push_outcomes(self, event_id: str, outcomes: Iterable[RunTermination]) -> None:
        """Schedule outcomes for an event id, in place of any that are left."""
        self._schedule[event_id] = deque(outcomes)

    def run(self, graph_id: str, event_id: str, event: EventLike, deadline: EventTime | None) -> RunTermination:  # noqa: ARG002 - the port's signature
        """Return the next outcome; Aborted, using up nothing, if the deadline is zero (rule 5)."""
        if deadline is not None and deadline.is_zero():
            return RunTermination.Aborted
        outcomes = self._schedule.get(event_id)
        return outcomes.popleft() if outcomes else self.default
