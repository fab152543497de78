"""What a journal holds, for ``ergo-capture info``: its sessions as a start would find them.

Owns: ``journal_in``, ``journal_facts``, ``show_journal``.
Not here: scanning and replaying (``journal/``), damage in detail (``doctor.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.recovery import recover
from ergo_capture.journal.scan import scan
from ergo_capture.journal.segment import sequence_of
from ergo_capture.kernel.explanation import readable
from ergo_capture.storage import RealStorage
from ergo_capture.units import counted

_LEAST_WIDTH: Final = 120


def journal_in(path: Path) -> Path | None:
    """The journal that is meant: the directory itself or the one in a state directory; None for neither."""
    for directory in (path, path / "journal"):
        if directory.is_dir() and any(sequence_of(entry.name) is not None for entry in directory.iterdir()):
            return directory
    return None


def journal_facts(directory: Path) -> dict[str, Any]:
    """Segments and sessions, as JSON types; nothing is written, and a daemon may be running.

    Raises:
        ErgoCaptureError: it cannot be read.
    """
    storage = RealStorage()
    try:
        found = scan(directory, storage)
        recovery = recover(directory, found, storage)
    except OSError as error:
        raise ErgoCaptureError(
            f"read journal '{directory}': {error.strerror}",
            op="read journal",
            path=directory,
            hint="check its permissions",
        ) from error
    segments = [entry for entry in directory.iterdir() if sequence_of(entry.name) is not None]
    return {
        "journal": str(directory),
        "segments": len(segments),
        "bytes": sum(segment.stat().st_size for segment in segments),
        "sealed": recovery.sealed,
        "torn_bytes": recovery.torn_bytes,
        "quarantined": recovery.quarantined,
        "sessions": [
            {
                "session": session.description.session,
                "graph": session.description.graph,
                "opened_at": session.description.opened_at,
                "labels": session.description.labels,
                "accepted": session.accepted,
                "decided": session.decided,
                "deferred": session.supervisor.deferred_count,
                "part": session.part,
                "bytes": session.event_bytes,
                "ended": None if session.closing is None else session.closing.ended,
            }
            for session in recovery.sessions
        ],
    }


def show_journal(facts: dict[str, Any]) -> None:
    """The same for a person."""
    from rich import box  # noqa: PLC0415 - only for the table
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    # Why no markup: brackets in the names that clients choose are only brackets.
    console = Console(highlight=False, soft_wrap=True, markup=False)
    # Why at least so wide: a session's id that is cut is of no use to anybody.
    console.width = max(console.width, _LEAST_WIDTH)
    console.print(facts["journal"])
    ended = "an orderly stop" if facts["sealed"] else "no orderly stop, or a daemon is running"
    torn = f", {facts['torn_bytes']:,} torn bytes that were never acknowledged" if facts["torn_bytes"] else ""
    console.print(f"{counted(facts['segments'], 'segment')}, {counted(facts['bytes'], 'byte')}; {ended}{torn}")
    for name, reason in facts["quarantined"].items():
        console.print(f"quarantined: {readable(name)}: {reason}")
    if not facts["sessions"]:
        console.print("no session is open")
        return
    table = Table(box=box.SIMPLE)
    for column in ("session", "graph", "opened", "accepted", "decided", "deferred", "part"):
        table.add_column(column, justify="right" if column in ("accepted", "decided", "deferred", "part") else "left")
    for session in facts["sessions"]:
        numbers = (f"{session[name]:,}" for name in ("accepted", "decided", "deferred", "part"))
        names = (readable(session[name]) for name in ("session", "graph", "opened_at"))
        table.add_row(*names, *numbers)
    console.print(table)
