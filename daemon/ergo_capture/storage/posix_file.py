"""A file of the operating system.

Short writes and EINTR are completed here and nowhere else.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ergo_capture.storage.port import Buffer, StorageError

#: What a kernel or a filesystem that does not know RWF_DSYNC says to it.
_NO_SUCH_FLAG: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
_IOV_MAX: Final = 1024
_ZEROS: Final = bytes(1 << 20)


class RealFile:
    """A file of the operating system (``StorageFile``)."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def write_at(self, buffers: Sequence[Buffer], offset: int, *, sync: bool = False) -> None:
        """Write all of the buffers; see ``StorageFile``.

        Raises:
            StorageError: op ``sync`` where the data may have been written but not synced, else ``write``.
        """
        # Why RWF_DSYNC: one call instead of two, and the interpreter is let go once.
        flags = getattr(os, "RWF_DSYNC", 0) if sync else 0
        waiting = _after(list(buffers), 0)
        while waiting:
            try:
                written = os.pwritev(self._fd, waiting[:_IOV_MAX], offset, flags)
            except InterruptedError:
                continue
            except OSError as error:
                if flags and error.errno in _NO_SUCH_FLAG:
                    # Why it may go on: a flag that is not known is refused before anything is written.
                    flags = 0
                    continue
                raise StorageError("write", self.path, error) from error
            if written == 0:
                nothing = OSError(errno.EIO, "the system wrote nothing and said no reason")
                raise StorageError("write", self.path, nothing) from nothing
            offset += written
            waiting = _after(waiting, written)
        if sync and not flags:
            self.sync()

    def read_at(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes.

        Raises:
            StorageError: unreadable, or the file ends before.
        """
        parts = []
        try:
            while size:
                part = os.pread(self._fd, size, offset)
                if not part:
                    raise OSError(errno.EIO, f"the file ends {size} bytes early")
                parts.append(part)
                offset += len(part)
                size -= len(part)
        except OSError as error:
            raise StorageError("read", self.path, error) from error
        return b"".join(parts)

    def sync(self) -> None:
        """Data, and what is needed to find it again.

        Raises:
            StorageError: op ``sync``; never to be tried again on this file.
        """
        try:
            if sys.platform == "darwin":
                fcntl.fcntl(self._fd, fcntl.F_FULLFSYNC)
            else:
                os.fdatasync(self._fd)
        except OSError as error:
            raise StorageError("sync", self.path, error) from error

    def allocate(self, size: int) -> None:
        """Fill up with zeros, and sync.

        Raises:
            StorageError: op ``allocate``.
        """
        # Why zeros and not fallocate: a synced overwrite of written blocks took 0.29 ms for 64 KiB and 0.32 for
        # 256 KiB, of allocated but unwritten ones 0.58 and 0.83, because the journal of the filesystem is
        # spared (ext4; performance notes in tests/bench).
        try:
            end = os.fstat(self._fd).st_size
            while end < size:
                end += os.pwrite(self._fd, _ZEROS[: min(len(_ZEROS), size - end)], end)
                # Why each time: the commit that comes beside it would wait for all 64 MiB, 70 ms, and not for one.
                os.fdatasync(self._fd)
            os.fsync(self._fd)
        except OSError as error:
            raise StorageError("allocate", self.path, error) from error

    def truncate(self, size: int) -> None:
        """Cut, and sync.

        Raises:
            StorageError: op ``truncate``.
        """
        try:
            os.ftruncate(self._fd, size)
            os.fsync(self._fd)
        except OSError as error:
            raise StorageError("truncate", self.path, error) from error

    def size(self) -> int:
        """Bytes in the file.

        Raises:
            StorageError: op ``look at``.
        """
        try:
            return os.fstat(self._fd).st_size
        except OSError as error:
            raise StorageError("look at", self.path, error) from error

    def close(self) -> None:
        """Close it.

        Raises:
            StorageError: op ``close``.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                os.close(fd)
            except OSError as error:
                raise StorageError("close", self.path, error) from error

    def __repr__(self) -> str:
        return f"<RealFile {self.path}{'' if self._fd >= 0 else ', closed'}>"


def _after(buffers: list[Buffer], written: int) -> list[Buffer]:
    """What of the buffers is left when so many bytes have been written."""
    for index, buffer in enumerate(buffers):
        if written < len(buffer):
            rest = buffers[index:]
            if written:
                rest[0] = memoryview(buffer)[written:]
            return rest
        written -= len(buffer)
    return []
