"""Write files atomically: a name always stands for a whole file.

The order: create ``{name}.{pid}.{n}.tmp`` beside the destination, write, sync, rename over the destination, sync the
directory. The reference omits the last step, so a crash can undo its rename.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ergo_capture.storage.directories import make_directories, sync_directory
from ergo_capture.storage.write_error import CAPTURE_BUNDLE, CaptureWriteError, WriteStage, as_written

MAX_TEMP_FILE_ATTEMPTS: Final = 64
_FILE_MODE: Final = 0o640
_counter: Final = itertools.count()
_TEMPORARY: Final = re.compile(r".+\.(\d+)\.\d+\.tmp")


def create_parents(destination: Path) -> None:
    """Create and sync the directories that the destination needs.

    Raises:
        CaptureWriteError: CreateOutputDirectory.
    """
    try:
        make_directories(destination.parent)
    except (OSError, ValueError) as error:
        raise CaptureWriteError.create_output_directory(destination, error) from error


def write_bytes_atomic(
    destination: Path, data: bytes, spelled: str | None = None, *, what: str = CAPTURE_BUNDLE
) -> None:
    """Write a whole file, or leave the destination unchanged.

    Args:
        destination: the file.
        data: its contents.
        spelled: as for ``AtomicFile``.
        what: as for ``AtomicFile``.

    Raises:
        CaptureWriteError: with the stage that failed.
    """
    with AtomicFile(destination, spelled, what=what) as file:
        file.write(data)
        file.commit()


class AtomicFile:
    """A file that gets its name when it is whole: write, then ``commit``; without ``commit`` it is removed.

    Args:
        destination: its final path; the directory must exist.
        spelled: the destination as the user wrote it, which may differ: a slash at the end asks for a directory.
        what: the kind of file, for errors.

    Raises:
        CaptureWriteError: InvalidDestination, CreateTempFile or ExhaustedTempFileAttempts.
    """

    def __init__(self, destination: Path, spelled: str | None = None, *, what: str = CAPTURE_BUNDLE) -> None:
        self._what = what
        self._spelled = str(destination) if spelled is None else spelled
        self._shown = as_written(self._spelled)
        if not destination.name or destination.name == "..":
            raise CaptureWriteError.invalid_destination(destination, self._shown, what)
        self.destination = destination
        #: Bytes written so far.
        self.bytes_written = 0
        #: Those of them that the system was asked to write to the disk.
        self._begun = 0
        self._open = True
        self.path, self._fd = self._create()

    def _create(self) -> tuple[Path, int]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        for _ in range(MAX_TEMP_FILE_ATTEMPTS):
            path = _temporary_for(self.destination)
            try:
                return path, os.open(path, flags, _FILE_MODE)
            except FileExistsError:
                continue
            except (OSError, ValueError) as error:
                raise self._failed(WriteStage.CREATE_TEMP_FILE, path, error) from error
        raise CaptureWriteError.exhausted(self.destination, self._shown, self._what)

    def _failed(self, stage: WriteStage, path: Path, error: OSError | ValueError) -> CaptureWriteError:
        return CaptureWriteError.step(stage, self.destination, path, error, self._shown, self._what)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append.

        Raises:
            CaptureWriteError: WriteTempFile; the temporary is removed.
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
        """Ask the system to begin writing to the disk, if there are ``least`` or more new bytes; do not wait.

        ``commit`` then has less to wait for: a bundle of 100,000 events takes a seventh less time.
        """
        begun, size = self._begun, self.bytes_written - self._begun
        if size >= least:
            self._begun = self.bytes_written
            # Linux writes pages at once that it is advised to drop from its cache. On a file system that ignores the
            # advice, ``commit`` writes all of them.
            with suppress(OSError):
                os.posix_fadvise(self._fd, begun, size, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Make the content durable; nothing more can be written.

        Raises:
            CaptureWriteError: SyncTempFile; the temporary is removed.
        """
        if self._fd < 0:
            return
        try:
            os.fsync(self._fd)
        except OSError as error:
            self.abort()
            raise self._failed(WriteStage.SYNC_TEMP_FILE, self.path, error) from error
        self._close()

    def leave(self) -> Path:
        """Make the content durable and leave it to the caller, who names the file with ``put_in_place`` or removes it.

        Raises:
            CaptureWriteError: SyncTempFile; the temporary is removed.
        """
        self.sync()
        self._open = False
        return self.path

    def commit(self) -> None:
        """Make the file durable and give it its name.

        Raises:
            CaptureWriteError: SyncTempFile or RenameTempFile (the temporary is removed), or SyncDirectory.
        """
        put_in_place(self.leave(), self.destination, self._spelled, what=self._what)

    def abort(self) -> None:
        """Remove the file; do nothing after ``commit``."""
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


def put_in_place(temporary: Path, destination: Path, spelled: str | None = None, *, what: str = CAPTURE_BUNDLE) -> None:
    """Give a temporary that is durable its name, durably.

    Args:
        temporary: the file, in the destination's directory.
        destination: its name.
        spelled: as for ``AtomicFile``.
        what: as for ``AtomicFile``.

    Raises:
        CaptureWriteError: RenameTempFile (the temporary is removed), or SyncDirectory.
    """
    spelled = str(destination) if spelled is None else spelled
    try:
        # Use the destination as it was written: a Path would lose a slash at the end.
        os.replace(temporary, spelled)  # noqa: PTH105
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise CaptureWriteError.step(
            WriteStage.RENAME_TEMP_FILE, destination, temporary, error, as_written(spelled), what
        ) from error
    try:
        sync_directory(destination.parent)
    except OSError as error:
        raise CaptureWriteError.sync_directory(destination, error, what) from error


def _temporary_for(destination: Path) -> Path:
    """Return a new name for a temporary beside the destination."""
    return destination.with_name(f"{destination.name}.{os.getpid()}.{next(_counter)}.tmp")


def sweep_temporaries(directory: Path, process: int | None = None, keep: Container[Path] = ()) -> list[Path]:
    """Remove the temporaries that a killed process left in a directory, and return their paths.

    Only files named as by ``AtomicFile`` whose process is gone are removed. The caller holds the daemon's lock, so its
    own process id in a name is that of an earlier process.

    Args:
        directory: the directory.
        process: the id of a process that has ended, to remove only its files; None for all ended processes.
        keep: files that are kept.

    Raises:
        OSError: the directory cannot be read, or a file cannot be removed.
    """
    swept = []
    # Make paths of temporaries only: there may be many thousands of bundles.
    for name in sorted(name for name in os.listdir(directory) if name.endswith(".tmp")):  # noqa: PTH208 - see above
        match, path = _TEMPORARY.fullmatch(name), directory / name
        if match is None or path in keep or not path.is_file() or path.is_symlink():
            continue
        pid = int(match[1])
        if pid != process and (process is not None or (pid != os.getpid() and _is_alive(pid))):
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
    # A process that has ended keeps its id until it is reaped, which may never happen in a container.
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    return True
