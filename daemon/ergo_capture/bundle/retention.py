"""Which finished bundles have had their time.

Only finished bundles count, and only they go, the oldest first: a bundle that may not be deleted, because its
session goes on or because it is not what its manifest says, takes no other's place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from ergo_capture.bundle.catalogue import StoredBundle


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many bundles of one graph are kept; zero turns a bound off."""

    max_age: timedelta = timedelta(0)
    #: Bytes of files.
    max_bytes: int = 0
    max_bundles: int = 0

    @property
    def are_set(self) -> bool:
        """Whether anything is bounded."""
        return bool(self.max_age or self.max_bytes or self.max_bundles)


@dataclass(frozen=True, slots=True)
class RetentionRules:
    """The bounds of every graph, and the room to keep free on the disk."""

    default: Bounds = field(default_factory=Bounds)
    #: In place of the default, by graph.
    graphs: Mapping[str, Bounds] = field(default_factory=dict)
    keep_free_bytes: int = 0

    @property
    def are_set(self) -> bool:
        """Whether anything could ever be deleted."""
        return bool(self.keep_free_bytes or self.default.are_set or any(b.are_set for b in self.graphs.values()))


@dataclass(frozen=True, slots=True)
class Expired:
    """A bundle that is to go, and the bound that says so."""

    bundle: StoredBundle
    reason: str


def select_expired(
    bundles: Iterable[StoredBundle], rules: RetentionRules, now: datetime, free_bytes: int
) -> list[Expired]:
    """What is to go, the oldest first.

    A graph's newest bundle goes by its age only. Why: the client that closed its session was just told where it
    is.

    Args:
        bundles: those there are; only finished ones are looked at.
        rules: the bounds.
        now: the time that ages are counted to.
        free_bytes: free on the disk at present.
    """
    finished = sorted(
        (bundle for bundle in bundles if bundle.problem is None and bundle.ended_at is not None), key=_age_order
    )
    by_graph: dict[str, list[StoredBundle]] = {}
    for bundle in finished:
        by_graph.setdefault(bundle.graph, []).append(bundle)
    reasons: dict[Path, str] = {}
    for graph, of_graph in by_graph.items():
        reasons |= _over(of_graph, rules.graphs.get(graph, rules.default), now)
    if rules.keep_free_bytes:
        newest = {of_graph[-1].path for of_graph in by_graph.values()}
        free = free_bytes + sum(bundle.size for bundle in finished if bundle.path in reasons)
        for bundle in finished:
            if free >= rules.keep_free_bytes:
                break
            if bundle.path not in reasons and bundle.path not in newest:
                reasons[bundle.path] = "keep_free_bytes"
                free += bundle.size
    return [Expired(bundle, reasons[bundle.path]) for bundle in finished if bundle.path in reasons]


def _age_order(bundle: StoredBundle) -> tuple[datetime | None, str]:
    return bundle.ended_at, str(bundle.path)


def _over(bundles: list[StoredBundle], bounds: Bounds, now: datetime) -> dict[Path, str]:
    """The bundles of one graph that are beyond its bounds, with which; ``bundles`` from the oldest to the newest."""
    over: dict[Path, str] = {}
    kept = size = 0
    for bundle in reversed(bundles):
        assert bundle.ended_at is not None
        if bounds.max_age and now - bundle.ended_at > bounds.max_age:
            over[bundle.path] = "max_age"
        elif bounds.max_bundles and kept >= bounds.max_bundles:
            over[bundle.path] = "max_bundles"
        elif bounds.max_bytes and kept and size + bundle.size > bounds.max_bytes:
            over[bundle.path] = "max_bytes"
            # Why full from here on: an older one that is smaller must not outlive it.
            size = bounds.max_bytes + 1
        else:
            kept += 1
            size += bundle.size
    return over
