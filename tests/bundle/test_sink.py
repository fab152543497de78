"""A written bundle is read back before it gets its name, compressed or not."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ergo_capture.bundle.reader.opening import read_text
from ergo_capture.bundle.writer.sink import BundleSink
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
            data = bytearray(file.path.read_bytes())
            data[size // 2] ^= 1
            file.path.write_bytes(data)
        else:
            os.truncate(file.path, size // 2 if damage == "cut" else 0)
        with pytest.raises(ErgoCaptureError, match="verify bundle") as raised:
            sink.read_back()
        assert raised.value.hint
    assert list(tmp_path.iterdir()) == []


@KINDS
def test_a_failed_write_in_the_thread_raises_in_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: str
) -> None:
    """At the latest in ``finish``."""

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
            sink.write(bytes(1 << 20))
        sink.finish()
        sink.read_back()
        file.commit()
    assert told == [(0, 4 << 20), (4 << 20, 4 << 20)]
    assert (tmp_path / "b").stat().st_size == 10 << 20
