"""The engine that is a Python callable in the daemon itself.

``module:callable`` is called with (graph_id, event_id, kind, at, payload, deadline): strings, ``at`` and ``deadline``
as EventTime (``deadline`` may be None), ``payload`` as bytes, empty for none. It returns None for Completed, a
termination as in JSON, an object with ``termination``, ``effects``, ``intent_acks``, ``interruption`` as in ``ran`` of
``ergo-engine.v1``, or a RunResult. One that is ``async def`` is awaited, any other is called in a thread, where a
deadline ends the waiting but cannot end the call. So many calls at once, those that hang included, and no more:
then runs wait, those with a deadline until it has passed. What it raises is Failed(RuntimeError).
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import anyio
import msgspec
import structlog

from ergo_capture import telemetry
from ergo_capture.engine.calls import CallThreads
from ergo_capture.engine.dialogue import NONSENSE, TIMED_OUT
from ergo_capture.engine.port import InProcess
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.ports import RunResult, RuntimeInvoker
from ergo_capture.kernel.time import EventTime
from ergo_capture.protocol.engine import read_ran

log = structlog.get_logger()

#: Calls in threads at once, at least; as many as the pipeline where that is more.
_THREADS: Final = 64

_ABORTED: Final = RunResult(RunTermination.Aborted)


class PythonEngine(InProcess):
    """Calls ``module:callable`` for each attempt.

    Args:
        spec: ``module:callable``; the module is imported at once.
        pipeline: calls for one session that may be under way at once.

    Raises:
        ErgoCaptureError: there is no such callable.
    """

    name = "python"

    def __init__(self, spec: str, pipeline: int = 1) -> None:
        self.spec = spec
        self.pipeline = pipeline
        self._call = _callable(spec)
        self._is_async = any(map(inspect.iscoroutinefunction, (self._call, type(self._call).__call__)))
        self._threads = CallThreads(max(_THREADS, pipeline))

    def invoker(self) -> RuntimeInvoker | None:
        """None: it may take its time."""
        return None

    async def run(self, graph_id: str, event_id: str, event: ExternalEvent, deadline: EventTime | None) -> RunResult:
        """Call it; what it raises or returns amiss is Failed(RuntimeError)."""
        if deadline is not None and deadline.is_zero():
            return _ABORTED
        call = partial(self._call, graph_id, event_id, event.kind.value, event.at, event.payload, deadline)
        with anyio.move_on_after(None if deadline is None else deadline.total_nanos / 1e9) as patience:
            try:
                answer = await (_contained(call) if self._is_async else self._threads.call(call))
                return _result(answer)
            except Exception:
                # Why here: an episode that fails is an outcome to be recorded, and no failure of the daemon.
                log.exception(telemetry.ENGINE_FAILED, graph=graph_id, event_id=event_id, engine=repr(self))
                return NONSENSE
        assert patience.cancelled_caught
        return TIMED_OUT

    def snapshot(self) -> dict[str, Any]:
        """Calls that have not come back."""
        return {"calls": self._threads.busy}

    def __repr__(self) -> str:
        return f"<PythonEngine {self.spec}>"


async def _contained(call: Callable[[], Awaitable[Any]]) -> Any:
    """What the coroutine returns or raises, as an error like any other."""
    try:
        return await call()
    except Exception:
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        # Why: SystemExit would end the daemon, and a cancellation that nobody asked for everything it is a part of.
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _callable(spec: str) -> Callable[..., Any]:
    module, colon, name = spec.partition(":")
    try:
        if not (module and colon and name):
            raise ValueError("it is not `module:callable`")
        found = getattr(importlib.import_module(module), name)
        if not callable(found):
            raise ValueError(f"`{name}` cannot be called")  # noqa: TRY004 - as above
    except Exception as error:
        # Why everything: a module that is imported may raise anything.
        raise ErgoCaptureError(
            f"load python engine {spec!r}: {error}",
            op="load python engine",
            hint="name `module:callable`, importable by the daemon (PYTHONPATH), in engine.callable",
            exit_code=ExitCode.CONFIG,
        ) from error
    else:
        return found  # type: ignore[no-any-return]


def _result(answer: Any) -> RunResult:
    if isinstance(answer, RunResult):
        # Why not as it is: nothing has checked it, and what cannot be written down must not reach the journal.
        answer = {**msgspec.structs.asdict(answer), "termination": answer.termination.to_builtins()}
    if answer is None:
        answer = "Completed"
    # A termination may be an object too, but its only key is not one of an answer's.
    body = answer if isinstance(answer, dict) and "termination" in answer else {"termination": answer}
    ran = read_ran(msgspec.json.encode({"id": 0, **body}))
    if ran.result is None:
        raise ValueError(f"it returned {answer!r}: {ran.error}")
    return ran.result
