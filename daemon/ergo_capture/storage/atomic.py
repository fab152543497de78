"""Writes files so that their names only ever stand for whole ones.

The order: create ``{name}.{pid}.{n}.tmp`` beside the destination, write, sync, rename over the destination,
sync the directory. The reference leaves the last step out, so that a crash can undo its rename.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ergo_capture.storage.directories import make_directories, sync_directory
from ergo_capture.storage.write_error import CaptureWriteError, WriteStage, as_written

MAX_TEMP_FILE_ATTEMPTS: Final = 64
MAX_REPLACE_ATTEMPTS: Final = 64
REPLACE_RETRY_SECONDS: Final = 0.01
_FILE_MODE: Final = 0o640


def create_parents(destination: Path) -> None:
    """Make the directories that the destination needs, durably.

    Raises:
        CaptureWriteError: CreateOutputDirectory.
    """
    try:
        make_directories(destination.parent)
    except (OSError, ValueError) as error:
        raise CaptureWriteError.create_output_directory(destination, error) from error


def write_bytes_atomic(destination: Path, data: bytes, spelled: str | None = None) -> None:
    """Write a whole file, or leave everything as it was; ``spelled`` is as for ``AtomicFile``.

    Raises:
        CaptureWriteError: with the stage that failed.
    """
    with AtomicFile(destination, spelled) as file:
        file.write(data)
        file.commit()


class AtomicFile:
    """A file that gets its name when it is whole: write, then ``commit``; anything else removes it.

    Args:
        destination: the name it will get; its directory must be there.
        spelled: the same as its giver wrote it, where that may say more: a slash at its end asks for a directory.
        replace: renames over; only tests give another than ``os.replace``.
        retry_refusals: whether a rename refused with PermissionError is tried again, as Windows needs it
            while somebody has the destination open.

    Raises:
        CaptureWriteError: InvalidDestination, CreateTempFile or ExhaustedTempFileAttempts.
    """

    def __init__(
        self,
        destination: Path,
        spelled: str | None = None,
        *,
        replace: Callable[[Path, Any], None] = os.replace,
        retry_refusals: bool = sys.platform == "win32",
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._spelled = str(destination) if spelled is None else spelled
        self._shown = as_written(self._spelled)
        if not destination.name or destination.name == "..":
            raise CaptureWriteError.invalid_destination(destination, self._shown)
        self.destination = destination
        #: Bytes written so far.
        self.bytes_written = 0
        #: Those of them that the system was told to begin with.
        self._begun = 0
        self._replace = replace
        self._retry = retry_refusals
        self._pause = pause
        self._open = True
        self.path, self._fd = self._create()

    def _create(self) -> tuple[Path, int]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        for _ in range(MAX_TEMP_FILE_ATTEMPTS):
            path = temporary_for(self.destination)
            try:
                return path, os.open(path, flags, _FILE_MODE)
            except FileExistsError:
                continue
            except (OSError, ValueError) as error:
                raise self._failed(WriteStage.CREATE_TEMP_FILE, path, error) from error
        raise CaptureWriteError.exhausted(self.destination, self._shown)

    def _failed(self, stage: WriteStage, path: Path, error: OSError | ValueError) -> CaptureWriteError:
        return CaptureWriteError.step(stage, self.destination, path, error, self._shown)

    def write(self, data: bytes | bytearray) -> None:
        """Append.

        Raises:
            CaptureWriteError: WriteTempFile; the temporary is gone.
        """
        view = memoryview(data)
        try:
            while view:
                written = os.write(self._fd, view)
                view = view[written:]
                self.bytes_written += written
        except OSError as error:
            self.abort()
            raise self._failed(WriteStage.WRITE_TEMP_FILE, self.path, error) from error

    def write_back(self, least: int) -> None:
        """Have the system begin to put on the disk what was written, where that is ``least`` bytes; waits for nothing.

        ``commit`` has less to wait for then: a bundle of 100,000 events takes a seventh less time.
        """
        begun, size = self._begun, self.bytes_written - self._begun
        if size >= least and hasattr(os, "posix_fadvise"):
            self._begun = self.bytes_written
            # Why this advice: what the system is to forget it has to write first, and Linux begins with that at once.
            # Why suppressed: a file system that takes no advice does all of it in ``commit``.
            with suppress(OSError):
                os.posix_fadvise(self._fd, begun, size, os.POSIX_FADV_DONTNEED)

    def commit(self) -> None:
        """Make it durable and give it its name.

        Raises:
            CaptureWriteError: SyncTempFile, RenameTempFile (the temporary is gone), or SyncDirectory.
        """
        try:
            _sync(self._fd)
        except OSError as error:
            self.abort()
            raise self._failed(WriteStage.SYNC_TEMP_FILE, self.path, error) from error
        self._close()
        try:
            self._rename()
        except OSError as error:
            self.abort()
            raise self._failed(WriteStage.RENAME_TEMP_FILE, self.path, error) from error
        self._open = False
        try:
            sync_directory(self.destination.parent)
        except OSError as error:
            raise CaptureWriteError.sync_directory(self.destination, error) from error

    def _rename(self) -> None:
        attempts = MAX_REPLACE_ATTEMPTS if self._retry else 1
        for attempt in range(1, attempts + 1):
            try:
                self._replace(self.path, self._spelled)
            except PermissionError:
                if attempt == attempts:
                    raise
                self._pause(REPLACE_RETRY_SECONDS)
            else:
                return

    def abort(self) -> None:
        """Remove it; does nothing after ``commit``."""
        if not self._open:
            return
        self._open = False
        self._close()
        with suppress(OSError):
            self.path.unlink()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def __repr__(self) -> str:
        return f"<AtomicFile {self.destination}, {self.bytes_written} bytes>"


def _sync(fd: int) -> None:
    if sys.platform == "darwin":
        import fcntl  # noqa: PLC0415 - not on every platform

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


_counter: Final = itertools.count()
_TEMPORARY: Final = re.compile(r".+\.(\d+)\.\d+\.tmp")


def temporary_for(destination: Path) -> Path:
    """A name for what is to be ``destination``, beside it; another one each time."""
    return destination.with_name(f"{destination.name}.{os.getpid()}.{next(_counter)}.tmp")


def sweep_temporaries(directory: Path) -> list[Path]:
    """Remove the temporaries that a kill left in a directory; returns them.

    Only files of our own naming go, and only those whose process is gone; the caller holds the daemon's
    lock, so that its own number in a name is one of an earlier life.
    """
    swept = []
    for path in sorted(directory.iterdir()):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or not path.is_file() or path.is_symlink():
            continue
        if int(match[1]) != os.getpid() and _is_alive(int(match[1])):
            continue
        with suppress(FileNotFoundError):
            path.unlink()
            swept.append(path)
    return swept


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
