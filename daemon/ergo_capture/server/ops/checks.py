"""Periodic checks of the journal's files, the disk, and the files of the sockets."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
import structlog
from anyio import to_thread

from ergo_capture import telemetry
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.wal import Journal
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.net.listener import BoundSocket
from ergo_capture.server.ops.state_directory import StateDirectory
from ergo_capture.storage import StorageError

log = structlog.get_logger()

#: Seconds between two checks.
CHECK_SECONDS = 5.0


class Checks:
    """Checks at intervals.

    Args:
        state: the state directory.
        journal: the journal; one that was removed or replaced fails the writer.
        writer: probes the disk while it has nothing to commit.
        sockets: sockets whose files this process made, each with the function that replaces it by another one.
    """

    def __init__(
        self,
        state: StateDirectory,
        journal: Journal,
        writer: Writer,
        sockets: Mapping[BoundSocket, Callable[[socket.socket], None]],
    ) -> None:
        self._state = state
        self._journal = journal
        self._writer = writer
        self._sockets = sockets
        #: Sockets that could not be bound again.
        self._unreachable: set[Path] = set()

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await self.check()
            await anyio.sleep(CHECK_SECONDS)

    async def check(self) -> None:
        """Check once."""
        for bound, serve in self._sockets.items():
            if await to_thread.run_sync(bound.is_lost, abandon_on_cancel=True):
                self._bind_again(bound, serve)
        self._writer.probe(self._state.probe)
        try:
            # Use a thread that may be abandoned: a disk that hangs must not delay the stop.
            loss = await to_thread.run_sync(self._journal.find_loss, abandon_on_cancel=True)
        except StorageError:
            # The probe fails on such a disk too, and reports it.
            return
        if loss is not None:
            self._writer.fail(loss)

    def _bind_again(self, bound: BoundSocket, serve: Callable[[socket.socket], None]) -> None:
        """Bind a socket again if its file was removed, or was replaced by a process that is gone."""
        try:
            serve(bound.bind_again())
        except ErgoCaptureError as error:
            # Log it once until it succeeds.
            if bound.path not in self._unreachable:
                self._unreachable.add(bound.path)
                log.error(telemetry.SOCKET_LOST, path=str(bound.path), error=error.message, hint=error.hint)  # noqa: TRY400
            return
        self._unreachable.discard(bound.path)
        log.warning(telemetry.SOCKET_REBOUND, path=str(bound.path))
