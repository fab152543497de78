"""Set quarantined sessions aside: link their segments to ``journal.quarantine-N`` beside the journal.

A session is quarantined if its frames are damaged or its graph is gone. It would keep its segments and all later ones.
So its segments get a second name in a directory of their own, and an ASIDE frame tells later starts that the session is
not in the journal any more. ``settle`` makes bundles from its provable part.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.frame import FrameKind, PendingFrame
from ergo_capture.journal.recovery import QuarantinedSession, recover
from ergo_capture.journal.scan import scan
from ergo_capture.journal.segment import new_directory, segment_path, sequence_of
from ergo_capture.journal.wal import SAVED, Journal
from ergo_capture.repair.journal_salvage import SalvagedPart, salvage_journal
from ergo_capture.storage import Storage, StorageError
from ergo_capture.storage.atomic import write_bytes_atomic
from ergo_capture.storage.kept_files import copy_file
from ergo_capture.version import PROGRAM

QUARANTINE: Final = "journal.quarantine-"
SETTLED: Final = "journal.settled-"
#: The file in a quarantine directory that names the sessions of the segments.
NOTE: Final = "sessions.json"
#: The directory of salvaged bundles in a settled one.
SALVAGED: Final = "salvaged"
#: Errors of file systems without hard links.
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EMLINK, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS})


class SavedJournal(NamedTuple):
    """Segments beside the journal that are not settled yet."""

    directory: Path
    #: The sessions for which they are kept; None for all sessions in them.
    sessions: list[QuarantinedSession] | None


def set_aside(state: Path, sessions: list[QuarantinedSession], storage: Storage) -> None:
    """Link the segments of the sessions to a new directory ``journal.quarantine-N``, durably.

    It can be repeated after it was interrupted: existing links stay.

    Args:
        state: the state directory.
        sessions: quarantined sessions of its journal.
        storage: the file system.

    Raises:
        StorageError: a segment cannot be linked or copied.
    """
    known = {
        (session.number, session.first_segment) for saved in saved_journals(state) for session in saved.sessions or ()
    }
    new = [session for session in sessions if (session.number, session.first_segment) not in known]
    if not new:
        return
    directory = new_directory(state, QUARANTINE, storage)
    unfinished = directory.with_name(directory.name + ".new")
    storage.mkdir(unfinished)
    first, last = min(s.first_segment for s in new), max(s.last_segment for s in new)
    journal = state / "journal"
    for name in storage.list(journal):
        sequence = sequence_of(name)
        if sequence is not None and first <= sequence <= last:
            _link(segment_path(journal, sequence), segment_path(unfinished, sequence), storage)
    write_bytes_atomic(unfinished / NOTE, msgspec.json.format(msgspec.json.encode(new)) + b"\n")
    storage.sync_dir(unfinished)
    storage.replace(unfinished, directory)
    storage.sync_dir(state)


def _link(source: Path, destination: Path, storage: Storage) -> None:
    try:
        storage.link(source, destination)
    except StorageError as error:
        if error.errno not in _NO_LINKS:
            raise
        file = storage.open(source)
        try:
            copy_file(file, destination, storage)
        finally:
            file.close()


def take_out(state: Path, given_up: Iterable[str], storage: Storage) -> None:
    """Set aside the quarantined sessions of a journal that no daemon uses, and open sessions that are given up.

    Args:
        state: the state directory; the caller holds its lock.
        given_up: ids of open sessions.
        storage: the file system.

    Raises:
        ErgoCaptureError: there is no such session, or the journal cannot be read or written.
    """
    journal, found = Journal.open(state / "journal", storage, program=PROGRAM)
    try:
        recovery = recover(journal.directory, found, storage)
        sessions = list(recovery.quarantined.values())
        names = {session.description.session: session for session in recovery.sessions}
        for name in given_up:
            if name not in names:
                raise ErgoCaptureError(
                    f"settle session {name!r}: it is not open in the journal '{journal.directory}'",
                    op="settle",
                    path=journal.directory,
                    hint=f"open are: {', '.join(sorted(names)) or 'none'}",
                )
            session = names[name]
            sessions.append(
                QuarantinedSession(
                    number=session.number,
                    session=name,
                    reason="it was given up",
                    first_segment=session.segment,
                    last_segment=session.last_segment,
                    is_damaged=False,
                )
            )
        if sessions:
            set_aside(state, sessions, storage)
            journal.commit(aside_frames(sessions))
        journal.seal()
    finally:
        journal.close()


def aside_frames(sessions: Iterable[QuarantinedSession]) -> list[PendingFrame]:
    """Return the ASIDE frames of these sessions."""
    return [PendingFrame(FrameKind.ASIDE, session.number, 0, 0, b"{}") for session in sessions]


def saved_journals(state: Path) -> Iterator[SavedJournal]:
    """Yield the directories of segments beside the journal that are not settled, in the order of their names."""
    for directory in sorted(state.glob("journal.*-*")):
        if directory.name.endswith(".new") or not directory.is_dir():
            continue
        if directory.name.startswith(SAVED):
            yield SavedJournal(directory, None)
        elif directory.name.startswith(QUARANTINE):
            yield SavedJournal(directory, _read_note(directory / NOTE))


def _read_note(path: Path) -> list[QuarantinedSession] | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[QuarantinedSession])
    except (OSError, ValueError):
        # Salvage all sessions in the segments instead.
        return None


def settle(
    state: Path, saved: SavedJournal, storage: Storage, on_part: Callable[[SalvagedPart], None]
) -> tuple[Path, list[SalvagedPart]]:
    """Salvage the sessions into ``salvaged`` in the directory, and rename it to ``journal.settled-N``.

    Returns:
        The new name, and the parts.

    Raises:
        ErgoCaptureError: as ``salvage_journal``.
    """
    found = scan(saved.directory, storage)
    numbers = None if saved.sessions is None else {session.number for session in saved.sessions}
    parts = salvage_journal(saved.directory, found, storage, saved.directory / SALVAGED, only=numbers, on_part=on_part)
    settled = new_directory(state, SETTLED, storage)
    storage.replace(saved.directory, settled)
    storage.sync_dir(state)
    return settled, parts
