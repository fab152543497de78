"""Deletes the journal's segments that nobody needs any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from anyio import to_thread

from ergo_capture import telemetry
from ergo_capture.journal.wal import Journal
from ergo_capture.storage import StorageError

log = structlog.get_logger()


class Retirement:
    """Lets segments go, oldest first.

    Args:
        journal: whose segments.
        oldest_needed: sequence of the oldest segment that somebody needs; None where nobody needs any.
    """

    def __init__(self, journal: Journal, oldest_needed: Callable[[], int | None]) -> None:
        self._journal = journal
        self._oldest_needed = oldest_needed
        self._due = asyncio.Event()

    def is_due(self) -> None:
        """Somebody may need a segment no more."""
        self._due.set()

    async def run(self) -> None:
        """Delete segments whenever a session or a part of one is in its bundle, until cancelled.

        Why one task: the journal lets only one thread retire, and sessions end whenever they like.
        """
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                await self.retire()
            except StorageError as error:
                # Why nothing more after it: whether the deletion is durable is not known, and a power cut must not
                # bring back an older segment without those behind it. The next start finds out.
                log.error(telemetry.SEGMENT_KEPT, error=error.message, path=error.path, hint=error.hint)  # noqa: TRY400
                return

    async def retire(self) -> None:
        """Delete what nobody needs now.

        Raises:
            StorageError: one could not be deleted.
        """
        oldest, current = self._oldest_needed(), self._journal.current_segment
        # Why in a thread: deleting a large file takes milliseconds.
        await to_thread.run_sync(self._journal.delete_segments, current if oldest is None else min(oldest, current))

    def __repr__(self) -> str:
        return (
            f"<Retirement {'due' if self._due.is_set() else 'waiting'}, {self._oldest_needed()} is the oldest needed>"
        )
