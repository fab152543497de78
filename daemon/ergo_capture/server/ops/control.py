"""The control socket: answers operators.

It exists from the lock on the state directory until the end of the process, so that a daemon that recovers or drains
for a long time can be asked for its status.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
import msgspec
import structlog
from anyio import to_thread
from anyio.abc import SocketAttribute, UNIXSocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from ergo_capture import pauses, telemetry
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.payloads import Peer
from ergo_capture.protocol import control as protocol
from ergo_capture.protocol.capture import Code, ProtocolError
from ergo_capture.protocol.control import (
    BuryRequest,
    FlushRequest,
    MetricsRequest,
    ReloadRequest,
    Request,
    ShutdownRequest,
    StatusRequest,
    TapRequest,
)
from ergo_capture.server.components import Components, Phase, Running
from ergo_capture.server.net.listener import Admission, Listener
from ergo_capture.server.ops.metrics import exposition
from ergo_capture.server.ops.reload import Reloaded
from ergo_capture.server.ops.status import shutdown_waits_for, take_status
from ergo_capture.server.session.access import Access, peer_name
from ergo_capture.server.session.session import Session, SessionState
from ergo_capture.server.session.tap import Tap
from ergo_capture.socket_receiver import SocketReceiver

log = structlog.get_logger()

#: The largest number of connections at once.
MAX_CONNECTIONS: Final = 16
#: Bad requests after which a connection ends.
MAX_BAD_REQUESTS: Final = 5
#: Seconds after which a silent connection ends, and seconds for reading an answer.
IDLE_SECONDS: Final = 60.0
WRITE_SECONDS: Final = 30.0
#: Seconds between two checks whether an operator who waits for a flush is still there.
HANG_UP_SECONDS: Final = 1.0

_DISCONNECTED: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError, TimeoutError)


class ControlSocket:
    """Serves operators on a listening socket.

    Args:
        components: the daemon's components.
        listening: bound with mode 0600, listening, non-blocking.
        reload: reloads the configuration.
        stop: begins the shutdown.
    """

    def __init__(
        self,
        components: Components,
        listening: socket.socket,
        *,
        reload: Callable[[], Awaitable[Reloaded]],
        stop: Callable[[], None],
    ) -> None:
        self.components = components
        self.reload = reload
        self.stop = stop
        self._listener = Listener(
            listening,
            self._serve,
            admission=_OperatorAdmission(),
            on_refused=components.clients.log_refused,
            on_accept_failed=components.clients.log_accept_failed,
        )

    def listen_on(self, listening: socket.socket) -> None:
        """Serve on another socket from now on."""
        self._listener.listen_on(listening)

    async def run(self) -> None:
        """Serve until cancelled."""
        await self._listener.run()

    async def _serve(self, stream: UNIXSocketStream, peer: Peer) -> None:
        async with stream:
            # An operator who hangs up or does not read harms no other connection.
            with suppress(*_DISCONNECTED):
                try:
                    await _ControlConnection(self, stream, peer).run()
                except _DISCONNECTED:
                    raise
                except Exception:
                    # A defect in an answer must not end the daemon.
                    log.exception(telemetry.CLIENT_FAILED, client="control")


class _OperatorAdmission(Admission):
    """Admits the daemon's user and root, a few at a time."""

    def __init__(self) -> None:
        access = Access(users=frozenset({os.geteuid()}))
        super().__init__(access, max_clients=MAX_CONNECTIONS, max_user_clients=MAX_CONNECTIONS)

    def enter(self, peer: Peer) -> None:
        if self.clients >= MAX_CONNECTIONS:
            message = f"{MAX_CONNECTIONS} connections are on the control socket"
            raise ProtocolError(Code.LIMIT, message, "end a `top` or a `tap`")
        super().enter(peer)

    async def check(self, peer: Peer) -> None:
        if not self.access.admits(peer):
            message = f"{peer_name(peer)} may not use the control socket"
            raise ProtocolError(Code.FORBIDDEN, message, "ask as the daemon's user or as root")


class _ControlConnection:
    """One operator's connection: answers requests one after the other."""

    def __init__(self, control: ControlSocket, stream: UNIXSocketStream, peer: Peer) -> None:
        self._control = control
        self._components = control.components
        self._stream = stream
        self._peer = peer
        self._receiver = SocketReceiver(stream)
        self._lines = BufferedByteReceiveStream(self._receiver)
        self._bad_requests = 0
        #: A tap ends by a request or a hang-up; either is the last of the connection.
        self._tapped = False

    async def run(self) -> None:
        """Serve until the operator hangs up, stays silent, or sends too many bad requests."""
        while self._bad_requests < MAX_BAD_REQUESTS and not self._tapped:
            line = await self._read()
            if line is None:
                return
            if not line.strip():
                continue
            try:
                await self._execute(protocol.read_request(line))
            except ErgoCaptureError as error:
                await self._refuse(error)

    async def _read(self) -> bytes | None:
        """Return the next line; None at the end, or after ``IDLE_SECONDS`` of silence."""
        while True:
            with pauses.move_on_after(IDLE_SECONDS):
                try:
                    return await self._lines.receive_until(b"\n", protocol.MAX_REQUEST_BYTES)
                except (anyio.EndOfStream, anyio.IncompleteRead):
                    return None
                except anyio.DelimiterNotFound:
                    message = f"a request is longer than {protocol.MAX_REQUEST_BYTES} bytes"
                    await self._refuse(ProtocolError(Code.TOO_LARGE, message, "send one JSON object a line"))
                    return None
            # While the daemon stops, the operator of ``shutdown`` waits for its end, at which the socket closes.
            if self._components.phase is not Phase.STOPPING:
                return None

    async def _refuse(self, error: ErgoCaptureError) -> None:
        code = protocol.FAILED
        if isinstance(error, ProtocolError):
            code = error.code
            self._components.clients.refusals[code] += 1
            self._bad_requests += error.code in (Code.BAD_FRAME, Code.TOO_LARGE)
        await self._send(protocol.Error(code, error.message, error.hint, int(error.exit_code)))

    async def _send(self, *answers: protocol.Answer) -> None:
        data = b"".join(map(protocol.encode, answers))
        await pauses.within(WRITE_SECONDS, lambda: self._stream.send(data))

    async def _execute(self, request: Request) -> None:
        components = self._components
        if not isinstance(request, StatusRequest | MetricsRequest):
            # Do not log these two: they change nothing, and may come every second.
            command = type(request).__struct_config__.tag
            log.info(telemetry.CONTROL_ASKED, command=command, uid=self._peer.uid)
        match request:
            case StatusRequest():
                await self._send(protocol.Status(msgspec.Raw(msgspec.json.encode(await take_status(components)))))
            case MetricsRequest():
                text = exposition(await take_status(components))
                await self._send(protocol.Metrics(text.decode()))
            case ReloadRequest():
                reloaded = await self._control.reload()
                await self._send(protocol.Reloaded(reloaded.applied, reloaded.restart))
            case FlushRequest():
                await self._flush(request)
            case ShutdownRequest():
                running = components.running
                waits_for = [] if running is None else shutdown_waits_for(running.registry.sessions.values())
                self._control.stop()
                await self._send(protocol.Stopping(waits_for))
            case TapRequest():
                await self._tap(request)
            case BuryRequest():
                await self._bury(request)

    async def _flush(self, request: FlushRequest) -> None:
        sessions = self._running().registry.sessions
        if request.session is None:
            chosen = [
                session
                for session in sessions.values()
                if session.state is SessionState.OPEN and session.admission.admitted
            ]
        elif request.session in sessions:
            chosen = [sessions[request.session]]
        else:
            raise ProtocolError(
                Code.UNKNOWN_SESSION,
                f"session {request.session!r} is not open",
                "name one that `ergo-capture status` lists",
            )
        bundles: dict[Session, str] = {}
        failures: list[ErgoCaptureError] = []

        async def flush(session: Session) -> None:
            try:
                bundles[session] = (await session.flush()).bundle
            except ErgoCaptureError as error:
                failures.append(error)

        async with anyio.create_task_group() as watching:
            watching.start_soon(self._cancel_on_hang_up, watching.cancel_scope)
            # Flush concurrently: a session that waits for its engine must not delay the others.
            async with anyio.create_task_group() as flushing:
                for session in chosen:
                    flushing.start_soon(flush, session)
            watching.cancel_scope.cancel()
        if failures:
            raise failures[0]
        await self._send(protocol.Flushed([bundles[session] for session in chosen if session in bundles]))

    async def _cancel_on_hang_up(self, scope: anyio.CancelScope) -> None:
        """Cancel a flush when its operator has hung up: it may wait for ever, and connections are few.

        The socket is polled, not read: an operator who closed the sending side still waits for the answer.
        """
        poll = select.poll()
        poll.register(self._stream.extra(SocketAttribute.raw_socket), 0)  # noqa: S610 - not Django's
        while True:
            if poll.poll(0):
                scope.cancel()
            await anyio.sleep(HANG_UP_SECONDS)

    async def _bury(self, request: BuryRequest) -> None:
        seals = self._components.seals
        if seals is None:
            raise ProtocolError(Code.FORBIDDEN, "the daemon seals nothing", "set [seal] key, or prune without it")
        bundle = Path(request.bundle)
        if bundle.parent.parent != self._components.state.path / "bundles":
            raise ProtocolError(
                Code.FORBIDDEN, f"'{bundle}' is not a bundle of this daemon", "name one of its state directory"
            )
        await to_thread.run_sync(seals.bury, bundle, request.reason)
        await self._send(protocol.Buried())

    async def _tap(self, request: TapRequest) -> None:
        taps = self._running().registry.taps
        tap = taps.begin(request.of, request.rate)
        self._tapped = True
        try:
            await self._send(protocol.Tapping(request.of, request.rate))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._cancel_on_request, tasks.cancel_scope)
                # Suppress it inside the group, which would wrap it in an exception group.
                with suppress(*_DISCONNECTED):
                    await self._send_decisions(tap)
                tasks.cancel_scope.cancel()
        finally:
            taps.end(tap)

    async def _send_decisions(self, tap: Tap) -> None:
        async for items in tap.watch():
            await self._send(*items)
        assert tap.ended is not None
        await self._send(protocol.Ended(tap.ended))

    async def _cancel_on_request(self, scope: anyio.CancelScope) -> None:
        """Cancel a tap when its operator hangs up or sends anything."""
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            await self._receiver.receive(1)
        scope.cancel()

    def _running(self) -> Running:
        running = self._components.running
        if running is None:
            raise ProtocolError(
                Code.SHUTTING_DOWN, "the daemon is starting, and has no sessions yet", "ask again in a moment"
            )
        return running
