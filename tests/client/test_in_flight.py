"""The events that a client keeps until they are answered; no socket is needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ergo_capture.client.in_flight import InFlight


def sent(*ids: str) -> InFlight:
    """Return these events, in flight."""
    flight = InFlight()
    for event_id in ids:
        flight.add(event_id.encode(), event_id)
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
    """Its sender was told, and may have sent it anew."""
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
    """Or if this client sent it before."""
    assert sent("a", "b").reconnected(count, last) == [b"a", b"b"]


@given(st.data())
def test_every_event_is_counted_once_and_the_rest_is_sent_again_in_order(data: st.DataObject) -> None:
    """P1 and P2 from the client's side: whatever the daemon accepts, and however often the connection breaks."""
    ids = [f"e{number}" for number in range(data.draw(st.integers(1, 12)))]
    flight, daemon = InFlight(), list[str]()
    waiting: list[str] = []
    for event_id in ids:
        flight.add(event_id.encode(), event_id)
        waiting.append(event_id)
        if data.draw(st.booleans()):
            arrived = data.draw(st.integers(0, len(waiting)))
            daemon += [name for name in waiting[:arrived] if name not in daemon]
            waiting = [line.decode() for line in flight.reconnected(len(daemon), daemon[-1] if daemon else None)]
            assert waiting == ids[flight.accepted : ids.index(event_id) + 1]
            assert daemon == ids[: flight.accepted]
    flight.acked(len(waiting))
    assert (flight.accepted, flight.rejected, len(flight)) == (len(ids), 0, 0)
