"""The operating system's filesystem."""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ergo_capture.storage.directories import make_directories, sync_directory
from ergo_capture.storage.port import StorageError
from ergo_capture.storage.posix_file import RealFile

_FILE_MODE: Final = 0o640


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


class RealStorage:
    """The operating system's filesystem (``Storage``)."""

    def open(self, path: Path, *, create: bool = False, write: bool = False) -> RealFile:
        """Open a file, never through a symbolic link.

        Raises:
            StorageError: op ``open``.
        """
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_RDWR if write or create else os.O_RDONLY)
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        try:
            return RealFile(path, os.open(path, flags, _FILE_MODE))
        except OSError as error:
            raise StorageError("open", path, error) from error

    def replace(self, source: Path, destination: Path) -> None:
        """Rename over.

        Raises:
            StorageError: op ``rename``.
        """
        try:
            source.replace(destination)
        except OSError as error:
            raise StorageError("rename", destination, error) from error

    def remove(self, path: Path) -> None:
        """Unlink.

        Raises:
            StorageError: op ``remove``.
        """
        try:
            path.unlink()
        except OSError as error:
            raise StorageError("remove", path, error) from error

    def sync_dir(self, path: Path) -> None:
        """Fsync the directory.

        Raises:
            StorageError: op ``sync directory``.
        """
        try:
            sync_directory(path)
        except OSError as error:
            raise StorageError("sync directory", path, error) from error

    def list(self, path: Path) -> list[str]:
        """The names, sorted.

        Raises:
            StorageError: op ``list``.
        """
        try:
            return sorted(entry.name for entry in path.iterdir())
        except OSError as error:
            raise StorageError("list", path, error) from error

    def is_plain(self, path: Path) -> bool:
        """Look without following a link.

        Raises:
            StorageError: op ``look at``.
        """
        return stat.S_ISREG(self._look(path).st_mode)

    def is_own(self, path: Path) -> bool:
        """Compare the owner with the effective user.

        Raises:
            StorageError: op ``look at``.
        """
        return self._look(path).st_uid == os.geteuid()

    def _look(self, path: Path) -> os.stat_result:
        try:
            return path.lstat()
        except OSError as error:
            raise StorageError("look at", path, error) from error

    def mkdir(self, path: Path) -> None:
        """Make it where it is missing.

        Raises:
            StorageError: op ``make directory``.
        """
        try:
            make_directories(path)
        except OSError as error:
            raise StorageError("make directory", path, error) from error

    def free_bytes(self, path: Path) -> int:
        """What an unprivileged process may still write.

        Raises:
            StorageError: op ``look at free space of``.
        """
        try:
            stats = os.statvfs(path)
        except OSError as error:
            raise StorageError("look at free space of", path, error) from error
        return stats.f_bavail * stats.f_frsize

    def lock(self, path: Path) -> RealLock:
        """Take an exclusive flock, without waiting.

        Raises:
            StorageError: op ``lock``; the hint names who holds it.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
        except OSError as error:
            raise StorageError("lock", path, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            hint = (
                f"process {holder or 'unknown'} holds it: one daemon serves a state directory; stop it, or use another"
            )
            raise StorageError("lock", path, error, hint) from error
        with suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        return RealLock(fd)

    def __repr__(self) -> str:
        return "<RealStorage>"
