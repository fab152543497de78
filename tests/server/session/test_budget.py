"""Memory budgets: the holdings of users, and whether there is room."""

from __future__ import annotations

import pytest

from ergo_capture.journal.payloads import Peer
from ergo_capture.server.session.budget import ID_BYTES, Budget, size_of_ids, uncounted

ALICE, BOB = Peer(uid=1, gid=1, pid=1), Peer(uid=2, gid=2, pid=2)


def test_a_budget_counts_by_user_and_in_total() -> None:
    """Users that hold nothing are forgotten; the peak stays."""
    budget = Budget(100, 60)
    first, second, other = budget.holding(ALICE), budget.holding(ALICE), budget.holding(BOB)
    first.hold(10)
    second.hold(20)
    other.hold(5)
    assert (budget.used, budget.peak, budget.by_user) == (35, 35, {1: 30, 2: 5})
    assert (first.bytes, second.bytes, other.bytes) == (10, 20, 5)
    first.hold(-4)
    other.free()
    assert (budget.used, budget.peak, budget.by_user) == (26, 35, {1: 26})
    first.free()
    second.free()
    assert (budget.used, budget.by_user, first.bytes) == (0, {}, 0)


@pytest.mark.parametrize(("alice", "bob", "room"), [(59, 40, True), (60, 0, False), (40, 60, False), (59, 41, False)])
def test_there_is_room_until_a_bound_is_reached(alice: int, bob: int, room: bool) -> None:
    """The bound is that of the user or of all users."""
    budget = Budget(100, 60)
    budget.holding(ALICE).hold(alice)
    budget.holding(BOB).hold(bob)
    assert budget.holding(ALICE).has_room is room


@pytest.mark.parametrize(("alice", "bob", "crowded"), [(45, 30, False), (46, 0, True), (45, 31, True), (0, 75, False)])
def test_a_holding_is_crowded_above_three_quarters_of_a_bound(alice: int, bob: int, crowded: bool) -> None:
    """This is below the bound, so that parts end in time."""
    budget = Budget(100, 60)
    budget.holding(ALICE).hold(alice)
    budget.holding(BOB).hold(bob)
    assert budget.holding(ALICE).is_crowded is crowded


def test_a_budget_is_exceeded_above_its_total() -> None:
    """At the total it is not exceeded."""
    budget = Budget(100, 60)
    holding = budget.holding(None)
    exceeded = []
    for size in (100, 1):
        holding.hold(size)
        exceeded.append(budget.exceeded)
    assert exceeded == [False, True]
    assert budget.by_user == {None: 101}


def test_an_uncounted_holding_always_has_room() -> None:
    """It is for closed sessions, which release memory late without being counted."""
    holding = uncounted()
    holding.hold(1 << 60)
    assert holding.has_room
    assert not holding.is_crowded


def test_ids_are_counted_by_their_characters_and_their_number() -> None:
    """An id and an event are objects, which take memory beside their text."""
    assert size_of_ids([]) == 0
    assert size_of_ids(["a", "bcd"]) == 4 + 2 * ID_BYTES
