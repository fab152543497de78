"""Finding events in files and pipes, compressed or not."""

from __future__ import annotations

import asyncio
import gzip
import os
from pathlib import Path

import pytest

from ergo_capture.cli.support.event_input import EventLine, EventLines
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
    ],
    ids=["one member", "two members", "zeros between and behind"],
)
async def test_compressed_input_is_recognised(tmp_path: Path, data: bytes) -> None:
    """Whatever its name, and also if several gzip members were appended to one file."""
    (tmp_path / "feed").write_bytes(data)
    assert await found_in(tmp_path / "feed") == FOUND


@pytest.mark.parametrize("data", [b"", b"\n", b"\x1f", b" \n\n"])
async def test_input_without_events_gives_none(tmp_path: Path, data: bytes) -> None:
    """Empty, or almost; a byte that is no line is left for the daemon to reject."""
    (tmp_path / "feed").write_bytes(data)
    assert [line for line, _, _ in await found_in(tmp_path / "feed")] == ([b"\x1f\n"] if data == b"\x1f" else [])


async def test_truncated_gzip_is_an_error_after_the_complete_lines(tmp_path: Path) -> None:
    """It is not taken for the end of the events."""
    (tmp_path / "feed").write_bytes(gzip.compress(b"".join(LINES))[:-3])
    found = []
    with pytest.raises(ErgoCaptureError, match="cut off") as raised:  # noqa: PT012
        async with EventLines(str(tmp_path / "feed")) as source:
            async for batch in source.batches():
                found += batch
    assert found == FOUND
    assert "what was sent before is captured" in (raised.value.hint or "")


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
