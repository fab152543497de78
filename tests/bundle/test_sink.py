"""A written bundle is read back before it gets its name, compressed or not."""

from __future__ import annotations

import hashlib
import os
import threading
from itertools import accumulate, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tests.bundle.test_running import SESSION

from ergo_capture.bundle.format import CaptureJsonStyle
from ergo_capture.bundle.reader.opening import read_text
from ergo_capture.bundle.writer.compose import head_of
from ergo_capture.bundle.writer.elements import joined
from ergo_capture.bundle.writer.sink import BundleSink, BundleWriter, _ReadBack
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.storage.atomic import AtomicFile
from ergo_capture.storage.write_error import CaptureWriteError, WriteStage

BLOCKS = [b"%06d," % number * 1000 for number in range(40)]
KINDS = pytest.mark.parametrize("compress", ["none", "zstd"])


@KINDS
def test_sink_reports_sizes_and_digests_of_text_and_file(tmp_path: Path, compress: str) -> None:
    """Blocks are written in their order."""
    path = tmp_path / "b"
    with AtomicFile(path) as file, BundleSink(file, compress) as sink:
        for block in BLOCKS:
            sink.write(block)
        sink.finish()
        sink.read_back()
        file.commit()
        said = (sink.size, sink.digest, sink.file_size, sink.file_digest)
    text, data = b"".join(BLOCKS), path.read_bytes()
    assert read_text(path) == text
    assert said == (len(text), hashlib.sha256(text).hexdigest(), len(data), hashlib.sha256(data).hexdigest())
    assert (data == text) == (compress == "none")


@KINDS
@pytest.mark.parametrize("damage", ["byte", "cut", "empty"])
def test_a_file_that_reads_back_differently_gets_no_name(tmp_path: Path, compress: str, damage: str) -> None:
    """P3: a changed byte, a cut end, or an empty file; the error has a hint."""
    with AtomicFile(tmp_path / "b") as file, BundleSink(file, compress) as sink:
        for block in BLOCKS:
            sink.write(block)
        sink.finish()
        size = file.path.stat().st_size
        if damage == "byte":
            # The last byte is one of the checksum of a frame of zstd.
            data = bytearray(file.path.read_bytes())
            data[-1] ^= 1
            file.path.write_bytes(data)
        else:
            os.truncate(file.path, size // 2 if damage == "cut" else 0)
        with pytest.raises(ErgoCaptureError) as raised:
            sink.read_back()
        reason = "the text that was read back is not the one that was written"
        if compress == "zstd":
            reason = "not sound zstd: " + ("zstd decompress" if damage == "byte" else "it is cut off")
        assert raised.value.message.startswith(f"verify bundle '{file.path}': {reason}")
        assert (raised.value.op, raised.value.path) == ("verify bundle", str(file.path))
        assert raised.value.hint == "check the disk; the journal still holds the session"
    assert list(tmp_path.iterdir()) == []


@KINDS
def test_a_failed_write_in_the_thread_raises_in_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: str
) -> None:
    """The error is raised in ``finish`` at the latest."""

    def full(_fd: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)

    def write_all(sink: BundleSink) -> None:
        for block in BLOCKS:
            sink.write(block)
        sink.finish()

    with (
        AtomicFile(tmp_path / "b") as file,
        BundleSink(file, compress) as sink,
        pytest.raises(CaptureWriteError, match="No space left") as raised,
    ):
        write_all(sink)
    assert raised.value.stage is WriteStage.WRITE_TEMP_FILE


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice")
@pytest.mark.parametrize("refused", [False, True])
def test_write_back_begins_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, refused: bool) -> None:
    """Each byte is advised once; a file system that takes no advice changes nothing."""
    told: list[tuple[int, int]] = []

    def advise(_fd: int, offset: int, size: int, _advice: int) -> None:
        told.append((offset, size))
        if refused:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", advise)
    with AtomicFile(tmp_path / "b") as file, BundleSink(file) as sink:
        for _ in range(10):
            sink.write(bytes(1 << 18))
        sink.finish()
        sink.read_back()
        file.commit()
    assert told == [(0, 1 << 20), (1 << 20, 1 << 20)]
    assert (tmp_path / "b").stat().st_size == 10 << 18


@KINDS
def test_a_file_is_read_back_in_pieces_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: str
) -> None:
    """A piece may end anywhere in a frame of zstd, and hold the beginning of the next one."""
    with AtomicFile(tmp_path / "b") as file, BundleSink(file, compress) as sink:
        for number, block in enumerate(BLOCKS):
            sink.write(block, [] if number % 3 else [number])
        sink.finish()
        for size in (7, 100, 1 << 20):
            monkeypatch.setattr("ergo_capture.bundle.writer.sink._READ_BYTES", size)
            back = _ReadBack(file.path, is_compressed=compress == "zstd")
            back.finish(sink._checksum, sink.size)
        sink.read_back()


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice")
@pytest.mark.parametrize("refused", [False, True])
def test_what_was_written_a_while_ago_is_read_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, refused: bool
) -> None:
    """It is read up to the end of the call before; the rest, which is in the cache, is read at the end."""
    told: list[tuple[int, int, int]] = []

    def advise(_fd: int, offset: int, size: int, advice: int) -> None:
        told.append((offset, size, advice))
        if refused:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr("ergo_capture.bundle.writer.sink._WRITE_BACK_BYTES", 1000)
    with AtomicFile(tmp_path / "b") as file, BundleSink(file) as sink:
        monkeypatch.setattr(file, "write_back", lambda _least: None)
        monkeypatch.setattr(os, "posix_fadvise", advise)
        ends = []
        for size in (999, 1, 999, 1001, 1000):
            sink.write(bytes(size))
            sink.drain()
            sink.read_back_along()
            sink._join_reader()
            ends.append(sink._read_back._offset)
        sink.finish()
        sink.read_back()
    assert ends == [0, 0, 0, 1000, 3000]
    # Nothing was written at the first time.
    assert told[0][:2] == (0, 0)
    assert [(offset, size) for offset, size, _ in told[1:]] == [(0, 1000), (1000, 2000)]
    assert {advice for _, _, advice in told} == {os.POSIX_FADV_DONTNEED}


def test_a_file_that_cannot_be_read_back_gets_no_name(tmp_path: Path) -> None:
    """Somebody may have removed the file."""
    with AtomicFile(tmp_path / "b") as file, BundleSink(file) as sink:
        sink.write(BLOCKS[0])
        sink.finish()
        file.path.unlink()
        with pytest.raises(ErgoCaptureError) as raised:
            sink.read_back()
    assert raised.value.message == f"verify bundle '{file.path}': No such file or directory"


@KINDS
@given(sizes=st.lists(st.integers(0, 40), max_size=8), data=st.data())
def test_pieces_do_not_depend_on_how_the_text_is_cut_into_blocks(
    compress: str, sizes: list[int], data: st.DataObject
) -> None:
    """Each has its place in the text and in the file, and the digest of its own text."""
    text = bytes(n % 251 for n in range(sum(sizes)))
    ends = set(accumulate(sizes, initial=0))
    begins = sorted({0} | (data.draw(st.sets(st.sampled_from(sorted(ends)))) - {len(text)})) if text else []
    with TemporaryDirectory() as place, AtomicFile(Path(place) / "b") as file, BundleSink(file, compress) as sink:
        at = 0
        for size in sizes:
            sink.write(text[at : at + size], [begin - at for begin in begins if at <= begin < at + size])
            at += size
        sink.finish()
        sink.read_back()
        content, pieces = file.path.read_bytes(), list(sink.pieces)
    assert [piece.text for piece in pieces] == begins
    for piece, after in pairwise([*pieces, None]):
        assert piece is not None
        own = text[piece.text : None if after is None else after.text]
        stored = content[piece.file : None if after is None else after.file]
        assert piece.digest == hashlib.sha256(own).hexdigest()[: len(piece.digest)]
        assert (stored if compress == "none" else zstandard.decompress(stored, 1 << 20)) == own


def test_a_frame_of_zstd_has_a_checksum(tmp_path: Path) -> None:
    """With it, every reader notices that a file was damaged."""
    path = tmp_path / "b"
    with AtomicFile(path) as file, BundleSink(file, "zstd") as sink:
        sink.write(BLOCKS[0], [0])
        sink.write(BLOCKS[1], [0])
        sink.finish()
        file.commit()
        second = sink.pieces[1].file
    data = path.read_bytes()
    for frame in (data, data[second:]):
        assert zstandard.get_frame_parameters(frame).has_checksum


def test_new_threads_go_on_where_those_before_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All have a name by which they are known."""
    names: list[str] = []
    readers: list[str] = []

    class Read(_ReadBack):
        def advance(self, end: int) -> None:
            readers.append(threading.current_thread().name)
            super().advance(end)

    monkeypatch.setattr("ergo_capture.bundle.writer.sink._ReadBack", Read)
    monkeypatch.setattr("ergo_capture.bundle.writer.sink._WRITE_BACK_BYTES", 1)

    class Named(AtomicFile):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            names.append(threading.current_thread().name)
            super().write(data)

    with Named(tmp_path / "b") as file, BundleSink(file) as sink:
        for block in BLOCKS[:4]:
            sink.write(block)
        for block in BLOCKS[4:6]:
            sink.drain()
            sink.read_back_along()
            sink.renew_threads()
            sink.write(block)
        sink.finish()
        sink.read_back()
        file.commit()
    assert (tmp_path / "b").read_bytes() == b"".join(BLOCKS[:6])
    assert names == ["compose_0"] * 6
    assert readers == ["read-back_0"] * 2


@pytest.mark.parametrize("style", list(CaptureJsonStyle))
def test_elements_may_come_in_any_number(tmp_path: Path, style: CaptureJsonStyle) -> None:
    """None at all, too: a comma stands between two elements, wherever they were given."""
    with BundleWriter(tmp_path / "b", head_of(SESSION), style=style) as bundle:
        number = 0
        for count in (0, 1, 0, 2):
            elements = joined([b',{"n":1}'] * count, [8] * count, number)
            bundle.write(elements, elements)
            number += count
        bundle.finish()
        bundle.commit()
    content = msgspec.json.decode((tmp_path / "b").read_bytes())
    assert content["events"] == content["decisions"] == [{"n": 1}] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_blocks_are_written_in_order_though_the_first_is_slow(tmp_path: Path) -> None:
    """The second waits for it; on its own it would begin at once."""
    second = threading.Event()

    class Slow(AtomicFile):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            if self.bytes_written == 0 and bytes(data) == BLOCKS[0]:
                second.wait(0.2)
            else:
                second.set()
            super().write(data)

    with Slow(tmp_path / "b") as file, BundleSink(file) as sink:
        for block in BLOCKS[:3]:
            sink.write(block)
        sink.finish()
        assert file.path.read_bytes() == b"".join(BLOCKS[:3])
