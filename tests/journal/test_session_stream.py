"""The parts of a session as read from a journal, and the pairing of its events with their decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from msgspec.structs import replace
from tests.journal.captures import Written, a_session
from tests.journal.hosted import CONTRACT, HostedLife, ack_of, sends, sets
from tests.journal.hosted import write as write_hosted
from tests.journal.journals import events, frames_of, journal_in, last_segment

from ergo_capture.journal.decision_rows import DecisionOutcome, Refusal
from ergo_capture.journal.derivation import Derivation
from ergo_capture.journal.errors import JournalDamaged
from ergo_capture.journal.frame import Frame, FrameKind, PendingFrame, Position
from ergo_capture.journal.payloads import Loss, Publication, Rotation, encode_body
from ergo_capture.journal.reader import read_frames
from ergo_capture.journal.session_stream import Pairing, PartStream, parts_in
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.effects import ActionEffect, EffectWrite, Value
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.ports import RunResult
from ergo_capture.kernel.time import EventTime
from ergo_capture.storage import RealStorage

COMPLETED = DecisionOutcome(Decision.Invoke, None, 0, RunTermination.Completed, 0, (), (), None)


def written(directory: Path, *batches: list[PendingFrame]) -> list[Position]:
    """Commit batches to a new journal; return the positions."""
    journal = journal_in(directory, segment_bytes=1 << 16)
    positions = [position for batch in batches for position in journal.commit(batch)]
    journal.close()
    return positions


def parts_of(directory: Path) -> list[PartStream]:
    """Return the parts of all sessions."""
    return parts_in(directory, RealStorage())


def decisions(first: int, *rows: bytes) -> PendingFrame:
    """Return a frame of decisions of session 1, one a row."""
    return PendingFrame(FrameKind.DECISIONS, 1, first, len(rows), b"[%b]" % b",".join(rows))


def plain(first: int, end: int) -> PendingFrame:
    """Return a frame of plain decisions."""
    return decisions(first, *(b"[0,%d,1]" % episode for episode in range(first, end)))


def session_of_three_parts(directory: Path) -> Written:
    """Write parts of 3, 2 and 4 events; the second has a bundle, the last has an undecided event and a loss."""
    session = a_session(1)
    session.description = replace(session.description, constraints=Constraints())
    bundle = encode_body(Publication(2, "b", "m", "0" * 64))
    loss = encode_body(Loss(acknowledged=9, held=8))
    written(
        directory,
        [session.opening(), session.more(3), session.decide(), session.rotate(1)],
        [session.more(1), session.more(1), session.decide(), session.rotate(2)],
        [PendingFrame(FrameKind.PUBLISHED, 1, 2, 0, bundle), session.more(4), session.decide(8)],
        [PendingFrame(FrameKind.LOSS, 1, 0, 0, loss)],
    )
    return session


def test_a_session_is_read_part_by_part(tmp_path: Path) -> None:
    """Each part has its number, its first event, how it ended, and whether its bundle is durable."""
    session = session_of_three_parts(tmp_path)
    parts = parts_of(tmp_path)
    assert [(part.part, part.first, part.end, part.ended, part.published) for part in parts] == [
        (1, 0, 3, "rotated", False),
        (2, 3, 5, "rotated", True),
        (3, 5, None, "open", False),
    ]
    assert [[event.event_id for event in part.events()] for part in parts] == [
        ["s1-0", "s1-1", "s1-2"],
        ["s1-3", "s1-4"],
        ["s1-5", "s1-6", "s1-7", "s1-8"],
    ]
    assert [[index for index, _, _ in part.decided()] for part in parts] == [[0, 1, 2], [3, 4], [5, 6, 7]]
    assert [[record.event_id for record in part.decisions()] for part in parts] == [
        ["s1-0", "s1-1", "s1-2"],
        ["s1-3", "s1-4"],
        ["s1-5", "s1-6", "s1-7"],
    ]
    assert [part.description.lost for part in parts] == [None, None, Loss(acknowledged=9, held=8)]
    assert replace(parts[2].description, lost=None) == session.description
    assert [part.store for part in parts] == [None, None, None]


def test_a_part_has_the_size_of_its_frames(tmp_path: Path) -> None:
    """Only frames of events and decisions count."""
    session_of_three_parts(tmp_path)
    kinds = (FrameKind.EVENTS, FrameKind.DECISIONS)
    frames = [header for header, _ in frames_of(last_segment(tmp_path, 1)) if header.kind in kinds]
    bounds = [(0, 3), (3, 5), (5, 99)]
    sizes = [sum(header.size for header in frames if first <= header.first < end) for first, end in bounds]
    assert [part.size() for part in parts_of(tmp_path)] == sizes
    assert all(sizes)


def test_a_closed_session_ends_with_its_decided_events(tmp_path: Path) -> None:
    """The events after them are left over."""
    session = a_session(1)
    closed = PendingFrame(FrameKind.CLOSE, 1, 2, 3, b'{"ended":"interrupted","closed_at":""}')
    written(tmp_path, [session.opening(), session.more(5), session.decide(2), closed])
    (part,) = parts_of(tmp_path)
    assert (part.part, part.first, part.ended, part.end) == (1, 0, "interrupted", 2)
    assert [event.event_id for event in part.events()] == ["s1-0", "s1-1"]


def test_parts_are_in_the_order_of_sessions(tmp_path: Path) -> None:
    """The order of their first frames does not matter."""
    one, two = a_session(1), a_session(2)
    written(tmp_path, [two.opening(), two.more(1)], [one.opening(), one.more(1)])
    assert [part.description.session for part in parts_of(tmp_path)] == ["s1", "s2"]


def test_a_part_whose_first_segment_was_deleted_is_left_out(tmp_path: Path) -> None:
    """Later parts are whole."""
    session = a_session(1)
    journal = journal_in(tmp_path)
    journal.commit([session.opening(), session.more(2), events(9, 0, size=2500)])
    journal.commit([session.more(1), session.decide(), session.rotate(1), events(9, 0, size=1500)])
    journal.commit([session.more(2), session.decide()])
    assert journal.delete_segments(2) == [1]
    journal.close()
    (part,) = parts_of(tmp_path)
    assert (part.part, part.first, [event.event_id for event in part.events()]) == (2, 3, ["s1-3", "s1-4"])


def test_a_session_of_which_the_journal_holds_only_a_middle_is_left_out(tmp_path: Path) -> None:
    """Without an OPEN or a ROTATE frame there is no description of the session."""
    session = a_session(1)
    journal = journal_in(tmp_path)
    journal.commit([session.opening(), events(9, 0, size=3500)])
    journal.commit([session.more(2), session.decide()])
    assert journal.delete_segments(2) == [1]
    journal.close()
    assert parts_of(tmp_path) == []


def lines_of(first: int, end: int) -> PendingFrame:
    """Return a frame of events of session 1, each with a semantic kind."""
    line = (
        '{"type":"event","event":{"event_id":"e%d","kind":"Command","at":{"secs":0,"nanos":0},"semantic_kind":"k%d"}}\n'
    )
    body = "".join(line % (number, number) for number in range(first, end)).encode()
    return PendingFrame(FrameKind.EVENTS, 1, first, end - first, body)


def rotated(session: Written, boundary: int) -> PendingFrame:
    """Return the frame that ends part 1 of a session before an event."""
    rotation = Rotation(1, False, "2026-01-01T00:00:00Z", session.description, None)
    return PendingFrame(FrameKind.ROTATE, 1, boundary, 0, encode_body(rotation))


def test_semantic_kinds_are_those_of_the_lines(tmp_path: Path) -> None:
    """They are those of the part's own events."""
    session = a_session(1)
    session.begin()
    written(tmp_path, [session.opening(), lines_of(0, 3), plain(0, 3)], [rotated(session, 3), lines_of(3, 4)])
    first, second = parts_of(tmp_path)
    assert (list(first.semantic_kinds()), list(second.semantic_kinds())) == (["k0", "k1", "k2"], ["k3"])


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_frame_of_another_part_is_not_decoded(bad: int, tmp_path: Path) -> None:
    """A frame with a body that no daemon writes concerns only its own part."""
    session = a_session(1)
    session.description = replace(session.description, constraints=Constraints())
    batches = [
        [session.opening(), session.more(3), session.decide(), session.rotate(1)],
        [session.more(2), session.decide(), session.rotate(2)],
        [session.more(4), session.decide()],
    ]
    for at in (-3, -2) if bad < 2 else (-2, -1):
        old = batches[bad][at]
        batches[bad][at] = PendingFrame(old.kind, 1, old.first, old.count, b'{"semantic_kind"')
    written(tmp_path, *batches)
    for number, part in enumerate(parts_of(tmp_path)):
        if number == bad:
            for read in (part.events, part.decisions, part.semantic_kinds):
                with pytest.raises(
                    JournalDamaged,
                    match=rf"frame \d of batch {bad + 1} holds what no daemon writes: (Input|Object|Expected)",
                ):
                    list(read())
        else:
            assert len(list(part.events())) == len(list(part.decisions())) == len(list(part.semantic_kinds()))


def test_decisions_that_cannot_be_decoded_are_damage(tmp_path: Path) -> None:
    """The error names the frame."""
    session = a_session(1)
    written(tmp_path, [session.opening(), session.more(1)], [decisions(0, b"[9]")])
    (part,) = parts_of(tmp_path)
    with pytest.raises(JournalDamaged, match="frame 0 of batch 2 holds what no daemon writes"):
        list(part.decisions())


# --- pairing ---


def frames_in(directory: Path, *batches: list[PendingFrame]) -> list[Frame]:
    """Write frames, and return them as a reader gets them."""
    return list(read_frames(directory, written(directory, *batches), RealStorage()))


def test_each_decision_is_paired_with_its_event(tmp_path: Path) -> None:
    """A frame of events has no decisions, a refused event is left out, and other frames are skipped."""
    session = a_session(1)
    refusal = b'[3,"c","m"]'
    frames = frames_in(
        tmp_path,
        [session.opening(), lines_of(0, 5)],
        [decisions(0, refusal, b"[0,0,1]", refusal)],
        [decisions(3, b"[0,1,1]")],
    )
    pairing = Pairing(session.description)
    taken = [[(index, event.event_id, record.event_id) for index, event, record in pairing.take(f)] for f in frames]
    assert taken == [[], [], [(1, "e1", "e1")], [(3, "e3", "e3")]]


def test_an_event_that_is_missing_is_passed_over(tmp_path: Path) -> None:
    """Its segment may have been deleted once a bundle had it; decisions of existing events may be gone too."""
    session = a_session(1)
    _, later, early, behind = frames_in(
        tmp_path, [session.opening(), lines_of(2, 5)], [plain(0, 3)], [decisions(4, b"[0,4,1]")]
    )
    pairing = Pairing(session.description)
    assert list(pairing.take(later)) == []
    assert [index for index, _, _ in pairing.take(early)] == [2]
    assert [index for index, _, _ in pairing.take(behind)] == [4]


def test_a_record_has_the_deadline_of_the_session(tmp_path: Path) -> None:
    """The rows do not contain it."""
    session = a_session(1)
    session.description = replace(session.description, constraints=Constraints(deadline=EventTime(3, 0)))
    written(tmp_path, [session.opening(), session.more(1), session.decide()])
    (part,) = parts_of(tmp_path)
    assert [record.deadline for record in part.decisions()] == [EventTime(3, 0)]


# --- sessions with a contract ---

WHOLE = ("Command", 1, "full", {"n": 1})
MERGED = ("Command", 2, "full", {"note": "n comes from the store"})


def hosted_parts(directory: Path) -> HostedLife:
    """Write three parts; each begins with the store that the part before it left."""
    life = HostedLife(results={"e1": sets(n=3), "e3": sets(n=5)})
    write_hosted(
        directory,
        [life.opened(), life.events(("e1", *WHOLE), ("e2", *MERGED))],
        [life.decisions(), life.rotated()],
        [life.events(("e3", *WHOLE), ("e4", *MERGED)), life.decisions(), life.rotated()],
        [life.events(("e5", *MERGED), ("e6", *WHOLE)), life.decisions(1)],
    )
    return life


def test_a_part_begins_with_its_own_store(tmp_path: Path) -> None:
    """Its events are merged with the store, as the host merged them."""
    life = hosted_parts(tmp_path)
    parts = parts_of(tmp_path)
    assert [part.store for part in parts] == [None, {"n": 3.0}, {"n": 5.0}]
    assert [part.part for part in parts] == [1, 2, 3]
    bundles = [host.bundle() for host in life.hosts]
    assert [list(part.decisions()) for part in parts] == [bundle.decisions for bundle in bundles]
    assert [list(part.events()) for part in parts[:2]] == [bundle.events for bundle in bundles[:2]]
    assert [event.event_id for event in parts[2].events()] == ["e5", "e6"]
    assert [list(part.semantic_kinds()) for part in parts] == 3 * [["full", "full"]]
    assert [part.outcome for part in parts] == [None, None, None]


def test_a_record_of_a_session_with_a_contract_has_the_deadline(tmp_path: Path) -> None:
    """The record is equal to the host's."""
    life = HostedLife(constraints=Constraints(deadline=EventTime(3, 0)))
    write_hosted(tmp_path, [life.opened(), life.events(("e1", *WHOLE)), life.decisions()])
    (part,) = parts_of(tmp_path)
    assert list(part.decisions()) == life.host.bundle().decisions
    assert [record.deadline for record in part.decisions()] == [EventTime(3, 0)]


def test_decisions_about_events_of_deleted_segments_are_passed_over(tmp_path: Path) -> None:
    """The part after them is read from its own store."""
    life = HostedLife(results={"e1": sets(n=3)})
    journal = journal_in(tmp_path)
    journal.commit([life.opened(), life.events(("e1", *WHOLE), ("e2", *WHOLE))])
    journal.commit([life.decisions(2), events(9, 0, size=3000), life.rotated()])
    journal.commit([life.events(("e3", *MERGED)), life.decisions()])
    journal.delete_segments(2)
    journal.close()
    (part,) = parts_of(tmp_path)
    assert (part.part, part.store) == (2, {"n": 3.0})
    assert list(part.decisions()) == life.host.bundle().decisions
    assert list(part.events()) == life.host.bundle().events


def test_a_body_that_the_contract_cannot_read_is_damage(tmp_path: Path) -> None:
    """This is as in a session without a contract."""
    life = HostedLife()
    write_hosted(tmp_path, [life.opened()], [PendingFrame(FrameKind.EVENTS, 1, 0, 1, b"[]\n")])
    (part,) = parts_of(tmp_path)
    with pytest.raises(JournalDamaged, match="frame 0 of batch 2 holds what no daemon writes"):
        list(part.events())


def test_the_last_part_has_the_outcome_of_its_first_undecided_event(tmp_path: Path) -> None:
    """Its intents may have been sent."""
    life = HostedLife()
    run = sends("i1", "i2")
    write_hosted(
        tmp_path,
        [life.opened(), life.events(("e1", *WHOLE)), life.decisions(), life.rotated()],
        [life.events(("e2", *WHOLE)), life.outcome(run), life.ack("i1")],
    )
    first, second = parts_of(tmp_path)
    assert first.outcome is None
    assert second.outcome is not None
    assert second.outcome.acks == (ack_of("i1"),)
    assert second.outcome.outcome.to_result(second.outcome.acks, "driver_io") == RunResult(
        RunTermination.Completed, run.effects, (ack_of("i1"),), "driver_io"
    )


# --- derivation ---


def test_an_event_is_refused_with_the_code_and_the_place() -> None:
    """The bundle's manifest and the client get the same code and place."""
    life = HostedLife()
    life.events(("e1", "Command", 1, "full", {"n": 99}))
    derivation = Derivation(CONTRACT)
    (event,) = derivation.read(life.lines[0])
    refusal = derivation.bind(event)
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.message.endswith("(at $.n, by 'maximum')")) == ("schema_violation", True)


def test_a_derivation_refuses_to_follow_another_journal(tmp_path: Path) -> None:
    """A refused event is refused again, and a decided one is not."""
    life = HostedLife()
    life.events(("e1", *WHOLE), ("e2", *MERGED))
    derivation = Derivation(CONTRACT)
    whole, merged = derivation.read(b"".join(life.lines))
    refusal = derivation.bind(merged)
    assert isinstance(refusal, Refusal)
    with pytest.raises(ValueError, match=r"^event 'e1' was refused, and is not refused now$"):
        derivation.follow(whole, derivation.bind(whole), refusal)
    with pytest.raises(ValueError, match=r"^event 'e2' was decided, and is refused now: semantic event binding failed"):
        derivation.follow(merged, refusal, COMPLETED)
    assert derivation.follow(merged, refusal, refusal) == refusal
    event = derivation.follow(whole, derivation.bind(whole), COMPLETED)
    assert isinstance(event, ExternalEvent)
    assert (event.event_id, event.payload) == ("e1", b'{"n":1}')


def test_an_effect_that_does_not_fit_the_store_interrupts_the_run() -> None:
    """Effects of routed kinds are for the channels, and do not write to the store."""
    derivation = Derivation(replace(CONTRACT, context_bytes=12))

    def effect(kind: str, value: float) -> ActionEffect:
        return ActionEffect(kind, (EffectWrite("n", Value(Number=value)),))

    assert derivation.settle([effect("set_context", 2), effect("send", 7)]) is None
    assert derivation.snapshot() == {"n": 2.0}
    interruption = derivation.settle([effect("set_context", 123456789)])
    assert interruption is not None
    assert interruption.reason == "context_full"
    assert interruption.message.startswith("the context store")
    assert derivation.snapshot() == {"n": 2.0}


def test_a_derivation_without_an_adapter_has_no_store() -> None:
    """Payloads are only made canonical."""
    derivation = Derivation(replace(CONTRACT, adapter=None))
    assert derivation.settle([ActionEffect("set_context", (EffectWrite("n", Value(Number=1)),))]) is None
    assert derivation.snapshot() is None


@pytest.mark.parametrize(
    ("numbers", "read"), [("reference", b"8.203092099319038e-33"), ("exact", b"8.20309209931904e-33")]
)
@pytest.mark.parametrize("adapter", [None, CONTRACT.adapter])
def test_numbers_are_read_as_the_contract_says(
    numbers: Literal["reference", "exact"], read: bytes, adapter: str | None
) -> None:
    """This holds with an adapter and without one."""
    derivation = Derivation(replace(CONTRACT, adapter=adapter, numbers=numbers))
    assert derivation.binding.numbers == numbers
    if adapter is None:
        life = HostedLife()
        life.events(("e1", "Command", 1, "full", {"n": 0}))
        (event,) = derivation.read(life.lines[0].replace(b'"n": 0', b'"n": 0.82030920993190389e-32'))
        bound = derivation.bind(event)
        assert not isinstance(bound, Refusal)
        assert bound.event.payload == b'{"n":' + read + b"}"


def test_a_derivation_begins_with_the_store_of_a_rotation() -> None:
    """In the first part, the store is empty."""
    assert Derivation(CONTRACT, {"n": 4.0}).snapshot() == {"n": 4.0}
    assert Derivation(CONTRACT).snapshot() == {}
