"""Publish snapshots of running sessions at an interval.

A snapshot is written whole, so its cost grows with its session. After each one there is a pause that is nine times as
long, so snapshots take at most a tenth of the time.
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

#: Seconds without a snapshot for each second that one took.
_PAUSE_RATIO: Final = 9.0


class Snapshots:
    """Publishes snapshots of every running session that has new decisions.

    Args:
        sessions: the sessions, by id; read in each round.
        interval: seconds between rounds.
    """

    def __init__(self, sessions: Mapping[str, Session], interval: float) -> None:
        self._sessions = sessions
        self._interval = interval
        #: Decisions in the last snapshot, by session.
        self._published: dict[str, int] = {}

    async def run(self) -> None:
        """Publish snapshots until cancelled."""
        while True:
            await anyio.sleep(self._interval)
            await self.take_round()

    async def take_round(self) -> None:
        """Publish a snapshot of each open session that has decisions since its last one."""
        running = {name: session for name, session in self._sessions.items() if session.state is SessionState.OPEN}
        self._published = {name: decided for name, decided in self._published.items() if name in running}
        for name, session in running.items():
            decided = session.decided
            if decided == self._published.get(name, 0):
                continue
            began = time.monotonic()
            try:
                # Do not wait for undecided events: an engine that is away would delay the other sessions.
                await session.publish_decided()
            except ErgoCaptureError as error:
                log.error(telemetry.SNAPSHOT_FAILED, session=name, error=error.message, hint=error.hint)  # noqa: TRY400
                continue
            self._published[name] = decided
            await anyio.sleep(_PAUSE_RATIO * (time.monotonic() - began))
