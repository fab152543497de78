"""The lock on the names in a directory."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ergo_capture.storage.port import StorageError

#: Seconds to wait for somebody else who changes names in a directory, and between two looks.
_PATIENCE: Final = 5.0
_LOOK: Final = 0.01


@contextmanager
def directory_lock(directory: Path) -> Iterator[bool]:
    """Keep everybody else who asks from giving or taking names in a directory; says whether nobody is at it.

    Why: whoever deletes a bundle must not find, between his last look and the deletion, that it was published anew.
    Where the filesystem has no such locks nobody is kept from anything.

    Raises:
        StorageError: the directory cannot be opened.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError("open directory", directory, error) from error
    try:
        yield _flocked(fd)
    finally:
        os.close(fd)


def _flocked(fd: int) -> bool:
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


class RealLock:
    """An flock on a file that names its holder."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        """Let it go; the file stays."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __repr__(self) -> str:
        return f"<RealLock {'held' if self._fd >= 0 else 'released'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
