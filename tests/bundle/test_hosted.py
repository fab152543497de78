"""Bundles of sessions with an adapter, composed from the journal, against those of the reference's host."""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.journal.hosted import CONTRACT, FAILED, LIMITS, WHEN, HostedLife, Sent, publish_all, sends, sets, write
from tests.journal.journals import compose, journal_in, parts_of, recovered

from ergo_capture import EventTime, encode_bundle, read_capture_bundle
from ergo_capture.bundle.format import CaptureJsonStyle
from ergo_capture.bundle.manifest import Manifest, RestFile, read_manifest
from ergo_capture.bundle.merged import MergedDigest
from ergo_capture.bundle.names import manifest_path, rest_path
from ergo_capture.bundle.reader.stream import open_bundle
from ergo_capture.bundle.statistics import collect_statistics, summarized
from ergo_capture.bundle.writer.hosted import HostedPart, outcomes_of
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.decision_rows import DecisionRows, Refusal
from ergo_capture.journal.frame import FrameKind, PendingFrame
from ergo_capture.journal.payloads import Contract, Interruption, LeftOver

STORED: Sent = ("e1", "Command", 1, "full", {"n": 1, "v": [1.5, 2]})
DEFERRED: Sent = ("e2", "Command", 1, "full", {"note": "n comes from the store"})
PLAIN: Sent = ("e3", "DataAvailable", 1, "plain", {"note": "ünï", "fixed": 1e-7})
MORE: Sent = ("e4", "Command", 1, "full", {"n": 4})
PUMP: Sent = ("p1", "Pump", 9, "full", {})
LAST: Sent = ("e5", "Command", 20, "full", {})


def manifest_of(bundle: Path) -> Manifest:
    """Return the manifest beside a bundle."""
    return read_manifest(manifest_path(bundle))


@pytest.mark.parametrize("style", CaptureJsonStyle)
def test_a_bundle_is_the_reference_hosts_to_the_byte(tmp_path: Path, style: CaptureJsonStyle) -> None:
    """It has merged payloads, a deferral that keeps the context of its arrival, a refusal, a failure and intents."""
    life = HostedLife(results={"e1": sets(n=3), "e3": sends("i1", "i2", n=7), "e4": FAILED, "e5": sends("i3")})
    write(
        tmp_path / "j",
        [life.opened(), life.events(STORED, DEFERRED, PLAIN)],
        [life.decisions(), life.events(MORE, PUMP, LAST)],
        [life.decisions()],
        [life.closed()],
    )
    (bundle,) = publish_all(tmp_path / "j", tmp_path, style=style.value)
    assert bundle.read_bytes() == encode_bundle(life.host.bundle(), style)
    assert b"egress_provenance" in bundle.read_bytes()
    manifest = manifest_of(bundle)
    assert (manifest.events, manifest.decisions, manifest.ended) == (6, 6, "complete")
    assert (manifest.refused, manifest.left_over, manifest.store, manifest.interruption) == (None, None, None, None)
    assert manifest.semantic_kinds is not None
    assert list(manifest.semantic_kinds.of(6) or ()) == ["full", "full", "plain", "full", "full", "full"]
    assert not rest_path(bundle).exists()


def test_refused_events_are_left_out_and_named(tmp_path: Path) -> None:
    """The host, which never saw them, writes the same bundle; their indices are those of the session."""
    life = HostedLife(results={"e1": sets(n=11), "e4": sets(n=5)})
    write(
        tmp_path / "j",
        [life.opened(), life.events(STORED, DEFERRED, PLAIN, MORE, PUMP)],
        [life.decisions()],
        [life.closed()],
    )
    (bundle,) = publish_all(tmp_path / "j", tmp_path)
    assert bundle.read_bytes() == encode_bundle(life.host.bundle())
    manifest = manifest_of(bundle)
    assert manifest.refused is not None
    assert [(each.index, each.event_id, each.code) for each in manifest.refused.first] == [
        (1, "e2", "schema_violation")
    ]
    assert (manifest.events, manifest.refused.count) == (4, 1)
    assert list((manifest.semantic_kinds and manifest.semantic_kinds.of(4)) or ()) == ["full", "plain", "full", "full"]


def test_a_manifest_names_only_the_first_refusals(tmp_path: Path) -> None:
    """All of them are counted."""
    life = HostedLife(results={"e1": sets(n=11)})
    many: list[Sent] = [(f"r{n}", "Command", 1, "full", {}) for n in range(25)]
    write(tmp_path / "j", [life.opened(), life.events(STORED, *many)], [life.decisions()], [life.closed()])
    (bundle,) = publish_all(tmp_path / "j", tmp_path)
    refused = manifest_of(bundle).refused
    assert refused is not None
    assert refused.count == 25
    assert [(each.index, each.event_id) for each in refused.first] == [(n + 1, f"r{n}") for n in range(10)]


def test_an_interruption_stands_where_the_reference_has_it(tmp_path: Path) -> None:
    """Events after it are in a file beside the bundle, as they were sent."""
    life = HostedLife(results={"e1": sets(n=3), "e3": sends("i1", "i2")}, unacknowledged=["i2"])
    write(
        tmp_path / "j",
        [life.opened(), life.events(STORED, PLAIN)],
        [life.events(MORE)],
        [life.events(LAST, PUMP)],
        [life.decisions()],
        [life.closed("interrupted")],
    )
    (bundle,) = publish_all(tmp_path / "j", tmp_path)
    assert bundle.read_bytes() == encode_bundle(life.host.bundle())
    assert (
        b"\"interruption\":\"egress dispatch failed: ack timeout on channel 'out' for intent 'i2'\""
        in bundle.read_bytes()
    )
    manifest = manifest_of(bundle)
    assert manifest.interruption == Interruption(
        reason="egress_ack_timeout",
        message="ack timeout on channel 'out' for intent 'i2'",
        channel="out",
        intent_id="i2",
    )
    assert (manifest.events, manifest.left_over) == (2, LeftOver(2, "e4", 3))
    assert rest_path(bundle).name == "s.rest.jsonl"
    rest = b"".join(life.lines[2:])
    assert rest_path(bundle).read_bytes() == rest
    assert manifest.rest == RestFile(len(rest), hashlib.sha256(rest).hexdigest())


def test_the_rest_is_durable_before_the_manifest(tmp_path: Path) -> None:
    """A manifest that counts events which are nowhere would be a loss."""
    life = HostedLife(results={"e1": sends("i1")}, unacknowledged=["i1"])
    write(tmp_path / "j", [life.opened(), life.events(STORED, LAST)], [life.decisions()], [life.closed("interrupted")])
    (tmp_path / "s.rest.jsonl").mkdir()
    with pytest.raises(ErgoCaptureError, match=r"^write events that were left over '.*/s\.rest\.jsonl': ") as raised:
        publish_all(tmp_path / "j", tmp_path)
    assert raised.value.op == "write events that were left over"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["j", "s.rest.jsonl"]


def test_left_over_events_that_the_journal_does_not_hold_give_no_manifest(tmp_path: Path) -> None:
    """The error says how many there were."""
    life = HostedLife(results={"e1": sends("i1")}, unacknowledged=["i1"])
    write(tmp_path / "j", [life.opened(), life.events(STORED, LAST)], [life.decisions()], [life.closed("interrupted")])
    recovery = recovered(tmp_path / "j")
    (session,) = recovery.sessions
    assert session.left_over is not None
    session.left_over = replace(session.left_over, count=3)
    with pytest.raises(ErgoCaptureError) as raised:
        compose(tmp_path / "j", session, parts_of(session)[0], tmp_path / "s.capture.json", ended_at=WHEN)
    assert raised.value.message == (
        f"write '{tmp_path}/s.rest.jsonl': the journal holds 1 events after the interruption, and had 3"
    )
    assert (raised.value.op, raised.value.path) == ("write events that were left over", f"{tmp_path}/s.rest.jsonl")
    assert raised.value.hint == "keep the journal as it is and run `ergo-capture doctor` on it"
    assert [path.name for path in tmp_path.iterdir()] == ["j"]


@pytest.mark.parametrize("block_bytes", [1, 1 << 17], ids=["", "joined"])
def test_parts_of_several_frames_stand_on_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """They have a deadline, statistics, and refusals by their index in the session; the last ends inside a frame."""
    monkeypatch.setattr("ergo_capture.bundle.writer.compose._BLOCK_BYTES", block_bytes)
    limits = replace(LIMITS, deadline=EventTime(3, 7))
    life = HostedLife(results={"e1": sets(n=3), "e4": sets(n=11)}, constraints=limits)
    write(
        tmp_path / "j",
        [life.opened(), life.events(STORED, DEFERRED), life.events(PLAIN)],
        [life.decisions()],
        [life.rotated()],
        [life.events(MORE, PUMP), life.events(LAST, ("e6", "Command", 21, "full", {"n": 2}), ("e7", *LAST[1:]))],
        [life.decisions(4)],
    )
    bundles = publish_all(tmp_path / "j", tmp_path)
    assert [bundle.read_bytes() for bundle in bundles] == [encode_bundle(host.bundle()) for host in life.hosts]
    assert b'"deadline":{"secs":3,"nanos":7},"termination"' in bundles[1].read_bytes()
    manifests = [manifest_of(bundle) for bundle in bundles]
    assert [(each.first_event, each.events, each.last_event_id) for each in manifests] == [(0, 3, "e3"), (3, 2, "e6")]
    assert [[each.index for each in manifest.refused.first] for manifest in manifests if manifest.refused] == [[4, 5]]
    for bundle, manifest in zip(bundles, manifests, strict=True):
        with open_bundle(bundle) as stream:
            assert summarized(manifest) == collect_statistics(stream, bundle.stat().st_size)


@pytest.mark.parametrize(
    ("sent", "refused", "message"),
    [
        (PLAIN, True, r"^event 'e3' was refused, and is not refused now$"),
        (DEFERRED, False, r"^event 'e2' was decided, and is refused now: "),
    ],
    ids=["accepted", "refused"],
)
def test_a_journal_that_says_otherwise_of_an_event_gives_no_bundle(sent: Sent, message: str, *, refused: bool) -> None:
    """It was written with another adapter, or is damaged."""
    rows = DecisionRows()
    rows.add_refusal(Refusal("schema_violation", "no"))
    part = HostedPart(CONTRACT, None, 0, outcomes_of([rows.encode() if refused else b"[[0,0,1]]"]))
    body = HostedLife().events(sent).body
    with pytest.raises(ValueError, match=message):
        part.take(body, 0, 1)


def test_a_part_may_begin_inside_a_frame(tmp_path: Path) -> None:
    """The events before it are another part's."""
    life = HostedLife()
    frames = [life.events(PLAIN, MORE), life.decisions()]
    write(tmp_path / "j", [life.opened(), *frames], [life.closed()])
    (expected,) = publish_all(tmp_path / "j", tmp_path)
    (session,) = recovered(tmp_path / "j").sessions
    (part,) = parts_of(session)
    (tmp_path / "k").mkdir()
    journal = journal_in(tmp_path / "k")
    positions = journal.commit([HostedLife().events(STORED, PLAIN, MORE), frames[1]])
    journal.close()
    part.first = 1
    part.event_frames, part.decision_frames = (array("Q", [position.pack()]) for position in positions)
    bundle = compose(tmp_path / "k", session, part, tmp_path / "b/s.capture.json", ended_at=WHEN)
    assert bundle.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("lost", ["first", "middle", "last", "decisions"])
@pytest.mark.parametrize("block_bytes", [1, 1 << 17], ids=["", "joined"])
def test_a_journal_that_holds_less_than_was_acknowledged_gives_no_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str, block_bytes: int
) -> None:
    """The error says what is missing."""
    monkeypatch.setattr("ergo_capture.bundle.writer.compose._BLOCK_BYTES", block_bytes)
    life = HostedLife()
    frames = [life.events(STORED), life.events(PLAIN), life.events(MORE)]
    write(tmp_path / "j", [life.opened(), *frames], [life.decisions(2)], [life.decisions()], [life.closed()])
    (session,) = recovered(tmp_path / "j").sessions
    (part,) = parts_of(session)
    if lost == "decisions":
        del part.decision_frames[1]
    else:
        del part.event_frames[["first", "middle", "last"].index(lost)]
    with pytest.raises(ErgoCaptureError) as raised:
        compose(tmp_path / "j", session, part, tmp_path / "s.capture.json", ended_at=WHEN)
    assert raised.value.message == (
        f"compose bundle '{tmp_path}/s.capture.json': the journal holds fewer "
        f"{'decisions' if lost == 'decisions' else 'events'} of session {session.description.session} "
        "than were acknowledged"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["j"]


def test_parts_stand_on_their_own(tmp_path: Path) -> None:
    """The manifest of each says what the store held at its beginning."""
    life = HostedLife(results={"e1": sets(n=3), "e4": sets(n=8)})
    write(
        tmp_path / "j",
        [life.opened(), life.events(STORED)],
        [life.decisions(), life.events(DEFERRED)],
        [life.rotated()],
        [life.decisions(), life.events(MORE)],
        [life.decisions()],
        [life.rotated()],
        [life.events(LAST)],
        [life.decisions()],
        [life.closed()],
    )
    bundles = publish_all(tmp_path / "j", tmp_path)
    assert [bundle.read_bytes() for bundle in bundles] == [encode_bundle(host.bundle()) for host in life.hosts]
    assert [manifest_of(bundle).store for bundle in bundles] == [None, {"n": 3.0}, {"n": 8.0}]


def test_the_digest_of_merged_values_is_in_the_manifest(tmp_path: Path) -> None:
    """A key counts by the value that the payload and the store have."""
    life = HostedLife(results={"e1": sets(n=3)})
    write(
        tmp_path / "j",
        [life.opened(), life.events(STORED, DEFERRED, MORE, LAST)],
        [life.decisions()],
        [life.closed()],
    )
    (bundle,) = publish_all(tmp_path / "j", tmp_path)
    expected = MergedDigest()
    expected.add(1, ["n"])
    expected.add(3, ["n"])
    assert manifest_of(bundle).merged == expected.hexdigest()


def test_canonical_payloads_need_no_adapter(tmp_path: Path) -> None:
    """The contract says so; there is no store, and no digest."""
    life = HostedLife()
    life.description = replace(life.description, contract=Contract(), egress_provenance=None)
    frames = [life.opened(), life.events(STORED), PendingFrame(FrameKind.DECISIONS, 1, 0, 1, b"[[0,0,1]]")]
    life.decided = 1
    write(tmp_path / "j", frames, [life.closed()])
    (bundle,) = publish_all(tmp_path / "j", tmp_path)
    (event,) = read_capture_bundle(bundle).events
    assert event.payload == b'{"n":1,"v":[1.5,2]}'
    assert (manifest_of(bundle).merged, manifest_of(bundle).store) == (None, None)
