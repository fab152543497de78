"""Measure a start after kill -9: scanning and recovering a journal of a million events, by the size of its frames.

    python -m pytest -m bench -s tests/bench/test_recovery.py

The yardstick reads the same files, checks both checksums of each frame, decodes the event lines with msgspec and the
rows of decisions too: what a reader that kept nothing and compared nothing would do. Both count processor time.

Measured on two idle cores (1,000,000 events of 256 bytes; "before" with 200,000 on busy ones, a frame at a time):

| events in a frame | before | after | goal |
|---|---|---|---|
| 1,000 | 5.8 | 1.5 | 2.5 |
| 200 | 5.6 | 1.6 | 2.5 |
| 1 | 8.5 | 2.0 | 2.5 |

Where the time goes in frames of 1, for each event and its decision: the yardstick 2.8 us, of which unpacking and checking
two headers 1.5; the scan 2.5 (the same, and the order of the frames); recovery 4.8 (the same again, joining and decoding
the lines 0.6, the rows 0.6, the ids 0.2, the clock and the episodes 0.1). In larger frames a second reading with its
checksums is half of what is above the yardstick.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path

import msgspec
import pytest
from crc32c import crc32c
from tests.bench.ratios import in_turns, report
from tests.daemons import short_directory

from ergo_capture import Constraints, EventTime, ExternalEvent, ExternalEventKind
from ergo_capture.journal.frame import HEADER_BYTES, FrameKind, PendingFrame
from ergo_capture.journal.payloads import SessionDescription, encode_body
from ergo_capture.journal.recovery import recover
from ergo_capture.journal.scan import scan
from ergo_capture.journal.wal import Journal
from ergo_capture.protocol.capture import event_line
from ergo_capture.storage import RealStorage
from ergo_capture.storage.posix import RealFile

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]

EVENTS = 1_000_000
PAYLOAD = b'{"pad":"%b"}' % (b"x" * 246)
_HEADER = struct.Struct("<4sBBHQQQQIIIIII")


class _At(msgspec.Struct, frozen=True, gc=False):
    secs: int
    nanos: int


class _Event(msgspec.Struct, frozen=True, gc=False):
    event_id: str
    kind: str
    at: _At
    payload: msgspec.Raw


class _Line(msgspec.Struct, frozen=True, gc=False):
    type: str
    event: _Event


def write_journal(directory: Path, per_frame: int) -> None:
    """Write the journal of a session that was killed: each batch has a frame of events and the decisions before."""
    directory.mkdir()
    journal, _ = Journal.open(directory, RealStorage())
    description = SessionDescription(
        session="s", graph="g", constraints=Constraints(), adapter_provenance="a", runtime_provenance="r",
        engine="fixed", labels={}, peer=None, opened_at="2026-01-01T00:00:00Z", program="p",
    )  # fmt: skip
    journal.commit([PendingFrame(FrameKind.OPEN, 1, 0, 0, encode_body(description))])
    kind = ExternalEventKind.DataAvailable
    frames: list[PendingFrame] = []
    for first in range(0, EVENTS, per_frame):
        events = (
            ExternalEvent.with_payload(f"ev-{n:012}", kind, EventTime(n, 0), PAYLOAD)
            for n in range(first, first + per_frame)
        )
        frames.append(PendingFrame(FrameKind.EVENTS, 1, first, per_frame, b"".join(map(event_line, events))))
        journal.commit(frames)
        frames = [PendingFrame(FrameKind.DECISIONS, 1, first, per_frame, b"[[0,%d,%d]]" % (first, per_frame))]
    journal.close()


def read_plainly(directory: Path) -> int:
    """Read every frame, check it, decode it and drop it; return the number of events."""
    decode_lines, decode_rows = msgspec.json.Decoder(_Line).decode_lines, msgspec.json.Decoder(list[list[int]]).decode
    events = 0
    for path in sorted(directory.glob("*.journal")):
        data, at = memoryview(path.read_bytes()), 0
        while at + HEADER_BYTES <= len(data) and data[at : at + 4] == b"ergJ":
            header = _HEADER.unpack_from(data, at)
            kind, length = header[2], header[9]
            body = data[at + HEADER_BYTES : at + HEADER_BYTES + length]
            assert crc32c(data[at : at + 60]) == header[13]
            assert crc32c(body) == header[12]
            if kind == FrameKind.EVENTS:
                events += len(decode_lines(body))
            elif kind == FrameKind.DECISIONS:
                decode_rows(body)
            at += HEADER_BYTES + length + -length % 8
    return events


@pytest.mark.parametrize("per_frame", [1000, 200, 1])
def test_recovery_against_reading_the_same_frames(per_frame: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: at most 2.5 times."""
    with short_directory() as place:
        journal, storage = place / "journal", RealStorage()
        with monkeypatch.context() as patch:
            # A million syncs would take minutes, and make no other journal.
            patch.setattr("ergo_capture.storage.posix._DSYNC", 0)
            patch.setattr(RealFile, "sync", lambda _file: None)
            write_journal(journal, per_frame)

        def ours() -> float:
            began = time.process_time()
            found = recover(journal, scan(journal, storage), storage)
            assert found.events == EVENTS
            return time.process_time() - began

        def theirs() -> float:
            began = time.process_time()
            assert read_plainly(journal) == EVENTS
            return time.process_time() - began

        report(f"recovery, frames of {per_frame}, against reading them", "s", in_turns(ours, theirs, 5), "at most 2.5")
