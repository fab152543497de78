"""Compressed bundles are read like plain ones, with bounded memory, and unsound ones are refused."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tracemalloc
from codecs import BOM_UTF8
from pathlib import Path

import pytest
import zstandard
from tests.bundles import small_bundle

from ergo_capture import encode_bundle, read_capture_bundle
from ergo_capture.bundle.reader import opening
from ergo_capture.bundle.reader.opening import BundleFormatError, open_binary, read_text
from ergo_capture.bundle.reader.stream import open_bundle
from ergo_capture.cli.app import run
from ergo_capture.errors import ErgoCaptureError

TEXT = encode_bundle(small_bundle(events=300))


def packed(path: Path, text: bytes = TEXT) -> Path:
    """Write a compressed file and return its path."""
    path.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(text))
    return path


def test_a_compressed_bundle_reads_like_the_plain_one(tmp_path: Path) -> None:
    """Whole and as a stream."""
    path = packed(tmp_path / "b.capture.json.zst")
    assert path.stat().st_size < len(TEXT) / 4
    assert read_text(path) == TEXT
    assert encode_bundle(read_capture_bundle(path)) == TEXT
    with open_bundle(path) as stream:
        assert stream.size == len(TEXT)
        assert [event.event_id for event in stream.events()] == [f"e{n}" for n in range(300)]
        decisions = stream.decisions()
        assert next(decisions).event_id == "e0"
        assert len(list(stream.decisions())) == 300
        assert len(list(decisions)) == 299


def test_the_content_decides_whether_a_file_is_compressed(tmp_path: Path) -> None:
    """A compressed bundle may have any name, and a plain one may end in .zst."""
    assert read_text(packed(tmp_path / "b.capture.json")) == TEXT
    (tmp_path / "plain.zst").write_bytes(TEXT)
    assert read_text(tmp_path / "plain.zst") == TEXT
    (tmp_path / "empty.zst").write_bytes(b"")
    assert read_text(tmp_path / "empty.zst") == b""


def test_consecutive_zstd_frames_are_one_text(tmp_path: Path) -> None:
    """The zstd tool reads them so, and parallel compressors write such files."""
    path = tmp_path / "b.zst"
    half = len(TEXT) // 2
    path.write_bytes(b"".join(zstandard.compress(part) for part in (TEXT[:half], TEXT[half:])))
    assert read_text(path) == TEXT


def test_a_compressed_file_seeks_forward_only(tmp_path: Path) -> None:
    """Seeking forward skips text; seeking back is refused."""
    with open_binary(packed(tmp_path / "b.zst")) as file:
        assert file.read(3) == TEXT[:3]
        assert file.seek(1000) == 1000
        assert file.seek(5, io.SEEK_CUR) == 1005
        assert file.read(10) == TEXT[1005:1015]
        assert file.tell() == 1015
        assert file.seek(1 << 40) == len(TEXT)
        assert file.read(1) == b""
        with pytest.raises(io.UnsupportedOperation):
            file.seek(0)


@pytest.mark.parametrize("damage", ["flip", "behind", "window"])
def test_an_unsound_compressed_file_is_refused(tmp_path: Path, damage: str) -> None:
    """A changed byte, bytes after the end, or a window above the limit; read whole or as a stream."""
    path = packed(tmp_path / "b.zst")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
    elif damage == "behind":
        data += b"junk"
    else:
        # The window descriptor of a frame that is not one segment: 2 GiB.
        data = bytearray(b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"\x01\x00\x00")
    path.write_bytes(data)
    with pytest.raises(ErgoCaptureError, match="not sound zstd") as raised:
        read_capture_bundle(path)
    assert raised.value.hint
    with pytest.raises(ErgoCaptureError, match="not sound zstd"), open_bundle(path) as stream:
        list(stream.decisions())


def test_a_cut_compressed_file_is_readable_up_to_the_cut_and_then_refused(tmp_path: Path) -> None:
    """The cut may be anywhere."""
    # Many blocks: a block is decoded as a whole.
    text = encode_bundle(small_bundle(events=2000))
    data = packed(tmp_path / "whole.zst", text).read_bytes()
    path = tmp_path / "b.zst"
    lengths = []
    for cut in [*range(4, len(data) - 8, max(1, len(data) // 40)), *range(len(data) - 8, len(data))]:
        path.write_bytes(data[:cut])
        with pytest.raises(ErgoCaptureError, match="not sound zstd: it is cut off") as raised:
            read_capture_bundle(path)
        assert raised.value.hint
        with pytest.raises(ErgoCaptureError, match="not sound zstd"), open_bundle(path) as stream:
            list(stream.decisions())
        part = io.BytesIO()
        with open_binary(path) as file, pytest.raises(OSError, match="cut off"):
            shutil.copyfileobj(file, part)
        assert text.startswith(part.getvalue())
        lengths.append(len(part.getvalue()))
    assert lengths[0] == 0
    assert lengths[-1] == len(text)


@pytest.mark.parametrize("checksum", [False, True])
def test_frames_of_every_kind_are_followed_to_the_end(tmp_path: Path, *, checksum: bool) -> None:
    """Frames may have a checksum or none, be empty, be one repeated byte, or be skippable."""
    compress = zstandard.ZstdCompressor(write_checksum=checksum).compress
    skipped = b"\x50\x2a\x4d\x18" + (7).to_bytes(4, "little") + b"comment"
    stream = zstandard.ZstdCompressor(write_checksum=checksum).compressobj()
    streamed = stream.compress(b"streamed") + stream.flush()
    path = tmp_path / "b.zst"
    path.write_bytes(compress(b"one") + skipped + compress(b"") + compress(b" " * 200_000) + streamed)
    assert read_text(path) == b"one" + b" " * 200_000 + b"streamed"


def test_pzstd_and_other_skippable_frames_are_recognised(tmp_path: Path) -> None:
    """Pzstd begins a file with one."""
    path = packed(tmp_path / "b.zst")
    path.write_bytes(b"\x5f\x2a\x4d\x18\x04\0\0\0note" + path.read_bytes())
    assert read_text(path) == TEXT
    if shutil.which("pzstd"):
        path.write_bytes(TEXT)
        subprocess.run(["pzstd", "-q", path, "-o", tmp_path / "p.zst"], check=True)
        assert read_text(tmp_path / "p.zst") == TEXT


@pytest.mark.parametrize("damage", ["trailing bytes", "checksum"])
@pytest.mark.parametrize("block", [1, 1000, 1 << 20])
def test_everything_before_the_damage_can_be_read(tmp_path: Path, damage: str, block: int) -> None:
    """Then reading raises an error, however often it is tried."""
    path = packed(tmp_path / "b.zst")
    data = bytearray(path.read_bytes())
    if damage == "checksum":
        data[-1] ^= 1
    else:
        data += b"trailing"
    path.write_bytes(data)
    text = b""
    with open_binary(path) as file:
        with pytest.raises(OSError, match="not sound zstd"):  # noqa: PT012
            while True:
                text += file.read(block)
        assert text == TEXT
        with pytest.raises(OSError, match="not sound zstd"):
            file.read(1)


@pytest.mark.parametrize(
    ("begin", "message"), [(BOM_UTF8, "byte order mark"), (b"\xff\xfe{\0", "UTF-16"), (b"\xfe\xff\0{", "UTF-16")]
)
def test_what_an_editor_did_to_a_bundle_is_named(tmp_path: Path, begin: bytes, message: str) -> None:
    """The reference refuses such a bundle too."""
    (tmp_path / "b.capture.json").write_bytes(begin + TEXT)
    with pytest.raises(BundleFormatError, match=message):
        open_bundle(tmp_path / "b.capture.json")


def test_a_decompression_bomb_takes_constant_memory(tmp_path: Path) -> None:
    """A few KB that expand to 64 MB, read as a stream."""
    path = packed(tmp_path / "bomb.zst", b"[" + b" " * (64 << 20))
    assert path.stat().st_size < 10_000
    tracemalloc.start()
    try:
        with open_binary(path) as file:
            while file.read(1 << 16):
                pass
        with pytest.raises(BundleFormatError), open_bundle(path):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20


def test_a_compressed_text_above_the_memory_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be read as a stream; a plain file of that size is read, because it is no larger than it looks."""
    monkeypatch.setattr(opening, "MAX_IN_MEMORY", len(TEXT) - 1)
    path = packed(tmp_path / "b.zst")
    with pytest.raises(ErgoCaptureError, match="when expanded; read it as a stream"):
        read_capture_bundle(path)
    with open_bundle(path) as stream:
        assert len(list(stream.events())) == 300
    (tmp_path / "plain").write_bytes(TEXT)
    assert read_text(tmp_path / "plain") == TEXT
    monkeypatch.setattr(opening, "MAX_IN_MEMORY", len(TEXT))
    assert read_text(path) == TEXT


def test_verify_reports_the_same_of_a_compressed_bundle(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The results of the plain and the compressed file are equal."""
    plain = tmp_path / "b.capture.json"
    plain.write_bytes(TEXT)
    assert run(["verify", "--json", str(plain), str(packed(tmp_path / "b.capture.json.zst"))]) == 0
    said = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [one.pop("bundle")[-8:] for one in said] == ["ure.json", "json.zst"]
    assert said[0] == said[1]
