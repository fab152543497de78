"""The file system as a port: the few operations that durability depends on.

No operation is tried again after a failed sync, which only the caller can handle (P7).
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from ergo_capture.errors import ErgoCaptureError

Buffer = bytes | memoryview | mmap.mmap
#: Errors that mean that the disk or a quota is full.
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class StorageError(ErgoCaptureError):
    """An operation on the file system failed; ``errno`` is the system's error number."""

    def __init__(self, op: str, path: str | Path, error: OSError, hint: str | None = None) -> None:
        super().__init__(f"{op} '{path}': {error.strerror or error}", op=op, path=path, hint=hint or hint_for(error))
        self.errno = error.errno

    @property
    def is_full(self) -> bool:
        """Whether the disk or a quota was full."""
        return self.errno in FULL


#: Errors of a file system that lacks an operation: locks (ENOLCK), the sync of a directory (EINVAL).
UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})


def hint_for(error: OSError) -> str:
    """Return the hint for an error of the file system."""
    if error.errno in UNSUPPORTED:
        return (
            "the file system cannot do this, as some network and FUSE file systems cannot: use a directory on a local "
            "one, such as ext4 or xfs"
        )
    return {
        errno.ENOSPC: "free some space on the disk",
        errno.EDQUOT: "raise the quota, or free some space",
        errno.EACCES: "check the owner and the permissions of the path",
        errno.EPERM: "check the owner and the permissions of the path",
        errno.EROFS: (
            "the filesystem is read-only for this process: name the directory with ReadWritePaths= if a systemd unit "
            "is the reason, otherwise check the kernel's log and remount it"
        ),
        errno.EIO: "the disk reports errors: check the kernel's log before anything else",
        errno.ENOENT: "check that the path exists",
        errno.EEXIST: "another file is there: name another path",
        errno.ENOTDIR: "a part of the path is a file: name another path",
        errno.ENAMETOOLONG: "name a shorter path",
    }.get(error.errno or 0, "check the kernel's log and the path's permissions")


class StorageFile(Protocol):
    """An open file. Every operation raises StorageError if it fails."""

    path: Path

    def write_at(self, buffers: Sequence[Buffer], offset: int, *, sync: bool = False) -> None:
        """Write all of the buffers at ``offset``; with ``sync``, return only when they are on stable storage."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Return exactly ``size`` bytes from ``offset``; it is an error if the file ends before."""

    def sync(self) -> None:
        """Sync everything written so far."""

    def allocate(self, size: int) -> None:
        """Extend the file to ``size`` bytes with allocated zeros, and sync it."""

    def truncate(self, size: int) -> None:
        """Cut the file to ``size`` bytes, and sync it."""

    def size(self) -> int:
        """Return the file's size in bytes."""

    def is_linked(self) -> bool:
        """Return whether the file has any name left; read nothing from the disk."""

    def is_named(self) -> bool:
        """Return whether ``path`` is still the name of this file."""

    def close(self) -> None:
        """Close the file; do nothing if it is closed already."""


class Lock(Protocol):
    """A lock that is held until it is released or the process ends."""

    def release(self) -> None:
        """Release the lock."""

    def is_linked(self) -> bool:
        """Return whether the lock's file has any name left; read nothing from the disk."""

    def is_named(self) -> bool:
        """Return whether the lock's file still has its name; if not, another process could take the lock."""


class Storage(Protocol):
    """The file system. Every operation raises StorageError if it fails."""

    def open(self, path: Path, *, create: bool = False, write: bool = False) -> StorageFile:
        """Open a file; with ``create`` it must not exist yet."""

    def replace(self, source: Path, destination: Path) -> None:
        """Rename ``source`` over ``destination``."""

    def link(self, source: Path, destination: Path) -> None:
        """Give a file a second name, which must not exist yet."""

    def remove(self, path: Path) -> None:
        """Delete a file."""

    def sync_dir(self, path: Path) -> None:
        """Sync the names in a directory."""

    def list(self, path: Path) -> list[str]:
        """Return the names in a directory, sorted."""

    def is_plain(self, path: Path) -> bool:
        """Return whether the name is a plain file's; a link is not followed."""

    def is_own(self, path: Path) -> bool:
        """Return whether the file belongs to the user of this process."""

    def mkdir(self, path: Path) -> None:
        """Create a directory and those above it, for owner and group only, and sync the names of new ones."""

    def free_bytes(self, path: Path) -> int:
        """Return how many bytes may still be written on the path's file system."""

    def lock(self, path: Path) -> Lock:
        """Take the lock at ``path``; raise at once if another process holds it."""
