"""What is said where a bundle could not be written."""

from __future__ import annotations

import os
import re
from enum import Enum
from pathlib import Path
from typing import Final

from ergo_capture.errors import ErgoCaptureError

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
