"""Waits until something in a directory changes, without asking again and again (inotify).

Where the system has no inotify, or no more of it, a look a quarter of a second takes its place.
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
#: Seconds between looks where nothing tells of changes.
_LOOK: Final = 0.25
#: Seconds after which it is looked even so. Why: not every filesystem tells of what another machine wrote.
_PATIENCE: Final = 5.0
#: Seconds to let changes gather. Why: a busy journal changes thousands of times a second, and nobody reads so fast.
_GATHER: Final = 0.02


class DirectoryWatch:
    """Tells of changes to the files of one directory.

    Args:
        directory: whose files are watched.
        reader: a descriptor whose other end may be closed meanwhile, as that of a pipe.
    """

    def __init__(self, directory: Path, reader: int | None = None) -> None:
        self._fd = _inotify(directory)
        self._poll = select.poll()
        if self._fd is not None:
            self._poll.register(self._fd, select.POLLIN)
        if reader is not None:
            # Why no events are asked for: a broken pipe is told of in any case.
            self._poll.register(reader, 0)
        self._reader = reader

    @property
    def tells(self) -> bool:
        """Whether the system tells of changes; without that it is looked often."""
        return self._fd is not None

    def wait(self) -> None:
        """Return when there may be something new.

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
        """Watch no longer."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<DirectoryWatch, {'told' if self.tells else 'looks'}>"


def _inotify(directory: Path) -> int | None:
    """A descriptor that is readable when something changed; None where that cannot be had."""
    try:
        libc = ctypes.CDLL(None)
        fd = int(libc.inotify_init1(_NONBLOCK))
    except (OSError, AttributeError):
        return None
    if fd < 0:
        return None
    if libc.inotify_add_watch(fd, os.fsencode(directory), _MODIFY | _MOVED_TO | _CREATE) < 0:
        os.close(fd)
        return None
    return fd
