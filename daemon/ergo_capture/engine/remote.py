"""Engines outside the daemon: connect, check the engine, use it until the connection ends, and connect again.

While an engine is away, ``when_away`` decides: ``wait`` keeps runs waiting (those with a deadline until it passes),
``fail`` ends them at once as ``Failed(AdapterUnavailable)``. A run that was under way when the engine went away ends in
this way in both cases, because it may have had its effects; the graph's ``max_retries`` decides on another attempt.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import Enum, auto
from pathlib import Path
from typing import Any

import anyio
import structlog
from anyio.abc import ByteReceiveStream, ByteSendStream, TaskGroup

from ergo_capture import telemetry
from ergo_capture.backoff import Backoff
from ergo_capture.config.graphs import RemoteEngineConfig
from ergo_capture.engine.connection import LOST, EngineConnection
from ergo_capture.engine.port import (
    ABORTED,
    INVALID_REPLY,
    TIMED_OUT,
    UNAVAILABLE,
    UNSTATED_PROVENANCE,
    EngineFault,
    EngineRefused,
    SessionPart,
)
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.ports import RunResult, RuntimeInvoker
from ergo_capture.kernel.time import EventTime
from ergo_capture.notifier import Notifier
from ergo_capture.pauses import within
from ergo_capture.protocol.address import socket_path
from ergo_capture.protocol.engine import EngineProtocolError, Ready
from ergo_capture.socket_receiver import SocketReceiver

log = structlog.get_logger()

#: The stream that an engine writes, the one that it reads, and an event that is set when it reads no more, or None.
Channel = tuple[ByteReceiveStream, ByteSendStream, asyncio.Event | None]


class State(Enum):
    """The state of an engine outside the daemon."""

    #: The first attempt to connect has not ended.
    UNTRIED = auto()
    #: It has said ``ready`` and takes requests.
    UP = auto()
    #: The last attempt to connect failed, or the connection has ended.
    AWAY = auto()


class RemoteEngine(ABC):
    """An engine that speaks ``ergo-engine.v1``.

    Args:
        graph: the graph whose episodes it runs.
        configured: the graph's runtime_provenance.
        settings: its settings.
        raises: whether ``run`` raises ``EngineFault`` if the engine gives no valid answer.
    """

    name = "remote"

    def __init__(self, graph: str, configured: str, settings: RemoteEngineConfig, *, raises: bool = False) -> None:
        self.graph = graph
        self.pipeline = settings.pipeline
        self.counts: Counter[str] = Counter()
        #: The reason that it is away; empty while it is up.
        self.trouble = "it has not said `ready` yet"
        self.state = State.UNTRIED
        self._state_changed = Notifier()
        self._configured = configured
        self._settings = settings
        self._raises = raises
        #: The connection, while the engine is up.
        self._connection: EngineConnection | None = None
        #: The provenance that it stated first, or that recovered sessions were opened with.
        self._stated: str | None = None
        #: The graph's provenances, by the names of the fields of ``ready``, and the last ``ready``.
        self._required: dict[str, str | None] = {}
        self._ready: Ready | None = None
        #: The error in its last invalid answer; empty if there was none since the last request.
        self._invalid = ""
        #: The scope of the engine's own task, once it was started.
        self._scope: anyio.CancelScope | None = None

    @abstractmethod
    def connect(self) -> AbstractAsyncContextManager[Channel]:
        """Connect, and disconnect afterwards.

        Raises:
            OSError: it cannot be reached.
        """

    @property
    @abstractmethod
    def description(self) -> str:
        """The kind and the address, for the log."""

    def log_fields(self) -> dict[str, Any]:
        """Return what identifies the engine in a log line."""
        return {"graph": self.graph, "engine": self.description}

    def invoker(self) -> RuntimeInvoker | None:
        """Return None: its answers must be awaited."""
        return None

    def expect(self, provenance: str) -> None:
        """Accept only an engine of this provenance: the bundle will say that all its episodes were run by it."""
        if provenance != UNSTATED_PROVENANCE:
            self._stated = provenance

    def start(self, tasks: TaskGroup) -> None:
        """Start to connect; the engine is kept connected until ``stop``, or until ``tasks`` is cancelled."""
        if self._scope is None:
            self._scope = anyio.CancelScope()
            tasks.start_soon(self._run_in, self._scope)

    def stop(self) -> None:
        """Disconnect, and do not connect again."""
        if self._scope is not None:
            self._scope.cancel()

    async def provenance(self, configured: str) -> str:
        """Return the configured provenance if there is one, else the engine's own.

        Waits up to ``start_timeout`` for an engine that was never up.

        Raises:
            EngineRefused: the engine states another one, or it is away and has not stated any.
        """
        fails_fast = self._settings.when_away == "fail"
        if self._stated is None:
            await self._wait_while(State.UNTRIED)
        self._check_required()
        if self._stated is None and configured == UNSTATED_PROVENANCE and not fails_fast:
            await self._wait_while(State.UNTRIED, State.AWAY)
        if self._stated is None and (configured == UNSTATED_PROVENANCE or fails_fast):
            raise self._no_engine()
        if self._stated is not None and configured not in (UNSTATED_PROVENANCE, self._stated):
            raise self._mismatch("engine", configured, self._stated)
        return configured if configured != UNSTATED_PROVENANCE else self._stated or configured

    def _no_engine(self) -> EngineRefused:
        if self._raises:
            return EngineRefused(
                f"the engine is not ready: {self.trouble}",
                op="replay",
                hint="run it by itself: it has to print `ready` first (`ergo-capture help engines`)",
            )
        return EngineRefused(
            f"graph {self.graph!r} has no engine: {self.trouble}",
            op="open session",
            hint="start the engine, or see the log for the reason why it does not start",
        )

    async def _wait_while(self, *states: State) -> None:
        with anyio.move_on_after(self._settings.start_timeout.seconds):
            while self.state in states:
                await self._state_changed.wait()

    def require(self, adapter_provenance: str, egress_provenance: str | None) -> None:
        """Refuse from now on an engine that states another adapter or egress provenance than these of its graph."""
        self._required = {"adapter_provenance": adapter_provenance, "egress_provenance": egress_provenance}

    def end_part(self, of: SessionPart) -> None:
        """Tell the engine that a part has ended, if it was told of the part."""
        if self._connection is not None:
            self._connection.end_part(of)

    async def run(
        self,
        graph_id: str,
        event_id: str,
        event: ExternalEvent,
        deadline: EventTime | None,
        of: SessionPart | None = None,
    ) -> RunResult:
        """Run one attempt and return its result.

        Raises:
            EngineFault: the engine gave no valid answer, and the settings say that this is raised.
        """
        del event_id  # the event has it
        if deadline is not None and deadline.is_zero():
            return ABORTED
        self.counts["asked"] += 1
        if self._raises:
            return await self._run_or_raise(graph_id, event, deadline, of)
        if self._connection is None:
            if self._settings.when_away == "fail":
                return UNAVAILABLE
            with anyio.move_on_after(None if deadline is None else deadline.total_nanos / 1e9):
                while self._connection is None:
                    await self._state_changed.wait()
            if self._connection is None:
                return TIMED_OUT
        return await self._connection.ask(graph_id, event, deadline, of)

    async def _run_or_raise(
        self, graph_id: str, event: ExternalEvent, deadline: EventTime | None, of: SessionPart | None
    ) -> RunResult:
        if self._connection is None:
            await self._wait_while(State.UNTRIED, State.AWAY)
        if self._connection is None:
            raise EngineFault(self.trouble, UNAVAILABLE)
        self._invalid = ""
        result = await self._connection.ask(graph_id, event, deadline, of)
        # Compare identities: an equal result that the engine has answered is another object.
        if result is not UNAVAILABLE and result is not INVALID_REPLY:
            return result
        if self._invalid:
            raise EngineFault(f"its answer is invalid: {self._invalid}", result)
        with anyio.move_on_after(self._settings.start_timeout.seconds):
            # The reason becomes known a little later than the state.
            while not self.trouble:
                await self._state_changed.wait()
        raise EngineFault(self.trouble, result)

    # --- the engine's own task ---

    async def _run_in(self, scope: anyio.CancelScope) -> None:
        with scope:
            await self._stay_connected()

    async def _stay_connected(self) -> None:
        backoff = Backoff(self._settings.back_off.seconds, self._settings.back_off_limit.seconds)
        while True:
            began, times_up, error = anyio.current_time(), self.counts["reached"], None
            try:
                await self._connect_and_converse()
            except (ErgoCaptureError, ValueError, *LOST) as raised:
                # ValueError: a path or an argument holds a zero byte.
                error = raised
            was_up = self.counts["reached"] > times_up
            reason = self.reason(error, was_up=was_up)
            if was_up or reason != self.trouble:
                # Log an engine that stays away only once.
                log.warning(telemetry.ENGINE_AWAY, **self.log_fields(), reason=reason)
            self.trouble = reason
            self._enter(State.AWAY)
            # Reset the back-off: an engine that was up for a while can start.
            if was_up and anyio.current_time() - began > self._settings.back_off_limit.seconds:
                backoff.reset()
            await anyio.sleep(backoff.next_delay())

    async def _connect_and_converse(self) -> None:
        async with self.connect() as (receive, send, deaf):
            connection = EngineConnection(
                receive,
                send,
                self._settings.max_line_bytes,
                self.counts,
                on_closing=self._on_closing,
                on_invalid_reply=self._on_invalid_reply,
                refuses_unknown=self._raises,
            )
            try:
                ready = await within(self._settings.start_timeout.seconds or None, connection.greet)
            except TimeoutError:
                raise EngineProtocolError(
                    f"it said nothing within {self._settings.start_timeout.seconds:g} s", op="greet engine"
                ) from None
            self._check(ready)
            self._stated = ready.runtime_provenance
            self._connection, self.trouble = connection, ""
            self._enter(State.UP)
            self.counts["reached"] += 1
            log.info(telemetry.ENGINE_READY, **self.log_fields(), provenance=ready.runtime_provenance)
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._watch_silence, connection)
                    await connection.converse(deaf)
                    tasks.cancel_scope.cancel()
            except* (EngineProtocolError, TimeoutError) as group:
                raise group.exceptions[0] from None

    def _on_closing(self) -> None:
        self._connection = None
        self.counts["lost"] += 1
        self._enter(State.AWAY)

    def _enter(self, state: State) -> None:
        self.state = state
        self._state_changed.notify_all()

    def _on_invalid_reply(self, event_id: str, error: str) -> None:
        self._invalid = error
        if self._raises:
            return
        log.error(
            telemetry.ENGINE_FAILED,
            **self.log_fields(),
            event_id=event_id,
            error=f"its answer is invalid, and the episode Failed(RuntimeError): {error}",
            hint="`ergo-capture help engines` lists every field of `ran` and its values",
        )

    def _check(self, ready: Ready) -> None:
        """Raise EngineRefused unless this is an engine for the graph and its open sessions."""
        if ready.graphs is not None and self.graph not in ready.graphs:
            raise EngineRefused(f"it runs {', '.join(ready.graphs) or 'no graph'}, and not {self.graph!r}")
        stated = ready.runtime_provenance
        if self._configured not in (UNSTATED_PROVENANCE, stated):
            # Remember it for the error of clients that open a session.
            self._stated = stated
            raise self._mismatch("engine", self._configured, stated)
        if self._stated not in (None, stated):
            raise EngineRefused(
                f"it says that it is {stated!r}, and sessions were opened with {self._stated!r}; start that one, or "
                "restart the daemon once they are over"
            )
        self._ready = ready
        self._check_required()

    def _check_required(self) -> None:
        """Raise EngineRefused if the last ``ready`` states another adapter or egress than the graph has."""
        for field, required in self._required.items():
            stated = None if self._ready is None else getattr(self._ready, field)
            if stated not in (None, required):
                raise self._mismatch(field.partition("_")[0], required or "none", stated)

    def _mismatch(self, what: str, configured: str, stated: str) -> EngineRefused:
        setting = "runtime_provenance" if what == "engine" else what
        named = "this one is" if what == "engine" else "its engine is for"
        return EngineRefused(
            f"graph {self.graph!r} is configured for the {what} {configured!r}, and {named} {stated!r}",
            op="open session",
            hint=f"start the right engine, or correct {setting} of the graph",
        )

    async def _watch_silence(self, connection: EngineConnection) -> None:
        """Raise TimeoutError when the engine has owed an answer for ``hang_timeout``."""
        limit = self._settings.hang_timeout.seconds
        while limit:
            await anyio.sleep(limit / 4)
            if connection.silence > limit:
                raise TimeoutError(f"it has answered nothing for {limit:g} s")

    def reason(self, error: BaseException | None, *, was_up: bool) -> str:
        """Return the reason why the engine is away.

        Args:
            error: the error that ended the connection or the attempt to connect; None if the engine closed it in order.
            was_up: whether it had said ``ready``.
        """
        del was_up
        if isinstance(error, ErgoCaptureError):
            return error.message
        if isinstance(error, OSError):
            return error.strerror or str(error)
        return str(error) if isinstance(error, ValueError) else "it closed the connection"

    def snapshot(self) -> dict[str, Any]:
        """Return the figures for ``status``."""
        connection = self._connection
        return {
            "up": connection is not None,
            "trouble": self.trouble,
            "waiting": 0 if connection is None else connection.pending,
            "unsent_bytes": 0 if connection is None else connection.unsent_bytes,
            **{name: self.counts[name] for name in ("asked", "reached", "lost", "late", "unknown", "nonsense")},
        }


class SocketEngine(RemoteEngine):
    """A service that listens on a Unix socket.

    Args:
        address: the socket, as ``socket_path`` takes it.

    Raises:
        AddressError: it is not a path of a Unix socket.
    """

    name = "socket"

    def __init__(
        self, graph: str, configured: str, address: str, settings: RemoteEngineConfig, *, raises: bool = False
    ) -> None:
        super().__init__(graph, configured, settings, raises=raises)
        self.path = Path(socket_path(address))

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Channel]:
        """Connect to the socket; hang up afterwards."""
        async with await anyio.connect_unix(str(self.path)) as stream:
            yield SocketReceiver(stream), stream, None

    @property
    def description(self) -> str:
        """The kind and the path."""
        return f"socket {self.path}"
