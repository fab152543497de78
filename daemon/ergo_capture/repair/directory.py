"""Tell journals and state directories apart."""

from __future__ import annotations

from pathlib import Path

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.segment import is_unfinished, sequence_of
from ergo_capture.storage import RealStorage


def kind_of_directory(path: Path) -> str:
    """Return ``journal`` or ``state directory``.

    Raises:
        ErgoCaptureError: the directory is neither.
    """
    names = RealStorage().list(path)
    if path.resolve().name == "journal" or any(sequence_of(name) is not None or is_unfinished(name) for name in names):
        return "journal"
    if "journal" in names or "bundles" in names:
        return "state directory"
    raise ErgoCaptureError(
        f"look at '{path}': that is neither a state directory nor a journal",
        op="diagnose",
        path=path,
        hint="name a state directory, its journal directory, a segment, or a bundle",
    )
