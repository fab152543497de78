"""What the daemon asks of an engine."""

from __future__ import annotations

from typing import Any, Protocol

from anyio.abc import TaskGroup

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.ports import RunResult, RuntimeInvoker
from ergo_capture.kernel.time import EventTime

#: A graph's runtime_provenance where none is configured: an engine's own takes its place.
UNSTATED_PROVENANCE = "rpv1:none"


class EngineRefused(ErgoCaptureError):
    """The engine is not the one that the graph is configured for, or does not come up."""


class Engine(Protocol):
    """Runs episodes of one graph, for any number of sessions at once."""

    #: The engine's kind, for people: ``fixed``, ``scripted``, ...
    name: str
    #: Episodes of one session that may be under way at once, from 1.
    pipeline: int

    def invoker(self) -> RuntimeInvoker | None:
        """A new session's engine where answers need no waiting; None where ``run`` must be awaited.

        Why: a session whose engine answers at once decides whole chunks without an await per event.
        """

    async def run(self, graph_id: str, event_id: str, event: ExternalEvent, deadline: EventTime | None) -> RunResult:
        """Run one attempt of an episode to its end; never raises for what the engine did wrong."""

    async def provenance(self, configured: str) -> str:
        """The runtime_provenance of a session that is opened now, ``configured`` being the graph's.

        Raises:
            EngineRefused: the engine says another one, or is away and has not said any yet.
        """

    def expect(self, provenance: str) -> None:
        """A session of before the start goes on, which was opened with an engine of this runtime_provenance."""

    def start(self, tasks: TaskGroup) -> None:
        """Begin to live in ``tasks``; a second call changes nothing."""

    def stop(self) -> None:
        """Let go of whatever it lives by: no session will ask it again."""

    def snapshot(self) -> dict[str, Any]:
        """How the engine is, for ``status``; with ``up`` where it may be away."""


class InProcess:
    """What all engines have in common that live in the daemon itself."""

    pipeline = 1

    async def provenance(self, configured: str) -> str:
        """The configured one: nobody else has anything to say about it."""
        return configured

    def expect(self, provenance: str) -> None:
        """Nothing can be said against it: what it is nobody knows but the configuration."""

    def start(self, tasks: TaskGroup) -> None:
        """Nothing is to be started."""

    def stop(self) -> None:
        """Nothing is to be let go of."""

    def snapshot(self) -> dict[str, Any]:
        """There is nothing to say: it cannot be away."""
        return {}
