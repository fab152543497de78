"""Memory budgets: how much memory clients make the daemon hold, in total and per user.

There are three: events that wait to be decided; event ids and deferred episodes of open sessions; and what connections
hold (incomplete lines, answers that were not read). Sizes are estimated, not measured: the bytes of the text, and a
fixed number of bytes for each object.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Final

from ergo_capture.journal.payloads import Peer
from ergo_capture.kernel.supervisor import Supervisor

#: Bytes for an event that waits, beside its line: the event, its id, its place in the queues.
EVENT_BYTES: Final = 400
#: Bytes for the id of an event, beside its characters.
ID_BYTES: Final = 120
#: Bytes for a deferred episode, beside the payload where that is kept for an engine.
DEFERRED_BYTES: Final = 300


class Budget:
    """One kind of memory.

    Args:
        total: bytes for all clients.
        per_user: bytes for the clients of one user.
    """

    def __init__(self, total: int, per_user: int) -> None:
        self.total = total
        self.per_user = per_user
        self.used = 0
        #: The largest value of ``used`` so far.
        self.peak = 0
        #: Bytes by user, for users that hold any.
        self.by_user: dict[int | None, int] = {}

    def holding(self, peer: Peer | None) -> Holding:
        """Return an empty holding of this peer's user."""
        return Holding(self, None if peer is None else peer.uid)

    @property
    def exceeded(self) -> bool:
        """Whether all clients together hold more than the total."""
        return self.used > self.total


class Holding:
    """The memory that is held for one session or connection."""

    __slots__ = ("_budget", "_user", "bytes")

    def __init__(self, budget: Budget, user: int | None) -> None:
        self._budget = budget
        self._user = user
        self.bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether neither the user nor all users together have reached their bound."""
        budget = self._budget
        return budget.used < budget.total and budget.by_user.get(self._user, 0) < budget.per_user

    @property
    def is_crowded(self) -> bool:
        """Whether three quarters of a bound are taken."""
        budget = self._budget
        return 4 * budget.used > 3 * budget.total or 4 * budget.by_user.get(self._user, 0) > 3 * budget.per_user

    def hold(self, size: int) -> None:
        """Add ``size`` bytes, which may be negative."""
        budget = self._budget
        self.bytes += size
        budget.used += size
        if budget.used > budget.peak:
            budget.peak = budget.used
        held = budget.by_user.get(self._user, 0) + size
        if held:
            budget.by_user[self._user] = held
        else:
            budget.by_user.pop(self._user, None)

    def free(self) -> None:
        """Return everything to the budget."""
        self.hold(-self.bytes)


def uncounted() -> Holding:
    """Return a holding without a bound, in a budget of its own."""
    return Budget(sys.maxsize, sys.maxsize).holding(None)


def size_of_deferred(supervisor: Supervisor) -> int:
    """Return an estimate of the memory that a supervisor's deferred episodes take, in bytes."""
    return DEFERRED_BYTES * supervisor.deferred_count + supervisor.deferred_bytes


def size_of_ids(ids: Collection[str]) -> int:
    """Return an estimate of the memory that remembering these ids takes, in bytes."""
    return len("".join(ids)) + ID_BYTES * len(ids)
