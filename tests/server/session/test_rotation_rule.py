"""The rule of rotation: when a part is due, when it may end, and when to look again."""

from __future__ import annotations

from typing import Any

import pytest

from ergo_capture.config.settings import RotationConfig
from ergo_capture.server.session.parts import Part, RotationRule
from ergo_capture.units import Duration, Size

NOW = 1000.0


def seconds(count: float) -> Duration:
    """Return a duration."""
    return Duration(round(count * 1_000_000_000))


def rule(**bounds: Any) -> RotationRule:
    """Return a rule without bounds but these."""
    nothing = {"max_events": 0, "max_bytes": Size(0), "max_age": Duration(0), "force_after": seconds(5)}
    return RotationRule(RotationConfig(**(nothing | bounds)))


def part(*, age: float = 0.0, due: float | None = None, **fields: Any) -> Part:
    """Return a part that began ``age`` seconds ago, and became due ``due`` seconds ago."""
    return Part(1, 0, 1, NOW - age, due_since=None if due is None else NOW - due, **fields)


@pytest.mark.parametrize("bound", [{"max_events": 1}, {"max_bytes": Size(1)}, {"max_age": seconds(1)}])
def test_one_bound_turns_rotation_on(bound: dict[str, Any]) -> None:
    """Without any bound it is off, though an idle session still keeps only so much of the journal."""
    assert rule(**bound).is_on is True
    assert rule().is_on is False


def test_a_part_is_due_when_it_reaches_a_bound() -> None:
    """Exactly, and by any of them."""
    assert not rule(max_events=3).is_due(part(), 2, NOW)
    assert rule(max_events=3).is_due(part(), 3, NOW)
    assert not rule(max_bytes=Size(100)).is_due(part(bytes=99), 1, NOW)
    assert rule(max_bytes=Size(100)).is_due(part(bytes=100), 1, NOW)
    assert not rule(max_age=seconds(60)).is_due(part(age=59), 1, NOW)
    assert rule(max_age=seconds(60)).is_due(part(age=60), 1, NOW)
    assert rule().is_due(part(is_overdue=True), 1, NOW)
    assert not rule().is_due(part(age=1e9, bytes=1 << 40), 1 << 40, NOW)


def test_a_part_without_events_is_never_due() -> None:
    """It would leave an empty bundle."""
    bounds = rule(max_events=1, max_bytes=Size(1), max_age=seconds(1))
    assert not bounds.is_due(part(age=9, bytes=9, is_overdue=True), 0, NOW)


def test_a_part_ends_while_episodes_are_deferred_only_after_force_after() -> None:
    """Counted from when it was due."""
    assert rule().may_end(part(), 0, NOW)
    assert not rule().may_end(part(), 1, NOW)
    assert not rule().may_end(part(due=4.5), 1, NOW)
    assert rule().may_end(part(due=5), 1, NOW)


def test_a_full_part_waits_a_second_for_the_next_event_and_an_old_one_does_not() -> None:
    """A part that keeps too much of the journal does not wait either."""
    bounds = rule(max_events=1, max_age=seconds(60))
    assert not bounds.may_not_wait(part(), NOW)
    assert not bounds.may_not_wait(part(due=0.5), NOW)
    assert bounds.may_not_wait(part(due=1), NOW)
    assert bounds.may_not_wait(part(due=0.5, age=60), NOW)
    assert bounds.may_not_wait(part(due=0.5, is_overdue=True), NOW)


def test_a_part_is_looked_at_again_when_it_may_be_due_by_its_age() -> None:
    """If it is over its age, that is at once; without a bound of time, or without events, never."""
    bounds = rule(max_age=seconds(60))
    assert bounds.next_check(part(age=20), 1, NOW) == 40
    assert bounds.next_check(part(age=70), 1, NOW) == 0
    assert bounds.next_check(part(age=20), 0, NOW) is None
    assert rule(max_events=1).next_check(part(age=20), 1, NOW) is None


def test_a_part_that_is_due_is_looked_at_when_it_waits_no_longer() -> None:
    """First for the next event, then for the deferred episodes."""
    bounds = rule(max_events=1)
    assert bounds.next_check(part(due=0.25), 1, NOW) == 0.75
    assert bounds.next_check(part(due=1), 1, NOW) == 4
    assert bounds.next_check(part(due=2), 1, NOW) == 3
    assert bounds.next_check(part(due=9), 1, NOW) == 0
