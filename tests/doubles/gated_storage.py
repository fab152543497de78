"""A storage whose calls wait at a gate, so that a test decides what happens meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
from tests.doubles.faulty_storage import FaultyStorage

#: Seconds after which a gate opens by itself; long enough for a slow machine.
_PATIENCE = 30.0


class GatedStorage(FaultyStorage):
    """Holds the calls of one operation while the gate is shut; a call fails by the table once it passes.

    Operations beside those of ``FaultyStorage``: list, free_bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shut: str | None = None
        self._suffix = ""
        self._passes = 0
        self._open = threading.Event()
        #: Calls that wait at the gate.
        self.waiting = 0

    def call(self, op: str, path: Path) -> None:
        """Wait at the gate, where it is this operation's; then record the call."""
        self._pass(op, path)
        super().call(op, path)

    def list(self, path: Path) -> list[str]:
        """See ``Storage``; the first call of a recovery."""
        self._pass("list", path)
        return super().list(path)

    def free_bytes(self, path: Path) -> int:
        """See ``Storage``."""
        self._pass("free_bytes", path)
        return super().free_bytes(path)

    def _pass(self, op: str, path: Path) -> None:
        if op != self._shut or not path.name.endswith(self._suffix):
            return
        if self._passes:
            self._passes -= 1
            return
        self.waiting += 1
        self._open.wait(_PATIENCE)
        self.waiting -= 1

    @contextmanager
    def gate(self, op: str, suffix: str = "", *, after: int = 0) -> Iterator[None]:
        """Hold calls of ``op`` on files whose names end with ``suffix``, except the first ``after`` ones, during the block."""
        self._shut, self._suffix, self._passes = op, suffix, after
        self._open.clear()
        try:
            yield
        finally:
            self._shut = None
            self._open.set()

    async def until_held(self, count: int = 1) -> None:
        """Wait until ``count`` calls wait at the gate."""
        with anyio.fail_after(_PATIENCE):
            while self.waiting < count:
                await asyncio.sleep(0.001)
