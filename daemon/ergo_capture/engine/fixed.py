"""The engine that ends every episode alike: the embedded default."""

from __future__ import annotations

from ergo_capture.engine.port import InProcess
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.fault_runtime import FaultRuntime
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.ports import RunResult
from ergo_capture.kernel.time import EventTime


class FixedEngine(InProcess):
    """Ends every episode with one termination; one whose deadline is zero is aborted."""

    name = "fixed"

    def __init__(self, termination: RunTermination = RunTermination.Completed) -> None:
        self.termination = termination

    def invoker(self) -> FaultRuntime:
        """A runtime without a schedule."""
        return FaultRuntime(self.termination)

    async def run(self, graph_id: str, event_id: str, event: ExternalEvent, deadline: EventTime | None) -> RunResult:
        """The one termination."""
        return RunResult(self.invoker().run(graph_id, event_id, event, deadline))

    def __repr__(self) -> str:
        return f"<FixedEngine {self.termination!r}>"
