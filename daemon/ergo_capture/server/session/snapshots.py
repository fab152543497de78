"""Bundles of sessions that are still running, every so often.

A snapshot is written whole, so its cost grows with its session. Each is therefore followed by at least nine
times as long without one: snapshots never take more than a tenth of the time that there is for writing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import anyio
import structlog

from ergo_capture import telemetry
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.server.session.session import Session, SessionState

log = structlog.get_logger()

#: Time without a snapshot for each second of one.
_REST: Final = 9.0


class Snapshots:
    """Publishes every running session that has something new.

    Args:
        sessions: the sessions there are, by id; looked at anew each time.
        interval: seconds from one round to the next.
    """

    def __init__(self, sessions: Mapping[str, Session], interval: float) -> None:
        self._sessions = sessions
        self._interval = interval
        self._published: dict[str, int] = {}
        #: Snapshots published since the start.
        self.taken = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await anyio.sleep(self._interval)
            await self.take_round()

    async def take_round(self) -> None:
        """One snapshot of each session that was decided further since its last one."""
        running = {name: session for name, session in self._sessions.items() if session.state is SessionState.OPEN}
        self._published = {name: decided for name, decided in self._published.items() if name in running}
        for name, session in running.items():
            decided = session.decided
            if decided == self._published.get(name, 0):
                continue
            began = time.monotonic()
            try:
                # Why not what is on its way too: an engine that is away would keep the other sessions from theirs.
                await session.publish_decided()
            except ErgoCaptureError as error:
                log.error(telemetry.SNAPSHOT_FAILED, session=name, error=error.message, hint=error.hint)  # noqa: TRY400
                continue
            self._published[name] = decided
            self.taken += 1
            await anyio.sleep(_REST * (time.monotonic() - began))

    def __repr__(self) -> str:
        return f"<Snapshots every {self._interval:g} s, {self.taken} taken>"
