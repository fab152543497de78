"""Periodic checks of what the daemon stands on: that its journal's files are still there, and that its disk takes data."""

from __future__ import annotations

import anyio
from anyio import to_thread

from ergo_capture.journal.wal import Journal
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.ops.state_directory import StateDirectory
from ergo_capture.storage import StorageError

#: Seconds between two checks.
CHECK_SECONDS = 5.0


class Checks:
    """Checks at intervals.

    Args:
        state: the state directory.
        journal: the journal; one that was removed or replaced fails the writer.
        writer: probes the disk while it has nothing to commit.
    """

    def __init__(self, state: StateDirectory, journal: Journal, writer: Writer) -> None:
        self._state = state
        self._journal = journal
        self._writer = writer

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await self.check()
            await anyio.sleep(CHECK_SECONDS)

    async def check(self) -> None:
        """Check once."""
        self._writer.probe(self._state.probe)
        try:
            # In a thread that may be left behind: a disk that hangs must not hold up the stop.
            loss = await to_thread.run_sync(self._journal.find_loss, abandon_on_cancel=True)
        except StorageError:
            # A disk that cannot be looked at fails the probe too, which reports it.
            return
        if loss is not None:
            self._writer.fail(loss)
