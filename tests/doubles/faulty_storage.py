"""A storage that works on real files, fails by table, and records the order of calls."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ergo_capture.storage import Buffer, RealFile, RealStorage, StorageError


class FaultyStorage(RealStorage):
    """Fails the calls that its table names.

    Args:
        table: by operation, the results of its first, second, ... call: an errno, or None for success; calls
            beyond the list succeed. Operations: open, write, sync, allocate, truncate, read, close, rename,
            remove, sync_dir.

    A failed write writes half of the bytes; a failed sync writes all of them.
    """

    def __init__(self, table: dict[str, list[int | None]] | None = None) -> None:
        self.table = {op: list(faults) for op, faults in (table or {}).items()}
        #: Every call in order: operation and file name; ``-`` in front where it failed.
        self.calls: list[str] = []

    def call(self, op: str, path: Path) -> None:
        """Record a call, and fail it if the table says so."""
        faults = self.table.get(op)
        number = faults.pop(0) if faults else None
        self.calls.append(f"{'-' if number else ''}{op} {path.name}")
        if number:
            raise StorageError(op, path, OSError(number, os.strerror(number)))

    def fail_next(self, op: str, *numbers: int | None) -> None:
        """Fail the next calls of ``op`` with these errnos."""
        self.table[op] = list(numbers)

    def open(self, path: Path, *, create: bool = False, write: bool = False) -> RealFile:
        """See ``Storage``."""
        self.call("open", path)
        real = super().open(path, create=create, write=write)
        fd, real._fd = real._fd, -1
        return _FaultyFile(self, path, fd)

    def replace(self, source: Path, destination: Path) -> None:
        """See ``Storage``."""
        self.call("rename", destination)
        super().replace(source, destination)

    def remove(self, path: Path) -> None:
        """See ``Storage``."""
        self.call("remove", path)
        super().remove(path)

    def sync_dir(self, path: Path) -> None:
        """See ``Storage``."""
        self.call("sync_dir", path)
        super().sync_dir(path)


class _FaultyFile(RealFile):
    def __init__(self, storage: FaultyStorage, path: Path, fd: int) -> None:
        super().__init__(path, fd)
        self._storage = storage

    def write_at(self, buffers: Sequence[Buffer], offset: int, *, sync: bool = False) -> None:
        whole = b"".join(bytes(buffer) for buffer in buffers)
        try:
            self._storage.call("write", self.path)
        except StorageError:
            super().write_at([whole[: len(whole) // 2]], offset)
            raise
        super().write_at([whole], offset)
        if sync:
            self.sync()

    def read_at(self, offset: int, size: int) -> bytes:
        self._storage.call("read", self.path)
        return super().read_at(offset, size)

    def sync(self) -> None:
        self._storage.call("sync", self.path)
        super().sync()

    def allocate(self, size: int) -> None:
        self._storage.call("allocate", self.path)
        super().allocate(size)

    def truncate(self, size: int) -> None:
        self._storage.call("truncate", self.path)
        super().truncate(size)

    def close(self) -> None:
        # Closed in any case: the system closes a descriptor even where close fails.
        super().close()
        self._storage.call("close", self.path)
