"""Engines that are Python callables in the daemon's process.

``module:callable`` is called with (graph_id, event_id, kind, at, payload, deadline): strings, ``at`` and ``deadline``
as EventTime (``deadline`` may be None), ``payload`` as bytes, empty for none. It returns None for Completed, a
termination as in JSON, an object with ``termination``, ``effects``, ``intent_acks``, ``interruption`` as in ``ran`` of
``ergo-engine.v1``, or a RunResult. An exception becomes Failed(RuntimeError).

An ``async def`` is awaited; any other callable is called in a thread, where a deadline ends the wait but cannot end
the call. The number of calls in threads is bounded, calls that hang included; above it runs wait, those with a deadline
until it has passed.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Final

import anyio
import msgspec
import structlog

from ergo_capture import telemetry
from ergo_capture.engine.port import ABORTED, INVALID_REPLY, TIMED_OUT, EngineFault, InProcessEngine, SessionPart
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.ports import RunResult, RuntimeInvoker
from ergo_capture.kernel.time import EventTime
from ergo_capture.protocol.engine import read_ran

#: The number of calls in threads at once is this, or ``pipeline`` if that is more.
_MIN_THREADS: Final = 64

log = structlog.get_logger()

_Job = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class PythonEngine(InProcessEngine):
    """Calls ``module:callable`` for each attempt.

    Args:
        spec: ``module:callable``; the module is imported at once.
        pipeline: calls for one session that may be under way at once.
        raises: whether ``run`` raises ``EngineFault`` for an exception or an invalid return value.

    Raises:
        ErgoCaptureError: there is no such callable.
    """

    name = "python"

    def __init__(self, spec: str, pipeline: int = 1, *, raises: bool = False) -> None:
        self.spec = spec
        self._raises = raises
        self.pipeline = pipeline
        self._callable = _load(spec)
        self._is_async = any(map(inspect.iscoroutinefunction, (self._callable, type(self._callable).__call__)))
        self._threads = CallThreads(max(_MIN_THREADS, pipeline))

    def invoker(self) -> RuntimeInvoker | None:
        """Return None: calls must be awaited."""
        return None

    async def run(
        self,
        graph_id: str,
        event_id: str,
        event: ExternalEvent,
        deadline: EventTime | None,
        of: SessionPart | None = None,  # noqa: ARG002 - the port's signature
    ) -> RunResult:
        """Call it. Log an exception or an invalid return value, and return Failed(RuntimeError) for it.

        Raises:
            EngineFault: instead of that, if the engine was configured to raise.
        """
        if deadline is not None and deadline.is_zero():
            return ABORTED
        call = partial(self._callable, graph_id, event_id, event.kind.value, event.at, event.payload, deadline)
        with anyio.move_on_after(None if deadline is None else deadline.total_nanos / 1e9):
            says = "it raised {}: {}"
            try:
                answer = await (_await_contained(call) if self._is_async else self._threads.call(call))
                says = "its return value is invalid: {}: {}"
                return _to_result(answer)
            except Exception as error:
                if self._raises:
                    raise EngineFault(says.format(type(error).__name__, error), INVALID_REPLY) from error
                log.exception(
                    telemetry.ENGINE_FAILED,
                    graph=graph_id,
                    engine=f"python {self.spec}",
                    event_id=event_id,
                    error=says.format(type(error).__name__, error),
                )
                return INVALID_REPLY
        return TIMED_OUT

    def snapshot(self) -> dict[str, Any]:
        """Return the number of calls in threads that have not returned."""
        return {"calls": self._threads.busy}


async def _await_contained(call: Callable[[], Awaitable[Any]]) -> Any:
    """Await the coroutine; raise RuntimeError in place of SystemExit and other exceptions that would end the daemon."""
    try:
        return await call()
    except Exception:
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        # A CancelledError that the callable raises itself would cancel the session that it is called for.
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _load(spec: str) -> Callable[..., Any]:
    module, colon, name = spec.partition(":")
    try:
        if not (module and colon and name):
            raise ValueError("it is not `module:callable`")
        found = getattr(importlib.import_module(module), name)
        if not callable(found):
            raise ValueError(f"`{name}` cannot be called")  # noqa: TRY004 - caught below like the one above
    except Exception as error:
        # A module may raise anything when it is imported.
        raise ErgoCaptureError(
            f"load python engine {spec!r}: {error}",
            op="load python engine",
            hint="name `module:callable`, importable by the daemon (PYTHONPATH), in engine.callable",
            exit_code=ExitCode.CONFIG,
        ) from error
    else:
        return found  # type: ignore[no-any-return]


def _to_result(answer: Any) -> RunResult:
    """Return the result for the callable's return value.

    Raises:
        ValueError: the value is invalid.
    """
    if isinstance(answer, RunResult):
        # Check it like any other: a value that cannot be encoded must not reach the journal.
        answer = {**msgspec.structs.asdict(answer), "termination": answer.termination.to_builtins()}
    if answer is None:
        answer = "Completed"
    # A termination may be an object too, {"Failed": KIND}, but has no field of that name.
    body = answer if isinstance(answer, dict) and "termination" in answer else {"termination": answer}
    ran = read_ran(msgspec.json.encode({"id": 0, **body}))
    if ran.result is None:
        raise ValueError(ran.error)
    return ran.result


class CallThreads:
    """Calls functions in its own daemon threads, at most ``limit`` at once, including abandoned calls.

    A call that hangs can be abandoned but not ended. With ``anyio.to_thread`` each such call would add one more thread,
    without limit, and would keep the process from ending.

    Args:
        limit: the most calls under way at once.
    """

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._threads = 0
        #: Calls that have not returned, abandoned ones included.
        self.busy = 0

    async def call(self, function: Callable[[], Any]) -> Any:
        """Return what the function returns, or raise what it raises; cancellation abandons the call."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self.busy += 1
        if self.busy > self._threads:
            self._threads += 1
            threading.Thread(target=self._work, name=f"engine-{self._threads}", daemon=True).start()
        self._jobs.put((function, answer, loop))
        return await answer

    def _work(self) -> None:
        while True:
            function, answer, loop = self._jobs.get()
            result, error = None, None
            try:
                result = function()
            except BaseException as raised:  # noqa: BLE001 - it is raised again in the task that waits
                error = raised
            # The loop may be closed by now; then no task waits for the answer.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._deliver, answer, result, error)
            # Release them now: the next call may come much later.
            del function, answer, result, error

    def _deliver(self, answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self.busy -= 1
        self._free.release()
        if answer.done():
            return
        if error is None:
            answer.set_result(result)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            answer.set_exception(error)
        else:
            # A future refuses StopIteration, and SystemExit would end the daemon.
            answer.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
