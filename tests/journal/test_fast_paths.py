"""Scanning and recovering many frames at once gives the same result as one by one, whatever the journal holds."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from crc32c import crc32c
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.daemons import short_directory
from tests.journal.journals import events, last_segment, opening, shrink, write_batches

from ergo_capture import Constraints, EventTime, ExternalEvent, ExternalEventKind, RunTermination
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal import recovery
from ergo_capture.journal.decision_rows import DecisionRows
from ergo_capture.journal.frame import HEADER_BYTES, FrameKind, PendingFrame, decode_header
from ergo_capture.journal.payloads import Closing, Rotation, SessionDescription, encode_body
from ergo_capture.journal.recovery import RecoveredSession, Recovery, recover
from ergo_capture.journal.scan import scan
from ergo_capture.journal.scan_report import ScanReport
from ergo_capture.journal.verdict import _Classifier
from ergo_capture.journal.wal import Journal
from ergo_capture.kernel.ports import MemoryDecisionLog
from ergo_capture.kernel.supervisor import Run, Supervisor
from ergo_capture.protocol.capture import event_line
from ergo_capture.storage import RealStorage

WHEN = "2026-01-01T00:00:00Z"

streams = st.lists(
    st.tuples(
        st.sampled_from([ExternalEventKind.Command] * 6 + [ExternalEventKind.DataAvailable, ExternalEventKind.Pump]),
        st.sampled_from([0, 1, 2, 3, 5, 2**63, 2**64 - 1]),
        st.sampled_from([RunTermination.Completed] * 5 + [RunTermination.TimedOut, RunTermination.Aborted]),
    ),
    min_size=1,
    max_size=40,
)
limits = st.builds(
    Constraints,
    st.sampled_from([None, None, None, 0, 1]),
    st.sampled_from([None, None, 1, 3]),
    st.sampled_from([None, None, EventTime(2, 0)]),
    st.sampled_from([None, EventTime(0, 0), EventTime(1, 0)]),
    st.sampled_from([0, 1]),
)
cuts = st.lists(st.integers(0, 40), max_size=12)


@dataclasses.dataclass
class Plan:
    """A session: its events, the ends of their frames and of their decisions' frames, and the ends of its parts."""

    stream: list[tuple[ExternalEventKind, int, RunTermination]]
    constraints: Constraints
    event_cuts: list[int]
    decision_cuts: list[int]
    part_ends: list[int]
    undecided: int
    closed: bool
    engine: str

    def frames(self, session: int) -> list[PendingFrame]:
        """Return the frames, in an order in which a daemon may write them."""
        size = len(self.stream)
        decided = max(0, size - self.undecided)
        ends = sorted({end for end in self.part_ends if 0 < end <= decided})
        description = SessionDescription(
            session=f"s{session}", graph="g", constraints=self.constraints, adapter_provenance="a",
            runtime_provenance="r", engine=self.engine, labels={}, peer=None, opened_at=WHEN, program="p",
        )  # fmt: skip
        frames = [PendingFrame(FrameKind.OPEN, session, 0, 0, encode_body(description))]
        log = MemoryDecisionLog()
        supervisor = Supervisor("g", self.constraints, log)
        events = [
            ExternalEvent.with_payload(f"{session}-{n}", kind, EventTime(at, 0), b'{"n":%d}' % n)
            for n, (kind, at, _) in enumerate(self.stream)
        ]
        rows: list[Any] = []
        for part, (first, end) in enumerate(pairwise([0, *ends, size]), 1):
            bounds = sorted({first, end, *(cut for cut in self.event_cuts if first < cut < end)})
            frames += [
                PendingFrame(FrameKind.EVENTS, session, a, b - a, b"".join(map(event_line, events[a:b])))
                for a, b in pairwise(bounds)
            ]
            for event, (_, _, termination) in list(zip(events, self.stream, strict=True))[first : min(end, decided)]:
                step = supervisor.offer(event)
                if isinstance(step, Run):
                    supervisor.settle(step, termination, 0)
                rows.append(log.entries[-1])
            last = min(end, decided)
            bounds = sorted({first, last, *(cut for cut in self.decision_cuts if first < cut < last)})
            for a, b in pairwise(bounds):
                made = DecisionRows()
                for entry in rows[a:b]:
                    made.add(entry)
                frames.append(PendingFrame(FrameKind.DECISIONS, session, a, b - a, made.encode()))
            if end in ends:
                rotation = Rotation(part, False, WHEN, description, events[end - 1].event_id)
                frames.append(PendingFrame(FrameKind.ROTATE, session, end, 0, encode_body(rotation)))
                supervisor = Supervisor("g", self.constraints, log)
        if self.closed and decided == size:
            frames.append(PendingFrame(FrameKind.CLOSE, session, size, 0, encode_body(Closing("complete", WHEN))))
        return frames


plans = st.builds(
    Plan,
    streams,
    limits,
    cuts,
    cuts,
    st.lists(st.integers(1, 40), max_size=2),
    st.sampled_from([0, 0, 1, 3, 40]),
    st.booleans(),
    st.sampled_from(["fixed", "scripted"]),
)


def write(directory: Path, sessions: list[list[PendingFrame]], batches: list[int]) -> None:
    """Write the frames of sessions in turns, in batches of these sizes, over small segments."""
    journal, _ = Journal.open(directory, RealStorage(), segment_bytes=4096, program="test")
    waiting: list[PendingFrame] = []
    while any(sessions):
        waiting += [frames.pop(0) for frames in sessions if frames]
    sizes = iter(batches)
    while waiting:
        size = next(sizes, 3)
        journal.commit(waiting[:size])
        waiting = waiting[size:]
    journal.close()


@contextmanager
def one_by_one() -> Iterator[None]:
    """Read every frame, event and decision by itself."""
    with (
        mock.patch.object(_Classifier, "_take_block", return_value=None),
        mock.patch.object(recovery, "may_join", return_value=False),
        mock.patch.object(Supervisor, "begin_all", return_value=False),
    ):
        yield


def told(found: Any) -> Any:
    """Return a result in a form that can be compared."""
    if isinstance(found, Supervisor):
        deferred = [(at, episode, event.event_id) for at, episode, event in sorted(found._deferred)]
        return (found.now, found._next_episode, found._in_flight, list(found._recent), deferred, found.deferred_bytes)
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        return {field.name: told(getattr(found, field.name)) for field in dataclasses.fields(found)}
    if isinstance(found, dict):
        return {key: told(value) for key, value in found.items()}
    if type(found) in (list, tuple):
        return [told(value) for value in found]
    return found


def found_in(directory: Path) -> tuple[ScanReport, Recovery] | str:
    """Scan and recover; return both results, or the error's message."""
    try:
        report = scan(directory, RealStorage())
        return report, recover(directory, report, RealStorage())
    except ErgoCaptureError as error:
        return error.message


def check(directory: Path) -> Any:
    """Compare both ways, and return the result."""
    fast = found_in(directory)
    with one_by_one():
        slow = found_in(directory)
    assert told(fast) == told(slow)
    return fast


batch_sizes = st.lists(st.integers(1, 6), max_size=40)


@settings(deadline=None, max_examples=50)
@given(st.lists(plans, min_size=1, max_size=2), batch_sizes)
def test_a_sound_journal_is_recovered_alike(sessions: list[Plan], batches: list[int]) -> None:
    """Limits, kinds, times, the ends of episodes and of parts, and the division into frames do not matter."""
    with short_directory() as place:
        write(place, [plan.frames(number) for number, plan in enumerate(sessions, 1)], batches)
        _, found = check(place)
        assert not found.quarantined
        for session, plan in zip(found.sessions, sessions, strict=True):
            assert isinstance(session, RecoveredSession)
            assert session.accepted == len(plan.stream)


def split_frames(text: bytes, sequence: int) -> list[bytes]:
    """Return the frames of a segment."""
    frames, at = [], 0
    while (header := decode_header(text[at : at + HEADER_BYTES], sequence)) is not None:
        frames.append(text[at : at + header.size])
        at += header.size
    return frames


def flip(frames: list[bytes], at: int, value: int) -> None:
    """Change one byte."""
    frame = bytearray(frames[at % len(frames)])
    frame[value % len(frame)] ^= 1 + value % 255
    frames[at % len(frames)] = bytes(frame)


def remove(frames: list[bytes], at: int, _value: int) -> None:
    """Remove a frame."""
    del frames[at % len(frames)]


def repeat(frames: list[bytes], at: int, _value: int) -> None:
    """Write a frame twice."""
    frames.insert(at % len(frames), frames[at % len(frames)])


def swap(frames: list[bytes], at: int, value: int) -> None:
    """Exchange two frames."""
    at, value = at % len(frames), value % len(frames)
    frames[at], frames[value] = frames[value], frames[at]


faults = st.tuples(
    st.sampled_from([flip, remove, repeat, swap]),
    st.integers(0, 9),
    st.integers(0, 1 << 16),
    st.integers(0, 1 << 16),
)


@settings(deadline=None, max_examples=60)
@given(plans, plans, batch_sizes, st.lists(faults, min_size=1, max_size=3))
@example(
    # Joined, the frames of the second session are out of order.
    Plan([(ExternalEventKind.Command, 0, RunTermination.Completed)], Constraints(), [], [], [], 1, False, "fixed"),
    Plan([(ExternalEventKind.Command, 0, RunTermination.Completed)] * 2, Constraints(), [1], [], [], 3, False, "fixed"),
    [],
    [(repeat, 0, 0, 0), (repeat, 0, 7150, 0), (swap, 0, 3, 7)],
)
def test_a_damaged_journal_is_taken_alike(one: Plan, two: Plan, batches: list[int], faults: list[Any]) -> None:
    """Both ways find the same torn end, damage and quarantined sessions, for the same reasons."""
    with short_directory() as place:
        write(place, [one.frames(1), two.frames(2)], batches)
        paths = sorted(place.glob("*.journal"))
        segments = [split_frames(path.read_bytes(), number) for number, path in enumerate(paths, 1)]
        for fault, chosen, at, value in faults:
            if segments[chosen % len(segments)]:
                fault(segments[chosen % len(segments)], at, value)
        for path, frames in zip(paths, segments, strict=True):
            path.write_bytes(b"".join(frames))
        check(place)


BODIES = [b"[[0,7,1]]", b"[]", b"[[1,0,null]]", b"[[0,0,1],", b"[[9]]", b"[[0,%d,%d]]", b"[[0,%d,%d],[0,1,1]]"]


@settings(deadline=None, max_examples=60)
@given(plans, st.integers(0, 1 << 16), st.sampled_from(BODIES))
def test_decisions_that_the_events_do_not_lead_to_are_refused_alike(plan: Plan, at: int, body: bytes) -> None:
    """A frame with a right checksum may hold what no daemon writes, such as that a Pump ran."""
    frames = plan.frames(1)
    decisions = [n for n, frame in enumerate(frames) if frame.kind is FrameKind.DECISIONS]
    if decisions:
        old = frames[chosen := decisions[at % len(decisions)]]
        if b"%" in body:
            body %= old.first, old.count
        frames[chosen] = PendingFrame(old.kind, old.session, old.first, old.count, body)
    with short_directory() as place:
        write(place, [frames], [])
        check(place)


#: Fields of a header that is otherwise that of the next frame of events: batch 3, frame 0 of 1, event 1 of session 1.
CHANGES: list[dict[str, Any]] = [
    {},
    {"magic": b"ergK"},
    {"version": 1},
    {"version": 3},
    {"kind": FrameKind.DECISIONS, "first": 0},
    {"kind": FrameKind.DECISIONS},
    {"kind": FrameKind.SEAL, "session": 0},
    {"kind": FrameKind.CLOSE},
    {"kind": 99},
    {"kind": 99, "flags": 1},
    {"segment": 2},
    {"batch": 1},
    {"batch": 2},
    {"batch": 4},
    {"batch": 1, "body_crc": 0},
    {"batch": 2, "body_crc": 0},
    {"batch": 2, "index": 1, "frames": 2, "body_crc": 0},
    {"session": 0},
    {"session": 2, "first": 0},
    {"session": 7, "first": 5},
    {"first": 0},
    {"first": 2},
    {"count": 3},
    {"length": 7},
    {"length": 16},
    {"length": 1 << 20},
    {"index": 1},
    {"index": 1, "frames": 2},
    {"frames": 0},
    {"frames": 2},
    {"body_crc": 0},
    {"own_crc": 0},
]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_frame_with_another_header_is_taken_alike(change: dict[str, Any], *, behind: bool, tmp_path: Path) -> None:
    """Any field may differ, at the end of the journal or before more frames."""
    body = b"whatever"

    def frame(**fields: Any) -> bytes:
        of = {
            "magic": b"ergJ", "version": 2, "kind": 2, "flags": 0, "segment": 1, "batch": 3, "session": 1, "first": 1,
            "count": 1, "length": 8, "index": 0, "frames": 1, "body_crc": crc32c(body),
        }  # fmt: skip
        head = struct.pack("<4sBBHQQQQIIIII", *(of | {k: v for k, v in fields.items() if k != "own_crc"}).values())
        return head + struct.pack("<I", fields.get("own_crc", crc32c(head))) + body

    write_batches(tmp_path, [[opening(1), opening(2)], [events(1, 0)]])
    segment = last_segment(tmp_path, 1)
    shrink(segment)
    end = segment.stat().st_size
    rest = frame(batch=4, first=2) + frame(batch=5, session=2, first=0) if behind else b""
    segment.write_bytes(segment.read_bytes() + frame(**change) + rest)
    report = check(tmp_path)
    if not change:
        report, _ = report
        assert (report.damage, report.frames, report.sessions[1].events[1]) == ([], 7 if behind else 5, 1 << 32 | end)
