"""The admission queue: which events it refuses, and which ids it remembers and counts."""

from __future__ import annotations

import json

import pytest
from tests.daemons import event
from tests.server.looks import DESCRIPTION

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.recovery import RecoveredSession
from ergo_capture.protocol.capture import EventChunk
from ergo_capture.server.net.frame_reader import FrameReader
from ergo_capture.server.session import admission_queue
from ergo_capture.server.session.admission_queue import AdmissionQueue
from ergo_capture.server.session.budget import Budget, size_of_ids, uncounted


def new_queue(ids: Budget) -> AdmissionQueue:
    """Return the admission queue of a new session, whose ids are counted in ``ids``."""
    initial = RecoveredSession.new(1, DESCRIPTION, 1)
    return AdmissionQueue(initial, uncounted(), ids.holding(None), lambda *_: None, lambda _: None)


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
    """Also those of short parts, which are remembered otherwise."""
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
    """Also where ids of the chunk are refused for different reasons."""
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
