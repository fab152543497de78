"""Writes files so that their names only ever stand for whole ones.

Owns: AtomicFile, ``write_bytes_atomic``, CaptureWriteError with a stage for everything that can fail, making
directories durably, and sweeping what a kill left behind.
Not here: what is in the files (``bundle.py``, ``journal/compose.py``).

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
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ergo_capture.errors import ErgoCaptureError

MAX_TEMP_FILE_ATTEMPTS: Final = 64
MAX_REPLACE_ATTEMPTS: Final = 64
REPLACE_RETRY_SECONDS: Final = 0.01
_FILE_MODE: Final = 0o640
_DIRECTORY_MODE: Final = 0o750
_counter: Final = itertools.count()
_TEMPORARY: Final = re.compile(r".+\.(\d+)\.\d+\.tmp")
#: What may stand behind a path's last name without naming anything.
_TRAILING: Final = re.compile(r"(?:/+\.?)+\Z")


class WriteStage(Enum):
    """Where a write failed: the reference's variants, and SyncDirectory, which is ours."""

    CREATE_OUTPUT_DIRECTORY = "CreateOutputDirectory"
    SERIALIZE = "Serialize"
    INVALID_DESTINATION = "InvalidDestination"
    CREATE_TEMP_FILE = "CreateTempFile"
    EXHAUSTED_TEMP_FILE_ATTEMPTS = "ExhaustedTempFileAttempts"
    WRITE_TEMP_FILE = "WriteTempFile"
    SYNC_TEMP_FILE = "SyncTempFile"
    RENAME_TEMP_FILE = "RenameTempFile"
    SYNC_DIRECTORY = "SyncDirectory"


_STEPS: Final = {
    WriteStage.CREATE_TEMP_FILE: "create temp file",
    WriteStage.WRITE_TEMP_FILE: "write temp file",
    WriteStage.SYNC_TEMP_FILE: "sync temp file",
    WriteStage.RENAME_TEMP_FILE: "rename temp file",
}


class CaptureWriteError(ErgoCaptureError):
    """A bundle could not be written (``ergo_supervisor::CaptureWriteError``).

    ``stage`` says where; ``destination``, ``temp_path`` and ``style`` are set where the stage has them. The
    cause is chained. The destination is as it was, and no temporary is left.
    """

    def __init__(
        self,
        stage: WriteStage,
        message: str,
        *,
        destination: Path,
        temp_path: Path | None = None,
        style: str | None = None,
        hint: str,
    ) -> None:
        super().__init__(message, op="write capture bundle", path=destination, hint=hint)
        self.stage = stage
        self.destination = destination
        self.temp_path = temp_path
        self.style = style

    @classmethod
    def create_output_directory(cls, destination: Path, error: OSError | ValueError) -> CaptureWriteError:
        """The destination's directory is missing and cannot be made."""
        return cls(
            WriteStage.CREATE_OUTPUT_DIRECTORY,
            f"create capture output directory: {_reason(error)}",
            destination=destination,
            hint=f"make '{destination.parent}' a directory that you may write to",
        )

    @classmethod
    def serialize(cls, destination: Path, shown: str, style: str, error: Exception) -> CaptureWriteError:
        """The bundle has no JSON text."""
        return cls(
            WriteStage.SERIALIZE,
            f"serialize capture bundle '{shown}' ({style}): {error}",
            destination=destination,
            style=style,
            hint="a string of the bundle is not Unicode text, or a number is out of range",
        )

    @classmethod
    def invalid_destination(cls, destination: Path, shown: str) -> CaptureWriteError:
        """The destination names no file."""
        return cls(
            WriteStage.INVALID_DESTINATION,
            f"write capture bundle '{shown}': destination must include a file name",
            destination=destination,
            hint="name a file, not a directory",
        )

    @classmethod
    def exhausted(cls, destination: Path, shown: str) -> CaptureWriteError:
        """Every name for a temporary was taken."""
        return cls(
            WriteStage.EXHAUSTED_TEMP_FILE_ATTEMPTS,
            f"write capture bundle '{shown}': exhausted temp file creation attempts",
            destination=destination,
            hint=f"remove old *.tmp files from '{destination.parent}'",
        )

    @classmethod
    def step(
        cls,
        stage: WriteStage,
        destination: Path,
        temp_path: Path,
        error: OSError | ValueError,
        shown: str | None = None,
    ) -> CaptureWriteError:
        """A step that has to do with the temporary failed; ``shown`` is the destination as it was written."""
        shown = as_written(destination) if shown is None else shown
        return cls(
            stage,
            f"write capture bundle '{shown}': {_STEPS[stage]} '{_beside(shown, temp_path)}': {_reason(error)}",
            destination=destination,
            temp_path=temp_path,
            hint="check the free space of the disk and the permissions of the directory",
        )

    @classmethod
    def sync_directory(cls, destination: Path, error: OSError) -> CaptureWriteError:
        """The file is there under its name, but a crash of the machine may undo that."""
        return cls(
            WriteStage.SYNC_DIRECTORY,
            f"write capture bundle '{destination}': sync directory '{destination.parent}': {_reason(error)}",
            destination=destination,
            hint="look at the kernel's log; write the bundle again before relying on it",
        )


def _reason(error: OSError | ValueError) -> str:
    """The error in the reference's words, which are those of its language's library."""
    if not isinstance(error, OSError):
        return "file name contained an unexpected NUL byte" if "null" in str(error) else str(error)
    number = getattr(error, "winerror", None) or error.errno
    return str(error) if number is None else f"{error.strerror} (os error {number})"


def as_written(path: str | os.PathLike[str]) -> str:
    """A path as its giver wrote it, for a message; what is no text in it is replaced."""
    text = os.fspath(path)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()


def _beside(shown: str, temp_path: Path) -> str:
    """The temporary's path, for a message: in the destination's directory as that was written."""
    if os.sep != "/":
        return str(temp_path)
    directory, slash, _ = _TRAILING.sub("", shown).rpartition("/")
    directory = _TRAILING.sub("", directory) or slash or "."
    return f"{directory}{'' if directory.endswith('/') else '/'}{as_written(temp_path.name)}"


def create_parents(destination: Path) -> None:
    """Make the directories that the destination needs, durably.

    Raises:
        CaptureWriteError: CreateOutputDirectory.
    """
    try:
        make_directories(destination.parent)
    except (OSError, ValueError) as error:
        raise CaptureWriteError.create_output_directory(destination, error) from error


def make_directories(path: Path) -> None:
    """Have a directory, those above it included, for owner and group only, and the names of new ones on stable storage.

    Why synced: a file's own name is synced in its directory, and a power cut would take both where that has no name.

    Raises:
        OSError: one cannot be made, or not be synced.
    """
    missing = itertools.takewhile(lambda directory: not directory.exists(), (path, *path.parents))
    for directory in reversed(list(missing)):
        directory.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
        _sync_directory(directory.parent)
    # Why once more: a file in its place is told of by the same words.
    path.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)


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
            name = f"{self.destination.name}.{os.getpid()}.{next(_counter)}.tmp"
            path = self.destination.with_name(name)
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
            _sync_directory(self.destination.parent)
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


def _sync_directory(path: Path) -> None:
    if sys.platform == "win32":
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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
