"""Back-off: delays double up to a limit, with jitter."""

from __future__ import annotations

from ergo_capture.backoff import Backoff


def test_delays_double_up_to_the_longest() -> None:
    """Each is between half of the nominal delay and all of it."""
    backoff = Backoff(0.1, 1.0)
    for nominal in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
        assert nominal / 2 <= backoff.next_delay() <= nominal


def test_delays_are_spread_at_random() -> None:
    """Clients of a restarted daemon do not all come back at the same moment."""
    assert len({Backoff(1.0, 1.0).next_delay() for _ in range(20)}) > 10


def test_a_reset_begins_again() -> None:
    """After a success, the next failure is followed by the first delay."""
    backoff = Backoff(0.1, 10.0)
    for _ in range(5):
        backoff.next_delay()
    backoff.reset()
    assert backoff.next_delay() <= 0.1
