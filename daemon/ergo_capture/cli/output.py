"""Where results go: standard output, as the left side of a pipe needs it, or a file that ``-o`` names.

Owns: writing a large text, finding the descriptor, writing a file whole.
Not here: what becomes of a broken pipe (``app.py``).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.storage.atomic import create_parents, write_bytes_atomic
from ergo_capture.storage.write_error import CaptureWriteError

#: Bytes that are written at a time.
_PIECE: Final = 64 << 10


def write_out(text: bytes) -> None:
    """Write all of it.

    Raises:
        BrokenPipeError: whoever reads it has gone.
    """
    # Why in pieces: of one large write only a part is gone, and no error comes, when the reader goes away.
    for start in range(0, len(text), _PIECE):
        sys.stdout.buffer.write(text[start : start + _PIECE])
    sys.stdout.buffer.flush()


def write_whole(destination: Path, text: bytes, what: str) -> None:
    """Write a file whole, its directories too, or leave everything as it was.

    Raises:
        ErgoCaptureError: it cannot be written.
    """
    refuse_directory(destination, what)
    try:
        create_parents(destination)
        write_bytes_atomic(destination, text)
    except CaptureWriteError as error:
        # Why said anew: the reference's words are of a capture bundle, and name a file that is gone again.
        reason = getattr(error.cause, "strerror", None) or error.message
        raise ErgoCaptureError(
            f"write {what} '{destination}': {reason}", op=f"write {what}", path=destination, hint=error.hint
        ) from error


def refuse_directory(destination: Path, what: str) -> None:
    """Why before: to replace a directory by a file fails late, and not with its name.

    Raises:
        ErgoCaptureError: there is a directory of that name.
    """
    if destination.is_dir():
        raise ErgoCaptureError(
            f"write {what} '{destination}': it is a directory",
            op=f"write {what}",
            path=destination,
            hint="name a file with -o, or - for standard output",
            exit_code=ExitCode.USAGE,
        )


def standard_output() -> int | None:
    """Its descriptor, if there is one: whoever runs us may have put something else in its place."""
    try:
        return sys.stdout.fileno()
    except (OSError, ValueError):
        return None
