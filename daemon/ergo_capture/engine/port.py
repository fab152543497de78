"""What the daemon asks of an engine.

Owns: the Engine protocol.
Not here: any engine.
"""

from __future__ import annotations

from typing import Protocol

from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.ports import RunResult, RuntimeInvoker
from ergo_capture.kernel.time import EventTime


class Engine(Protocol):
    """Runs episodes of one graph, for any number of sessions at once."""

    #: The engine's kind, for people: ``fixed``, ``scripted``, ...
    name: str

    def invoker(self) -> RuntimeInvoker | None:
        """A new session's engine where answers need no waiting; None where ``run`` must be awaited.

        Why: a session whose engine answers at once decides whole chunks without an await per event.
        """

    async def run(self, graph_id: str, event_id: str, event: ExternalEvent, deadline: EventTime | None) -> RunResult:
        """Run one attempt of an episode to its end; never raises for what the engine did wrong."""
