"""The engine whose outcomes are written in a file, per event id: for rehearsals and tests."""

from __future__ import annotations

from pathlib import Path

from ergo_capture.engine.port import InProcess
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.fault_runtime import FaultRuntime
from ergo_capture.kernel.ports import RunResult
from ergo_capture.kernel.time import EventTime


class ScriptedEngine(InProcess):
    """Gives every session the whole script anew.

    Raises:
        ErgoCaptureError: the file cannot be read, or is not a script.
    """

    name = "scripted"

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._script = path.read_bytes()
        except OSError as error:
            raise ErgoCaptureError(
                f"read engine script '{path}': {error.strerror}",
                op="read engine script",
                path=path,
                hint="check engine.file of the graph in the configuration",
                exit_code=ExitCode.CONFIG,
            ) from error
        try:
            FaultRuntime.from_json(self._script)
        except ErgoCaptureError as error:
            error.path = str(path)
            error.message = f"read engine script '{path}': {error.message.removeprefix('read outcomes: ')}"
            error.exit_code = ExitCode.CONFIG
            raise

    def invoker(self) -> FaultRuntime:
        """A runtime with the whole script ahead of it."""
        return FaultRuntime.from_json(self._script)

    async def run(self, graph_id: str, event_id: str, event: ExternalEvent, deadline: EventTime | None) -> RunResult:
        """The first outcome scheduled for the event."""
        return RunResult(self.invoker().run(graph_id, event_id, event, deadline))

    def __repr__(self) -> str:
        return f"<ScriptedEngine {self.path}>"
