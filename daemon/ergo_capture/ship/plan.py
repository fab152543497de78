"""Plan the shipping to a target: every finished bundle without a valid receipt is sent. There is no queue or ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ergo_capture.bundle.catalogue import StoredBundle, order_of


@dataclass(frozen=True, slots=True)
class Plan:
    """The finished bundles of a state directory, as one target sees them."""

    #: Bundles to send, the oldest first, by path.
    due: dict[Path, StoredBundle] = field(default_factory=dict)
    #: Bundles that the target holds.
    shipped: tuple[StoredBundle, ...] = ()
    #: Bundles that visibly differ from their manifests, for example in size; they are not read.
    unsound: tuple[StoredBundle, ...] = ()

    @property
    def due_bytes(self) -> int:
        """Bytes of the files to send."""
        return sum(bundle.size for bundle in self.due.values())

    def oldest_seconds(self, now: datetime) -> float:
        """Return the age of the oldest bundle to send, from the end of its part; 0 where there is none."""
        ends = [bundle.ended_at for bundle in self.due.values() if bundle.ended_at is not None]
        return max(0.0, (now - min(ends)).total_seconds()) if ends else 0.0


def make_plan(bundles: Iterable[StoredBundle], is_held: Callable[[StoredBundle], bool]) -> Plan:
    """Return the plan for one target.

    Args:
        bundles: all bundles. Snapshots of sessions that go on are left out.
        is_held: whether the target holds a bundle, by its receipt.
    """
    due: dict[Path, StoredBundle] = {}
    shipped: list[StoredBundle] = []
    unsound: list[StoredBundle] = []
    for bundle in sorted(bundles, key=order_of):
        if bundle.is_unsound:
            unsound.append(bundle)
        elif bundle.problem is None:
            if is_held(bundle):
                shipped.append(bundle)
            else:
                due[bundle.path] = bundle
    return Plan(due, tuple(shipped), tuple(unsound))
