"""The real file system behind the port: completed calls, refusals and errors."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.storage import RealStorage, StorageError
from ergo_capture.storage.atomic import write_bytes_atomic
from ergo_capture.storage.write_error import CaptureWriteError

storage = RealStorage()


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All buffers are written, including empty ones, if the system takes three bytes at a time."""
    real = os.pwritev

    def three(fd: int, buffers: Sequence[bytes], offset: int, flags: int = 0) -> int:
        return real(fd, [b"".join(buffers)[:3]], offset, flags)

    monkeypatch.setattr(os, "pwritev", three)
    file = storage.open(tmp_path / "f", create=True)
    file.write_at([b"", b"four", b"", memoryview(b"fives"), b""], 2, sync=True)
    assert file.read_at(2, 9) == b"fourfives"
    file.close()


def test_an_interrupted_write_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EINTR does not reach the caller."""
    real, interruptions = os.pwritev, [1, 1]

    def interrupted(fd: int, buffers: Sequence[bytes], offset: int, flags: int = 0) -> int:
        if interruptions:
            interruptions.pop()
            raise InterruptedError(errno.EINTR, "interrupted")
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "pwritev", interrupted)
    file = storage.open(tmp_path / "f", create=True)
    file.write_at([b"data"], 0)
    assert file.read_at(0, 4) == b"data"
    file.close()


def test_a_write_of_zero_bytes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not become an endless loop."""
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    file = storage.open(tmp_path / "f", create=True)
    with pytest.raises(StorageError, match="wrote nothing"):
        file.write_at([b"data"], 0)
    file.close()


def test_a_write_without_rwf_dsync_is_synced_by_a_second_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system does not support the flag, the write is repeated without it and then synced."""
    real, real_sync, calls = os.pwritev, os.fdatasync, []

    def unknown(fd: int, buffers: Sequence[bytes], offset: int, flags: int = 0) -> int:
        calls.append("write" if not flags else "flag")
        if flags:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real(fd, buffers, offset)

    def sync(fd: int) -> None:
        calls.append("sync")
        real_sync(fd)

    monkeypatch.setattr(os, "pwritev", unknown)
    monkeypatch.setattr(os, "fdatasync", sync)
    file = storage.open(tmp_path / "f", create=True)
    file.write_at([b"data"], 0, sync=True)
    file.close()
    assert calls in (["flag", "write", "sync"], ["write", "sync"])


def test_more_buffers_than_one_call_takes_are_all_written(tmp_path: Path) -> None:
    """A batch may have more buffers than one vectored write."""
    file = storage.open(tmp_path / "f", create=True)
    file.write_at([b"%04d" % n for n in range(3000)], 0, sync=True)
    assert file.read_at(4 * 2999, 4) == b"2999"
    assert file.size() == 12_000
    file.close()


def test_a_short_read_is_an_error(tmp_path: Path) -> None:
    """The error says how many bytes are missing."""
    file = storage.open(tmp_path / "f", create=True)
    file.write_at([b"data"], 0)
    with pytest.raises(StorageError, match="ends 4 bytes early") as caught:
        file.read_at(0, 8)
    assert (caught.value.op, caught.value.errno) == ("read", errno.EIO)
    file.close()


def test_allocating_adds_zeros_and_keeps_what_was_written(tmp_path: Path) -> None:
    """Truncating keeps the beginning."""
    file = storage.open(tmp_path / "f", create=True)
    file.write_at([b"data"], 0)
    file.allocate(3 << 20)
    assert file.size() == 3 << 20
    assert file.read_at(0, 8) == b"data\0\0\0\0"
    file.truncate(2)
    assert file.read_at(0, file.size()) == b"da"
    file.close()


def test_files_and_directories_are_for_owner_and_group(tmp_path: Path) -> None:
    """The umask does not matter."""
    before = os.umask(0o022)
    try:
        storage.mkdir(tmp_path / "a" / "b")
        storage.open(tmp_path / "a" / "b" / "f", create=True).close()
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b")} == {0o750}
    assert (tmp_path / "a" / "b" / "f").stat().st_mode & 0o777 == 0o640


def test_nothing_is_opened_through_a_symbolic_link(tmp_path: Path) -> None:
    """Opening a link fails with ELOOP."""
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(StorageError) as caught:
        storage.open(tmp_path / "link")
    assert caught.value.errno == errno.ELOOP
    assert not storage.is_plain(tmp_path / "link")
    assert storage.is_plain(tmp_path / "target")


def test_creating_never_opens_an_existing_file(tmp_path: Path) -> None:
    """The file stays as it is."""
    (tmp_path / "f").write_bytes(b"precious")
    with pytest.raises(StorageError) as caught:
        storage.open(tmp_path / "f", create=True)
    assert caught.value.errno == errno.EEXIST
    assert (tmp_path / "f").read_bytes() == b"precious"


def test_p12_a_lock_has_one_holder_and_names_it(tmp_path: Path) -> None:
    """P12: a second attempt fails at once and names the holder's process id; a released lock can be taken."""
    with storage.lock(tmp_path / "lock"):
        with pytest.raises(StorageError) as caught:
            storage.lock(tmp_path / "lock")
        assert str(os.getpid()) in str(caught.value.hint)
    storage.lock(tmp_path / "lock").release()


@pytest.mark.parametrize(
    ("op", "act"),
    [
        ("open", lambda path: storage.open(path / "missing")),
        ("list", lambda path: storage.list(path / "missing")),
        ("remove", lambda path: storage.remove(path / "missing")),
        ("rename", lambda path: storage.replace(path / "missing", path / "other")),
        ("sync directory", lambda path: storage.sync_dir(path / "missing")),
        ("look at", lambda path: storage.is_own(path / "missing")),
        ("look at free space of", lambda path: storage.free_bytes(path / "missing")),
        ("lock", lambda path: storage.lock(path / "missing" / "lock")),
    ],
)
def test_every_error_says_what_where_and_what_next(op: str, act: object, tmp_path: Path) -> None:
    """A StorageError has an operation, a path, a cause, a hint, and a message with the first three."""
    assert callable(act)
    with pytest.raises(StorageError) as caught:
        act(tmp_path)
    error = caught.value
    assert error.op == op
    assert error.path is not None
    assert error.path in error.message
    assert error.hint == "check that the path exists"
    assert isinstance(error.cause, FileNotFoundError)
    assert error.errno == errno.ENOENT
    assert not error.is_full


def test_free_space_is_a_number_of_bytes(tmp_path: Path) -> None:
    """The figure is positive on any test machine."""
    assert storage.free_bytes(tmp_path) > 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_as_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It is not taken for a lock that another process holds; the file is closed again."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(StorageError) as caught:
        storage.lock(tmp_path / "lock")
    assert caught.value.message == f"lock '{tmp_path}/lock': {os.strerror(number)}"
    assert "the file system cannot do this" in str(caught.value.hint)
    assert "holds it" not in str(caught.value.hint)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    "needed",
    [
        storage.sync_dir,
        lambda directory: storage.mkdir(directory / "new"),
        lambda directory: write_bytes_atomic(directory / "file", b"x", what="manifest"),
    ],
)
def test_a_file_system_that_cannot_sync_directories_is_named_as_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needed: Callable[[Path], object]
) -> None:
    """This holds for every operation that syncs a directory."""
    real = os.fsync

    def sync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(fd)

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(ErgoCaptureError) as caught:
        needed(tmp_path)
    assert f"sync directory '{tmp_path}'" in caught.value.message
    assert "the file system cannot do this" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EACCES, "permissions"),
        (errno.EROFS, "ReadWritePaths="),
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "quota"),
    ],
)
def test_a_file_that_cannot_be_written_is_named_with_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    """The message says what was written, and the hint fits the error: free space only where there is none."""

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CaptureWriteError) as caught:
        write_bytes_atomic(tmp_path / "x.prom", b"x", what="metrics textfile")
    error = caught.value
    assert (error.op, error.message.startswith("write metrics textfile '")) == ("write metrics textfile", True)
    assert hint in str(error.hint)
    assert ("space" in str(error.hint)) == (number in (errno.ENOSPC, errno.EDQUOT))
