"""An engine outside the daemon: reached, greeted, lost, and reached again.

While the engine is away, ``when_away`` decides: ``wait`` keeps runs waiting (those with a deadline until it passes),
``fail`` ends them at once as ``Failed(AdapterUnavailable)``. A run that was under way when the engine went ends so in
both cases: it may have had its effects, and whether it is tried again is the graph's ``max_retries``.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import structlog
from anyio.abc import ByteReceiveStream, ByteSendStream, TaskGroup

from ergo_capture import telemetry
from ergo_capture.backoff import Backoff
from ergo_capture.engine.connection import EngineConnection
from ergo_capture.engine.port import ABORTED, TIMED_OUT, UNAVAILABLE, UNSTATED_PROVENANCE, EngineRefused
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.ports import RunResult, RuntimeInvoker
from ergo_capture.kernel.time import EventTime
from ergo_capture.protocol.engine import EngineProtocolError, Ready

log = structlog.get_logger()

_BROKEN: Final = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """How an engine outside is treated; times in seconds, sizes in bytes."""

    #: From reaching it to its ``ready``.
    start_timeout: float = 10.0
    #: The first pause before it is reached again, and the longest.
    back_off: float = 0.1
    back_off_limit: float = 10.0
    max_line_bytes: int = 16 << 20
    #: How long it may answer nothing while it is asked something; zero for ever.
    hang_timeout: float = 300.0
    pipeline: int = 1
    #: ``wait`` or ``fail``.
    when_away: str = "wait"


class RemoteEngine(ABC):
    """An engine that speaks ``ergo-engine.v1``.

    Args:
        graph: the graph whose episodes it runs.
        configured: the graph's runtime_provenance.
        settings: how it is treated.
    """

    name = "remote"

    def __init__(self, graph: str, configured: str, settings: RemoteSettings) -> None:
        self.graph = graph
        self.pipeline = settings.pipeline
        self.counts: Counter[str] = Counter()
        self._configured = configured
        self._settings = settings
        self._dialogue: EngineConnection | None = None
        #: What the engine said of itself when it was there first, or what the sessions of before the start expect.
        self._stated: str | None = None
        #: Why it is away, in words; empty while it is there.
        self.trouble = "it was not reached yet"
        self._came = asyncio.Event()
        self._tried = asyncio.Event()
        #: What it lives in, once it was started.
        self._life: anyio.CancelScope | None = None

    @abstractmethod
    def reach(self) -> AbstractAsyncContextManager[tuple[ByteReceiveStream, ByteSendStream]]:
        """A connection to it, and its end.

        Raises:
            OSError: it cannot be reached.
        """

    def invoker(self) -> RuntimeInvoker | None:
        """None: its answers need waiting."""
        return None

    def expect(self, provenance: str) -> None:
        """Take no other engine: the bundle says that all its episodes were run by this one."""
        if provenance != UNSTATED_PROVENANCE:
            self._stated = provenance

    def start(self, tasks: TaskGroup) -> None:
        """Begin to reach it; it is kept reached until ``tasks`` is cancelled."""
        if self._life is None:
            self._life = anyio.CancelScope()
            tasks.start_soon(self._live, self._life)

    def stop(self) -> None:
        """Let it go, for good."""
        if self._life is not None:
            self._life.cancel()

    async def provenance(self, configured: str) -> str:
        """The configured one where there is one, else the engine's own; waits for it as long as a start may take.

        Raises:
            EngineRefused: it is another than the configured one, or there is none because the engine is away.
        """
        if self._stated is None and not self._tried.is_set():
            with anyio.move_on_after(self._settings.start_timeout):
                await self._tried.wait()
        if self._stated is None and configured == UNSTATED_PROVENANCE and self._settings.when_away == "wait":
            with anyio.move_on_after(self._settings.start_timeout):
                await self._came.wait()
        if self._stated is None and (configured == UNSTATED_PROVENANCE or self._settings.when_away == "fail"):
            raise EngineRefused(
                f"graph {self.graph!r} has no engine: {self.trouble}",
                op="open session",
                hint="start the engine, or see the log for why it does not come up",
            )
        if self._stated is not None and configured not in (UNSTATED_PROVENANCE, self._stated):
            raise self._mismatch(self._stated)
        return configured if configured != UNSTATED_PROVENANCE else self._stated or configured

    async def run(self, graph_id: str, event_id: str, event: ExternalEvent, deadline: EventTime | None) -> RunResult:
        """Run one attempt; never raises for what the engine did wrong."""
        del event_id  # the event bears it
        if deadline is not None and deadline.is_zero():
            return ABORTED
        self.counts["asked"] += 1
        if self._dialogue is None:
            if self._settings.when_away == "fail":
                return UNAVAILABLE
            with anyio.move_on_after(None if deadline is None else deadline.total_nanos / 1e9) as patience:
                while self._dialogue is None:
                    await self._came.wait()
            if patience.cancelled_caught:
                return TIMED_OUT
        dialogue = self._dialogue
        assert dialogue is not None
        return await dialogue.ask(graph_id, event, deadline)

    # --- its life ---

    async def _live(self, life: anyio.CancelScope) -> None:
        with life:
            await self._keep_reached()

    async def _keep_reached(self) -> None:
        backoff = Backoff(self._settings.back_off, self._settings.back_off_limit)
        while True:
            began = anyio.current_time()
            reason, reached = "it went away", self.counts["reached"]
            try:
                await self._be_there()
            except (ErgoCaptureError, ValueError, *_BROKEN) as error:
                # Why ValueError: so Python says that a path or an argument holds a zero byte.
                reason = _in_words(error)
            was_there = self.counts["reached"] > reached
            if was_there or reason != self.trouble:
                # Why only then: an engine that stays away is one line, however often it is tried.
                log.warning(telemetry.ENGINE_AWAY, graph=self.graph, engine=repr(self), reason=reason)
            self.trouble = reason
            self._tried.set()
            self.counts["lost"] += was_there
            # Why the reset: one that was well for a while is not one that cannot start.
            if was_there and anyio.current_time() - began > self._settings.back_off_limit:
                backoff.reset()
            await anyio.sleep(backoff.next_delay())

    async def _be_there(self) -> None:
        """Reach it, greet it, and talk with it until it is gone."""
        async with self.reach() as (receive, send):
            dialogue = EngineConnection(receive, send, self._settings.max_line_bytes, self.counts, self._lost)
            with anyio.move_on_after(self._settings.start_timeout or None) as patience:
                ready = await dialogue.greet()
            if patience.cancelled_caught:
                raise EngineProtocolError(
                    f"it said nothing within {self._settings.start_timeout:g} s", op="greet engine"
                )
            self._check(ready)
            self._stated = ready.runtime_provenance
            self._dialogue = dialogue
            self.trouble = ""
            self._tried.set()
            self._came.set()
            self.counts["reached"] += 1
            log.info(telemetry.ENGINE_READY, graph=self.graph, engine=repr(self), provenance=ready.runtime_provenance)
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._watch, dialogue)
                    await dialogue.converse()
                    tasks.cancel_scope.cancel()
            except* (EngineProtocolError, TimeoutError) as group:
                raise group.exceptions[0] from None

    def _lost(self) -> None:
        self._dialogue = None
        self._came = asyncio.Event()

    def _check(self, ready: Ready) -> None:
        if ready.graphs is not None and self.graph not in ready.graphs:
            raise EngineRefused(f"it runs {', '.join(ready.graphs) or 'no graph'}, and not {self.graph!r}")
        stated = ready.runtime_provenance
        if self._configured not in (UNSTATED_PROVENANCE, stated):
            # Kept, so that whoever opens a session hears what is wrong.
            self._stated = stated
            raise self._mismatch(stated)
        if self._stated not in (None, stated):
            raise EngineRefused(
                f"it says that it is {stated!r}, and sessions were opened with {self._stated!r}; start that one, or "
                "restart the daemon once they are over"
            )

    def _mismatch(self, stated: str) -> EngineRefused:
        return EngineRefused(
            f"graph {self.graph!r} is configured for the engine {self._configured!r}, and this one is {stated!r}",
            op="open session",
            hint="start the right engine, or mend runtime_provenance of the graph",
        )

    async def _watch(self, dialogue: EngineConnection) -> None:
        """End the conversation where the engine answers nothing any more."""
        limit = self._settings.hang_timeout
        while limit:
            await anyio.sleep(limit / 4)
            if dialogue.silence > limit:
                raise TimeoutError(f"it has answered nothing for {limit:g} s")

    def snapshot(self) -> dict[str, Any]:
        """How the engine is, for ``status``."""
        dialogue = self._dialogue
        return {
            "up": dialogue is not None,
            "trouble": self.trouble,
            "waiting": 0 if dialogue is None else dialogue.waiting,
            "unsent_bytes": 0 if dialogue is None else dialogue.unsent_bytes,
            **{name: self.counts[name] for name in ("asked", "reached", "lost", "late", "unknown", "nonsense")},
        }


class SocketEngine(RemoteEngine):
    """A service that listens; connected to again whenever the connection ends.

    Args:
        path: the Unix socket that it listens on.
    """

    name = "socket"

    def __init__(self, graph: str, configured: str, path: Path, settings: RemoteSettings) -> None:
        super().__init__(graph, configured, settings)
        self.path = path

    @asynccontextmanager
    async def reach(self) -> AsyncIterator[tuple[ByteReceiveStream, ByteSendStream]]:
        """Connect; hang up at the end."""
        async with await anyio.connect_unix(str(self.path)) as stream:
            yield stream, stream

    def __repr__(self) -> str:
        return f"<SocketEngine {self.path}>"


def _in_words(error: BaseException) -> str:
    if isinstance(error, ErgoCaptureError):
        return error.message
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) if isinstance(error, ValueError) else "it went away"
