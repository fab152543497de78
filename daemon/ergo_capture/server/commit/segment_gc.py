"""Segment garbage collection: deletes the journal segments that no session needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from anyio import to_thread

from ergo_capture import telemetry
from ergo_capture.journal.wal import Journal
from ergo_capture.storage import StorageError

log = structlog.get_logger()


class SegmentCollector:
    """Deletes segments, the oldest first.

    Args:
        journal: the journal whose segments are deleted.
        oldest_needed: returns the sequence number of the oldest segment that is needed, None where none is.
    """

    def __init__(self, journal: Journal, oldest_needed: Callable[[], int | None]) -> None:
        self._journal = journal
        self._oldest_needed = oldest_needed
        self._due = asyncio.Event()

    def request(self) -> None:
        """Ask for a collection, because a segment may have become unneeded."""
        self._due.set()

    async def run(self) -> None:
        """Collect whenever it is requested, until cancelled.

        One task does it for all sessions: the journal lets only one thread delete segments.
        """
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                await self.collect()
            except StorageError as error:
                # Stop: it is unknown whether the deletion is durable, and after a power loss an older segment must not
                # be left without those after it. The next start examines the journal.
                log.error(telemetry.SEGMENT_KEPT, error=error.message, path=error.path, hint=error.hint)  # noqa: TRY400
                return

    async def collect(self) -> None:
        """Delete the segments that are not needed now.

        Raises:
            StorageError: a segment could not be deleted.
        """
        oldest, current = self._oldest_needed(), self._journal.current_segment
        # In a thread: deleting a large file takes milliseconds.
        await to_thread.run_sync(self._journal.delete_segments, current if oldest is None else min(oldest, current))
