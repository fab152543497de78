"""Make an engine from a command-line argument, and replay with it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

import anyio

from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.config.graphs import RemoteEngineConfig
from ergo_capture.engine.port import UNSTATED_PROVENANCE, Engine
from ergo_capture.engine.process import ProcessEngine
from ergo_capture.engine.python import PythonEngine
from ergo_capture.engine.remote import SocketEngine
from ergo_capture.engine.replaying import Replayed, ReplayOptions, Watcher, replay_stream
from ergo_capture.engine.scripted import FixedEngine, ScriptedEngine
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.units import Duration

FORMS: Final = "fixed, fixed:TimedOut, fixed:Failed:RuntimeError, scripted:FILE, python:MODULE:CALLABLE, process:COMMAND, socket:PATH"


def engine_from(spec: str, graph: str) -> Engine:
    """Return the engine that an argument describes.

    Args:
        spec: one of FORMS.
        graph: the graph whose episodes it runs.

    Raises:
        ErgoCaptureError: it is none of them (exit code 2), or the engine cannot be made.
    """
    kind, _, rest = spec.partition(":")
    # Fail at once if the engine is away, because a user waits for the result. The caller sets the time-out of answers.
    remote = RemoteEngineConfig(when_away="fail", hang_timeout=Duration(0))
    try:
        if kind == "fixed":
            return FixedEngine(_termination(rest or "Completed"))
        if kind == "scripted" and rest:
            return ScriptedEngine(Path(rest))
        if kind == "python" and rest:
            return PythonEngine(rest, raises=True)
        if kind == "process" and rest:
            return ProcessEngine(graph, UNSTATED_PROVENANCE, shlex.split(rest), remote, raises=True)
        if kind == "socket" and rest:
            return SocketEngine(graph, UNSTATED_PROVENANCE, rest, remote, raises=True)
    except ValueError as error:
        raise _invalid(spec, str(error)) from error
    raise _invalid(spec, "it is not one of the known forms")


async def replay_with(spec: str, stream: RecordStream, options: ReplayOptions, watcher: Watcher) -> Replayed:
    """Replay a run with the engine that an argument describes; raise as ``engine_from`` and ``replay_stream``.

    The notes of an exception are the last lines of the engine's standard error.
    """
    engine = engine_from(spec, stream.graph_id)
    async with anyio.create_task_group() as tasks:
        engine.start(tasks)
        try:
            return await replay_stream(stream, engine, options, watcher)
        except ErgoCaptureError as error:
            # Raise it outside: the task group would wrap it in an exception group.
            failure = error
            for line in engine.said if isinstance(engine, ProcessEngine) else ():
                failure.add_note(line)
        finally:
            tasks.cancel_scope.cancel()
    raise failure


def _termination(text: str) -> RunTermination:
    name, _, kind = text.partition(":")
    return RunTermination.from_builtins({name: kind} if kind else name)


def _invalid(spec: str, reason: str) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"no engine {spec!r}: {reason}", op="choose engine", hint=f"write one of: {FORMS}", exit_code=ExitCode.USAGE
    )
