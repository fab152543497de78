"""A name only ever stands for a whole file: every stage that can fail, races, and what a kill leaves."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.bundles import small_bundle
from tests.daemons import short_directory
from tests.server.users import NOBODY

from ergo_capture import CaptureJsonStyle, CaptureWriteError, encode_bundle, read_capture_bundle, write_capture_bundle
from ergo_capture.storage import atomic
from ergo_capture.storage.atomic import AtomicFile, sweep_temporaries, write_bytes_atomic
from ergo_capture.storage.write_error import WriteStage

OLD, NEW = b"old content\n", b"new content, which is longer\n"


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    """Return an existing file."""
    path = tmp_path / "run.capture.json"
    path.write_bytes(OLD)
    return path


def failing(call: str, number: int, monkeypatch: pytest.MonkeyPatch, *, after: int = 0) -> None:
    """Make a call of the ``os`` module fail from its ``after``-th use on."""
    real: Callable[..., Any] = getattr(os, call)
    count = 0

    def fail(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count > after:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    monkeypatch.setattr(os, call, fail)


def refusal(destination: Path, write: Callable[[], None], stage: WriteStage) -> CaptureWriteError:
    """Return the error; assert that the destination's directory is as it was."""
    before = {path.name: path.read_bytes() for path in destination.parent.iterdir() if path.is_file()}
    with pytest.raises(CaptureWriteError) as raised:
        write()
    assert raised.value.stage is stage
    assert raised.value.destination == destination
    assert raised.value.hint
    assert {path.name: path.read_bytes() for path in destination.parent.iterdir() if path.is_file()} == before
    return raised.value


def test_a_file_is_replaced_and_nothing_else_is_left(destination: Path) -> None:
    """The new file is for owner and group only."""
    write_bytes_atomic(destination, NEW)
    assert destination.read_bytes() == NEW
    assert list(destination.parent.iterdir()) == [destination]
    assert destination.stat().st_mode & 0o137 == 0


# --- the reference's eight stages, and SyncDirectory ---


def test_create_output_directory_is_the_stage_when_a_file_is_in_the_way(tmp_path: Path) -> None:
    """The message is the reference's."""
    (tmp_path / "file").write_bytes(b"")
    destination = tmp_path / "file" / "deep" / "b.json"
    with pytest.raises(CaptureWriteError) as raised:
        write_capture_bundle(destination, small_bundle())
    assert raised.value.stage is WriteStage.CREATE_OUTPUT_DIRECTORY
    assert str(raised.value) == "create capture output directory: Not a directory (os error 20)"
    assert isinstance(raised.value.cause, OSError)


@pytest.mark.parametrize("style", CaptureJsonStyle)
def test_serialize_is_the_stage_when_a_string_is_not_unicode(destination: Path, style: CaptureJsonStyle) -> None:
    """The message names the style."""
    broken = msgspec.structs.replace(small_bundle(), graph_id="\ud800")
    error = refusal(destination, lambda: write_capture_bundle(destination, broken, style), WriteStage.SERIALIZE)
    assert str(error).startswith(f"serialize capture bundle '{destination}' ({style.value}): ")
    assert error.style == style.value


@pytest.mark.parametrize("name", ["..", "/", "."])
def test_invalid_destination_is_the_stage_when_no_file_is_named(tmp_path: Path, name: str) -> None:
    """A directory's name is not a file's."""
    destination = tmp_path / name if name != "." else Path()
    with pytest.raises(CaptureWriteError, match="destination must include a file name") as raised:
        write_bytes_atomic(destination, NEW)
    assert raised.value.stage is WriteStage.INVALID_DESTINATION
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EMFILE, errno.ENAMETOOLONG])
def test_create_temp_file_is_the_stage_when_open_fails(
    destination: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Another attempt is made only if the name is taken."""
    failing("open", number, monkeypatch)
    error = refusal(destination, lambda: write_bytes_atomic(destination, NEW), WriteStage.CREATE_TEMP_FILE)
    assert str(error) == (
        f"write capture bundle '{destination}': create temp file '{error.temp_path}': "
        f"{os.strerror(number)} (os error {number})"
    )


def test_64_taken_names_exhaust_the_attempts(destination: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt tries another name."""
    tried: list[str] = []
    real = os.open

    def taken(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_EXCL:
            tried.append(Path(path).name)
            raise FileExistsError(errno.EEXIST, "File exists")
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", taken)
    error = refusal(destination, lambda: write_bytes_atomic(destination, NEW), WriteStage.EXHAUSTED_TEMP_FILE_ATTEMPTS)
    assert len(set(tried)) == len(tried) == 64
    assert str(error) == f"write capture bundle '{destination}': exhausted temp file creation attempts"


def test_the_64th_name_is_used_if_it_is_free(destination: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """63 files of others are left alone."""
    start = next(atomic._counter) + 1
    others = [
        destination.with_name(f"{destination.name}.{os.getpid()}.{number}.tmp") for number in range(start, start + 63)
    ]
    for other in others:
        other.write_bytes(b"another's")
    write_bytes_atomic(destination, NEW)
    assert destination.read_bytes() == NEW
    assert {other.read_bytes() for other in others} == {b"another's"}


@pytest.mark.parametrize(
    ("spelled", "beside"),
    [
        ("b", "./b"),
        ("./b", "./b"),
        ("d/b", "d/b"),
        ("./d//b", "./d/b"),
        ("d/./b", "d/b"),
        ("b/", "./b"),
        ("b/.", "./b"),
        ("d/../b", "d/../b"),
        ("\udcff", "./\ufffd"),
    ],
)
def test_paths_are_shown_as_the_reference_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str, beside: str
) -> None:
    """The destination as it was given and the temporary beside it, in the error for a destination that is a directory."""
    monkeypatch.chdir(tmp_path)
    Path(spelled).mkdir(parents=True)
    with pytest.raises(CaptureWriteError) as raised:
        write_capture_bundle(spelled, small_bundle())
    assert raised.value.stage is WriteStage.RENAME_TEMP_FILE
    assert isinstance(raised.value.cause, OSError)
    assert raised.value.temp_path is not None
    number = raised.value.temp_path.name.removesuffix(".tmp").rpartition(".")[2]
    shown, reason = spelled.replace("\udcff", "\ufffd"), os.strerror(raised.value.cause.errno or 0)
    assert str(raised.value) == (
        f"write capture bundle '{shown}': rename temp file '{beside}.{os.getpid()}.{number}.tmp': "
        f"{reason} (os error {raised.value.cause.errno})"
    )


@pytest.mark.parametrize("ending", ["/", "//", "/."])
def test_a_destination_with_a_slash_at_the_end_is_refused(tmp_path: Path, ending: str) -> None:
    """It asks for a directory: nothing is written, and a file of that name stays as it is."""
    for old in (None, OLD):
        if old is not None:
            (tmp_path / "b").write_bytes(old)
        with pytest.raises(CaptureWriteError) as raised:
            write_capture_bundle(f"{tmp_path}/b{ending}", small_bundle())
        assert raised.value.stage is WriteStage.RENAME_TEMP_FILE
        assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if old is None else [old])


@pytest.mark.parametrize(
    ("name", "stage"), [("b\0", WriteStage.CREATE_TEMP_FILE), ("d\0/b", WriteStage.CREATE_OUTPUT_DIRECTORY)]
)
def test_a_name_with_a_nul_byte_is_refused(tmp_path: Path, name: str, stage: WriteStage) -> None:
    """The error is of the stage that would have created the name."""
    with pytest.raises(CaptureWriteError, match="file name contained an unexpected NUL byte") as raised:
        write_capture_bundle(f"{tmp_path}/{name}", small_bundle())
    assert raised.value.stage is stage
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "stage"), [("\ud800", WriteStage.CREATE_TEMP_FILE), ("\ud800/b", WriteStage.CREATE_OUTPUT_DIRECTORY)]
)
def test_a_name_with_a_lone_surrogate_is_refused(tmp_path: Path, name: str, stage: WriteStage) -> None:
    """The message can be printed."""
    with pytest.raises(CaptureWriteError) as raised:
        write_capture_bundle(f"{tmp_path}/{name}", small_bundle())
    assert raised.value.stage is stage
    assert str(raised.value).encode()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("after", [0, 1])
def test_write_temp_file_is_the_stage_when_a_write_fails(
    destination: Path, monkeypatch: pytest.MonkeyPatch, number: int, after: int
) -> None:
    """The first write, or one after a short write."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:5]))
    failing("write", number, monkeypatch, after=after)
    error = refusal(destination, lambda: write_bytes_atomic(destination, NEW), WriteStage.WRITE_TEMP_FILE)
    assert ": write temp file '" in str(error)
    assert isinstance(error.cause, OSError)
    assert error.cause.errno == number


def test_short_writes_are_completed(destination: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is written by further calls."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    write_bytes_atomic(destination, NEW)
    assert destination.read_bytes() == NEW


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_sync_temp_file_is_the_stage_when_fsync_fails(
    destination: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The file gets no name, and the sync is not tried again."""
    failing("fsync", number, monkeypatch)
    error = refusal(destination, lambda: write_bytes_atomic(destination, NEW), WriteStage.SYNC_TEMP_FILE)
    assert ": sync temp file '" in str(error)


def test_rename_temp_file_is_the_stage_when_the_destination_is_a_directory(destination: Path) -> None:
    """The temporary was in the same directory."""
    destination.unlink()
    destination.mkdir()
    error = refusal(destination, lambda: write_bytes_atomic(destination, NEW), WriteStage.RENAME_TEMP_FILE)
    assert ": rename temp file '" in str(error)
    assert error.temp_path is not None
    assert error.temp_path.parent == destination.parent


def test_sync_directory_is_the_stage_when_the_directory_cannot_be_synced(
    destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has its name already."""
    failing("fsync", errno.EIO, monkeypatch, after=1)
    with pytest.raises(CaptureWriteError, match="sync directory") as raised:
        write_bytes_atomic(destination, NEW)
    assert raised.value.stage is WriteStage.SYNC_DIRECTORY
    assert destination.read_bytes() == NEW
    assert list(destination.parent.iterdir()) == [destination]


def test_the_stages_are_those_of_the_reference_and_sync_directory() -> None:
    """They have the reference's names."""
    assert [stage.value for stage in WriteStage] == [
        "CreateOutputDirectory",
        "Serialize",
        "InvalidDestination",
        "CreateTempFile",
        "ExhaustedTempFileAttempts",
        "WriteTempFile",
        "SyncTempFile",
        "RenameTempFile",
        "SyncDirectory",
    ]


def test_the_order_is_write_sync_rename_sync_directory(destination: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name never stands for bytes that a power cut could take back."""
    calls: list[str] = []

    def noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(os, "write", noting("write", os.write))
    monkeypatch.setattr(os, "fsync", noting("sync", os.fsync))
    monkeypatch.setattr(os, "replace", noting("rename", os.replace))
    with AtomicFile(destination) as file:
        file.write(NEW)
        assert destination.read_bytes() == OLD
        file.commit()
    assert calls == ["write", "sync", "rename", "sync"]


def test_directories_that_are_created_for_a_file_are_synced_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut must not remove a bundle together with its new directory; existing directories are not synced."""
    synced: list[str] = []
    real = os.fsync

    def noting(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name.partition(".")[0])
        real(fd)

    monkeypatch.setattr(os, "fsync", noting)
    for name in ("one", "two"):
        write_capture_bundle(tmp_path / "a" / "b" / f"{name}.capture.json", small_bundle())
    assert synced == [tmp_path.name, "a", "one", "b", "two", "b"]


def test_a_file_that_is_not_committed_leaves_nothing(destination: Path) -> None:
    """This holds after an error, and without a call of ``commit``."""
    with suppress(ZeroDivisionError), AtomicFile(destination) as file:
        file.write(NEW)
        raise ZeroDivisionError
    with AtomicFile(destination) as file:
        file.write(NEW)
    assert destination.read_bytes() == OLD
    assert list(destination.parent.iterdir()) == [destination]


# --- races ---


def test_eight_threads_on_one_destination_leave_one_whole_file(tmp_path: Path) -> None:
    """A reader sees a whole file at any time; no temporary is left."""
    destination = tmp_path / "raced.json"
    texts = [bytes([65 + number]) * (20_000 + number) for number in range(8)]
    start, errors, done = threading.Barrier(9), [], threading.Event()

    def write(text: bytes) -> None:
        start.wait()
        try:
            for _ in range(5):
                write_bytes_atomic(destination, text)
        except BaseException as error:  # noqa: BLE001 - asserted below
            errors.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    watcher_saw: set[bytes] = set()

    def watch() -> None:
        while not done.is_set():
            if destination.exists():
                watcher_saw.add(destination.read_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start.wait()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    assert errors == []
    assert watcher_saw | {destination.read_bytes()} <= set(texts)
    assert list(tmp_path.iterdir()) == [destination]


def test_a_directory_without_write_permission_is_named_in_the_error() -> None:
    """The stage is CreateTempFile and the old file stays. Root may write anywhere, so it becomes another user."""
    with short_directory() as place:
        destination = place / "b.json"
        destination.write_bytes(OLD)
        place.chmod(0o555)
        user = os.geteuid()
        os.seteuid(NOBODY if user == 0 else user)
        try:
            with pytest.raises(CaptureWriteError, match="Permission denied") as raised:
                write_bytes_atomic(destination, NEW)
        finally:
            os.seteuid(user)
            place.chmod(0o755)
        assert raised.value.stage is WriteStage.CREATE_TEMP_FILE
        assert [path.read_bytes() for path in place.iterdir()] == [OLD]


# --- bundles, and what a kill leaves ---


@pytest.mark.parametrize("style", CaptureJsonStyle)
def test_a_bundle_is_written_with_its_directories_and_reads_back(tmp_path: Path, style: CaptureJsonStyle) -> None:
    """The bundle may be in either style."""
    path = tmp_path / "a" / "b" / "run.capture.json"
    bundle = small_bundle()
    write_capture_bundle(path, bundle, style)
    assert path.read_bytes() == encode_bundle(bundle, style)
    assert read_capture_bundle(path) == bundle


def test_only_temporaries_whose_process_is_gone_are_swept(tmp_path: Path) -> None:
    """Files of living processes, files with other names, links and directories stay."""
    gone = 4_194_304 + 1
    for name in (f"b.json.{gone}.0.tmp", f"b.json.{os.getpid()}.1.tmp", "b.json.1.0.tmp", "b.json", "other.tmp"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / f"link.{gone}.0.tmp").symlink_to(tmp_path / "b.json")
    (tmp_path / f"folder.{gone}.0.tmp").mkdir()
    swept = sweep_temporaries(tmp_path)
    assert [path.name for path in swept] == sorted([f"b.json.{gone}.0.tmp", f"b.json.{os.getpid()}.1.tmp"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "b.json.1.0.tmp",
        "b.json",
        "other.tmp",
        f"link.{gone}.0.tmp",
        f"folder.{gone}.0.tmp",
    }


def test_a_process_that_was_not_reaped_has_ended(tmp_path: Path) -> None:
    """In a container, its id may stay for ever."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        left = tmp_path / f"b.capture.json.{child.pid}.0.tmp"
        left.touch()
        assert sweep_temporaries(tmp_path) == [left]
