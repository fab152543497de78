"""Select the finished bundles that are to be deleted, by age, number, size and free space.

Only finished bundles are counted and deleted, the oldest first. A bundle that must not be deleted, because its session
goes on or it differs from its manifest, does not count against the bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from ergo_capture.bundle.catalogue import StoredBundle


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of one graph's bundles; zero turns a bound off."""

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
    """The bounds of every graph, and the bytes to keep free on the disk."""

    default: Bounds = field(default_factory=Bounds)
    #: By graph; they replace the default.
    graphs: Mapping[str, Bounds] = field(default_factory=dict)
    keep_free_bytes: int = 0

    @property
    def are_set(self) -> bool:
        """Whether any bundle could ever be deleted."""
        return bool(self.keep_free_bytes or self.default.are_set or any(b.are_set for b in self.graphs.values()))


@dataclass(frozen=True, slots=True)
class Expired:
    """A bundle that is to be deleted, and the name of the bound that it exceeds."""

    bundle: StoredBundle
    reason: str


def select_expired(
    bundles: Iterable[StoredBundle], rules: RetentionRules, now: datetime, free_bytes: int
) -> list[Expired]:
    """Return the bundles to delete, the oldest first.

    A graph's newest bundle exceeds no bound but the age: the client that closed its session was just told its path.

    Args:
        bundles: all bundles; only finished ones are considered.
        rules: the bounds.
        now: the time at which ages are taken.
        free_bytes: bytes free on the disk now.
    """
    finished = sorted(
        (bundle for bundle in bundles if bundle.problem is None and bundle.ended_at is not None), key=_by_age
    )
    by_graph: dict[str, list[StoredBundle]] = {}
    for bundle in finished:
        by_graph.setdefault(bundle.graph, []).append(bundle)
    reasons: dict[Path, str] = {}
    for graph, of_graph in by_graph.items():
        reasons |= _exceeding(of_graph, rules.graphs.get(graph, rules.default), now)
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


def _by_age(bundle: StoredBundle) -> tuple[datetime | None, str]:
    return bundle.ended_at, str(bundle.path)


def _exceeding(bundles: list[StoredBundle], bounds: Bounds, now: datetime) -> dict[Path, str]:
    """Return the bundles of one graph that exceed a bound, with its name; ``bundles`` are sorted, the oldest first."""
    exceeding: dict[Path, str] = {}
    kept = size = 0
    for bundle in reversed(bundles):
        assert bundle.ended_at is not None
        if bounds.max_age and now - bundle.ended_at > bounds.max_age:
            exceeding[bundle.path] = "max_age"
        elif bounds.max_bundles and kept >= bounds.max_bundles:
            exceeding[bundle.path] = "max_bundles"
        elif bounds.max_bytes and kept and size + bundle.size > bounds.max_bytes:
            exceeding[bundle.path] = "max_bytes"
            # Full from here on: a smaller, older bundle must not outlive this one.
            size = bounds.max_bytes + 1
        else:
            kept += 1
            size += bundle.size
    return exceeding
