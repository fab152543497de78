"""Select the finished bundles that are to be deleted, by age, number, size and free space.

Only finished bundles are counted and deleted, the oldest first: in the order of their numbers (``sequence``), because
the clock may have been wrong. A bundle that must not be deleted, because its session goes on or it differs from its
manifest, does not count against the bounds.

A bundle that must be shipped first and is not shipped counts and stays; shipped bundles are deleted in its place.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from ergo_capture.bundle.catalogue import StoredBundle, order_of
from ergo_capture.bundle.receipt import Place

#: Earlier times are wrong: a clock that was not set shows 1970 or 1980.
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
#: A bundle's time may be this far in the future before it is taken for wrong.
_TOLERANCE: Final = timedelta(minutes=1)


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
    #: The targets that must hold a bundle before it is deleted, and their stores.
    shipped_to: Mapping[str, Place] = field(default_factory=dict)
    #: Age from which a bundle may be deleted though it is not shipped; zero for never.
    give_up_after: timedelta = timedelta(0)
    #: The prefix of the subjects of announcements; a bundle that must be shipped must then also be announced. Empty for
    #: no announcements.
    announced: str = ""

    @property
    def have_ages(self) -> bool:
        """Whether an age is bounded."""
        gives_up = bool(self.shipped_to and self.give_up_after)
        return gives_up or any(bounds.max_age for bounds in (self.default, *self.graphs.values()))

    def without_ages(self) -> RetentionRules:
        """Return these rules without the bounds on ages; no unshipped bundle is given up then."""
        graphs = {name: replace(bounds, max_age=timedelta(0)) for name, bounds in self.graphs.items()}
        default = replace(self.default, max_age=timedelta(0))
        return replace(self, default=default, graphs=graphs, give_up_after=timedelta(0))

    @property
    def are_set(self) -> bool:
        """Whether any bundle could ever be deleted."""
        return bool(self.keep_free_bytes or self.default.are_set or any(b.are_set for b in self.graphs.values()))


@dataclass(frozen=True, slots=True)
class Expired:
    """A bundle that is to be deleted, and the name of the bound that it exceeds."""

    bundle: StoredBundle
    reason: str
    #: Whether it is given up: it should have been shipped, and was not.
    is_given_up: bool = False


def select_expired(
    bundles: Iterable[StoredBundle],
    rules: RetentionRules,
    now: datetime,
    free_bytes: Mapping[int, int],
    unshipped: Container[Path] = frozenset(),
) -> list[Expired]:
    """Return the bundles to delete, the oldest first.

    A graph's newest bundle is never one of them: the client that closed its session has just got its path.

    Args:
        bundles: all bundles; only finished ones are considered.
        rules: the bounds.
        now: the time relative to which ages are computed.
        free_bytes: free bytes on each file system with bundles, by device.
        unshipped: bundles that are not held by every target of ``shipped_to``.
    """
    finished = _finished(bundles)
    by_graph: dict[str, list[StoredBundle]] = {}
    for bundle in finished:
        by_graph.setdefault(bundle.graph, []).append(bundle)
    ends = _ends(finished, now)
    reasons: dict[Path, str] = {}
    for graph, of_graph in by_graph.items():
        reasons |= _exceeding(of_graph, rules.graphs.get(graph, rules.default), now, ends)

    def may_go(bundle: StoredBundle) -> bool:
        ended = ends.get(bundle.path)
        gives_up = rules.give_up_after and ended is not None and now - ended > rules.give_up_after
        return bundle.path not in unshipped or bool(gives_up)

    reasons = {bundle.path: reasons[bundle.path] for bundle in finished if bundle.path in reasons and may_go(bundle)}
    if rules.keep_free_bytes:
        newest = {of_graph[-1].path for of_graph in by_graph.values()}
        free = dict(free_bytes)
        for bundle in finished:
            if bundle.path in reasons and bundle.device in free:
                free[bundle.device] += bundle.size
        for bundle in finished:
            # Count by disk: deleting a bundle on another disk makes no room on this one.
            room = free.get(bundle.device, rules.keep_free_bytes)
            can_go = bundle.path not in reasons and bundle.path not in newest and may_go(bundle)
            if room < rules.keep_free_bytes and can_go:
                reasons[bundle.path] = "keep_free_bytes"
                free[bundle.device] += bundle.size
    return [
        Expired(bundle, reasons[bundle.path], is_given_up=bundle.path in unshipped)
        for bundle in finished
        if bundle.path in reasons
    ]


def suspect_times(bundles: Iterable[StoredBundle], now: datetime) -> list[StoredBundle]:
    """Return the finished bundles whose time of end is impossible; retention must not take their age from it."""
    return [bundle for bundle in _finished(bundles) if not _is_plausible(bundle, now)]


def _finished(bundles: Iterable[StoredBundle]) -> list[StoredBundle]:
    return sorted((bundle for bundle in bundles if bundle.problem is None), key=order_of)


def _is_plausible(bundle: StoredBundle, now: datetime) -> bool:
    return bundle.ended_at is not None and _EARLIEST <= bundle.ended_at <= now + _TOLERANCE


def _ends(bundles: list[StoredBundle], now: datetime) -> dict[Path, datetime]:
    """Return a time by which each bundle had ended, by path; bundles without a known time are left out.

    Bundles with numbers ended in their order. So a bundle with an earlier time than one before it gets the time of that
    one, and a bundle with an impossible time gets the time of the next one after it.
    """
    ends: dict[Path, datetime] = {}
    latest = _EARLIEST
    for bundle in bundles:
        if bundle.ended_at is not None and _is_plausible(bundle, now):
            latest = max(latest, bundle.ended_at) if bundle.sequence else latest
            ends[bundle.path] = latest if bundle.sequence else bundle.ended_at
    following: datetime | None = None
    for bundle in reversed(bundles):
        if bundle.path not in ends:
            if following is not None:
                ends[bundle.path] = following
        elif bundle.sequence:
            following = ends[bundle.path]
    return ends


def _exceeding(
    bundles: list[StoredBundle], bounds: Bounds, now: datetime, ends: Mapping[Path, datetime]
) -> dict[Path, str]:
    """Return the bundles of one graph that exceed a bound, with its name; ``bundles`` are sorted, the oldest first."""
    exceeding: dict[Path, str] = {}
    kept = size = 0
    for bundle in reversed(bundles):
        ended = ends.get(bundle.path)
        if not kept:
            # The newest.
            kept, size = 1, bundle.size
        elif bounds.max_age and ended is not None and now - ended > bounds.max_age:
            exceeding[bundle.path] = "max_age"
        elif bounds.max_bundles and kept >= bounds.max_bundles:
            exceeding[bundle.path] = "max_bundles"
        elif bounds.max_bytes and size + bundle.size > bounds.max_bytes:
            exceeding[bundle.path] = "max_bytes"
            # Full from here on: a smaller, older bundle must not outlive this one.
            size = bounds.max_bytes + 1
        else:
            kept += 1
            size += bundle.size
    return exceeding
