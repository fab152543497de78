"""A session that records in memory what it supervises: the library form of a capture."""

from __future__ import annotations

from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.ports import DecisionLog, DecisionLogEntry, RuntimeInvoker
from ergo_capture.kernel.records import (
    CAPTURE_FORMAT_VERSION,
    NO_ADAPTER_PROVENANCE,
    CaptureBundle,
    ExternalEventRecord,
)
from ergo_capture.kernel.supervisor import Supervisor


class CapturingDecisionLog:
    """A log that writes each decision to an inner log, then into a bundle (``ergo_supervisor::CapturingDecisionLog``)."""

    def __init__(self, inner: DecisionLog, bundle: CaptureBundle) -> None:
        self._inner = inner.log
        self._decisions = bundle.decisions

    def log(self, entry: DecisionLogEntry) -> None:
        """Log the decision, then record it: one that the inner log refused did not happen (rule 7)."""
        self._inner(entry)
        self._decisions.append(entry.to_record())


class CapturingSession:
    """A supervisor that keeps every event and every decision (``ergo_supervisor::CapturingSession``).

    The whole capture is in memory until ``into_bundle``. Use the daemon for runs that must not be lost.

    Args:
        graph_id: the graph whose episodes run.
        constraints: the limits; written into the bundle.
        inner_log: gets each decision before it is recorded.
        runtime: the engine.
        runtime_provenance: the engine's provenance, for strict replay.
        adapter_provenance: the adapter's provenance; ``"none"`` without one.
    """

    def __init__(
        self,
        graph_id: str,
        constraints: Constraints,
        inner_log: DecisionLog,
        runtime: RuntimeInvoker,
        runtime_provenance: str,
        adapter_provenance: str = NO_ADAPTER_PROVENANCE,
    ) -> None:
        self._bundle = CaptureBundle(
            CAPTURE_FORMAT_VERSION, graph_id, constraints, [], [], adapter_provenance, runtime_provenance
        )
        log = CapturingDecisionLog(inner_log, self._bundle)
        self._supervisor = Supervisor(graph_id, constraints, log, runtime)

    @classmethod
    def new(
        cls,
        graph_id: str,
        constraints: Constraints,
        inner_log: DecisionLog,
        runtime: RuntimeInvoker,
        runtime_provenance: str,
    ) -> CapturingSession:
        """Return a session without an adapter (``CapturingSession::new``)."""
        return cls(graph_id, constraints, inner_log, runtime, runtime_provenance)

    @classmethod
    def new_with_provenance(
        cls,
        graph_id: str,
        constraints: Constraints,
        inner_log: DecisionLog,
        runtime: RuntimeInvoker,
        adapter_provenance: str,
        runtime_provenance: str,
    ) -> CapturingSession:
        """Return a session with both provenances, in the reference's order of arguments."""
        return cls(graph_id, constraints, inner_log, runtime, runtime_provenance, adapter_provenance)

    def on_event(self, event: ExternalEvent) -> None:
        """Record the event, then give it to the supervisor (rule 7)."""
        self._bundle.events.append(ExternalEventRecord.from_event(event))
        self._supervisor.drive(event)

    def into_bundle(self) -> CaptureBundle:
        """Return the capture; the session must not be used afterwards."""
        return self._bundle
