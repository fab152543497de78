"""Scenarios: events, limits and outcomes in one JSON text, as in the conformance data."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.constraints import NO_CONSTRAINTS, Constraints
from ergo_capture.kernel.events import ExternalEvent, ExternalEventKind
from ergo_capture.kernel.fault_runtime import FaultRuntime
from ergo_capture.kernel.records import NO_ADAPTER_PROVENANCE
from ergo_capture.kernel.time import ZERO, EventTime


class ScenarioEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An event; ``payload_utf8`` is the text of its payload, null for none."""

    event_id: str
    kind: ExternalEventKind
    at: EventTime = ZERO
    payload_utf8: str | None = None

    def to_event(self) -> ExternalEvent:
        """Return the event.

        Raises:
            ExternalEventPayloadError: as ``check_payload``.
        """
        if self.payload_utf8 is None:
            return ExternalEvent.mechanical_at(self.event_id, self.kind, self.at)
        return ExternalEvent.with_payload(self.event_id, self.kind, self.at, self.payload_utf8.encode())


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run to be simulated without an engine."""

    graph_id: str
    events: list[ScenarioEvent]
    constraints: Constraints = NO_CONSTRAINTS
    adapter_provenance: str = NO_ADAPTER_PROVENANCE
    runtime_provenance: str = "rpv1:none"
    #: The end of attempts for which ``schedule`` has no outcome.
    default: Any = "Completed"
    #: Outcomes by event id, used up in order.
    schedule: dict[str, list[Any]] = {}

    def runtime(self) -> FaultRuntime:
        """Return the engine that the scenario describes.

        Raises:
            ValueError: an outcome is not a termination.
        """
        return FaultRuntime.from_builtins({"default": self.default, "schedule": self.schedule})


class _Wrapped(msgspec.Struct):
    scenario: msgspec.Raw


class _KnownConstraints(Constraints, frozen=True, forbid_unknown_fields=True):
    """Constraints without unknown fields; those of a bundle may have some, as for the reference."""


class _Spelling(msgspec.Struct):
    constraints: _KnownConstraints = _KnownConstraints()


def read_scenario(text: bytes) -> Scenario:
    """Return the scenario in a text, which may be wrapped as in the conformance data: ``{"scenario": {...}}``.

    Raises:
        ErgoCaptureError: it is not a scenario; the message names the field.
    """
    try:
        with suppress(msgspec.ValidationError):
            text = bytes(msgspec.json.decode(text, type=_Wrapped).scenario)
        msgspec.json.decode(text, type=_Spelling)
        scenario = msgspec.json.decode(text, type=Scenario)
        scenario.runtime()
    except (ValueError, RecursionError) as error:
        raise ErgoCaptureError(
            f"read scenario: {error}",
            op="read scenario",
            hint='a scenario is {"graph_id": ..., "events": [{"event_id": ..., "kind": ..., "at": {...}, '
            '"payload_utf8": ...}], "constraints": {...}, "default": ..., "schedule": {...}}',
        ) from error
    return scenario
