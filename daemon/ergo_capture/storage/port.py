"""The filesystem as a port: the few operations that durability hangs on.

Nothing that has failed a sync is tried again: that is for the caller to know (P7).
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from ergo_capture.errors import ErgoCaptureError

Buffer = bytes | memoryview | mmap.mmap
#: Errors that say that there is no room, as against a disk that is broken.
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class StorageError(ErgoCaptureError):
    """An operation on the filesystem failed; ``errno`` is the system's number for why."""

    def __init__(self, op: str, path: str | Path, error: OSError, hint: str | None = None) -> None:
        super().__init__(f"{op} '{path}': {error.strerror or error}", op=op, path=path, hint=hint or _hint(error))
        self.errno = error.errno

    @property
    def is_full(self) -> bool:
        """Whether there was no room."""
        return self.errno in FULL


def _hint(error: OSError) -> str:
    return {
        errno.ENOSPC: "free some space on the disk",
        errno.EDQUOT: "raise the quota, or free some space",
        errno.EACCES: "check the owner and the permissions of the path",
        errno.EROFS: "the filesystem is read-only: look at the kernel's log, then remount it",
        errno.EIO: "the disk reports errors: look at the kernel's log before anything else",
        errno.ENOENT: "check that the path exists",
    }.get(error.errno or 0, "look at the kernel's log and the path's permissions")


class StorageFile(Protocol):
    """An open file."""

    path: Path

    def write_at(self, buffers: Sequence[Buffer], offset: int, *, sync: bool = False) -> None:
        """Write all of the buffers at ``offset``; with ``sync``, return only when they are on stable storage."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes from ``offset``; fewer are an error."""

    def sync(self) -> None:
        """Have everything written so far on stable storage."""

    def allocate(self, size: int) -> None:
        """Have the file be ``size`` bytes, of zeros where nothing was written, all of them allocated."""

    def truncate(self, size: int) -> None:
        """Cut the file to ``size`` bytes."""

    def size(self) -> int:
        """Bytes in the file."""

    def close(self) -> None:
        """Close it; closing twice is closing once."""


class Lock(Protocol):
    """A lock that is held until released or the process is gone."""

    def release(self) -> None:
        """Let it go."""


class Storage(Protocol):
    """The filesystem."""

    def open(self, path: Path, *, create: bool = False, write: bool = False) -> StorageFile:
        """Open a file; ``create`` means that it must not be there yet."""

    def replace(self, source: Path, destination: Path) -> None:
        """Give ``source`` the name ``destination``, whatever had it."""

    def remove(self, path: Path) -> None:
        """Delete a file."""

    def sync_dir(self, path: Path) -> None:
        """Have the names in a directory on stable storage."""

    def list(self, path: Path) -> list[str]:
        """The names in a directory, sorted."""

    def is_plain(self, path: Path) -> bool:
        """Whether the name is a plain file's; a link is not followed."""

    def is_own(self, path: Path) -> bool:
        """Whether it belongs to the user that this process runs as."""

    def mkdir(self, path: Path) -> None:
        """Have a directory, parents included, for owner and group only; durably, where they are new."""

    def free_bytes(self, path: Path) -> int:
        """Bytes that may still be written on the path's filesystem."""

    def lock(self, path: Path) -> Lock:
        """Take the lock of that name, at once or not at all."""
