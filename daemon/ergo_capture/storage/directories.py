"""Directories whose names are on stable storage."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Final

_MODE: Final = 0o750


def make_directories(path: Path) -> None:
    """Create a directory and those above it, for owner and group only, and sync the names of new ones.

    Syncing a file's name in its directory is not enough: after a power cut both are gone if the directory's own name
    was not synced.

    Raises:
        OSError: a directory cannot be created or synced.
    """
    missing = itertools.takewhile(lambda directory: not directory.exists(), (path, *path.parents))
    for directory in reversed(list(missing)):
        directory.mkdir(mode=_MODE, exist_ok=True)
        try:
            sync_directory(directory.parent)
        except OSError as error:
            raise OSError(error.errno, f"sync directory '{directory.parent}': {error.strerror}") from error
    # It raises the same error if there is a file with the directory's name.
    path.mkdir(mode=_MODE, exist_ok=True)


def sync_directory(path: Path) -> None:
    """Sync the names in a directory.

    Raises:
        OSError: it is not a directory, or it cannot be synced.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
