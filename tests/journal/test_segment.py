"""Segments: their names, their creation in advance, and the repair of a torn end block by block."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from unittest import mock

import pytest
from tests.doubles.faulty_storage import FaultyStorage
from tests.journal.journals import events, flip, frames_of, journal_in, last_segment, look, opening, write_batches

from ergo_capture.journal import segment
from ergo_capture.journal.frame import FrameKind
from ergo_capture.journal.segment import (
    NextSegment,
    head_frame,
    install_segment,
    is_torn_copy,
    is_unfinished,
    new_directory,
    prepare_segment,
    remove_unfinished,
    segment_path,
    sequence_of,
)
from ergo_capture.storage import RealFile, RealStorage, StorageError

NEW = "0000000000000007.journal.new"


@pytest.mark.parametrize(
    ("name", "sequence", "unfinished", "torn"),
    [
        ("0000000000000007.journal", 7, False, False),
        ("9999999999999999.journal", 9_999_999_999_999_999, False, False),
        ("0000000000000007.journal.new", None, True, False),
        ("0000000000000007.journal.torn", None, False, True),
        ("0000000000000007.journal.torn.2", None, False, True),
        ("0000000000000007.journal.torn.new", None, True, False),
        ("000000000000007.journal", None, False, False),
        ("0000000000000007.journal.old", None, False, False),
        ("x0000000000000007.journal.new", None, False, False),
        ("0000000000000007.journal.torn.x", None, False, False),
        ("0000000000000007-journal", None, False, False),
    ],
)
def test_a_name_says_what_a_file_of_the_journal_is(
    name: str, sequence: int | None, *, unfinished: bool, torn: bool
) -> None:
    """Other files are not the journal's."""
    assert (sequence_of(name), is_unfinished(name), is_torn_copy(name)) == (sequence, unfinished, torn)
    if sequence is not None:
        assert segment_path(Path("d"), sequence) == Path("d") / name


def test_a_segment_has_its_name_only_when_it_is_allocated(tmp_path: Path) -> None:
    """The rename is synced."""
    storage = FaultyStorage()
    file = prepare_segment(tmp_path, 7, 5000, storage)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(NEW, bytes(5000))]
    assert install_segment(tmp_path, 7, storage) == tmp_path / "0000000000000007.journal"
    assert [path.name for path in tmp_path.iterdir()] == ["0000000000000007.journal"]
    assert storage.calls == [
        f"open {NEW}",
        f"allocate {NEW}",
        "rename 0000000000000007.journal",
        f"sync_dir {tmp_path.name}",
    ]
    file.close()


def test_a_segment_that_an_earlier_attempt_left_is_created_anew(tmp_path: Path) -> None:
    """It has nothing of the old content."""
    (tmp_path / NEW).write_bytes(b"left" * 5000)
    prepare_segment(tmp_path, 7, 5000, RealStorage()).close()
    assert (tmp_path / NEW).read_bytes() == bytes(5000)


def test_a_segment_that_cannot_be_opened_is_not_tried_again(tmp_path: Path) -> None:
    """Only a left-over one is tried again."""
    storage = FaultyStorage({"open": [errno.EACCES]})
    with pytest.raises(StorageError):
        prepare_segment(tmp_path, 7, 5000, storage)
    assert storage.calls == [f"-open {NEW}"]


@pytest.mark.parametrize("also", [{}, {"close": [errno.EIO]}, {"remove": [errno.EIO]}])
def test_a_segment_that_cannot_be_allocated_leaves_nothing(also: dict[str, list[int | None]], tmp_path: Path) -> None:
    """The first error is raised, whatever fails after it."""
    storage = FaultyStorage({"allocate": [errno.ENOSPC], **also})
    with pytest.raises(StorageError) as caught:
        prepare_segment(tmp_path, 7, 5000, storage)
    assert (caught.value.op, caught.value.errno) == ("allocate", errno.ENOSPC)
    assert [call.strip("-") for call in storage.calls[1:]] == [f"{op} {NEW}" for op in ("allocate", "close", "remove")]
    assert list(tmp_path.iterdir()) == ([] if "remove" not in also else [tmp_path / NEW])


def test_the_head_of_a_segment_belongs_to_no_session() -> None:
    """It names the format, the program and the end of the segment before."""
    frame = head_frame(3, "test 1", 41, 5)
    assert (frame.kind, frame.session, frame.first, frame.count) == (8, 0, 0, 0)
    assert frame.body == b'{"format":2,"program":"test 1","sequence":3,"batch":41,"frames":5}'


def test_a_segment_created_ahead_is_taken_if_it_is_large_enough(tmp_path: Path) -> None:
    """It is created once, with the size of the first request."""
    storage = FaultyStorage()
    ahead = NextSegment(tmp_path, storage)
    ahead.prepare(7, 5000)
    ahead.prepare(7, 9000)
    file = ahead.take(7, 6000, 5000)
    assert (file.size(), file.path) == (5000, tmp_path / NEW)
    assert storage.calls == [f"open {NEW}", f"allocate {NEW}"]
    file.close()
    ahead.prepare(8, 5000)
    other = ahead.take(8, 6000, 5000)
    assert other.path == tmp_path / "0000000000000008.journal.new"
    other.close()


def test_a_segment_is_created_ahead_in_a_thread_that_does_not_keep_the_process(tmp_path: Path) -> None:
    """The thread has a name, for those who inspect a process."""
    seen: list[threading.Thread] = []

    class Noting(FaultyStorage):
        def call(self, op: str, path: Path) -> None:
            seen.append(threading.current_thread())
            super().call(op, path)

    ahead = NextSegment(tmp_path, Noting())
    ahead.prepare(7, 5000)
    ahead.take(7, 5000, 5000).close()
    assert (seen[0].name, seen[0].daemon) == ("ergo-capture-segment", True)


def test_a_segment_created_ahead_that_is_too_small_is_replaced(tmp_path: Path) -> None:
    """A batch may be larger than a segment."""
    storage = FaultyStorage()
    ahead = NextSegment(tmp_path, storage)
    ahead.prepare(7, 5000)
    file = ahead.take(7, 6000, 5001)
    assert file.size() == 6000
    assert storage.calls == [f"{op} {NEW}" for op in ("open", "allocate", "close", "remove", "open", "allocate")]
    assert ahead.take(8, 5000, 10).path == tmp_path / "0000000000000008.journal.new"
    file.close()


@pytest.mark.parametrize(
    ("size", "least", "created"), [(1000, 600, 600), (1000, 10, 100), (1000, 1000, None), (100, 10, None)]
)
def test_a_smaller_segment_is_created_on_a_full_disk(
    size: int, least: int, created: int | None, tmp_path: Path
) -> None:
    """It has room for the batch, and at least the smallest size; a whole segment that small is not tried again."""
    storage = FaultyStorage({"allocate": [errno.ENOSPC]})
    with mock.patch.object(segment, "_LEAST_BYTES", 100):
        if created is None:
            with pytest.raises(StorageError):
                NextSegment(tmp_path, storage).take(7, size, least)
            assert storage.table["allocate"] == []
        else:
            file = NextSegment(tmp_path, storage).take(7, size, least)
            assert file.size() == created
            file.close()


def test_no_smaller_segment_is_created_after_another_error(tmp_path: Path) -> None:
    """The disk may have room."""
    storage = FaultyStorage({"allocate": [errno.EIO]})
    with pytest.raises(StorageError):
        NextSegment(tmp_path, storage).take(7, 8 << 20, 10)
    assert storage.calls.count(f"open {NEW}") == 1


def test_a_segment_created_ahead_is_removed_if_it_is_not_needed(tmp_path: Path) -> None:
    """Errors are ignored: the next start removes the file."""
    storage = FaultyStorage()
    ahead = NextSegment(tmp_path, storage)
    ahead.discard()
    ahead.prepare(7, 5000)
    ahead.discard()
    assert list(tmp_path.iterdir()) == []
    assert storage.calls[-2:] == [f"close {NEW}", f"remove {NEW}"]
    ahead.prepare(7, 5000)
    storage.fail_next("close", errno.EIO)
    storage.fail_next("remove", errno.EIO)
    ahead.discard()


def test_unfinished_files_are_removed_and_others_stay(tmp_path: Path) -> None:
    """Unfinished are new segments and new copies of torn ends."""
    names = [NEW, "0000000000000007.journal.torn.new", "0000000000000007.journal", "other.new"]
    for name in names:
        (tmp_path / name).touch()
    remove_unfinished(tmp_path, RealStorage())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:])


def test_a_new_directory_has_the_first_free_number(tmp_path: Path) -> None:
    """Unfinished directories count."""
    assert new_directory(tmp_path, "saved-", RealStorage()) == tmp_path / "saved-1"
    (tmp_path / "saved-1").mkdir()
    (tmp_path / "saved-2.new").mkdir()
    (tmp_path / "saved-4").mkdir()
    assert new_directory(tmp_path, "saved-", RealStorage()) == tmp_path / "saved-3"


# --- repair ---


class Noting(RealStorage):
    """A storage that notes the writes."""

    def __init__(self) -> None:
        self.written: list[tuple[str, int, int]] = []

    def open(self, path: Path, *, create: bool = False, write: bool = False) -> RealFile:
        """Open a file and note its writes (``Storage``)."""
        file = super().open(path, create=create, write=write)
        real = file.write_at

        def write_at(buffers: list[bytes], offset: int, *, sync: bool = False) -> None:
            self.written.append((file.path.name, offset, sum(map(len, buffers))))
            real(buffers, offset, sync=sync)

        file.write_at = write_at  # type: ignore[assignment, method-assign]
        return file


def torn_journal(directory: Path, keep: int) -> tuple[bytes, int]:
    """Write a journal whose last batch is cut after so many bytes; return the torn bytes and their offset."""
    write_batches(directory, [[opening(1)], [events(1, 0), events(1, 1, size=300)], [events(1, 2, size=300)]])
    path = last_segment(directory, 1)
    _, offset = frames_of(path)[-1]
    data = path.read_bytes()[: offset + keep]
    path.write_bytes(data)
    return data[offset:], offset


@pytest.mark.parametrize("block", [64, 100, 200, 1 << 20])
def test_a_torn_end_is_copied_and_the_last_batch_rewritten_block_by_block(block: int, tmp_path: Path) -> None:
    """Both are written as a whole, and nothing else is written."""
    torn, offset = torn_journal(tmp_path, 200)
    path = last_segment(tmp_path, 1)
    before = path.read_bytes()[:offset]
    start = frames_of(path)[2][1]
    storage = Noting()
    with mock.patch.object(segment, "_COPY_BYTES", block):
        journal_in(tmp_path, storage).close()
    assert (tmp_path / f"{path.name}.torn").read_bytes() == torn
    assert path.read_bytes() == before
    copied = [(at, size) for name, at, size in storage.written if name.endswith(".torn.new")]
    rewritten = [(at, size) for name, at, size in storage.written if name == path.name]
    assert copied == [(at, min(block, 200 - at)) for at in range(0, 200, block)]
    assert rewritten == [(at, min(block, offset - at)) for at in range(start, offset, block)]


@pytest.mark.parametrize("block", [64, 200, 1 << 20])
@pytest.mark.parametrize("change", [None, 0, 63, 64, 199, "shorter", "longer"])
def test_a_torn_end_is_not_copied_again_if_its_copy_is_whole(
    block: int, change: int | str | None, tmp_path: Path
) -> None:
    """A copy with other bytes is of another torn end: it stays, and the new copy gets a number."""
    torn, _ = torn_journal(tmp_path, 200)
    old = bytearray(torn)
    if isinstance(change, int):
        old[change] ^= 1
    elif change is not None:
        old = old[:-1] if change == "shorter" else old + b"x"
    name = last_segment(tmp_path, 1).name
    (tmp_path / f"{name}.torn").write_bytes(old)
    (tmp_path / f"{name}.torn.2").write_bytes(b"another")
    with mock.patch.object(segment, "_COPY_BYTES", block):
        journal_in(tmp_path).close()
    copies = {path.name: path.read_bytes() for path in tmp_path.iterdir() if ".torn" in path.name}
    expected = {f"{name}.torn": bytes(old), f"{name}.torn.2": b"another"}
    assert copies == expected | ({} if change is None else {f"{name}.torn.3": torn})


def test_the_proof_of_a_damage_is_a_frame_of_its_own_batch(tmp_path: Path) -> None:
    """It belongs to no session, and is durable before the torn end is cut off."""
    write_batches(tmp_path, [[opening(1), opening(2)], [events(1, 0)], [events(2, 0, size=300)]])
    path = last_segment(tmp_path, 1)
    (_, damage), (_, torn) = frames_of(path)[-2:]
    flip(path, damage + 64)
    flip(path, torn + 64)
    storage = FaultyStorage()
    journal_in(tmp_path, storage).close()
    flip(path, damage + 64)
    header, offset = frames_of(path)[-1]
    assert (header.kind, header.session, header.first, header.count, offset) == (FrameKind.PROOF, 0, 0, 0, torn)
    assert (header.batch, header.index, header.frames, header.length) == (3, 0, 1, 2)
    assert path.stat().st_size == torn + header.size
    changes = [call.split()[0] for call in storage.calls if call.endswith(path.name)]
    assert changes.index("write") < changes.index("sync") < changes.index("truncate")


def test_files_are_closed_after_a_repair(tmp_path: Path) -> None:
    """The files that were only compared are closed too."""
    torn, _ = torn_journal(tmp_path, 200)
    (tmp_path / f"{last_segment(tmp_path, 1).name}.torn").write_bytes(torn)
    storage = FaultyStorage()
    journal_in(tmp_path, storage).close()
    opened = sorted(call.split()[1] for call in storage.calls if call.startswith("open"))
    assert sorted(call.split()[1] for call in storage.calls if call.startswith("close")) == opened


def test_a_segment_that_is_whole_is_not_cut(tmp_path: Path) -> None:
    """Its last batch is written again."""
    write_batches(tmp_path, [[opening(1)]])
    journal_in(tmp_path).close()
    storage = FaultyStorage()
    journal_in(tmp_path, storage).close()
    changes = [call.split()[0] for call in storage.calls if call.split()[0] not in ("open", "close", "read")]
    assert changes == ["write", "sync"]
    assert look(tmp_path).torn is None
