"""Directories whose names are on stable storage."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Final

_MODE: Final = 0o750


def make_directories(path: Path) -> None:
    """Have a directory, those above it included, for owner and group only, and the names of new ones on stable storage.

    Why synced: a file's own name is synced in its directory, and a power cut would take both where that has no name.

    Raises:
        OSError: one cannot be made, or not be synced.
    """
    missing = itertools.takewhile(lambda directory: not directory.exists(), (path, *path.parents))
    for directory in reversed(list(missing)):
        directory.mkdir(mode=_MODE, exist_ok=True)
        sync_directory(directory.parent)
    # Why once more: a file in its place is told of by the same words.
    path.mkdir(mode=_MODE, exist_ok=True)


def sync_directory(path: Path) -> None:
    """Have the names in a directory on stable storage; does nothing where the system knows no such thing.

    Raises:
        OSError: it is no directory, or cannot be synced.
    """
    if sys.platform == "win32":
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
