"""Keep files open, to notice when one of them is removed or replaced, and to copy its content.

A removed file keeps its contents for as long as it is open.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from ergo_capture.storage.port import Storage, StorageError, StorageFile

_BLOCK_BYTES: Final = 1 << 20


class KeptFiles:
    """Open files by number.

    Any thread may call any method: a lock prevents that a file is closed while it is used.

    Args:
        storage: the file system.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._files: dict[int, StorageFile] = {}
        self._lock = threading.Lock()

    def open(self, number: int, path: Path) -> None:
        """Open a file and keep it; if the process has no descriptors left, do not keep it."""
        with suppress(StorageError):
            self.add(number, self._storage.open(path))

    def add(self, number: int, file: StorageFile) -> None:
        """Keep an open file; its path is the name that it should have."""
        with self._lock:
            self._files[number] = file

    def drop(self, number: int) -> None:
        """Close a file that is about to be deleted; do nothing if it is not kept."""
        with self._lock:
            file = self._files.pop(number, None)
            if file is not None:
                with suppress(StorageError):
                    file.close()

    def close(self) -> None:
        """Close all of them."""
        for number in list(self._files):
            self.drop(number)

    def find_missing(self) -> Path | None:
        """Return the path of a file that was removed or replaced; None if there is none.

        Raises:
            StorageError: the state of a path cannot be read.
        """
        for number in sorted(self._files):
            with self._lock:
                file = self._files.get(number)
                if file is not None and not file.is_named():
                    return file.path
        return None

    def save(self, directory: Path) -> None:
        """Copy all of them into a new directory, under their names, and sync it.

        Raises:
            StorageError: a file cannot be copied; the copies so far are in a directory with the suffix ``.new``.
        """
        unfinished = directory.with_name(directory.name + ".new")
        self._storage.mkdir(unfinished)
        for number in sorted(self._files):
            with self._lock:
                file = self._files.get(number)
                if file is not None:
                    copy_file(file, unfinished / file.path.name, self._storage)
        self._storage.sync_dir(unfinished)
        self._storage.replace(unfinished, directory)
        self._storage.sync_dir(directory.parent)


def copy_file(source: StorageFile, destination: Path, storage: Storage) -> None:
    """Copy an open file to a new one, and sync that.

    Raises:
        StorageError: it cannot be read or written.
    """
    copy = storage.open(destination, create=True)
    try:
        size = source.size()
        for offset in range(0, size, _BLOCK_BYTES):
            copy.write_at([source.read_at(offset, min(_BLOCK_BYTES, size - offset))], offset)
        copy.sync()
    finally:
        copy.close()
