"""Finding events in files and pipes, compressed or not."""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import tracemalloc
from codecs import BOM_UTF8
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ergo_capture.cli.support.event_input import EventLines
from ergo_capture.cli.support.input_form import InputForm
from ergo_capture.client import EventLine
from ergo_capture.errors import ErgoCaptureError

LINES = [
    b'{"type":"event","event":{"event_id":"e%d","kind":"Command","at":{"secs":0,"nanos":0}}}\n' % n for n in range(9)
]
FOUND = [EventLine(line, f"e{n}", n + 1) for n, line in enumerate(LINES)]


async def found_in(path: Path) -> list[EventLine]:
    """Return all event lines of a file, in order."""
    async with EventLines(str(path)) as source:
        return [line async for batch in source.batches() for line in batch]


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(b"".join(LINES)),
        gzip.compress(b"".join(LINES[:4])) + gzip.compress(b"".join(LINES[4:])),
        gzip.compress(b"".join(LINES)[:100]) + bytes(7) + gzip.compress(b"".join(LINES)[100:]) + bytes(512),
        zstandard.compress(b"".join(LINES)),
        zstandard.compress(b"".join(LINES[:4])) + zstandard.compress(b"".join(LINES[4:])),
        b"\x50\x2a\x4d\x18\x04\0\0\0size" + zstandard.compress(b"".join(LINES)),
        BOM_UTF8 + b"".join(LINES),
        gzip.compress(BOM_UTF8 + b"".join(LINES)),
    ],
    ids=[
        "one member", "two members", "zeros between and behind", "a frame of zstd", "two frames", "pzstd",
        "a byte order mark", "a compressed byte order mark",
    ],
)  # fmt: skip
async def test_compressed_input_is_recognised(tmp_path: Path, data: bytes) -> None:
    """The name does not matter; a file may consist of several members or frames."""
    (tmp_path / "feed").write_bytes(data)
    assert await found_in(tmp_path / "feed") == FOUND


@pytest.mark.parametrize("data", [b"", b"\n", b"\x1f", b" \n\n"])
async def test_input_without_events_gives_none(tmp_path: Path, data: bytes) -> None:
    """The input is empty, or nearly so; a byte that is no line is left for the daemon to reject."""
    (tmp_path / "feed").write_bytes(data)
    assert [line for line, _, _ in await found_in(tmp_path / "feed")] == ([b"\x1f\n"] if data == b"\x1f" else [])


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor(write_checksum=True).compress])
async def test_a_truncated_file_is_an_error_after_the_complete_lines(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    """It is not taken for the end of the events."""
    (tmp_path / "feed").write_bytes(compress(b"".join(LINES))[:-3])
    found = []
    with pytest.raises(ErgoCaptureError, match="cut off") as raised:  # noqa: PT012
        async with EventLines(str(tmp_path / "feed")) as source:
            async for batch in source.batches():
                found += batch
    assert found == FOUND
    assert "events that were sent before are captured" in (raised.value.hint or "")


async def test_complete_lines_of_a_pipe_are_yielded_at_once(tmp_path: Path) -> None:
    """They do not wait for a line that has only begun."""
    os.mkfifo(tmp_path / "feed")
    # Open it for reading and writing: opening a pipe for one of them waits for the other end.
    pipe = os.open(tmp_path / "feed", os.O_RDWR)
    async with EventLines(str(tmp_path / "feed")) as source:
        batches = source.batches()
        os.write(pipe, LINES[0] + LINES[1][:20])
        assert await anext(batches) == FOUND[:1]
        waiting = asyncio.ensure_future(anext(batches))
        for start in range(20, len(LINES[1])):
            os.write(pipe, LINES[1][start : start + 1])
        assert await waiting == FOUND[1:2]
        assert source.size is None
    os.close(pipe)


async def test_waiting_for_a_pipe_can_be_cancelled(tmp_path: Path) -> None:
    """Ctrl-C ends it; no thread is left in a read."""
    os.mkfifo(tmp_path / "feed")
    pipe = os.open(tmp_path / "feed", os.O_RDWR)
    async with EventLines(str(tmp_path / "feed")) as source:
        waiting = asyncio.ensure_future(anext(source.batches()))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    os.close(pipe)


@pytest.mark.skipif(shutil.which("pzstd") is None, reason="pzstd is not installed")
async def test_output_of_pzstd_is_read(tmp_path: Path) -> None:
    """It begins with a skippable frame."""
    (tmp_path / "feed").write_bytes(b"".join(LINES))
    await anyio.run_process(["pzstd", "-q", str(tmp_path / "feed"), "-o", str(tmp_path / "feed.zst")])
    assert (tmp_path / "feed.zst").read_bytes()[:4] != zstandard.compress(b"")[:4]
    assert await found_in(tmp_path / "feed.zst") == FOUND


async def test_utf_16_is_an_error(tmp_path: Path) -> None:
    """Otherwise every line would be rejected as malformed JSON."""
    (tmp_path / "feed").write_bytes(b"".join(LINES).decode().encode("utf-16"))
    with pytest.raises(ErgoCaptureError, match="it is UTF-16"):
        await found_in(tmp_path / "feed")


async def test_waiting_for_the_writer_of_a_pipe_can_be_cancelled(tmp_path: Path) -> None:
    """Opening a named pipe does not wait for its writer; the lines come when there is one."""
    os.mkfifo(tmp_path / "feed")
    async with EventLines(str(tmp_path / "feed")) as source:
        waiting = asyncio.ensure_future(anext(source.batches()))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        batches = source.batches()
        coming = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0)
        (tmp_path / "feed").write_bytes(b"".join(LINES))
        assert await coming == FOUND
        with pytest.raises(StopAsyncIteration):
            await anext(batches)


@pytest.mark.parametrize("cut", [1, 70, 1000])
async def test_a_line_beyond_the_limit_is_left_out_and_reported(tmp_path: Path, cut: int) -> None:
    """The line may come in one piece or in many; the lines around it are found."""
    long = b'{"event_id":"long","payload":"' + b"x" * 5000
    data = b"".join(LINES[:2]) + long + b"\n" + b"".join(LINES[2:]) + long
    os.mkfifo(tmp_path / "feed")
    pipe = os.open(tmp_path / "feed", os.O_RDWR)
    left_out: list[tuple[bytes, int]] = []
    found: list[EventLine] = []
    async with EventLines(str(tmp_path / "feed")) as source:
        batches = source.batches(200, lambda line, number: left_out.append((line, number)))
        for start in range(0, len(data), cut):
            os.write(pipe, data[start : start + cut])
            if len(found) < len(FOUND) and b"\n" in data[start : start + cut] and data[: start + cut].count(b"\n") != 3:
                found += await anext(batches)
        os.close(pipe)
        found += [line async for batch in batches for line in batch]
    assert [line.event_id for line in found] == [line.event_id for line in FOUND]
    assert left_out == [(long[:200], 3), (long[:200], 11)]


@pytest.mark.parametrize(
    ("compress", "text"),
    [
        (gzip.compress, b"\n" * (2 << 20)),
        (zstandard.compress, b"\n" * (2 << 20)),
        (bytes, b"x" * (32 << 20)),
        (gzip.compress, b"x" * (32 << 20)),
    ],
    ids=["newlines in gzip", "newlines in zstd", "one line", "one line in gzip"],
)
async def test_memory_is_bounded_whatever_the_input(
    tmp_path: Path, compress: Callable[[bytes], bytes], text: bytes
) -> None:
    """Two million empty lines, which take 2 KiB compressed and 80 MB as objects, or one line of 32 MiB."""
    (tmp_path / "feed").write_bytes(compress(text))
    del text
    tracemalloc.start()
    try:
        assert await found_in(tmp_path / "feed") == []
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("event_id", ["5", "null", "[]"])
async def test_an_event_whose_id_is_no_string_is_sent_as_an_event(tmp_path: Path, event_id: str) -> None:
    """The daemon then says that the id should be a string; before, it said that the line lacks a type."""
    (tmp_path / "feed").write_text(f'{{"event_id":{event_id},"kind":"Command"}}\n')
    ((line, found, _),) = await found_in(tmp_path / "feed")
    assert (line.startswith(b'{"type":"event","event":'), found) == (True, "")


#: Lines of which some are valid only together with a neighbour, and some hold two values.
ODD = [
    *(line.strip() for line in LINES[:3]),
    LINES[0].strip() + LINES[1].strip(),
    b'{"type":"event","event":',
    b'{"event_id":"a"}}',
    b'{"type":"event","event":{"event_id":"a"}',
    b"}",
    b'{"type":"event","event":{"event_id":"a"},"x":"}',
    b'{"}',
    b'{"type":"events","events":[{"event_id":"b"},{"event_id":"c"}]}',
    b'{"event_id":"bare"}',
    b'{"type":"event","event":{"event_id":7}}',
    b'  {"type":"event","event":{"event_id":"spaces"}} \r',
    b"",
    b"{}",
]


@given(st.lists(st.sampled_from(ODD), max_size=6))
def test_lines_found_together_are_those_found_one_by_one(lines: list[bytes]) -> None:
    """Many frames are decoded at a time; a line that is not one does not affect its neighbours."""
    together, alone = InputForm("feed"), InputForm("feed")
    for form in (together, alone):
        assert form.events_of([LINES[0].strip()], 1) == FOUND[:1]
    assert together.events_of(lines, 2) == [
        event for number, line in enumerate(lines, 2) for event in alone.events_of([line], number)
    ]
