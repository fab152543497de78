"""The fates of accepted events, as recovery finds them: decided, refused, left over, or not decided yet."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.journal.hosted import ADAPTER, CONTRACT, FAILED, WHEN, HostedLife, ack_of, publish_all, sends, sets, write
from tests.journal.journals import flip, frames_of, journal_in, look, recovered, the_session
from tests.shared import HERE

from ergo_capture import encode_bundle
from ergo_capture.bundle.manifest import read_manifest
from ergo_capture.bundle.names import manifest_path, rest_path
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.journal.decision_rows import DecisionRows, Refusal
from ergo_capture.journal.derivation import _binding
from ergo_capture.journal.frame import FrameKind, PendingFrame
from ergo_capture.journal.payloads import Interruption, LeftOver, Rotation, encode_body
from ergo_capture.journal.session_stream import parts_in
from ergo_capture.journal.tail import follow
from ergo_capture.manual import read as read_topic
from ergo_capture.repair.doctor import diagnose
from ergo_capture.repair.journal_salvage import salvage_journal
from ergo_capture.storage import RealStorage

STORED = ("e1", "Command", 1, "full", {"n": 1})
LARGE = ("e2", "Command", 2, "full", {"n": 2})
MERGED = ("e3", "Command", 3, "full", {"note": "n comes from the store"})


def test_a_refused_event_is_refused_again(tmp_path: Path) -> None:
    """Its id stays used; it counts as decided and takes no episode id."""
    life = HostedLife(results={"e1": sets(n=11), "e3": sets(n=2)})
    write(tmp_path, [life.opened(), life.events(STORED, MERGED, LARGE)], [life.decisions()])
    session = the_session(tmp_path)
    assert life.refused == [(1, "e3")]
    assert (session.accepted, session.decided, session.refused) == (3, 3, 1)
    (refusal,) = session.refusals
    assert (refusal.index, refusal.event_id, refusal.code) == (1, "e3", "schema_violation")
    assert "11" in refusal.message
    assert session.ids == {"e1", "e2", "e3"}
    assert session.supervisor._next_episode == 2
    assert session.store == {"n": 11.0}
    assert (session.undecided, session.undecided_lines) == ([], b"")


def test_a_decision_where_the_event_is_refused_is_damage(tmp_path: Path) -> None:
    """A refusal of an event that is not refused is damage too."""
    life = HostedLife(results={"e1": sets(n=11)})
    rows = DecisionRows()
    rows.add_refusal(Refusal("schema_violation", "no reason"))
    write(
        tmp_path / "a",
        [life.opened(), life.events(STORED, MERGED)],
        [life.decisions(1)],
        [PendingFrame(FrameKind.DECISIONS, 1, 1, 1, b"[[0,1,1]]")],
    )
    other = HostedLife()
    write(
        tmp_path / "b",
        [other.opened(), other.events(STORED)],
        [PendingFrame(FrameKind.DECISIONS, 1, 0, 1, rows.encode())],
    )
    (reason,) = recovered(tmp_path / "a").reasons.values()
    assert reason.startswith(
        "event 'e3' is recorded as decided, and its payload is refused: semantic event binding failed"
    )
    (reason,) = recovered(tmp_path / "b").reasons.values()
    assert reason == "event 'e1' is recorded as refused, and its payload is not refused"


def test_a_session_is_not_damaged_where_its_adapters_packages_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start ends with a hint. A quarantine would take the session out of the journal."""
    write(tmp_path, [HostedLife().opened()])
    _binding.cache_clear()
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    with pytest.raises(ErgoCaptureError) as caught:
        recovered(tmp_path)
    assert "pip install 'ergo-capture[adapter]'" in (caught.value.hint or "")
    assert caught.value.exit_code == ExitCode.CONFIG


def test_undecided_events_wait_with_their_lines_and_the_store(tmp_path: Path) -> None:
    """Their payloads are derived when they are decided."""
    life = HostedLife(results={"e1": sets(n=3)})
    write(tmp_path, [life.opened(), life.events(STORED, LARGE, MERGED)], [life.decisions(1)])
    session = the_session(tmp_path)
    assert [event.event_id for event in session.undecided] == ["e2", "e3"]
    assert session.undecided_lines == b"".join(life.lines[1:])
    assert session.store == {"n": 3.0}


def test_undecided_events_of_many_frames_wait_in_order(tmp_path: Path) -> None:
    """The lines of all frames are there."""
    life = HostedLife(results={"e1": sets(n=3)})
    write(tmp_path, [life.opened(), life.events(STORED, LARGE), life.events(MERGED)], [life.decisions(1)])
    session = the_session(tmp_path)
    assert [event.event_id for event in session.undecided] == ["e2", "e3"]
    assert session.undecided_lines == b"".join(life.lines[1:])


def test_an_outcome_without_a_decision_is_found_with_its_acks(tmp_path: Path) -> None:
    """The episode is not run again, whatever ``in_doubt`` says."""
    run = sends("i1", "i2", n=4)
    life = HostedLife(results={"e1": FAILED})
    write(
        tmp_path,
        [life.opened(), life.events(STORED, LARGE)],
        [life.decisions(1), life.outcome(run)],
        [life.ack("i1")],
    )
    session = the_session(tmp_path)
    assert session.outcome is not None
    assert session.outcome.outcome.index == session.decided == 1
    assert session.outcome.outcome.to_result() == run
    assert [intent.intent_id for intent in session.outcome.outcome.intents] == ["i1", "i2"]
    assert session.outcome.acks == (ack_of("i1"),)
    assert session.store == {}


def test_an_outcome_whose_decision_is_there_is_over(tmp_path: Path) -> None:
    """Nothing is left to be done for it."""
    run = sends("i1")
    life = HostedLife(results={"e1": run})
    write(
        tmp_path,
        [life.opened(), life.events(STORED, LARGE)],
        [life.outcome(run)],
        [life.ack("i1")],
        [life.decisions(1)],
    )
    session = the_session(tmp_path)
    assert (session.outcome, session.decided) == (None, 1)


def test_an_outcome_of_another_event_is_damage(tmp_path: Path) -> None:
    """All decisions before an outcome are durable with it or before it."""
    life = HostedLife()
    life.decided = 1
    outcome = life.outcome(sends("i1"))
    life.decided = 0
    write(tmp_path, [life.opened(), life.events(STORED, LARGE)], [outcome])
    (reason,) = recovered(tmp_path).reasons.values()
    assert reason == "it has an outcome of event 1, and decisions before it are missing"


def test_an_outcome_of_a_missing_event_is_damage(tmp_path: Path) -> None:
    """An outcome is written after its event."""
    life = HostedLife()
    write(tmp_path, [life.opened(), life.events(STORED)], [life.decisions(), life.outcome(sends("i1"))])
    (reason,) = recovered(tmp_path).reasons.values()
    assert reason == "it has an outcome of event 1, which is missing"


def test_events_behind_an_interruption_are_left_over(tmp_path: Path) -> None:
    """The session need not be closed: the row that ends the run is durable with the decision before it."""
    run = sends("i1")
    life = HostedLife(results={"e1": run}, unacknowledged=["i1"])
    write(tmp_path, [life.opened(), life.events(STORED, LARGE, MERGED)], [life.decisions()])
    session = the_session(tmp_path)
    assert session.interruption == Interruption(
        reason="egress_ack_timeout",
        message="ack timeout on channel 'out' for intent 'i1'",
        channel="out",
        intent_id="i1",
    )
    assert (session.accepted, session.decided) == (3, 1)
    assert session.left_over == LeftOver(1, "e2", 2)
    assert (session.undecided, session.undecided_lines) == ([], b"")


def test_a_decision_behind_an_interruption_is_damage(tmp_path: Path) -> None:
    """The store is full, and nothing is decided after that."""
    life = HostedLife(results={"e1": sets(n=3)}, contract=replace(CONTRACT, context_bytes=3))
    write(
        tmp_path,
        [life.opened(), life.events(STORED, LARGE)],
        [PendingFrame(FrameKind.DECISIONS, 1, 0, 2, life.decisions(1).body[:-1] + b",[0,1,1]]")],
    )
    (reason,) = recovered(tmp_path).reasons.values()
    assert reason == "event 'e2' is decided after the interruption of the run"


def test_a_closed_session_says_what_is_left_over(tmp_path: Path) -> None:
    """The CLOSE frame counts the events after the decided ones."""
    life = HostedLife(results={"e1": sends("i1")}, unacknowledged=["i1"])
    write(
        tmp_path,
        [life.opened(), life.events(STORED, LARGE, MERGED)],
        [life.decisions()],
        [life.closed("interrupted")],
    )
    session = the_session(tmp_path)
    assert session.closing is not None
    assert session.interruption == session.closing.interruption == life.interruption
    assert session.left_over == LeftOver(1, "e2", 2)


def test_a_context_store_that_grows_beyond_its_bound_interrupts_the_run(tmp_path: Path) -> None:
    """Only the decision need be durable at the kill."""
    life = HostedLife(results={"e1": sets(n=3)}, contract=replace(CONTRACT, context_bytes=3))
    write(tmp_path, [life.opened(), life.events(STORED, LARGE)], [life.decisions(1)])
    session = the_session(tmp_path)
    assert session.interruption is not None
    assert session.interruption.reason == "context_full"
    assert session.left_over == LeftOver(1, "e2", 1)


def test_a_part_begins_with_the_store_of_its_rotation(tmp_path: Path) -> None:
    """Parts that are published are not read."""
    life = HostedLife(results={"e1": sets(n=7)})
    write(
        tmp_path,
        [life.opened(), life.events(STORED)],
        [life.decisions()],
        [life.rotated(), life.published(1, final=False)],
        [life.events(MERGED)],
        [life.decisions()],
    )
    session = the_session(tmp_path)
    assert (session.part, session.first, session.decided) == (2, 1, 2)
    assert session.rotation is not None
    assert session.rotation.store == session.store == {"n": 7.0}


def test_a_rotation_with_another_store_is_damage(tmp_path: Path) -> None:
    """The effects before the rotation lead to one store only."""
    life = HostedLife(results={"e1": sets(n=7)})
    rotation = Rotation(1, False, WHEN, life.description, "e1", {"n": 8.0})
    write(
        tmp_path,
        [life.opened(), life.events(STORED)],
        [life.decisions()],
        [PendingFrame(FrameKind.ROTATE, 1, 1, 0, encode_body(rotation))],
    )
    (reason,) = recovered(tmp_path).reasons.values()
    assert reason == "the context store at the end of part 1 is not what its effects wrote"


def test_the_adapter_is_found_in_the_journal_alone(tmp_path: Path) -> None:
    """The description holds the manifest's text."""
    life = HostedLife()
    write(tmp_path, [life.opened()])
    session = the_session(tmp_path)
    assert session.description.contract == life.contract
    assert session.description.adapter_provenance == ADAPTER.provenance


# --- whoever else reads journals ---


def mixed(tmp_path: Path) -> HostedLife:
    """Write a journal of two parts with merged payloads, a refusal, an interruption and events after it."""
    life = HostedLife(results={"e1": sets(n=11), "e2": sends("i1", n=3), "e5": sends("i2")}, unacknowledged=["i2"])
    write(
        tmp_path / "journal",
        [life.opened(), life.events(STORED, MERGED, LARGE)],
        [life.decisions()],
        [life.rotated()],
        [life.events(FOURTH, FIFTH, LAST)],
        [life.decisions()],
        [life.closed("interrupted")],
    )
    assert [event_id for _, event_id in life.refused] == ["e3"]
    assert life.left_over == LeftOver(5, "e6", 1)
    return life


FOURTH = ("e4", "Command", 14, "full", {"note": "n comes from the part before"})
FIFTH = ("e5", "Command", 15, "full", {"n": 5})
LAST = ("e6", "Command", 16, "full", {"n": 6})


def test_the_parts_of_a_journal_are_read_as_their_bundles_are(tmp_path: Path) -> None:
    """``cat``, ``info``, ``replay`` and ``report`` show the decided events as they were decided."""
    life = mixed(tmp_path)
    parts = parts_in(tmp_path / "journal", RealStorage())
    bundles = [host.bundle() for host in life.hosts]
    assert [list(part.events()) for part in parts] == [bundle.events for bundle in bundles]
    assert [list(part.decisions()) for part in parts] == [bundle.decisions for bundle in bundles]
    assert [list(part.semantic_kinds()) for part in parts] == [["full", "full"], ["full", "full"]]
    assert [part.egress_provenance for part in parts] == [bundle.egress_provenance for bundle in bundles]
    assert [part.store for part in parts] == [None, {"n": 3.0}]


def test_undecided_events_of_a_journal_are_read_as_they_were_sent(tmp_path: Path) -> None:
    """They may still be refused."""
    life = HostedLife(results={"e1": sets(n=3)})
    write(tmp_path / "journal", [life.opened(), life.events(STORED, MERGED)], [life.decisions(1)])
    (part,) = parts_in(tmp_path / "journal", RealStorage())
    assert [event.payload for event in part.events()] == [b'{"n":1}', b'{"note": "n comes from the store"}']


def test_a_follower_sees_decided_events_as_they_were_decided(tmp_path: Path) -> None:
    """It begins with the oldest part that the journal holds."""
    life = mixed(tmp_path)
    followed = list(follow(tmp_path / "journal", RealStorage(), lambda: None, of=life.description.session))
    records = [record for host in life.hosts for record in host.bundle().events]
    assert [item.event for item in followed] == records
    assert [item.index for item in followed] == [0, 2, 3, 4]


def test_a_follower_derives_the_events_of_a_session_that_begins_meanwhile(tmp_path: Path) -> None:
    """It begins with the first event."""
    life = HostedLife(results={"e1": sets(n=3)})
    journal = journal_in(tmp_path)

    def begin() -> None:
        journal.commit([life.opened(), life.events(STORED, MERGED), life.decisions()])

    items = follow(tmp_path, RealStorage(), begin)
    found = [(item.index, item.event) for item in islice(items, 2)]
    journal.close()
    assert found == list(enumerate(life.host.bundle().events))


def test_a_follower_passes_over_decisions_whose_events_were_deleted(tmp_path: Path) -> None:
    """The store is that of the oldest rotation; events of the next part may come before these decisions."""
    life = HostedLife(results={"e1": sets(n=3)})
    journal = journal_in(tmp_path)
    journal.commit([life.opened(), life.events(STORED)])
    journal.commit([PendingFrame(FrameKind.PUBLISHED, 9, 1, 0, b"x" * 3000), life.events(LARGE), life.decisions(1)])
    journal.commit([life.events(MERGED), life.decisions(1)])
    journal.commit([life.rotated(), life.decisions()])
    assert journal.delete_segments(2) == [1]
    journal.close()
    (item,) = islice(follow(tmp_path, RealStorage(), lambda: None, of=life.description.session), 1)
    assert (item.index, item.event) == (2, life.host.bundle().events[0])


def test_what_is_salvaged_is_what_would_have_been_published(tmp_path: Path) -> None:
    """Bundles, refusals and left-over events are equal; none of it counts as a loss."""
    life = mixed(tmp_path)
    published = publish_all(tmp_path / "journal", tmp_path)
    parts = salvage_journal(tmp_path / "journal", look(tmp_path / "journal"), RealStorage(), tmp_path / "saved")
    saved = [Path(part.bundle or "") for part in parts]
    assert [path.read_bytes() for path in saved] == [path.read_bytes() for path in published]
    assert [part.lossy for part in parts] == [False, False]
    manifests = [read_manifest(manifest_path(path)) for path in saved]
    assert [manifest.refused and manifest.refused.count for manifest in manifests] == [1, None]
    originals = [read_manifest(manifest_path(path)) for path in published]
    for name in ("store", "merged", "refused", "interruption", "left_over", "rest", "semantic_kinds"):
        assert [getattr(manifest, name) for manifest in manifests] == [getattr(each, name) for each in originals]
    assert manifests[1].left_over == life.left_over
    assert rest_path(saved[1]).read_bytes() == life.lines[5]
    words = [part.counts.in_words() for part in parts if part.counts is not None]
    assert words == [
        "2 events with their decisions kept, 1 event refused by the adapter",
        "2 events with their decisions kept, 1 event left over",
    ]


def test_nothing_is_derived_behind_damage(tmp_path: Path) -> None:
    """The effects before are not known any more, so events are set aside as they were sent."""
    life = mixed(tmp_path)
    segment = tmp_path / "journal" / "0000000000000001.journal"
    (offset,) = [at for header, at in frames_of(segment) if header.kind == FrameKind.DECISIONS and header.first == 0]
    flip(segment, offset + 70)
    first, second = salvage_journal(tmp_path / "journal", look(tmp_path / "journal"), RealStorage(), tmp_path / "saved")
    assert first.counts is not None
    assert (first.counts.kept, first.counts.aside, first.lossy) == (0, 3, True)
    assert second.counts is not None
    assert (second.counts.kept, second.lossy) == (2, False)
    assert Path(second.bundle or "").read_bytes() == encode_bundle(life.hosts[1].bundle())


def test_doctor_counts_every_fate(tmp_path: Path) -> None:
    """It also reports a file of left-over events that is changed or missing."""
    mixed(tmp_path)
    folder = tmp_path / "bundles" / "hosted"
    folder.mkdir(parents=True)
    found = diagnose(tmp_path)
    assert found.sound
    assert any("1 event refused by the adapter" in words for words in found.keeps)
    assert any("1 event left over" in words for words in found.keeps)
    bundle = publish_all(tmp_path / "journal", folder)[1]
    assert [finding.message for finding in diagnose(tmp_path).findings if finding.path == str(rest_path(bundle))] == []
    rest_path(bundle).write_bytes(b"{}\n{}\n")
    (finding,) = [each for each in diagnose(tmp_path).findings if each.path == str(rest_path(bundle))]
    assert finding.message == "events that were left over: it is not the file that its bundle's manifest names"
    rest_path(bundle).unlink()
    (finding,) = [each for each in diagnose(tmp_path).findings if each.path == str(rest_path(bundle))]
    assert finding.message == "the file is missing; it holds 1 event left over"


#: A test of each fate, for each row of the manual's page.
FATES = {
    "rejected": ("server/net/test_bad_clients.py", "test_a_payload_that_the_reference_refuses_is_rejected_alone"),
    "accepted": ("journal/test_fates.py", "test_undecided_events_wait_with_their_lines_and_the_store"),
    "decided": ("bundle/test_hosted.py", "test_a_bundle_is_the_reference_hosts_to_the_byte"),
    "refused": ("bundle/test_hosted.py", "test_refused_events_are_left_out_and_named"),
    "left over": ("bundle/test_hosted.py", "test_an_interruption_stands_where_the_reference_has_it"),
    "lost": ("client/test_lost.py", "test_a_client_that_goes_on_after_a_loss_has_it_in_the_manifest"),
}


def test_every_fate_of_the_manual_has_a_test() -> None:
    """Each table of the page has a row for each fate."""
    text = read_topic("fates")
    rows = [row.split(" | ")[0].removeprefix("| ") for row in text.splitlines() if row.startswith("| ")]
    assert rows == 3 * ["fate", *FATES]
    for path, name in FATES.values():
        assert f"def {name}(" in (HERE / path).read_text(encoding="utf-8")
