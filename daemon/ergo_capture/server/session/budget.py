"""Memory that clients cause the daemon to hold, counted in all and by user.

There are three budgets: events that wait to be decided, the event ids and deferred episodes that open sessions must
remember, and what connections hold (lines that were begun, answers that were not read). Counts are estimates of memory, made
of what is known without measuring: bytes, and so many bytes for each object.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Final

from ergo_capture.journal.payloads import Peer

#: Memory that an event takes beside its line while it waits: the event, its id, its place in the queues.
EVENT_BYTES: Final = 400
#: Memory that the id of an event takes beside its characters for as long as its session is open.
ID_BYTES: Final = 120
#: Memory that an episode takes while it is deferred, beside the payload where that is kept for an engine.
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
        #: Most that was ever used.
        self.peak = 0
        #: Bytes by user, of those who hold any.
        self.by_user: dict[int | None, int] = {}

    def holding(self, peer: Peer | None) -> Holding:
        """A count of what is held for this peer, at zero."""
        return Holding(self, None if peer is None else peer.uid)

    @property
    def exceeded(self) -> bool:
        """Whether more is held than may be, over all clients."""
        return self.used > self.total

    def __repr__(self) -> str:
        return f"<Budget {self.used} of {self.total} bytes, {len(self.by_user)} users>"


class Holding:
    """What is held for one session or connection."""

    __slots__ = ("_budget", "_user", "bytes")

    def __init__(self, budget: Budget, user: int | None) -> None:
        self._budget = budget
        self._user = user
        self.bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether neither the user nor all users together hold too much."""
        budget = self._budget
        return budget.used < budget.total and budget.by_user.get(self._user, 0) < budget.per_user

    def hold(self, size: int) -> None:
        """Hold ``size`` bytes more; fewer, where it is negative."""
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
        """Hold nothing any more."""
        self.hold(-self.bytes)

    def __repr__(self) -> str:
        return f"<Holding {self.bytes} bytes of {self._budget!r}>"


def uncounted() -> Holding:
    """A holding out of a budget without end, for what is not counted yet or any more."""
    return Budget(sys.maxsize, sys.maxsize).holding(None)


def size_of_ids(ids: Collection[str]) -> int:
    """About the memory that remembering these ids takes, in bytes."""
    return len("".join(ids)) + ID_BYTES * len(ids)
