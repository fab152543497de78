"""Reading parts of a bundle by its index gives what reading all of it gives, or says that it does not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.bundle.test_running import Captured, captured, sessions

from ergo_capture.bundle.manifest import encode_manifest, read_manifest
from ergo_capture.bundle.names import index_path, manifest_path
from ergo_capture.bundle.reader.index import IndexedBundle, IndexReference, open_indexed, read_index
from ergo_capture.bundle.reader.selection import NoSuchEvent, Selection, select, select_last
from ergo_capture.bundle.reader.stream import open_bundle
from ergo_capture.cli import app
from ergo_capture.errors import ErgoCaptureError


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a block at nearly every second event; copy the decisions in pieces that end anywhere in a block."""
    monkeypatch.setattr("ergo_capture.bundle.writer.sink._READ_BYTES", 150)
    monkeypatch.setattr("ergo_capture.bundle.writer.compose._INDEXED_BYTES", 0)
    monkeypatch.setattr("ergo_capture.bundle.writer.elements._LEAST_BLOCK", 100)
    monkeypatch.setattr("ergo_capture.bundle.writer.elements.MARK_EVERY", 2)


def of_many(count: int = 20) -> Any:
    """Return the bodies of a session of so many events with payloads, in frames of seven."""
    line = (
        b'{"type":"event","event":{"event_id":"e%d","kind":"Command","at":{"secs":%d,"nanos":0},"payload":{"n":%d}}}\n'
    )
    events = []
    for first in range(0, count, 7):
        some = range(first, min(first + 7, count))
        events.append((b"".join(line % (n, n, n) for n in some), len(some)))
    return events, [(b"[[0,0,%d]]" % count, count)]


@pytest.fixture(params=[("compact", "none"), ("pretty", "none"), ("compact", "zstd")], ids="-".join)
def bundle(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Return a bundle of twenty events with an index."""
    style, compress = request.param
    with captured(*of_many()) as found:
        yield composed(found, 20, style=style, compress=compress)


def composed(found: Captured, count: int, **options: str) -> Path:
    """Return a bundle of a session."""
    job = found.job("b", count, **options)
    found.published(job)
    return Path(job.destination)


def indexed(bundle: Path) -> IndexedBundle:
    """Open a bundle by its index."""
    stream = open_indexed(bundle)
    assert stream is not None
    return stream


def outcome(stream: Any, wanted: Selection) -> Any:
    """Return what is selected, or the error."""
    try:
        return list(select(stream, wanted))
    except NoSuchEvent as error:
        return error.message


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sessions(), st.data(), st.sampled_from(["compact", "pretty"]), st.sampled_from(["none", "zstd"]))
def test_whatever_is_selected_is_what_the_whole_bundle_gives(
    session: Any, data: st.DataObject, style: str, compress: str
) -> None:
    """Ids may occur twice, and the events may be of any kind."""
    with captured(*session) as found:
        bundle = composed(found, found.events_at[-1], style=style, compress=compress)
        with open_bundle(bundle) as whole, indexed(bundle) as parts:
            ids = st.sampled_from([event.event_id for event in whole.events()]) | st.just("no such id")
            wanted = Selection(
                ids=frozenset(data.draw(st.lists(ids, max_size=3))),
                kinds=data.draw(st.sampled_from([frozenset[str](), frozenset({"Pump"})])),
                from_id=data.draw(st.none() | ids),
                to_id=data.draw(st.none() | ids),
            )
            assert outcome(parts, wanted) == outcome(whole, wanted)
            last = Selection(kinds=wanted.kinds, ids=wanted.ids)
            most = data.draw(st.integers(0, 9))
            assert select_last(parts, last, most) == select_last(whole, last, most)
            assert (parts.graph_id, parts.config, parts.capture_version) == (
                whole.graph_id,
                whole.config,
                whole.capture_version,
            )


def test_only_the_blocks_that_are_wanted_are_read(bundle: Path) -> None:
    """The size of the bundle does not matter."""
    with indexed(bundle) as stream:
        assert [event.event_id for _, event, _ in select_last(stream, Selection(), 2)] == ["e18", "e19"]
        assert stream.bytes_read < stream.size / 2
    with indexed(bundle) as stream:
        found = list(select(stream, Selection(from_id="e9", to_id="e10")))
        assert [(index, event.event_id) for index, event, _ in found] == [(9, "e9"), (10, "e10")]
        assert stream.bytes_read < stream.size / 2
    with indexed(bundle) as stream, pytest.raises(NoSuchEvent):
        list(select(stream, Selection(from_id="e20")))


def test_a_block_whose_digest_differs_is_not_believed(tmp_path: Path) -> None:
    """The other blocks are believed; the size of the file is the same."""
    with captured(*of_many()) as found:
        bundle = composed(found, 20)
        bundle.write_bytes(bundle.read_bytes().replace(b'{"event_id":"e18"', b'{"event_id":"e88"'))
        with indexed(bundle) as stream:
            with pytest.raises(ErgoCaptureError, match="its digest differs"):
                select_last(stream, Selection(), 2)
            assert next(select(stream, Selection(ids=frozenset({"e3"}))))[0] == 3


@pytest.mark.parametrize("change", ["bundle", "index", "format", "none", "gone", "nonsense"])
def test_an_index_that_is_not_vouched_for_is_ignored(change: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundle is read as if it had no index."""
    with captured(*of_many()) as found:
        bundle = composed(found, 20)
        manifest = read_manifest(manifest_path(bundle))
        index = read_index(bundle, manifest)
        assert index is not None
        if change == "bundle":
            bundle.write_bytes(bundle.read_bytes() + b" ")
        elif change == "index":
            index_path(bundle).write_bytes(index_path(bundle).read_bytes().replace(b'"v', b'"w') + b" ")
        elif change == "gone":
            index_path(bundle).unlink()
        elif change == "format":
            text = msgspec.json.encode(msgspec.structs.replace(index, format="ergo-capture-index.v2"))
            index_path(bundle).write_bytes(text)
            reference = IndexReference(len(text), hashlib.sha256(text).hexdigest())
            manifest = msgspec.structs.replace(manifest, index=reference)
        else:
            manifest = msgspec.structs.replace(manifest, index=None if change == "none" else {"bytes": "many"})
        manifest_path(bundle).write_bytes(encode_manifest(manifest))
        assert open_indexed(bundle) is None
        assert app.run(["tail", "-n", "1", str(bundle)]) == 0
        out, said = capsys.readouterr()
        assert "'e19'" in out
        assert "by its index" not in said
        assert ("by its manifest" in said) == (change == "bundle")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tail", "-n", "2"], ["e18", "e19"]),
        (["cat", "--from-id", "e18"], ["e18", "e19"]),
        (["cat", "--event-id", "e3"], ["e3"]),
        (["extract", "--from-id", "e4", "--to-id", "e5"], ["e4", "e5"]),
    ],
)
def test_commands_say_that_they_did_not_read_the_rest(
    bundle: Path, arguments: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The note is on standard error, with the number of bytes."""
    assert app.run([arguments[0], str(bundle), *arguments[1:]]) == 0
    out, said = capsys.readouterr()
    assert "were read, by its index; the rest was not" in said
    index_path(bundle).unlink()
    assert app.run([arguments[0], str(bundle), *arguments[1:]]) == 0
    assert capsys.readouterr().out == out
    for event_id in expected:
        assert event_id in out


def test_a_compressed_bundle_is_one_zstd_file(tmp_path: Path) -> None:
    """Its frames are independent, and any reader joins them."""
    with captured(*of_many()) as found:
        bundle = composed(found, 20, compress="zstd")
        plain = found.job("plain", 20)
        found.published(plain)
        with open_bundle(bundle) as one, open_bundle(plain.destination) as other:
            assert one.read() == other.read()
        assert bundle.read_bytes().count(b"\x28\xb5\x2f\xfd") > 5
