"""Locks between processes: on a file that names its holder, and on the names in a directory."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ergo_capture.storage.identity import is_linked, is_named
from ergo_capture.storage.port import StorageError

#: Seconds to wait for somebody else who changes names in the directory, and seconds between two attempts.
_PATIENCE: Final = 5.0
_LOOK: Final = 0.002
#: Seconds for which those who take a directory's lock again and again leave it free in between, so that others get it.
LOCK_PAUSE: Final = 0.01


class RealLock:
    """An flock on an open file; made by ``RealStorage.lock``."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path

    def release(self) -> None:
        """Release the lock; the file stays. Do nothing if it was released already."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def is_linked(self) -> bool:
        """Return whether the file has any name left; True for a lock that was released."""
        return self._fd < 0 or is_linked(self._fd)

    def is_named(self) -> bool:
        """Return whether the file still has its name; True for a lock that was released.

        Raises:
            StorageError: op ``look at``.
        """
        try:
            return self._fd < 0 or is_named(self._fd, self._path)
        except OSError as error:
            raise StorageError("look at", self._path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@contextmanager
def directory_lock(directory: Path) -> Iterator[bool]:
    """Hold the lock on the names in a directory; yield whether it was obtained.

    A process that deletes a bundle must not have the bundle published again between its last look and the deletion.
    False means that another process held the lock for five seconds. If the file system has no such locks, the block
    runs without one, and True is yielded.

    Raises:
        StorageError: the directory cannot be opened.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError("open directory", directory, error) from error
    try:
        yield _obtain(fd)
    finally:
        os.close(fd)


def _obtain(fd: int) -> bool:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK)
        except OSError:
            return True
        else:
            return True
