"""Set quarantined sessions of a running daemon aside, so that they do not keep segments of the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import structlog
from anyio import move_on_after, to_thread

from ergo_capture import telemetry
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.recovery import QuarantinedSession, Recovery
from ergo_capture.repair.quarantine import aside_frames, saved_journals, set_aside
from ergo_capture.server.commit.writer import Writer
from ergo_capture.storage import Storage

log = structlog.get_logger()

#: Seconds between two looks for sessions that were settled meanwhile.
_LOOK_SECONDS: Final = 5.0


class Quarantine:
    """Sessions that are neither served nor deleted.

    A damaged one is set aside at once. One whose graph is gone may be taken up when its graph is back, and is set aside
    only when it keeps too much of the journal.

    Args:
        state: the state directory.
        storage: the file system.
        writer: makes the frames durable that say that they were set aside.
        on_set_aside: called when segments may have become unneeded.
    """

    def __init__(self, state: Path, storage: Storage, writer: Writer, *, on_set_aside: Callable[[], None]) -> None:
        #: The reason for each session's quarantine, by id; sessions set aside earlier and not settled included.
        self.reasons: dict[str, str] = {}
        self._state = state
        self._storage = storage
        self._writer = writer
        self._on_set_aside = on_set_aside
        #: Those that are in the journal.
        self._pinned: list[QuarantinedSession] = []
        self._due = asyncio.Event()

    def restore(self, recovery: Recovery) -> None:
        """Add the sessions that recovery quarantined."""
        self._pinned = list(recovery.quarantined.values())
        self.reasons = self._reasons()
        for session in self._pinned:
            session.is_due |= session.is_damaged
        self._due.set()

    def _reasons(self) -> dict[str, str]:
        """Return the reasons of the sessions that are set aside and not settled, and of those in the journal."""
        aside = {
            session.session: f"{session.reason}; set aside in '{saved.directory}'"
            for saved in saved_journals(self._state)
            for session in saved.sessions or ()
        }
        return aside | {session.session: session.reason for session in self._pinned}

    @property
    def segments(self) -> dict[str, int]:
        """The oldest segment that each session still in the journal needs, by id."""
        return {session.session: session.first_segment for session in self._pinned}

    def bound(self, bytes_since: Mapping[int, int], limit: int) -> None:
        """Mark the sessions that keep more than ``limit`` bytes of the journal, so that ``run`` sets them aside.

        Args:
            bytes_since: bytes of the journal from each segment on.
            limit: zero for no limit.
        """
        for session in self._pinned:
            if limit and bytes_since.get(session.first_segment, 0) > limit:
                session.is_due = True
                self._due.set()

    async def run(self) -> None:
        """Set aside those that are due, and drop the reasons of those that were settled, until cancelled."""
        has_failed = False
        while True:
            with move_on_after(_LOOK_SECONDS if self.reasons else None):
                await self._due.wait()
            self._due.clear()
            due = [session for session in self._pinned if session.is_due and not has_failed]
            if due:
                try:
                    await to_thread.run_sync(set_aside, self._state, due, self._storage)
                    for frame in aside_frames(due):
                        await self._writer.append(frame)
                except ErgoCaptureError as error:
                    # The sessions stay in the journal and keep their segments; the next start tries again.
                    log.error(telemetry.QUARANTINE_KEPT, error=error.message, path=error.path, hint=error.hint)  # noqa: TRY400
                    has_failed = True
                else:
                    self._pinned = [session for session in self._pinned if not session.is_due]
                    self._on_set_aside()
            if self.reasons:
                # `recover --settle` renames the directory that they are kept in.
                self.reasons = await to_thread.run_sync(self._reasons, abandon_on_cancel=True)
