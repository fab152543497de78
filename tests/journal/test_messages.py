"""Errors of the journal name the operation, the path, the reason, and what to do next."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest import mock

import pytest
from tests.doubles.faulty_storage import FaultyStorage
from tests.journal.captures import a_session
from tests.journal.journals import (
    closing,
    events,
    flip,
    frames_of,
    journal_in,
    last_segment,
    look,
    opening,
    write_batches,
)

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal import wal
from ergo_capture.journal.errors import JournalDamaged, JournalError, JournalFailed, JournalFull
from ergo_capture.journal.frame import MAX_BODY, FrameKind, PendingFrame, encode_header
from ergo_capture.journal.reader import read_frames
from ergo_capture.journal.scan_report import Damage
from ergo_capture.journal.session_frames import read_history
from ergo_capture.journal.session_stream import parts_in
from ergo_capture.journal.tail import follow
from ergo_capture.storage import RealStorage, StorageError

DOCTOR = "`ergo-capture doctor` says what is damaged"


def said(error: ErgoCaptureError) -> tuple[str, str | None, str | None, str | None]:
    """Return the message, the operation, the path and the hint."""
    return error.message, error.op, error.path, error.hint


def test_a_failed_journal_names_the_file_and_the_cause(tmp_path: Path) -> None:
    """The same message is given each time, and in the snapshot."""
    storage = FaultyStorage()
    journal = journal_in(tmp_path, storage)
    journal.commit([opening(1)])
    storage.fail_next("sync", errno.EIO)
    path = str(last_segment(tmp_path, 1))
    message = f"append to journal '{path}': sync '{path}': Input/output error"
    hint = "acknowledged events are safe, others may be lost; check the disk, then restart the daemon"
    for _ in range(2):
        with pytest.raises(JournalFailed) as caught:
            journal.commit([events(1, 0)])
        assert said(caught.value) == (message, "append to journal", path, hint)
        assert isinstance(caught.value.cause, StorageError)
    assert journal.snapshot().failed == message
    journal.close()
    assert journal.snapshot().failed == message


def test_a_closed_journal_names_its_directory(tmp_path: Path) -> None:
    """The error has no cause."""
    journal = journal_in(tmp_path)
    journal.close()
    with pytest.raises(JournalFailed) as caught:
        journal.commit([opening(1)])
    assert (caught.value.message, caught.value.path) == (
        f"append to journal '{tmp_path}': it is closed",
        str(tmp_path),
    )
    assert caught.value.cause is None


def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path) -> None:
    """The error names the journal's directory, and the file that did not fit."""
    storage = FaultyStorage()
    journal = journal_in(tmp_path, storage)
    journal.commit([opening(1)])
    storage.fail_next("write", errno.ENOSPC)
    with pytest.raises(JournalFull) as caught:
        journal.commit([events(1, 0)])
    path = str(last_segment(tmp_path, 1))
    assert said(caught.value) == (
        f"append to journal '{tmp_path}': write '{path}': No space left on device",
        "append to journal",
        path,
        "free some space; the daemon then continues by itself",
    )
    journal.close()


def test_sizes_out_of_range_are_refused_with_the_range(tmp_path: Path) -> None:
    """The sizes are those of a segment, a body and a batch."""
    with pytest.raises(ValueError, match=r"^segments of 4095 bytes: they must be of 4 KiB to 2 GiB$"):
        journal_in(tmp_path, segment_bytes=4095)
    with pytest.raises(ValueError, match=rf"^a body of {MAX_BODY + 1} bytes is longer than {MAX_BODY}$"):
        PendingFrame(FrameKind.EVENTS, 1, 0, 1, bytes(MAX_BODY + 1))
    journal = journal_in(tmp_path)
    frame = events(1, 0, size=5000)
    with (
        mock.patch.object(wal, "_MAX_BYTES", 4096),
        pytest.raises(ValueError, match=rf"^a batch of {frame.size} bytes is longer than a segment may be$"),
    ):
        journal.commit([frame])
    journal.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_segment_of_another_user_is_named(tmp_path: Path) -> None:
    """A journal has one owner."""
    write_batches(tmp_path, [[opening(1)]])
    path = last_segment(tmp_path, 1)
    os.chown(path, 65_534, 65_534)
    with pytest.raises(JournalError) as caught:
        journal_in(tmp_path)
    assert said(caught.value) == (
        f"open journal: '{path}' belongs to another user",
        "open journal",
        str(path),
        "run the daemon as the user that owns its journal, or give the files to this one",
    )


def test_a_directory_with_a_segments_name_is_named(tmp_path: Path) -> None:
    """The hint is to move it away."""
    path = last_segment(tmp_path, 1)
    path.mkdir()
    with pytest.raises(JournalError) as caught:
        look(tmp_path)
    assert said(caught.value) == (
        f"read journal: '{path}' is not a plain file",
        "read journal",
        str(path),
        "move it out of the journal's directory; only segments have such names",
    )


def test_a_segment_of_a_newer_program_is_named(tmp_path: Path) -> None:
    """The error has both versions."""
    path = last_segment(tmp_path, 1)
    path.write_bytes(encode_header(FrameKind.SEGMENT, 1, 1, 0, 0, 0, 0, 0, 1, 0, version=3))
    with pytest.raises(JournalError) as caught:
        look(tmp_path)
    assert said(caught.value) == (
        f"read journal segment '{path}': its format version is 3, and this program reads up to 2",
        "read journal",
        str(path),
        "start the newer ergo-capture that wrote it",
    )


def test_a_segment_with_a_frame_of_a_newer_program_is_named(tmp_path: Path) -> None:
    """The frame may not be skipped, and is about the journal itself."""
    path = last_segment(tmp_path, 1)
    path.write_bytes(encode_header(99, 1, 1, 0, 0, 0, 0, 0, 1, 0))
    with pytest.raises(JournalError) as caught:
        look(tmp_path)
    assert caught.value.message == (
        f"read journal segment '{path}': a frame of the unknown kind 99 needs a newer ergo-capture"
    )


def test_a_frame_that_is_not_whole_any_more_is_named(tmp_path: Path) -> None:
    """The error gives its segment and its offset."""
    (position,) = write_batches(tmp_path, [[opening(1)]])
    path = last_segment(tmp_path, 1)
    flip(path, position.offset + 64)
    with pytest.raises(JournalDamaged) as caught:
        next(read_frames(tmp_path, [position], RealStorage()))
    assert said(caught.value) == (
        f"read journal segment '{path}': no whole frame at offset {position.offset}, where one was written",
        "read journal segment",
        str(path),
        "keep the file as it is and run `ergo-capture doctor` on it",
    )


def test_a_body_that_no_daemon_writes_is_told_by_its_batch(tmp_path: Path) -> None:
    """A bundle's reader raises the error; recovery quarantines the session."""
    journal = journal_in(tmp_path)
    session = a_session(1)
    journal.commit([session.opening()])
    journal.commit([opening(2), PendingFrame(FrameKind.EVENTS, 1, 0, 1, b"{}\n")])
    journal.close()
    (part, *_) = parts_in(tmp_path, RealStorage())
    with pytest.raises(JournalDamaged) as caught:
        list(part.events())
    assert caught.value.message.startswith("read journal: frame 1 of batch 2 holds what no daemon writes: ")
    assert (caught.value.op, caught.value.path, caught.value.hint) == ("read journal", None, DOCTOR)


def test_reading_or_following_a_damaged_session_names_it(tmp_path: Path) -> None:
    """The error includes the damage."""
    journal = journal_in(tmp_path)
    session = a_session(1)
    journal.commit([session.opening(), session.more(1)])
    journal.commit([closing(1, 1)])
    journal.close()
    damage = read_history(tmp_path, look(tmp_path).sessions[1], RealStorage()).damage
    assert damage is not None
    (part,) = parts_in(tmp_path, RealStorage())
    for read in (part.events, part.semantic_kinds, part.decisions):
        with pytest.raises(JournalDamaged) as caught:
            list(read())
        assert said(caught.value) == (
            f"read session s1 in '{tmp_path}': {damage}",
            "read session",
            str(tmp_path),
            f"{DOCTOR}, `ergo-capture recover` saves what can be proved",
        )
    with pytest.raises(JournalDamaged) as caught:
        next(follow(tmp_path, RealStorage(), lambda: None, of="s1"))
    assert said(caught.value) == (f"follow session s1: {damage}", "follow", str(tmp_path), DOCTOR)


def test_following_an_unknown_session_names_the_open_ones(tmp_path: Path) -> None:
    """Sessions that are over are in bundles."""
    journal = journal_in(tmp_path)
    one, two = a_session(1), a_session(2)

    def error() -> tuple[str, str | None, str | None, str | None]:
        with pytest.raises(JournalError) as caught:
            next(follow(tmp_path, RealStorage(), lambda: None, of="s9"))
        return said(caught.value)

    message = f"follow session 's9': it is not in the journal '{tmp_path}'"
    over = "a session that is over is in its bundle"
    assert error() == (message, "follow", str(tmp_path), f"open are: none; {over}")
    journal.commit([one.opening(), two.opening(), a_session(3).opening()])
    journal.commit([PendingFrame(FrameKind.PUBLISHED, 3, 1, 1, b"{}")])
    assert error() == (message, "follow", str(tmp_path), f"open are: s1, s2; {over}")
    journal.close()


def test_segments_that_were_deleted_unread_are_told(tmp_path: Path) -> None:
    """Nothing is left out without an error."""
    journal = journal_in(tmp_path)
    journal.commit([a_session(1).opening()])

    def delete() -> None:
        for index in range(3):
            journal.commit([events(1, index, size=3400)])
        journal.delete_segments(3)

    with pytest.raises(JournalError) as caught:
        list(follow(tmp_path, RealStorage(), delete))
    assert said(caught.value) == (
        f"follow journal '{tmp_path}': segments after 1 were deleted before they were read",
        "follow",
        str(tmp_path),
        "follow it again; what they held is in bundles",
    )
    journal.close()


def test_a_damage_is_told_by_its_place(tmp_path: Path) -> None:
    """The place is written as doctor and the log write it."""
    assert str(Damage(3, 128, 64, "there is no frame")) == "segment 3, offset 128: there is no frame (64 bytes)"
    write_batches(tmp_path, [[opening(1), opening(2)], [events(1, 0)], [events(1, 1)]])
    path = last_segment(tmp_path, 1)
    header, offset = frames_of(path)[-2]
    flip(path, offset + 64)
    found = look(tmp_path)
    words = f"segment 1, offset {offset}: a frame's body is not what was written ({header.size} bytes)"
    assert (str(found.damage[0]), found.sessions[1].damage) == (words, words)
