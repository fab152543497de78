"""The events that a client keeps until they are answered; no socket is needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ergo_capture.client.in_flight import EventLine, InFlight


def sent(*ids: str) -> InFlight:
    """Return these events, in flight."""
    flight = InFlight()
    for event_id in ids:
        flight.add([EventLine(event_id.encode(), event_id)])
    return flight


def test_an_acknowledgement_covers_every_event_before_it() -> None:
    """One that is repeated, or late, counts nothing."""
    flight = sent("a", "b", "c")
    flight.acked(2)
    flight.acked(2)
    flight.acked(1)
    assert (flight.accepted, flight.rejected, len(flight)) == (2, 0, 1)


def test_a_rejected_event_is_counted_by_the_acknowledgement_that_covers_it() -> None:
    """The rejection names it by its number on the connection, and comes first."""
    flight = sent("a", "b", "c")
    assert flight.is_rejected(2, duplicate=False)
    assert (flight.accepted, flight.rejected) == (0, 0)
    flight.acked(3)
    assert (flight.accepted, flight.rejected, len(flight)) == (2, 1, 0)


def test_events_not_known_to_be_durable_are_sent_again() -> None:
    """All after the session's last event; a duplicate among them is no rejection, but says that it had arrived."""
    flight = sent("a", "b", "c", "d")
    flight.acked(1)
    assert flight.reconnected(2, "b") == [b"c", b"d"]
    assert flight.accepted == 2
    assert not flight.is_rejected(1, duplicate=True)
    flight.acked(2)
    assert (flight.accepted, flight.rejected) == (4, 0)


def test_a_rejected_event_is_not_sent_again() -> None:
    """Its sender was told, and may have sent it again."""
    flight = sent("a", "b", "c")
    flight.is_rejected(2, duplicate=False)
    assert flight.reconnected(0, None) == [b"a", b"c"]
    assert (flight.accepted, flight.rejected, len(flight)) == (0, 1, 2)


def test_a_second_event_with_the_same_id_is_not_taken_for_the_first() -> None:
    """The durable one was acknowledged: the events between the two are sent again."""
    flight = sent("a", "b", "a")
    flight.acked(1)
    assert flight.reconnected(1, "a") == [b"b", b"a"]


def test_events_are_sent_again_if_a_rejection_among_them_was_lost() -> None:
    """A disk that was full for a moment: of a, b and c the daemon has two, the last of them c."""
    flight = sent("a", "b", "c", "d")
    assert flight.reconnected(2, "c") == [b"a", b"b", b"c", b"d"]
    assert not flight.is_rejected(1, duplicate=True)
    assert not flight.is_rejected(3, duplicate=True)
    flight.acked(4)
    assert (flight.accepted, flight.rejected) == (4, 0)


def test_a_known_rejection_is_not_counted_as_durable() -> None:
    """The rejection of b came: a and c are the two that the daemon has."""
    flight = sent("a", "b", "c", "d")
    flight.is_rejected(2, duplicate=False)
    assert flight.reconnected(2, "c") == [b"d"]
    assert (flight.accepted, flight.rejected) == (2, 1)


@pytest.mark.parametrize(("count", "last"), [(0, None), (0, "x"), (1, "x"), (3, "b"), (-1, "b")])
def test_no_event_is_durable_if_the_sessions_last_event_is_another_clients(count: int, last: str | None) -> None:
    """Nor is one durable if this client sent the last event before."""
    assert sent("a", "b").reconnected(count, last) == [b"a", b"b"]


def test_what_was_told_is_the_sessions_count_and_the_last_id_that_was_not_rejected() -> None:
    """Counted from what the session held when it was opened."""
    flight = sent("a", "b", "c")
    flight.opened(10, "z")
    flight.is_rejected(3, duplicate=False)
    flight.acked(3)
    assert (flight.told_events, flight.told_last) == (12, "b")


def test_the_daemons_count_of_the_session_is_believed() -> None:
    """A daemon of 0.1.0 does not say it."""
    flight = sent("a", "b")
    flight.acked(2, events=7)
    assert (flight.told_events, flight.told_last) == (7, "b")


def test_an_event_that_had_arrived_before_a_reconnect_is_told_once() -> None:
    """The answer to ``open`` counts it already."""
    flight = sent("a", "b", "c")
    assert flight.reconnected(1, "c") == [b"a", b"b", b"c"]
    assert not flight.is_rejected(3, duplicate=True)
    flight.acked(3)
    assert (flight.told_events, flight.told_last, flight.accepted) == (3, "b", 3)


def test_after_a_loss_everything_in_flight_is_sent_again() -> None:
    """The counts go on from what the daemon holds."""
    flight = sent("a", "b", "c", "d")
    flight.acked(3)
    assert flight.reconnected(1, "a") == [b"d"]
    assert (flight.told_events, flight.told_last) == (1, "a")
    flight.acked(1)
    assert (flight.told_events, flight.told_last, flight.accepted) == (2, "d", 4)


def test_a_duplicate_of_what_the_session_held_is_no_rejection() -> None:
    """A second event of the same id is one, and so is one more duplicate than the session held events."""
    flight = InFlight()
    flight.opened(2, "b")
    for event_id in ("a", "a", "c", "b", "c"):
        flight.add([EventLine(event_id.encode(), event_id)])
    assert not flight.is_rejected(1, duplicate=True)
    assert flight.is_rejected(2, duplicate=True)
    assert not flight.is_rejected(4, duplicate=True)
    assert flight.is_rejected(5, duplicate=True)
    flight.acked(5, events=3)
    assert (flight.captured, flight.rejected, flight.accepted) == (2, 2, 1)


def test_ids_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feed that goes on after what the session held never sends any of it."""
    monkeypatch.setattr("ergo_capture.client.in_flight._MORE_IDS", 3)
    flight = InFlight()
    flight.opened(2, "b")
    for event_id in "cdefghb":
        flight.add([EventLine(event_id.encode(), event_id)])
    assert flight.is_rejected(7, duplicate=True)


@given(st.data())
def test_every_event_is_counted_once_and_the_rest_is_sent_again_in_order(data: st.DataObject) -> None:
    """P1 and P2 from the client's side: whatever the daemon accepts, and however often the connection breaks."""
    ids = [f"e{number}" for number in range(data.draw(st.integers(1, 12)))]
    flight, daemon = InFlight(), list[str]()
    waiting: list[str] = []
    for event_id in ids:
        flight.add([EventLine(event_id.encode(), event_id)])
        waiting.append(event_id)
        if data.draw(st.booleans()):
            arrived = data.draw(st.integers(0, len(waiting)))
            daemon += [name for name in waiting[:arrived] if name not in daemon]
            waiting = [line.decode() for line in flight.reconnected(len(daemon), daemon[-1] if daemon else None)]
            assert waiting == ids[flight.accepted : ids.index(event_id) + 1]
            assert daemon == ids[: flight.accepted]
    flight.acked(len(waiting))
    assert (flight.accepted, flight.rejected, len(flight)) == (len(ids), 0, 0)
