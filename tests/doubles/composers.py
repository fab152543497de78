"""Composers of bundles that wait, or that find the disk full, until a test ends it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import anyio
import pytest

from ergo_capture.bundle.writer.compose import ComposeJob, compose_bundle
from ergo_capture.server import publisher
from ergo_capture.server.session import parts
from ergo_capture.storage.write_error import CaptureWriteError, WriteStage


class SlowComposer:
    """A worker process that composes a bundle of more than ``large`` events once the test sets ``over``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, large: int) -> None:
        self.begun, self.over = anyio.Event(), anyio.Event()
        self._monkeypatch = monkeypatch
        monkeypatch.setattr("anyio.to_process.run_sync", self._compose)
        self.call_large(large)

    def call_large(self, events: int) -> None:
        """Take bundles of more events for large from now on; compose any other at once."""
        self._monkeypatch.setattr(publisher, "_MAX_EVENTS_IN_THREAD", events)

    async def _compose(self, _compose: Any, *arguments: Any) -> Any:
        self.begun.set()
        await self.over.wait()
        return await anyio.to_thread.run_sync(compose_bundle, arguments[-1])


class RoomlessComposer:
    """Finds no room on the disk for a bundle while it ``is_full``; a retry follows after 10 ms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = True
        self.attempts = 0
        monkeypatch.setattr(publisher, "compose_bundle", self._compose)
        monkeypatch.setattr(parts, "RETRY_SECONDS", 0.01)

    def _compose(self, job: ComposeJob) -> Any:
        self.attempts += 1
        if self.is_full:
            error = OSError(errno.ENOSPC, "No space left on device")
            raise CaptureWriteError.step(WriteStage.WRITE_TEMP_FILE, Path(job.destination), Path("x"), error) from error
        return compose_bundle(job)
