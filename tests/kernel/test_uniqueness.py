"""Repeated ids among many."""

from __future__ import annotations

import pytest

from ergo_capture.kernel.uniqueness import SeenIds

IDS = ["", *(f"event-{number}" for number in range(20_000))]


@pytest.mark.parametrize("expected", [0, 100, 20_000])
def test_an_id_is_new_once(expected: int) -> None:
    """The growth of the table does not matter; the empty id hashes to zero, which marks an empty place."""
    seen = SeenIds(expected)
    assert [seen.add(event_id) for event_id in IDS] == [False] * len(IDS)
    assert [seen.add(event_id) for event_id in IDS] == [True] * len(IDS)
    assert len(seen) == len(IDS)


@pytest.mark.parametrize("expected", [0, 20_000])
def test_many_ids_are_new_together_once(expected: int) -> None:
    """The result is that of adding them one by one."""
    seen = SeenIds(expected)
    assert not seen.add_all(IDS)
    assert len(seen) == len(IDS)
    assert all(seen.add_all([event_id]) for event_id in IDS)
    assert [seen.add(event_id) for event_id in IDS] == [True] * len(IDS)


def test_ids_after_a_repeated_one_are_not_added() -> None:
    """Those before it are."""
    seen = SeenIds()
    assert seen.add_all(["a", "b", "a", "c"])
    assert len(seen) == 2
    assert not seen.add("c")
    assert seen.add("b")
