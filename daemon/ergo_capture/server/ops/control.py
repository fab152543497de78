"""The control socket: the operator asks, the daemon answers.

It is there from the moment the state directory is locked until the very end, so that a daemon that recovers or
drains for a long time can be asked what it is at.
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import anyio
import structlog
from anyio.abc import SocketAttribute, SocketStream, UNIXSocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from ergo_capture import telemetry
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.payloads import Peer
from ergo_capture.protocol.capture import Code, ProtocolError
from ergo_capture.protocol.control import (
    FAILED,
    MAX_REQUEST_BYTES,
    FlushRequest,
    MetricsRequest,
    ReloadRequest,
    Request,
    ShutdownRequest,
    StatusRequest,
    TapRequest,
    answer,
    encode_shown,
    read_request,
)
from ergo_capture.server.net.admission import Admission
from ergo_capture.server.net.listener import Listener
from ergo_capture.server.ops.metrics import exposition
from ergo_capture.server.ops.status import Running, shutdown_waits_for, take_status
from ergo_capture.server.session.access import Access, who
from ergo_capture.server.session.session import Session
from ergo_capture.server.session.tap import Skipped, Tap

if TYPE_CHECKING:
    from ergo_capture.server.service import Service

log = structlog.get_logger()

#: Connections at once.
MAX_CONNECTIONS: Final = 16
#: Bad requests from one connection before it ends.
MAX_BAD_REQUESTS: Final = 5
#: Seconds a connection may say nothing, and seconds it may take to read an answer.
IDLE_SECONDS: Final = 60.0
WRITE_SECONDS: Final = 30.0
#: Seconds between two looks whether an operator whose flush takes long is still there.
HANG_UP_SECONDS: Final = 1.0

_GONE: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError, TimeoutError)


class ControlSocket:
    """Serves operators on a listening socket.

    Args:
        service: the daemon that is asked.
        listening: bound with mode 0600, listening, not blocking.
    """

    def __init__(self, service: Service, listening: socket.socket) -> None:
        self._service = service
        self._listener = Listener(
            listening,
            self._serve,
            admission=_Operators(),
            on_refused=service.clients.refused,
            on_trouble=service.clients.unaccepted,
        )

    async def run(self) -> None:
        """Until cancelled."""
        await self._listener.run()

    async def _serve(self, stream: UNIXSocketStream | SocketStream, peer: Peer | None) -> None:
        async with stream:
            # Why nothing more: somebody who asked has gone, or does not read; that is his loss alone.
            with suppress(*_GONE):
                try:
                    await Conversation(self._service, stream, peer).run()
                except _GONE:
                    raise
                except Exception:
                    # Why here: a mistake of ours in an answer must not cost the daemon its life.
                    log.exception(telemetry.CLIENT_FAILED, client="control")

    def __repr__(self) -> str:
        return f"<ControlSocket {self._listener!r}>"


class _Operators(Admission):
    """Lets in the daemon's user and root, a few at a time."""

    def __init__(self) -> None:
        access = Access(users=frozenset({os.geteuid()}))
        super().__init__(access, max_clients=MAX_CONNECTIONS, max_user_clients=MAX_CONNECTIONS)

    def enter(self, peer: Peer | None) -> None:
        if self.clients >= MAX_CONNECTIONS:
            message = f"{MAX_CONNECTIONS} connections are on the control socket"
            raise ProtocolError(Code.LIMIT, message, "end a `top` or a `tap`")
        super().enter(peer)

    async def check(self, peer: Peer | None) -> None:
        if not self.access.lets_in(peer):
            message = f"{who(peer)} may not use the control socket"
            raise ProtocolError(Code.FORBIDDEN, message, "ask as the daemon's user or as root")


class Conversation:
    """One operator's connection: a request, an answer, and so on."""

    def __init__(self, service: Service, stream: UNIXSocketStream | SocketStream, peer: Peer | None) -> None:
        self._service = service
        self._stream = stream
        self._peer = peer
        self._lines = BufferedByteReceiveStream(stream)
        self.bad_requests = 0
        self._tapped = False

    async def run(self) -> None:
        """Until the operator goes, says nothing for long, or asks too much nonsense."""
        while self.bad_requests < MAX_BAD_REQUESTS and not self._tapped:
            line = await self._read()
            if line is None:
                return
            if not line.strip():
                continue
            try:
                await self._carry_out(read_request(line))
            except ErgoCaptureError as error:
                await self._refuse(error)

    async def _read(self) -> bytes | None:
        """The next line; None at the end, or where nothing comes for long."""
        while True:
            with anyio.move_on_after(IDLE_SECONDS):
                try:
                    return await self._lines.receive_until(b"\n", MAX_REQUEST_BYTES)
                except (anyio.EndOfStream, anyio.IncompleteRead):
                    return None
                except anyio.DelimiterNotFound:
                    message = f"a request is longer than {MAX_REQUEST_BYTES} bytes"
                    await self._refuse(ProtocolError(Code.TOO_LARGE, message, "send one JSON object a line"))
                    return None
            # Why not then: whoever asked for the shutdown waits for its end, which is when we hang up.
            if self._service.phase != "stopping":
                return None

    async def _refuse(self, error: ErgoCaptureError) -> None:
        code = FAILED
        if isinstance(error, ProtocolError):
            code = error.code.value
            self._service.clients.count(error.code)
            self.bad_requests += error.code in (Code.BAD_FRAME, Code.TOO_LARGE)
        exit_code = int(error.exit_code)
        await self._say(answer("error", code=code, message=error.message, hint=error.hint, exit_code=exit_code))

    async def _say(self, line: bytes) -> None:
        with anyio.fail_after(WRITE_SECONDS):
            await self._stream.send(line)

    async def _carry_out(self, request: Request) -> None:
        service = self._service
        if not isinstance(request, StatusRequest | MetricsRequest):
            # Why not these: they change nothing, and come every second.
            uid = None if self._peer is None else self._peer.uid
            log.info(telemetry.CONTROL_ASKED, command=type(request).__struct_config__.tag, uid=uid)
        match request:
            case StatusRequest():
                await self._say(answer("status", status=await take_status(service)))
            case MetricsRequest():
                text = exposition(await take_status(service))
                await self._say(answer("metrics", text=text.decode()))
            case ReloadRequest():
                reloaded = await service.reload()
                await self._say(answer("reloaded", applied=reloaded.applied, restart=reloaded.restart))
            case FlushRequest():
                await self._flush(request)
            case ShutdownRequest():
                running = service.running
                waits_for = [] if running is None else shutdown_waits_for(running.registry.sessions.values())
                service.stop()
                await self._say(answer("stopping", waits_for=waits_for))
            case TapRequest():
                await self._tap(request)

    async def _flush(self, request: FlushRequest) -> None:
        sessions = self._running().registry.sessions
        if request.session is None:
            chosen = [session for session in sessions.values() if session.state == "open" and session.intake.admitted]
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
            watching.start_soon(self._until_hung_up, watching.cancel_scope)
            # Why side by side: one session that waits for its engine must not keep the others from their bundles.
            async with anyio.create_task_group() as flushing:
                for session in chosen:
                    flushing.start_soon(flush, session)
            watching.cancel_scope.cancel()
        if failures:
            raise failures[0]
        await self._say(answer("flushed", bundles=[bundles[session] for session in chosen if session in bundles]))

    async def _until_hung_up(self, watching: anyio.CancelScope) -> None:
        """A flush may wait for ever, and must not hold one of the few connections for an operator who has gone."""
        # Why looked for so and not read: who only has nothing more to say still waits for the answer.
        poll = select.poll()
        poll.register(self._stream.extra(SocketAttribute.raw_socket), 0)  # noqa: S610 - not Django's
        while True:
            if poll.poll(0):
                watching.cancel()
            await anyio.sleep(HANG_UP_SECONDS)

    async def _tap(self, request: TapRequest) -> None:
        taps = self._running().registry.taps
        tap = taps.begin(request.of, request.rate)
        # Why: a tap ends by a word or a hang-up, and either is the last of this connection.
        self._tapped = True
        try:
            await self._say(answer("tapping", of=request.of, rate=request.rate))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._until_gone, tasks.cancel_scope)
                # Why here: out of the group it would come wrapped in another, as if it were a mistake of ours.
                with suppress(*_GONE):
                    await self._show(tap)
                tasks.cancel_scope.cancel()
        finally:
            taps.end(tap)

    async def _show(self, tap: Tap) -> None:
        async for news in tap.watch():
            await self._say(
                b"".join(
                    answer("skipped", count=item.count) if isinstance(item, Skipped) else encode_shown(item)
                    for item in news
                )
            )
        await self._say(answer("ended", how=tap.ended))

    async def _until_gone(self, watching: anyio.CancelScope) -> None:
        """A tap ends when its operator hangs up, or says anything."""
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            await self._stream.receive(1)
        watching.cancel()

    def _running(self) -> Running:
        running = self._service.running
        if running is None:
            raise ProtocolError(
                Code.SHUTTING_DOWN, "the daemon is starting, and has no sessions yet", "ask again in a moment"
            )
        return running

    def __repr__(self) -> str:
        return f"<Conversation with {who(self._peer)}, {self.bad_requests} bad requests{', tapping' if self._tapped else ''}>"
