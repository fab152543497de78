"""The error for a bundle that could not be written, in the reference's words."""

from __future__ import annotations

import os
import re
from enum import Enum
from pathlib import Path
from typing import Final

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.storage.port import hint_for

#: The default kind of file in messages: the reference's word.
CAPTURE_BUNDLE: Final = "capture bundle"
#: Slashes and dots after a path's last name.
_TRAILING: Final = re.compile(r"(?:/+\.?)+\Z")


class WriteStage(Enum):
    """The stage at which a write failed: the reference's variants, and SyncDirectory."""

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
    """A bundle, or another whole file, could not be written (``ergo_supervisor::CaptureWriteError``).

    ``destination``, ``temp_path`` and ``style`` are set if the stage has them. The cause is chained. Except for
    SyncDirectory, the destination is unchanged. No temporary is left.
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
        what: str = CAPTURE_BUNDLE,
    ) -> None:
        super().__init__(message, op=f"write {what}", path=destination, hint=hint)
        self.stage = stage
        self.destination = destination
        self.temp_path = temp_path
        self.style = style

    @classmethod
    def create_output_directory(cls, destination: Path, error: OSError | ValueError) -> CaptureWriteError:
        """Return the error for a directory that cannot be created."""
        return cls(
            WriteStage.CREATE_OUTPUT_DIRECTORY,
            f"create capture output directory: {_reason(error)}",
            destination=destination,
            hint=f"make '{destination.parent}' a directory that you may write to",
        )

    @classmethod
    def serialize(cls, destination: Path, shown: str, style: str, error: Exception) -> CaptureWriteError:
        """Return the error for a bundle that cannot be encoded as JSON."""
        return cls(
            WriteStage.SERIALIZE,
            f"serialize capture bundle '{shown}' ({style}): {error}",
            destination=destination,
            style=style,
            hint="a string of the bundle is not Unicode text, or a number is out of range",
        )

    @classmethod
    def invalid_destination(cls, destination: Path, shown: str, what: str = CAPTURE_BUNDLE) -> CaptureWriteError:
        """Return the error for a destination without a file name."""
        return cls(
            WriteStage.INVALID_DESTINATION,
            f"write {what} '{shown}': destination must include a file name",
            destination=destination,
            what=what,
            hint="name a file, not a directory",
        )

    @classmethod
    def exhausted(cls, destination: Path, shown: str, what: str = CAPTURE_BUNDLE) -> CaptureWriteError:
        """Return the error for a temporary whose names were all taken."""
        return cls(
            WriteStage.EXHAUSTED_TEMP_FILE_ATTEMPTS,
            f"write {what} '{shown}': exhausted temp file creation attempts",
            destination=destination,
            what=what,
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
        what: str = CAPTURE_BUNDLE,
    ) -> CaptureWriteError:
        """Return the error for a failed step with the temporary; ``shown`` is the destination as the user wrote it."""
        shown = as_written(destination) if shown is None else shown
        return cls(
            stage,
            f"write {what} '{shown}': {_STEPS[stage]} '{_beside(shown, temp_path)}': {_reason(error)}",
            destination=destination,
            temp_path=temp_path,
            hint=hint_for(error) if isinstance(error, OSError) else "name another file",
            what=what,
        )

    @classmethod
    def sync_directory(cls, destination: Path, error: OSError, what: str = CAPTURE_BUNDLE) -> CaptureWriteError:
        """Return the error for a file that has its name, which a crash of the machine may undo."""
        return cls(
            WriteStage.SYNC_DIRECTORY,
            f"write {what} '{destination}': sync directory '{destination.parent}': {_reason(error)}",
            destination=destination,
            hint=f"{hint_for(error)}; write the {what} again before relying on it",
            what=what,
        )


def _reason(error: OSError | ValueError) -> str:
    """Return the error in the words of the reference's standard library."""
    if not isinstance(error, OSError):
        return "file name contained an unexpected NUL byte" if "null" in str(error) else str(error)
    return str(error) if error.errno is None else f"{error.strerror} (os error {error.errno})"


def as_written(path: str | os.PathLike[str]) -> str:
    """Return a path as the user wrote it, for a message; bytes that are not text are replaced."""
    text = os.fspath(path)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()


def _beside(shown: str, temp_path: Path) -> str:
    """Return the temporary's path for a message: in the destination's directory as the user wrote it."""
    directory, slash, _ = _TRAILING.sub("", shown).rpartition("/")
    directory = _TRAILING.sub("", directory) or slash or "."
    return f"{directory}{'' if directory.endswith('/') else '/'}{as_written(temp_path.name)}"
