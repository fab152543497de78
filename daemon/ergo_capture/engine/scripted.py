"""Engines that run no graph: the end of each episode is configured, or read from a file."""

from __future__ import annotations

from codecs import BOM_UTF8
from pathlib import Path

from ergo_capture.engine.port import InProcessEngine, SessionPart
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.journal.payloads import SCRIPTED
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.fault_runtime import FaultRuntime
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.ports import RunResult
from ergo_capture.kernel.time import EventTime


class _ImmediateEngine(InProcessEngine):
    """The common part of engines whose outcomes are known in advance."""

    def invoker(self) -> FaultRuntime:
        """Return a runtime for a new session."""
        raise NotImplementedError

    async def run(
        self,
        graph_id: str,
        event_id: str,
        event: ExternalEvent,
        deadline: EventTime | None,
        of: SessionPart | None = None,  # noqa: ARG002 - the port's signature
    ) -> RunResult:
        """Return the outcome that a new runtime has for the event."""
        return RunResult(self.invoker().run(graph_id, event_id, event, deadline))


class FixedEngine(_ImmediateEngine):
    """Ends every episode with the same termination, or as Aborted if the deadline is zero."""

    name = "fixed"

    def __init__(self, termination: RunTermination = RunTermination.Completed) -> None:
        self.termination = termination

    def invoker(self) -> FaultRuntime:
        """Return a runtime without a schedule."""
        return FaultRuntime(self.termination)


class ScriptedEngine(_ImmediateEngine):
    """Ends episodes by a script of outcomes by event id, for tests. Each session begins at the start of the script.

    Args:
        path: the script, as ``FaultRuntime.from_json`` reads it.

    Raises:
        ErgoCaptureError: the file cannot be read, or is not a script.
    """

    name = SCRIPTED

    def __init__(self, path: Path) -> None:
        try:
            self._script = path.read_bytes().removeprefix(BOM_UTF8)
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
        """Return a runtime at the beginning of the script."""
        return FaultRuntime.from_json(self._script)
