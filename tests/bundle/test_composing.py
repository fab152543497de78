"""A bundle, its manifest and its index describe the part of a session that they were composed of."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.bundle.test_running import Captured, captured, files_of
from tests.journal.journals import flip

from ergo_capture.bundle.manifest import Manifest, encode_manifest, read_manifest
from ergo_capture.bundle.names import index_path, manifest_path
from ergo_capture.bundle.reader.opening import read_text
from ergo_capture.bundle.sequence import Sequence
from ergo_capture.bundle.writer import compose
from ergo_capture.bundle.writer.compose import ComposeJob, PublishedBundle, compose_bundle, publish_bundle
from ergo_capture.bundle.writer.expand import expand_events
from ergo_capture.bundle.writer.running import RunningBundle
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.decision_rows import DecisionRows, Refusal
from ergo_capture.journal.errors import JournalDamaged
from ergo_capture.journal.frame import Position
from ergo_capture.journal.segment import segment_path
from ergo_capture.storage import atomic
from ergo_capture.storage.directories import sync_directory
from ergo_capture.storage.write_error import CaptureWriteError, WriteStage

#: Events of the sessions here.
TOTAL = 12
KINDS = ["full", None, "plain"]


def line(number: int) -> bytes:
    """Return the line of an event; those of the first hundred events have the same length."""
    kind = KINDS[number % 3]
    said = b"" if kind is None else b',"semantic_kind":"%s"' % kind.encode()
    return (
        b'{"type":"event","event":{"event_id":"e%02d","kind":"Command","at":{"secs":%d,"nanos":0}'
        % (number, number + 10)
        + said.ljust(25)
        + b',"payload":{"n":%02d}}}\n' % (number + 10)
    )


def frames_of(*counts: int, first: int = 0) -> list[tuple[bytes, int]]:
    """Return the bodies of frames with so many events each."""
    frames = []
    for count in counts:
        frames.append((b"".join(map(line, range(first, first + count))), count))
        first += count
    return frames


def decided(count: int = TOTAL) -> list[tuple[bytes, int]]:
    """Return the body of a frame of decisions."""
    return [(b"[[0,0,%d]]" % count, count)]


@pytest.fixture
def found() -> Iterator[Captured]:
    """Capture a session of three frames."""
    with captured(frames_of(4, 4, 4), decided()) as capture:
        yield capture


def publish(job: ComposeJob, sequence: Sequence | None = None) -> PublishedBundle:
    """Compose and publish a bundle."""
    return publish_bundle(compose_bundle(job), sequence)


def manifest_of(job: ComposeJob) -> Manifest:
    """Return the manifest in the place of the job's manifest."""
    return read_manifest(manifest_path(Path(job.destination)))


def changed(job: ComposeJob, **fields: Any) -> ComposeJob:
    """Return a job with some fields changed."""
    return msgspec.structs.replace(job, **fields)


def left_in(job: ComposeJob) -> list[str]:
    """Return the names in a bundle's directory, temporaries included."""
    return sorted(path.name for path in Path(job.destination).parent.iterdir())


# --- the events ---


@pytest.mark.parametrize("block_bytes", [1, 1 << 17], ids=["", "joined"])
def test_a_part_inside_frames_is_composed_like_a_session_of_its_events(
    monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """P11: the bundles are equal to the byte, with their index and semantic kinds."""
    for module, name, value in [
        ("compose", "_INDEXED_BYTES", 0),
        ("compose", "_BLOCK_BYTES", block_bytes),
        ("elements", "_LEAST_BLOCK", 1),
        ("elements", "MARK_EVERY", 3),
    ]:
        monkeypatch.setattr(f"ergo_capture.bundle.writer.{module}.{name}", value)
    with captured(frames_of(4, 4, 4), decided(7)) as found, captured(frames_of(7, first=2), decided(7)) as alone:
        part = changed(found.job("part", 7), first=2, part=2)
        publish(part)
        publish(alone.job("part", 7))
        expected = files_of(alone.job("part", 7))
        assert files_of(part).keys() == expected.keys()
        for name in ("s.capture.json", "s.index.json"):
            assert files_of(part)[name] == expected[name]
        manifest = manifest_of(part)
        assert (manifest.first_event, manifest.events, manifest.last_event_id) == (2, 7, "e08")
        assert manifest.semantic_kinds is not None
        assert list(manifest.semantic_kinds.of(7) or ()) == [KINDS[number % 3] for number in range(2, 9)]
        assert manifest.summary == manifest_of(alone.job("part", 7)).summary


def test_small_frames_are_expanded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a block holds are taken; a larger frame is expanded by itself."""
    expanded = []

    def expand(body: bytes, *arguments: Any) -> Any:
        expanded.append(body.count(b"\n"))
        return expand_events(body, *arguments)

    monkeypatch.setattr(compose, "expand_events", expand)
    monkeypatch.setattr(compose, "_BLOCK_BYTES", 3 * len(line(0)))
    with captured(frames_of(1, 1, 1, 1, 2, 1, 4, 1), decided()) as found:
        published = found.published(found.job("b", TOTAL))
        assert expanded == [3, 3, 1, 4, 1]
    with captured(frames_of(TOTAL), decided()) as alone:
        assert published["s.capture.json"] == alone.published(alone.job("b", TOTAL))["s.capture.json"]


@pytest.mark.parametrize("lost", ["first", "middle", "last", "decisions"])
@pytest.mark.parametrize("running", [False, True])
def test_a_journal_that_holds_less_than_was_acknowledged_gives_no_bundle(
    found: Captured, lost: str, *, running: bool
) -> None:
    """The error says what to do; no file is left."""
    job = found.job("b", TOTAL)
    if lost == "decisions":
        with captured(frames_of(4, 4, 4), decided(11)) as short:
            job = short.job("b", TOTAL)
            error = error_of(job, running=running)
    else:
        del found.events[["first", "middle", "last"].index(lost)]
        job = found.job("b", TOTAL)
        error = error_of(job, running=running)
    what = "decisions" if lost == "decisions" else "events"
    assert error.message == (
        f"compose bundle '{job.destination}': the journal holds fewer {what} of session s than were acknowledged"
    )
    assert (error.op, error.path) == ("compose bundle", job.destination)
    assert error.hint == f"keep '{job.journal}' as it is and run `ergo-capture doctor` on it"


def error_of(job: ComposeJob, *, running: bool) -> ErgoCaptureError:
    """Return the error that composing raises; check that nothing is left in the directory."""

    def compose_along() -> None:
        with RunningBundle(changed(job, count=0, event_frames=b"", decision_frames=b"")) as bundle:
            bundle.finish(job)

    with pytest.raises(ErgoCaptureError) as raised:
        compose_along() if running else compose_bundle(job)
    assert left_in(job) == []
    return raised.value


def test_a_refusal_in_a_session_without_an_adapter_is_a_defect() -> None:
    """Only an adapter refuses events that were accepted."""
    rows = DecisionRows()
    rows.add_refusal(Refusal("schema_violation", "no"))
    with (
        captured(frames_of(1), [(rows.encode(), 1)]) as found,
        pytest.raises(ValueError, match=r"^an event is refused in a session without an adapter$"),
    ):
        compose_bundle(found.job("b", 1))


def test_a_part_without_events_has_an_empty_bundle(found: Captured) -> None:
    """It has no last event."""
    job = changed(found.job("b", 0), event_frames=b"", decision_frames=b"")
    publish(job)
    assert b'"events":[],"decisions":[]' in Path(job.destination).read_bytes()
    assert (manifest_of(job).events, manifest_of(job).last_event_id) == (0, None)


# --- the manifest ---


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_a_manifest_has_the_sizes_and_digests_of_text_and_file(found: Captured, compress: str) -> None:
    """The file's are given only where the file is not the text itself."""
    job = found.job("b", TOTAL, compress=compress)
    published = publish(job)
    text, data = read_text(Path(job.destination)), Path(job.destination).read_bytes()
    manifest = manifest_of(job)
    assert (manifest.bytes, manifest.sha256) == (len(text), hashlib.sha256(text).hexdigest())
    stored = (None, None) if compress == "none" else (len(data), hashlib.sha256(data).hexdigest())
    assert (manifest.file_bytes, manifest.file_sha256) == stored
    assert manifest.last_event_id == "e11"
    publication = published.publication
    assert (publication.part, publication.bundle) == (1, job.destination)
    assert publication.manifest == str(manifest_path(Path(job.destination)))
    assert (publication.sha256, publication.sequence) == (manifest.sha256, None)
    assert published.beside is None


def test_finished_bundles_are_numbered(found: Captured) -> None:
    """A snapshot has no number. A bundle that stands there already keeps its own."""
    sequence = Sequence(4)
    snapshot = changed(found.job("b", 4), ended="open")
    assert publish(snapshot, sequence).publication.sequence is None
    assert sequence.greatest == 4
    job = found.job("b", TOTAL)
    assert publish(job, sequence).publication.sequence == 5
    before = files_of(job)
    again = publish(job, sequence)
    assert (again.publication.sequence, again.beside, sequence.greatest) == (5, None, 5)
    assert files_of(job) == before
    assert sorted(before) == left_in(job)
    assert manifest_of(job).sequence == 5
    other = found.job("c", TOTAL)
    assert publish(other, sequence).publication.sequence == 6
    assert (manifest_of(other).sequence, sequence.greatest) == (6, 6)


@pytest.mark.parametrize("numbered", ["finished", "snapshot", "no sequence"])
@pytest.mark.parametrize("fails", [WriteStage.SYNC_DIRECTORY, WriteStage.RENAME_TEMP_FILE])
def test_a_number_is_used_once_its_manifest_may_be_there(
    found: Captured, monkeypatch: pytest.MonkeyPatch, numbered: str, fails: WriteStage
) -> None:
    """The rename was done, even if it is not durable; a number given twice would be worse than a gap."""
    job = found.job("b", TOTAL)
    if numbered == "snapshot":
        job = changed(job, ended="open")
    manifest = manifest_path(Path(job.destination))
    composed = compose_bundle(job)
    if fails is WriteStage.RENAME_TEMP_FILE:
        (manifest / "in the way").mkdir(parents=True)
    else:

        def refuse(directory: Path) -> None:
            if manifest.exists():
                raise OSError(5, "Input/output error")
            sync_directory(directory)

        monkeypatch.setattr(atomic, "sync_directory", refuse)
    sequence = None if numbered == "no sequence" else Sequence(4)
    with pytest.raises(CaptureWriteError) as raised:
        publish_bundle(composed, sequence)
    assert (raised.value.stage, raised.value.op) == (fails, "write manifest")
    assert raised.value.message.startswith(f"write manifest '{manifest}'")
    if sequence is not None:
        used = numbered == "finished" and fails is WriteStage.SYNC_DIRECTORY
        assert sequence.greatest == (5 if used else 4)
    assert not list(manifest.parent.glob("*.tmp"))


# --- what stands there ---


def test_a_bundle_whose_name_is_taken_is_published_beside_it(found: Captured) -> None:
    """Its manifest names the one that has the name."""
    shorter = found.job("b", 4)
    publish(shorter)
    before = files_of(shorter)
    job = changed(found.job("b", TOTAL), part=2)
    published = publish(job)
    beside = Path(job.destination).with_name("s~2~2.capture.json")
    assert published.beside == Path(job.destination)
    assert published.publication.bundle == str(beside)
    assert published.publication.manifest == str(manifest_path(beside))
    assert read_manifest(manifest_path(beside)).beside == "s.capture.json"
    assert manifest_of(shorter).beside is None
    assert before.items() < files_of(shorter).items()


def test_an_own_snapshot_is_replaced_without_a_look_at_its_events(found: Captured) -> None:
    """The daemon knows that it grew; a snapshot of others is replaced only by a bundle that begins with its events."""
    snapshot = changed(found.job("b", TOTAL), ended="open")
    own = publish(snapshot).publication.sha256
    job = found.job("b", 4)
    foreign = publish(job)
    assert foreign.beside == Path(job.destination)
    assert publish(changed(job, own=own)).beside is None
    assert (manifest_of(job).events, manifest_of(job).ended) == (4, "complete")


def test_a_snapshot_in_the_other_form_is_removed(found: Captured) -> None:
    """It may be from before a change of the configuration; a finished bundle in the other form stays."""
    snapshot = changed(found.job("b", 4), ended="open")
    publish(snapshot)
    job = found.job("b", TOTAL, compress="zstd")
    publish(job)
    assert left_in(job) == ["s.capture.json.zst", "s.manifest.json"]
    publish(found.job("b", TOTAL))
    assert left_in(job) == ["s.capture.json.zst", "s.manifest.json"]


@pytest.mark.parametrize(
    ("change", "is_own", "kept"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"session": "t"}, False, False),
        ({"part": 2}, False, False),
        ({"style": "fancy"}, False, False),
    ],
    ids=str,
)
def test_only_the_layout_of_a_bundle_of_the_same_part_is_kept(
    found: Captured, change: dict[str, Any], *, is_own: bool, kept: bool
) -> None:
    """Its text can then be compared. The daemon's own snapshot, which is replaced, does not count."""
    pretty = found.job("b", TOTAL, style="pretty")
    publish(pretty)
    manifest = msgspec.structs.replace(manifest_of(pretty), **change)
    manifest_path(Path(pretty.destination)).write_bytes(encode_manifest(manifest))
    composed = compose_bundle(changed(found.job("b", TOTAL), own=manifest.sha256 if is_own else ""))
    Path(composed.file).unlink()
    assert composed.style == ("pretty" if kept else "compact")


def test_a_bundle_gets_an_index_from_a_size_on(found: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller one is read quickly without; the index of an earlier snapshot is removed."""
    job = changed(found.job("b", TOTAL), ended="open")
    publish(job)
    assert manifest_of(job).index is None
    assert not index_path(Path(job.destination)).exists()
    size = manifest_of(job).bytes
    for least, has_index in [(size, True), (size + 1, False)]:
        monkeypatch.setattr(compose, "_INDEXED_BYTES", least)
        publish(job)
        assert (manifest_of(job).index is not None) == index_path(Path(job.destination)).exists() == has_index


def test_an_index_that_cannot_be_written_is_an_error_of_its_own(
    found: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is not written, since it would name the index."""
    monkeypatch.setattr(compose, "_INDEXED_BYTES", 0)
    job = found.job("b", TOTAL)
    (index_path(Path(job.destination)) / "in the way").mkdir(parents=True)
    with pytest.raises(CaptureWriteError, match=r"^write index '.*/s\.index\.json': rename temp file") as raised:
        publish(job)
    assert raised.value.op == "write index"
    assert not manifest_path(Path(job.destination)).exists()


# --- while the session runs ---


def begun(found: Captured) -> RunningBundle:
    """Return a running bundle that has no frames yet."""
    return RunningBundle(changed(found.job("running", 0), event_frames=b"", decision_frames=b""))


def test_frames_that_are_added_one_by_one_are_not_taken_again_at_the_end(found: Captured) -> None:
    """At the end the job has all frames, including those that were added."""
    job = found.job("running", TOTAL)
    with begun(found) as running:
        for number in range(2):
            running.add_frames(array("Q", found.events[number : number + 1]).tobytes(), b"")
        composed = running.finish(job)
        assert composed is not None
        publish_bundle(composed)
    assert files_of(job) == found.published(found.job("end", TOTAL))


def test_writing_ends_after_so_many_bytes_of_text(found: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at the end of a block; what earlier calls wrote does not count."""
    monkeypatch.setattr(compose, "_BLOCK_BYTES", 1)
    job = found.job("running", TOTAL)
    text = found.published(found.job("end", 4))["s.capture.json"]
    events = b"," + text[text.index(b'{"event_id"') : text.index(b'],"decisions"')]
    for most, expected in [(1, [4, 8, 12]), (len(events), [4, 8, 12]), (len(events) + 1, [8, 12]), (None, [12])]:
        with begun(found) as running:
            running.add_frames(job.event_frames, job.decision_frames)
            for composed in expected:
                running.advance(TOTAL, most)
                assert running.composed == composed


@pytest.mark.parametrize("most_bytes", [None, 1])
def test_a_frame_that_is_written_whole_is_not_read_again(
    found: Captured, monkeypatch: pytest.MonkeyPatch, most_bytes: int | None
) -> None:
    """The frame may be damaged in the journal meanwhile. A frame that is written in part is read again."""
    monkeypatch.setattr(compose, "_BLOCK_BYTES", 1)
    job = found.job("running", TOTAL)
    expected = found.published(found.job("end", TOTAL))
    with begun(found) as running:
        running.add_frames(job.event_frames, job.decision_frames)
        for number, decided in enumerate((4, 8)):
            running.advance(TOTAL if most_bytes else decided, most_bytes)
            assert running.composed == decided
            position = Position.unpack(found.events[number])
            flip(segment_path(found.place / "journal", position.segment), position.offset + 70)
        running.advance(9)
        composed = running.finish(job)
        assert composed is not None
        publish_bundle(composed)
        assert files_of(job) == expected
        with pytest.raises(JournalDamaged):
            compose_bundle(job)
