"""Wait for changes in a directory, with inotify.

If the system has no inotify instance left, ``wait`` returns every quarter of a second instead.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
from pathlib import Path
from typing import Final, Self

_MODIFY: Final = 0x2
_MOVED_TO: Final = 0x80
_CREATE: Final = 0x100
_NONBLOCK: Final = os.O_NONBLOCK | os.O_CLOEXEC
#: Seconds between looks without inotify.
_LOOK: Final = 0.25
#: Seconds between looks with inotify: some file systems do not report what another machine wrote.
_PATIENCE: Final = 5.0
#: Seconds to let changes gather: a busy journal changes thousands of times a second.
_GATHER: Final = 0.02


class DirectoryWatch:
    """Waits for changes to the files of one directory.

    Args:
        directory: the directory.
        reader: a descriptor whose other end may be closed meanwhile, such as a pipe's.
    """

    def __init__(self, directory: Path, reader: int | None = None) -> None:
        self._fd = _inotify(directory)
        self._poll = select.poll()
        if self._fd is not None:
            self._poll.register(self._fd, select.POLLIN)
        if reader is not None:
            # A broken pipe is reported without asking for any event.
            self._poll.register(reader, 0)
        self._reader = reader

    @property
    def has_inotify(self) -> bool:
        """Whether the system reports changes; without that ``wait`` returns every quarter of a second."""
        return self._fd is not None

    def wait(self) -> None:
        """Return when there may be a change.

        Raises:
            BrokenPipeError: the reader's other end was closed.
        """
        ready = self._poll.poll(1000 * (_LOOK if self._fd is None else _PATIENCE))
        for fd, _ in ready:
            if fd == self._reader:
                raise BrokenPipeError
        if self._fd is not None and ready:
            time.sleep(_GATHER)
            try:
                while os.read(self._fd, 1 << 16):
                    pass
            except BlockingIOError:
                return

    def close(self) -> None:
        """Stop watching."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _inotify(directory: Path) -> int | None:
    """Return a descriptor that is readable after a change; None if the system has none left."""
    libc = ctypes.CDLL(None)
    fd = int(libc.inotify_init1(_NONBLOCK))
    if fd < 0:
        return None
    if libc.inotify_add_watch(fd, os.fsencode(directory), _MODIFY | _MOVED_TO | _CREATE) < 0:
        os.close(fd)
        return None
    return fd
