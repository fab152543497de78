"""The interface of engines."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

from anyio.abc import TaskGroup

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.outcomes import ErrKind, RunTermination
from ergo_capture.kernel.ports import RunResult, RuntimeInvoker
from ergo_capture.kernel.time import EventTime

#: A graph's runtime_provenance if none is configured: the engine's own is used instead.
UNSTATED_PROVENANCE: Final = "rpv1:none"

#: The result of a run whose deadline is zero.
ABORTED: Final = RunResult(RunTermination.Aborted)
#: The result of a run that took longer than its deadline.
TIMED_OUT: Final = RunResult(RunTermination.TimedOut)
#: The result of a run whose engine is away, or went away before it answered.
UNAVAILABLE: Final = RunResult(RunTermination.Failed(ErrKind.AdapterUnavailable))
#: The result of a run whose engine raised, or answered something that is not a valid result.
INVALID_REPLY: Final = RunResult(RunTermination.Failed(ErrKind.RuntimeError))


class SessionPart(NamedTuple):
    """A part of a session, for engines that keep a state for each."""

    session: str
    #: From 1.
    part: int


class EngineRefused(ErgoCaptureError):
    """The engine is not the one that the graph is configured for, or it cannot be reached."""


class EngineFault(ErgoCaptureError):
    """The engine gave no valid answer to a run. Only engines that were configured to raise it do so.

    Args:
        reason: what the engine did, in words.
        result: the result with which the daemon ends such a run.
    """

    def __init__(self, reason: str, result: RunResult) -> None:
        super().__init__(f"run episode: {reason}", op="run episode")
        self.reason = reason
        self.result = result


class Engine(Protocol):
    """Runs episodes of one graph, for any number of sessions at once."""

    #: The engine's kind, as in ``[graphs.NAME.engine] kind``; journals and manifests keep it.
    name: str
    #: The most episodes of one session that may be under way at once, at least 1.
    pipeline: int

    def invoker(self) -> RuntimeInvoker | None:
        """Return an invoker for a new session if the engine answers without waiting, else None.

        A session with an invoker decides whole chunks without an ``await`` for each event; without one, each episode
        is awaited with ``run``.
        """

    async def run(
        self,
        graph_id: str,
        event_id: str,
        event: ExternalEvent,
        deadline: EventTime | None,
        of: SessionPart | None = None,
    ) -> RunResult:
        """Run one attempt of an episode and return its result.

        An error of the engine is a result too, unless the engine was configured to raise ``EngineFault``.

        Args:
            graph_id: the graph.
            event_id: the id of the event.
            event: the event whose episode it is.
            deadline: the longest time that it may take.
            of: the part of a session that it belongs to; None for none.

        Raises:
            EngineFault: the engine gave no valid answer, and was configured to raise.
        """

    def end_part(self, of: SessionPart) -> None:
        """Note that a part of a session has no further episodes."""

    def require(self, adapter_provenance: str, egress_provenance: str | None) -> None:
        """Refuse from now on an engine that states another adapter or egress provenance than these of its graph."""

    async def provenance(self, configured: str) -> str:
        """Return the runtime_provenance for a session that is opened now.

        Args:
            configured: the graph's runtime_provenance in the configuration.

        Raises:
            EngineRefused: the engine states another one, or another adapter or egress than the required one, or it is
                away and has not stated any yet.
        """

    def expect(self, provenance: str) -> None:
        """Accept only an engine of this runtime_provenance: a recovered session was opened with it."""

    def start(self, tasks: TaskGroup) -> None:
        """Start the engine's own task in ``tasks``; does nothing if it was started before."""

    def stop(self) -> None:
        """End the engine's own task; no session may use the engine afterwards."""

    def snapshot(self) -> dict[str, Any]:
        """Return the engine's figures for ``status``; with ``up`` if the engine can be away."""


class InProcessEngine:
    """The common part of engines within the daemon's process: they have no task and are never away."""

    pipeline = 1

    def end_part(self, of: SessionPart) -> None:
        """Do nothing: the engine keeps no state for a session."""

    def require(self, adapter_provenance: str, egress_provenance: str | None) -> None:
        """Do nothing: the engine states no provenance."""

    async def provenance(self, configured: str) -> str:
        """Return the configured one; the engine has none of its own."""
        return configured

    def expect(self, provenance: str) -> None:
        """Do nothing: only the configuration states the engine's provenance."""

    def start(self, tasks: TaskGroup) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""

    def snapshot(self) -> dict[str, Any]:
        """Return no figures."""
        return {}
