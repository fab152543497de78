"""Shut the daemon down: decide, commit and publish everything accepted, within a time limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import anyio
import structlog

from ergo_capture import pauses, telemetry
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.server.components import Components, Running
from ergo_capture.server.net.listener import Listener
from ergo_capture.server.ops.status import shutdown_waits_for
from ergo_capture.server.session.session import Session, SessionState

log = structlog.get_logger()

#: Seconds for the last commit, once every session is drained.
_LAST_COMMIT_SECONDS: Final = 10.0
#: Seconds for clients to read the last answers.
_FAREWELL_SECONDS: Final = 1.0
#: Seconds between two reports on what the shutdown waits for.
REPORT_SECONDS = 5.0
#: The largest number of sessions named in one report.
_MAX_REPORTED: Final = 5


@dataclass
class Shutdown:
    """One shutdown; ``run`` carries it out.

    An open session stays open in the journal: its client may resume it after the next start.
    """

    components: Components
    running: Running
    listener: Listener
    #: Whether something is left for the next start to do.
    unfinished: bool = False

    async def run(self) -> None:
        """Stop reading, drain the sessions, disconnect the clients, seal the journal."""
        writer, registry = self.running.writer, self.running.registry
        connections = self.components.clients.connections
        self.components.notifier.stopping()
        registry.stop()
        self.listener.stop()
        seconds = self.components.config.shutdown.drain.seconds
        with pauses.move_on_after(seconds or None) as deadline:
            if writer.failure is None:
                async with anyio.create_task_group() as reporting:
                    reporting.start_soon(self._report)
                    for connection in connections:
                        connection.stop_reading()
                    # Drain concurrently: a session that waits for its engine until the deadline must not delay others.
                    async with anyio.create_task_group() as draining:
                        for session in registry.sessions.values():
                            draining.start_soon(self._drain, session)
                    reporting.cancel_scope.cancel()
        for connection in list(connections):
            connection.shut_down(writer.failure)
        with pauses.move_on_after(_FAREWELL_SECONDS):
            await self.listener.idle.wait()
        writer.close()
        if deadline.cancelled_caught:
            self.unfinished = True
            log.error(telemetry.DRAIN_UNFINISHED, seconds=seconds, sessions=len(registry.sessions))
        if writer.failure is None:
            with pauses.move_on_after(_LAST_COMMIT_SECONDS) as last_commit:
                await writer.until_ended()
            if last_commit.cancelled_caught:
                # Decisions wait for the full disk: the next start makes them again.
                writer.abandon()
                self.unfinished = True
            else:
                await anyio.to_thread.run_sync(self.running.journal.seal)

    async def _drain(self, session: Session) -> None:
        if session.failure is not None:
            return
        if session.state is not SessionState.OPEN:
            await session.over.wait()
        elif session.admission.admitted:
            try:
                await session.flush()
            except ErgoCaptureError as error:
                # Continue: the journal holds the session, and the others have to be drained.
                self.unfinished = True
                name = session.description.session
                log.error(telemetry.SNAPSHOT_FAILED, session=name, error=error.message, hint=error.hint)  # noqa: TRY400

    async def _report(self) -> None:
        while True:
            await anyio.sleep(REPORT_SECONDS)
            waits = shutdown_waits_for(self.running.registry.sessions.values())
            log.info(telemetry.DRAIN_WAITING, sessions=len(waits), waits_for=waits[:_MAX_REPORTED])
            notifier = self.components.notifier
            notifier.status(f"stopping, waits for {waits[0] if waits else 'the last bundle'}")
            # shutdown.drain bounds the shutdown, not the unit's TimeoutStopSec.
            notifier.extend_timeout()
