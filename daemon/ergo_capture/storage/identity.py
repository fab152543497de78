"""Check that an open file still has its name: files may be removed or replaced under a running daemon."""

from __future__ import annotations

import os
from pathlib import Path


def is_linked(fd: int) -> bool:
    """Return whether the open file has any name left. It reads nothing from the disk, so an event loop may call it."""
    return os.fstat(fd).st_nlink > 0


def is_named(fd: int, path: Path) -> bool:
    """Return whether ``path`` is the name of the open file; a symbolic link is not followed.

    Raises:
        OSError: the state of the path cannot be read, for another reason than that it is gone.
    """
    try:
        there = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(os.fstat(fd), there)
