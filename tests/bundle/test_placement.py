"""Rules for replacing files: bundles by the publisher, and files by commands."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from tests.bundles import small_bundle, store

from ergo_capture import CaptureJsonStyle, encode_bundle
from ergo_capture.bundle.manifest import read_manifest
from ergo_capture.bundle.names import manifest_path
from ergo_capture.bundle.placement import NewBundle, Place, find_place, refusal_to_replace


def text_of(events: int, style: CaptureJsonStyle = CaptureJsonStyle.Compact) -> bytes:
    """Return the text of a bundle of so many events; each begins with the events of the smaller ones."""
    return encode_bundle(small_bundle(events=events), style)


def standing(state: Path, events: int, *, text: bytes | None = None, **fields: Any) -> Path:
    """Write a bundle of so many events, with its manifest."""
    return store(state, "s", text=text or text_of(events), events=events, decisions=events, **fields)


def placed(wanted: Path, text: bytes, *, part: int = 1, own: str = "") -> tuple[str, str | None, bool]:
    """Return the name of a new bundle, the name that it lies beside, and whether a standing bundle is kept."""
    new = wanted.with_name("new.tmp")
    new.write_bytes(text)
    place: Place = find_place(wanted, part, NewBundle(new, len(text), hashlib.sha256(text).hexdigest()), own=own)
    beside = None if place.beside is None else place.beside.name
    return place.bundle.name, beside, place.standing is not None


FREE = ("s.capture.json", None, False)
BESIDE = ("s~1~2.capture.json", "s.capture.json", False)
KEPT = ("s.capture.json", None, True)


@pytest.mark.parametrize("ended", ["complete", "recovered", "interrupted", "rotated"])
@pytest.mark.parametrize("events", [0, 1, 3])
def test_a_finished_bundle_is_not_replaced_by_another(tmp_path: Path, ended: str, events: int) -> None:
    """It is replaced neither by fewer events nor by more."""
    wanted = standing(tmp_path, 2, ended=ended, sequence=7)
    assert placed(wanted, text_of(events)) == BESIDE


def test_a_finished_bundle_with_the_same_text_stays(tmp_path: Path) -> None:
    """The ending and the number of the new bundle do not matter, nor whether the old one is compressed."""
    wanted = standing(tmp_path, 2)
    assert placed(wanted, text_of(2)) == KEPT
    packed = standing(tmp_path / "packed", 2, compress=True)
    assert placed(packed.with_name("s.capture.json"), text_of(2)) == ("s.capture.json.zst", None, True)


def test_a_finished_bundle_that_has_rotted_or_is_gone_is_written_again(tmp_path: Path) -> None:
    """The text must be the one that its manifest describes."""
    wanted = standing(tmp_path, 2)
    wanted.write_bytes(wanted.read_bytes().replace(b"e1", b"e7", 1))
    assert placed(wanted, text_of(2)) == FREE
    assert placed(wanted, text_of(1)) == BESIDE
    wanted.unlink()
    assert placed(wanted, text_of(2)) == FREE


@pytest.mark.parametrize("style", list(CaptureJsonStyle))
@pytest.mark.parametrize("compress", [False, True])
def test_a_snapshot_is_replaced_by_a_bundle_that_begins_with_its_events(
    tmp_path: Path, style: CaptureJsonStyle, compress: bool
) -> None:
    """A journal that was restored may hold fewer events, or other ones; both bundles are then kept."""
    for events in range(4):
        wanted = standing(tmp_path, events, ended="open", text=text_of(events, style), compress=compress)
        expected = [FREE[2] if later >= events else True for later in range(5)]
        assert [placed(wanted, text_of(later, style))[1] is not None for later in range(5)] == expected
    other = text_of(9, style).replace(b"e1", b"x1", 1)
    assert placed(wanted, other)[1] == wanted.name


def test_a_long_snapshot_is_compared_to_its_last_event(tmp_path: Path) -> None:
    """The text has several blocks, and the difference may be at the edge of a block."""
    longest = text_of(4000)
    for events in (2400, 2700, 2701, 3999):
        wanted = standing(tmp_path, events, ended="open", text=text_of(events))
        assert placed(wanted, longest) == FREE
        assert placed(wanted, longest.replace(b'"e%d"' % (events - 1), b'"f%d"' % (events - 1))) == BESIDE
        assert placed(wanted, text_of(events - 1)) == BESIDE


def test_what_a_daemon_of_0_1_0_left_at_its_stop_may_grow(tmp_path: Path) -> None:
    """For a session that went on, it wrote ``interrupted`` and no number."""
    wanted = standing(tmp_path, 2, ended="interrupted")
    assert placed(wanted, text_of(3)) == FREE
    assert placed(wanted, text_of(1)) == BESIDE


def test_the_callers_own_snapshot_is_replaced_unread(tmp_path: Path) -> None:
    """The caller knows its SHA-256."""
    wanted = standing(tmp_path, 2, ended="open")
    own = read_manifest(manifest_path(wanted)).sha256
    wanted.write_bytes(b"unreadable")
    assert placed(wanted, text_of(3)) == BESIDE
    assert placed(wanted, text_of(3), own=own) == FREE


def test_a_bundle_without_a_manifest_is_replaced_by_its_continuation_only(tmp_path: Path) -> None:
    """A kill between the two renames leaves such a bundle; so does somebody who puts a file there."""
    wanted = standing(tmp_path, 2)
    for spoil in (manifest_path(wanted).unlink, lambda: manifest_path(wanted).write_bytes(b"{")):
        spoil()
        assert placed(wanted, text_of(2)) == FREE
        assert placed(wanted, text_of(3)) == FREE
        assert placed(wanted, text_of(1)) == BESIDE
    wanted.unlink()
    wanted.mkdir()
    assert placed(wanted, text_of(3)) == BESIDE
    wanted.rmdir()
    wanted.symlink_to("nowhere")
    assert placed(wanted, text_of(3)) == BESIDE


def test_a_name_beside_is_used_again_for_the_same_bundle(tmp_path: Path) -> None:
    """A start after a crash does not add a bundle each time; a different bundle gets the next name."""
    wanted = standing(tmp_path, 5)
    for number, events in ((2, 2), (3, 3)):
        name = f"s~1~{number}.capture.json"
        assert placed(wanted, text_of(events)) == (name, "s.capture.json", False)
        store(tmp_path, f"s~1~{number}", text=text_of(events))
        assert placed(wanted, text_of(events)) == (name, "s.capture.json", True)
    later = store(tmp_path, "s~4", text=text_of(2))
    assert placed(later, text_of(1), part=4)[0] == "s~4~2.capture.json"


def test_a_stale_form_of_a_snapshot_counts(tmp_path: Path) -> None:
    """A compressed bundle without a manifest of its own holds more than the snapshot beside it."""
    wanted = standing(tmp_path, 2, ended="open")
    wanted.with_name(wanted.name + ".zst").write_bytes(zstandard.compress(text_of(4)))
    assert placed(wanted, text_of(3)) == BESIDE
    assert placed(wanted, text_of(4)) == FREE


# --- the output of commands ---


def test_a_command_does_not_write_over_what_it_reads(tmp_path: Path) -> None:
    """It finds the file under its name, another path, a symbolic or hard link, or a descriptor."""
    source, other = tmp_path / "source", tmp_path / "other"
    source.write_bytes(b"x")
    other.write_bytes(b"x")
    (tmp_path / "link").symlink_to(source)
    os.link(source, tmp_path / "hard")
    (tmp_path / "d").mkdir()
    with source.open() as file:
        for name in ("source", "link", "hard", "d/../source"):
            assert refusal_to_replace(tmp_path / name, [other, source]) == "it is the file that is read"
            assert refusal_to_replace(tmp_path / name, [file.fileno()]) == "it is the file that is read"
    assert refusal_to_replace(source, [other, tmp_path / "absent"]) is None
    assert refusal_to_replace(tmp_path / "absent", [tmp_path / "absent"]) is None
    (tmp_path / "dangling").symlink_to("absent")
    assert refusal_to_replace(tmp_path / "dangling", [source]) is None


def test_a_command_does_not_write_over_what_is_finished(tmp_path: Path) -> None:
    """Finished are a bundle and its manifest, also under a link, and a segment of a journal. A snapshot is not."""
    bundle = standing(tmp_path, 2)
    (tmp_path / "link").symlink_to(bundle)
    for path in (bundle, tmp_path / "link"):
        assert refusal_to_replace(path, []) == "it is a finished bundle (complete)"
    assert refusal_to_replace(manifest_path(bundle), []) == "it is the manifest of a finished bundle (complete)"
    segment = tmp_path / "0000000000000001.journal"
    segment.write_bytes(b"")
    assert refusal_to_replace(segment, []) == "it is a segment of a journal"
    assert refusal_to_replace(tmp_path / "0000000000000002.journal", []) is None
    os.mkfifo(tmp_path / "pipe")
    assert refusal_to_replace(tmp_path / "pipe", []) == "it is not an ordinary file"
    assert refusal_to_replace(tmp_path, []) == "it is a directory"
    snapshot = msgspec.structs.replace(read_manifest(manifest_path(bundle)), ended="open")
    manifest_path(bundle).write_bytes(msgspec.json.encode(snapshot))
    assert refusal_to_replace(bundle, []) is None
