"""The end of a daemon that was told to stop: everything accepted is decided, committed and published, within a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import anyio
import structlog

from ergo_capture import telemetry
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.server.net.clients import Clients
from ergo_capture.server.net.listener import Listener
from ergo_capture.server.ops.status import Running, shutdown_waits_for
from ergo_capture.server.ops.systemd import Notifier
from ergo_capture.server.session.session import Session

log = structlog.get_logger()

#: Seconds for the last commit of all, once every session is drained.
_LAST_COMMIT_SECONDS: Final = 10.0
#: Seconds for clients to take the last word.
_FAREWELL_SECONDS: Final = 1.0
#: Seconds between two words on what a shutdown waits for.
TELL_SECONDS = 5.0
#: How many sessions are named.
_MOST_TOLD: Final = 5
#: How many seconds longer each word asks the service manager to wait.
_EXTEND_SECONDS: Final = 30.0


@dataclass
class Shutdown:
    """One shutdown; carried out by ``run``.

    A session that is open stays open in the journal: its client may resume it after the next start.
    """

    clients: Clients
    listener: Listener
    parts: Running
    notifier: Notifier
    #: Seconds that draining may take; zero for as long as it takes.
    seconds: float
    #: Whether something was left undone that should have been done; the next start does it.
    unfinished: bool = False

    async def run(self) -> None:
        """Read no more, drain, part with the clients, seal the journal."""
        writer, registry = self.parts.writer, self.parts.registry
        self.notifier.stopping()
        registry.stop()
        self.listener.stop()
        with anyio.move_on_after(self.seconds or None) as deadline:
            if writer.failure is None:
                async with anyio.create_task_group() as telling:
                    telling.start_soon(self._tell_what_is_waited_for)
                    await self._drain()
                    telling.cancel_scope.cancel()
        for connection in list(self.clients.connections):
            connection.shut_down()
        with anyio.move_on_after(_FAREWELL_SECONDS):
            await self.listener.idle.wait()
        writer.close()
        if deadline.cancelled_caught:
            self.unfinished = True
            log.error(telemetry.DRAIN_UNFINISHED, seconds=self.seconds, sessions=len(registry.sessions))
        if writer.failure is None:
            with anyio.move_on_after(_LAST_COMMIT_SECONDS) as patience:
                await writer.until_ended()
            if patience.cancelled_caught:
                # The disk is full, and decisions wait for it: the next start takes them again.
                writer.abandon()
                self.unfinished = True
            else:
                await anyio.to_thread.run_sync(self.parts.journal.seal)

    async def _drain(self) -> None:
        """Read no more; decide, commit and publish everything that was accepted."""
        for connection in self.clients.connections:
            connection.stop_reading()
        async with anyio.create_task_group() as draining:
            # Why side by side: one that waits for its engine until the time is over must not cost the others theirs.
            for session in self.parts.registry.sessions.values():
                draining.start_soon(self._drain_session, session)

    async def _drain_session(self, session: Session) -> None:
        if session.failure is not None:
            return
        if session.ended is not None:
            await session.finished.wait()
        elif session.intake.admitted:
            try:
                await session.flush(ended="interrupted")
            except ErgoCaptureError as error:
                # Why no end: the journal holds the session, and the others want to be drained.
                self.unfinished = True
                name = session.description.session
                log.error(telemetry.SNAPSHOT_FAILED, session=name, error=error.message, hint=error.hint)  # noqa: TRY400

    async def _tell_what_is_waited_for(self) -> None:
        while True:
            await anyio.sleep(TELL_SECONDS)
            waits = shutdown_waits_for(self.parts.registry.sessions.values())
            log.info(telemetry.DRAIN_WAITING, sessions=len(waits), waits_for=waits[:_MOST_TOLD])
            self.notifier.status(f"stopping, waits for {waits[0] if waits else 'the last bundle'}")
            # Why: shutdown.drain says how long it may take, and not the unit's TimeoutStopSec.
            self.notifier.extend_timeout(_EXTEND_SECONDS)
