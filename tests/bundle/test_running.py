"""A bundle that is composed while its session runs equals the one that is composed at the end, byte for byte."""

from __future__ import annotations

import itertools
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.bundle.test_expand import bodies, entries
from tests.journal.journals import journal_in

from ergo_capture import Constraints, EventTime
from ergo_capture.bundle.manifest import read_manifest
from ergo_capture.bundle.names import index_path, manifest_path
from ergo_capture.bundle.reader.stream import open_bundle
from ergo_capture.bundle.statistics import collect_statistics, summarized
from ergo_capture.bundle.writer.compose import ComposeJob, compose_bundle, publish_bundle
from ergo_capture.bundle.writer.running import RunningBundle
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.decision_rows import DecisionRows
from ergo_capture.journal.frame import FrameKind, PendingFrame
from ergo_capture.journal.payloads import Peer, SessionDescription

SESSION = SessionDescription(
    session="s",
    graph="g",
    constraints=Constraints(deadline=EventTime(3, 7)),
    adapter_provenance="a",
    runtime_provenance="r",
    engine="fixed",
    labels={},
    peer=Peer(1, 2, 3),
    opened_at="2026-01-01T00:00:00Z",
    program="test 1",
)


@dataclass
class Captured:
    """A session in a journal: packed positions of its frames, and the events up to the end of each."""

    place: Path
    events: list[int]
    decisions: list[int]
    events_at: list[int]
    decisions_at: list[int]

    def job(self, name: str, count: int, *, style: str = "compact", compress: str = "none") -> ComposeJob:
        """Return what composes the first ``count`` events, which all frames known by then hold."""
        suffix = ".capture.json" + (".zst" if compress == "zstd" else "")
        return ComposeJob(
            journal=str(self.place / "journal"),
            destination=str(self.place / name / f"s{suffix}"),
            style=style,
            compress=compress,
            description=SESSION,
            part=1,
            first=0,
            count=count,
            event_frames=array("Q", self.events).tobytes(),
            decision_frames=array("Q", self.decisions).tobytes(),
            ended="complete",
            forced=False,
            ended_at="2026-01-01T00:00:01Z",
        )

    def published(self, job: ComposeJob) -> dict[str, bytes]:
        """Compose and publish a bundle at the end; return what is in its files, by name."""
        publish_bundle(compose_bundle(job))
        return files_of(job)


def files_of(job: ComposeJob) -> dict[str, bytes]:
    """Return what is in the files of a bundle's directory, by name."""
    return {path.name: path.read_bytes() for path in Path(job.destination).parent.iterdir() if path.name[0] != "."}


@pytest.fixture(params=[False, True], ids=["", "many blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write an index beside every bundle; with many blocks, for nearly every second event."""
    monkeypatch.setattr("ergo_capture.bundle.writer.compose._INDEXED_BYTES", 0)
    if request.param:
        monkeypatch.setattr("ergo_capture.bundle.writer.elements._LEAST_BLOCK", 100)
        monkeypatch.setattr("ergo_capture.bundle.writer.elements.MARK_EVERY", 2)
        monkeypatch.setattr("ergo_capture.bundle.writer.elements.LARGE", 10)


@contextmanager
def captured(event_bodies: list[tuple[bytes, int]], decision_bodies: list[tuple[bytes, int]]) -> Iterator[Captured]:
    """Write the frames of a session to a journal."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "journal").mkdir()
        journal = journal_in(place / "journal", segment_bytes=16 << 10)
        frames, ends = [], []
        for kind, found in ((FrameKind.EVENTS, event_bodies), (FrameKind.DECISIONS, decision_bodies)):
            counts = list(itertools.accumulate((count for _, count in found), initial=0))
            frames.append([PendingFrame(kind, 1, at, n, body) for at, (body, n) in zip(counts, found, strict=False)])
            ends.append(counts[1:])
        positions = [[journal.commit([frame])[0].pack() for frame in found] for found in frames]
        journal.close()
        yield Captured(place, positions[0], positions[1], ends[0], ends[1])


@st.composite
def sessions(draw: st.DrawFn) -> tuple[list[tuple[bytes, int]], list[tuple[bytes, int]]]:
    """Generate the bodies of a session's frames, each with its count."""
    events = [(body, body.count(b"\n")) for body in draw(st.lists(bodies(), min_size=1, max_size=6))]
    total = sum(count for _, count in events)
    entry = draw(entries())
    decisions = list(itertools.islice(itertools.cycle(entry), total))
    frames = []
    while decisions:
        count = draw(st.integers(1, len(decisions)))
        rows = DecisionRows()
        for one in decisions[:count]:
            rows.add(one)
        frames.append((rows.encode(), count))
        decisions = decisions[count:]
    return events, frames


@pytest.mark.usefixtures("blocks")
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sessions(), st.data(), st.sampled_from(["compact", "pretty"]), st.sampled_from(["none", "zstd"]))
def test_both_ways_give_the_same_bytes(
    session: tuple[list[tuple[bytes, int]], list[tuple[bytes, int]]], data: st.DataObject, style: str, compress: str
) -> None:
    """P11: whenever the session was looked at, however much was known of it, and however much was written at a time."""
    with captured(*session) as found:
        total = found.events_at[-1]
        job = found.job("running", total, style=style, compress=compress)
        with RunningBundle(msgspec.structs.replace(job, count=0, event_frames=b"", decision_frames=b"")) as running:
            known = [0, 0]
            for _ in range(data.draw(st.integers(0, 4))):
                now = [
                    data.draw(st.integers(seen, len(all_of)))
                    for seen, all_of in zip(known, (found.events, found.decisions), strict=True)
                ]
                running.add_frames(
                    array("Q", found.events[known[0] : now[0]]).tobytes(),
                    array("Q", found.decisions[known[1] : now[1]]).tobytes(),
                )
                known = now
                decided = min([0, *found.events_at][known[0]], [0, *found.decisions_at][known[1]])
                running.advance(data.draw(st.integers(0, decided)), data.draw(st.none() | st.integers(1, 2000)))
            composed = running.finish(job)
            assert composed is not None
            publish_bundle(composed)
        assert files_of(job) == found.published(found.job("end", total, style=style, compress=compress))
        assert index_path(Path(job.destination)).exists()
        summary = summarized(read_manifest(manifest_path(Path(job.destination))))
        with open_bundle(job.destination) as stream:
            counted = collect_statistics(stream, Path(job.destination).stat().st_size)
        # None where JSON of other programs cannot hold a number.
        assert summary == counted or max(filter(None, (counted.last, counted.longest_gap))) >= 1 << 63


def three_events(place_events: int = 3) -> tuple[list[tuple[bytes, int]], list[tuple[bytes, int]]]:
    """Return the bodies of a session of so many events, a frame for each."""
    events = [
        (b'{"type":"event","event":{"event_id":"e%d","kind":"Command","at":{"secs":1,"nanos":0}}}\n' % n, 1)
        for n in range(place_events)
    ]
    return events, [(b"[[0,%d,1]]" % n, 1) for n in range(place_events)]


def begun(found: Captured, events: int, **options: str) -> RunningBundle:
    """Return a bundle of which so many events are written."""
    job = found.job("running", events, **options)
    running = RunningBundle(msgspec.structs.replace(job, count=0, event_frames=b"", decision_frames=b""))
    running.add_frames(job.event_frames[: 8 * events], job.decision_frames[: 8 * events])
    running.advance(events)
    assert running.composed == events
    return running


@pytest.mark.parametrize("change", [{"compress": "zstd"}, {"style": "pretty"}, {"count": 1}])
def test_another_layout_or_fewer_events_are_composed_from_the_beginning(change: dict[str, object]) -> None:
    """The files are removed."""
    with captured(*three_events()) as found:
        with begun(found, 2) as running:
            assert running.finish(msgspec.structs.replace(found.job("running", 3), **change)) is None
        assert list((found.place / "running").iterdir()) == []


def test_the_layout_of_the_bundle_that_stands_there_is_kept() -> None:
    """P11: after a restore, the text can be compared with it."""
    with captured(*three_events()) as found:
        found.published(found.job("running", 3, style="pretty"))
        job = found.job("running", 3)
        with begun(found, 2) as running:
            composed = running.finish(job)
            assert composed is not None
            assert composed.style == "pretty"
            publish_bundle(composed)
        assert read_manifest(manifest_path(Path(job.destination))).style == "pretty"


@pytest.mark.parametrize("which", [0, 1], ids=["events", "decisions"])
def test_a_temporary_that_has_rotted_gets_no_name(which: int) -> None:
    """P3: what was written long ago is read back, too."""
    with captured(*three_events()) as found, begun(found, 3) as running:
        running._bundle.sink.finish()
        path = sorted((found.place / "running").glob("*.tmp"), key=lambda p: int(p.name.split(".")[-2]))[which]
        text = path.read_bytes()
        path.write_bytes(text.replace(b'"e1"', b'"e7"'))
        assert path.read_bytes() != text
        with pytest.raises(
            ErgoCaptureError, match="the text that was read back is not the one that was written"
        ) as raised:
            running.finish(found.job("running", 3))
        assert raised.value.path == str(path)


def test_what_was_read_back_along_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finishing a large bundle takes as long as its end."""
    monkeypatch.setattr("ergo_capture.bundle.writer.sink._WRITE_BACK_BYTES", 1)
    with captured(*three_events(9)) as found:
        job = found.job("running", 9)
        with RunningBundle(msgspec.structs.replace(job, count=0, event_frames=b"", decision_frames=b"")) as running:
            running.add_frames(job.event_frames, job.decision_frames)
            for count in range(1, 10):
                running.advance(count)
                running._bundle.sink.finish()
            assert running._bundle.sink._read_back._offset > 500
            composed = running.finish(job)
            assert composed is not None
            publish_bundle(composed)
        assert files_of(job) == found.published(found.job("end", 9))
