"""The admission queue: which events it refuses, and which ids it remembers and counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.daemons import event
from tests.server.looks import DESCRIPTION

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.frame import FrameKind, Position
from ergo_capture.journal.recovery import RecoveredSession
from ergo_capture.protocol.capture import Code, EventChunk
from ergo_capture.server.net.frame_reader import FrameReader
from ergo_capture.server.session import admission_queue
from ergo_capture.server.session.admission_queue import AdmissionQueue, Rejection
from ergo_capture.server.session.budget import EVENT_BYTES, Budget, size_of_ids, uncounted


def new_queue(ids: Budget, events: Budget | None = None) -> AdmissionQueue:
    """Return the admission queue of a new session, whose ids and waiting events are counted in these budgets."""
    initial = RecoveredSession.new(1, DESCRIPTION, 1)
    waiting = uncounted() if events is None else events.holding(None)
    return AdmissionQueue(initial, waiting, ids.holding(None), lambda *_: None, lambda _: None)


def chunk(*ids: str) -> EventChunk:
    """Return events with these ids as they come from a client."""
    body = b"".join(json.dumps(event(event_id)).encode() + b"\n" for event_id in ids)
    (items,) = FrameReader(1 << 20, 100, 5).feed(body)
    assert isinstance(items, EventChunk)
    return items


def test_ids_of_a_batch_that_is_refused_after_its_part_has_ended_are_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They belong to the part that was begun after they were admitted."""
    monkeypatch.setattr(admission_queue, "MIN_IDS", 2)
    ids = Budget(1 << 20, 1 << 20)
    queue = new_queue(ids)
    first, _ = queue.admit(chunk("a", "b"), 1024)
    refused, _ = queue.admit(chunk("c", "d"), 1024)
    assert first is not None
    assert refused is not None
    queue.release_decided(first, 0)
    queue.end_part()
    refused.on_refused(ErgoCaptureError("the disk is full"))
    assert ids.used == size_of_ids(["a", "b"])
    queue.admit(chunk("e"), 1024)
    assert ids.used == size_of_ids(["a", "b", "e"])
    queue.admit(chunk("f"), 1024)
    assert ids.used == size_of_ids(["e", "f"])
    queue.close()
    assert ids.used == 0


def test_ids_of_a_part_that_has_not_ended_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are, however many events wait to be decided while short parts end before them."""
    monkeypatch.setattr(admission_queue, "MIN_IDS", 2)
    queue = new_queue(Budget(1 << 20, 1 << 20))

    def refused(*ids: str) -> list[str | None]:
        return [refusal.event_id for refusal in queue.admit(chunk(*ids), 1024)[1]]

    first, _ = queue.admit(chunk("a", "b", "c"), 1024)
    second, _ = queue.admit(chunk("d", "e"), 1024)
    assert first is not None
    assert second is not None
    queue.end_part()
    assert refused("a", "b", "c", "d", "e") == ["a", "b", "c", "d", "e"]
    queue.release_decided(first, 0)
    queue.end_part()
    assert refused("f") == []
    assert refused("a", "b", "c", "d", "e") == ["d", "e"]


def test_ids_of_earlier_parts_are_forgotten_before_events_are_refused_for_want_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A feed that is rotated never ends for want of ids, as long as its running part has room."""
    monkeypatch.setattr(admission_queue, "MIN_IDS", 10)
    ids = Budget(size_of_ids([f"{number:04}" for number in range(15)]), 1 << 20)
    queue = new_queue(ids)
    for part in range(20):
        batch, _ = queue.admit(chunk(*(f"{10 * part + number:04}" for number in range(10))), 1024)
        assert batch is not None
        queue.release_decided(batch, 0)
        queue.end_part()


def test_an_end_of_a_part_forgets_its_ids_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids of short parts are forgotten too, which are remembered otherwise."""
    ids = Budget(1000, 1 << 20)
    queue = new_queue(ids)
    batch, _ = queue.admit(chunk("a", "b", "c", "d", "e", "f", "g"), 1024)
    queue.admit(chunk("h"), 1024)
    assert batch is not None
    queue.release_decided(batch, 0)
    monkeypatch.setattr(admission_queue, "_MIN_CROWDED_IDS", 5)
    assert queue.is_crowded
    queue.end_part()
    assert ids.used == size_of_ids(["h"])
    assert not queue.is_crowded


def test_refusals_carry_the_positions_in_the_chunk() -> None:
    """Ids of the chunk may be refused for different reasons."""
    queue = new_queue(Budget(1 << 20, 1 << 20))
    batch, refusals = queue.admit(chunk("a", "too-long-an-id", "a", "b", "ä" * 5, "c"), 8)
    assert batch is not None
    assert [event.event_id for event in batch.events] == ["a", "b", "c"]
    assert batch.body.count(b"\n") == 3
    assert [(refusal.offset, refusal.event_id, refusal.code.value) for refusal in refusals] == [
        (1, None, "limit"),
        (2, "a", "duplicate_event_id"),
        (4, None, "limit"),
    ]


def test_an_index_that_a_refused_batch_had_is_given_to_the_next_one() -> None:
    """Indices of a session have no gaps."""
    queue = new_queue(Budget(1 << 20, 1 << 20))
    batches = [queue.admit(chunk(event_id), 1024)[0] for event_id in "abc"]
    firsts = []
    for batch in batches[:2]:
        assert batch is not None
        firsts.append(batch.to_frame().first)
    for batch in batches[:2]:
        assert batch is not None
        batch.on_refused(ErgoCaptureError("the disk is full"))
    assert batches[2] is not None
    assert [*firsts, batches[2].to_frame().first] == [0, 1, 0]
    assert queue.admitted == 1


def test_a_batch_that_is_refused_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ids are free, its memory is returned, and the next part does not take its ids."""
    monkeypatch.setattr(admission_queue, "MIN_IDS", 1)
    ids, events = Budget(1 << 20, 1 << 20), Budget(1 << 20, 1 << 20)
    queue = new_queue(ids, events)
    decided, refused, kept = (queue.admit(chunk(*names), 1024)[0] for names in (["a"], ["b", "c"], ["d"]))
    assert decided is not None
    assert refused is not None
    assert kept is not None
    assert refused.memory == len(refused.body) + 2 * EVENT_BYTES
    assert queue.queued_bytes == sum(len(batch.body) for batch in (decided, refused, kept))
    assert (ids.used, events.used) == (size_of_ids(["a", "b", "c", "d"]), decided.memory + refused.memory + kept.memory)
    error = ErgoCaptureError("the disk is full")
    refused.on_refused(error)
    assert refused.refused is error
    queue.release_decided(decided, 0)
    assert (queue.queued_bytes, queue.admitted, queue.id_count) == (len(kept.body), 2, 2)
    assert (ids.used, events.used) == (size_of_ids(["a", "d"]), kept.memory)
    queue.end_part()
    assert (ids.used, queue.id_count) == (size_of_ids(["a", "d"]), 2)
    queue.end_part()
    assert (ids.used, queue.id_count) == (size_of_ids(["d"]), 1)
    assert queue.admit(chunk("b"), 1024)[0] is not None


def test_a_closed_queue_counts_nothing_that_is_refused_later() -> None:
    """The session is over, and its memory was returned; the journal answers late."""
    ids, events = Budget(1 << 20, 1 << 20), Budget(1 << 20, 1 << 20)
    queue = new_queue(ids, events)
    batch, _ = queue.admit(chunk("a"), 1024)
    assert batch is not None
    queue.close()
    batch.on_refused(ErgoCaptureError("the journal is closed"))
    assert (ids.used, events.used, ids.by_user, events.by_user) == (0, 0, {}, {})


def test_deferred_episodes_are_counted_with_the_ids() -> None:
    """They count with the bytes that they take now."""
    ids = Budget(1 << 20, 1 << 20)
    queue = new_queue(ids)
    batches = [queue.admit(chunk(name), 1024)[0] for name in "abc"]
    for batch, deferred in zip(batches, (300, 300, 100), strict=True):
        assert batch is not None
        queue.release_decided(batch, deferred)
        assert ids.used == size_of_ids(["a", "b", "c"]) + deferred
    assert queue.queued_bytes == 0


def test_a_queue_is_full_at_its_limit_or_if_anything_waits_while_the_budget_has_no_room() -> None:
    """A session without waiting events may always read once."""
    events = Budget(600, 1 << 20)
    queue, other = new_queue(Budget(1 << 20, 1 << 20), events), new_queue(Budget(1 << 20, 1 << 20), events)
    assert not queue.is_full(1)
    batch, _ = queue.admit(chunk("a"), 1024)
    assert batch is not None
    size = len(batch.body)
    assert (queue.is_full(size), queue.is_full(size + 1), queue.has_room) == (True, False, True)
    other.admit(chunk("a"), 1024)
    assert (queue.is_full(size + 1), queue.has_room) == (True, False)
    queue.release_decided(batch, 0)
    assert not queue.is_full(1)


def test_a_memory_of_ids_that_begins_again_knows_what_it_lacks() -> None:
    """It is certain only of events so late that their ids are remembered."""
    queue = new_queue(Budget(1 << 20, 1 << 20))
    queue.admitted = 10
    queue.admit(chunk("a", "b"), 1024)
    assert queue.certainly_lacks("c", 10)
    assert queue.certainly_lacks("c", 11)
    assert not queue.certainly_lacks("c", 9)
    assert not queue.certainly_lacks("a", 11)


def test_an_id_at_the_limit_is_admitted() -> None:
    """Counted in bytes, with as little encoding as possible."""
    queue = new_queue(Budget(1 << 20, 1 << 20))
    for name in ("x" * 8, "ä" * 4):
        batch, refusals = queue.admit(chunk(name), 8)
        assert batch is not None
        assert refusals == []
    batch, refusals = queue.admit(chunk("ä" * 4 + "x"), 8)
    assert batch is None
    assert [(each.offset, each.event_id, each.code, each.message, each.hint) for each in refusals] == [
        (0, None, Code.LIMIT, "the event id is longer than 8 bytes", "use shorter event ids")
    ]


def test_a_duplicate_is_refused_with_its_id_and_its_session() -> None:
    """An event that was accepted need not be sent again."""
    queue = new_queue(Budget(1 << 20, 1 << 20))
    queue.admit(chunk("a"), 1024)
    batch, refusals = queue.admit(chunk("b", "a"), 1024)
    assert batch is not None
    assert [(each.offset, each.event_id, each.code, each.message, each.hint) for each in refusals] == [
        (
            1,
            "a",
            Code.DUPLICATE_EVENT_ID,
            "event id 'a' is already in session s",
            "an event that was accepted need not be sent again",
        )
    ]


def test_what_a_check_refuses_is_rejected_with_its_words() -> None:
    """Line by line; the id stays free."""
    queue = new_queue(Budget(1 << 20, 1 << 20))

    def check(line: bytes) -> tuple[Code, str, str] | None:
        return (Code.SCHEMA_VIOLATION, "bad", "mend it") if b'"b"' in line else None

    batch, refusals = queue.admit(chunk("a", "b", "c"), 1024, check)
    assert batch is not None
    assert [each.event_id for each in batch.events] == ["a", "c"]
    assert [json.loads(line)["event"]["event_id"] for line in batch.body.splitlines()] == ["a", "c"]
    assert refusals == [Rejection(1, "b", Code.SCHEMA_VIOLATION, "bad", "mend it")]
    assert queue.admit(chunk("b"), 1024)[0] is not None


def test_a_frame_holds_the_lines_of_a_batch_at_the_next_index() -> None:
    """The batch knows its position once it is durable."""
    accepted: list[Any] = []
    initial = RecoveredSession.new(7, DESCRIPTION, 1)
    queue = AdmissionQueue(initial, uncounted(), uncounted(), lambda *batch: accepted.append(batch), lambda _: None)
    for names, first, end in ((["a", "b"], 0, 2), (["c"], 2, 3)):
        batch, _ = queue.admit(chunk(*names), 1024)
        assert batch is not None
        assert (batch.first, batch.end) == (-1, -1)
        frame = batch.to_frame()
        assert (frame.kind, frame.session, frame.first, frame.count) == (FrameKind.EVENTS, 7, first, end - first)
        assert (frame.body, batch.first, batch.end) == (batch.body, first, end)
        batch.on_durable(Position(1, 64))
        assert batch.position == Position(1, 64)
        assert accepted.pop() == (batch, Position(1, 64))
