"""How two bundles differ, aligned by event id; streaming, but for a digest of each event.

Owns: ``compare_bundles`` and its result.
Not here: replay (``engine/replaying.py``), printing (``cli/diff.py``).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import msgspec

from ergo_capture.capture.stream import BundleStream, open_bundle
from ergo_capture.kernel.explanation import plain
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord, encode_decision, encode_event

#: Differences of a kind that are shown; all are counted.
MOST_SHOWN: Final = 10

_HEAD: Final = (
    "capture_version",
    "graph_id",
    "config",
    "adapter_provenance",
    "runtime_provenance",
    "egress_provenance",
)


class Change(msgspec.Struct, frozen=True):
    """One field that differs."""

    event_id: str
    #: Such as ``event.payload`` or ``decision.termination``.
    field: str
    a: Any
    b: Any


class Difference(msgspec.Struct):
    """What is different; ids in the order of the first bundle."""

    common: int = 0
    only_a: int = 0
    only_b: int = 0
    changed: int = 0
    #: Events of both that stand in another order.
    moved: int = 0
    head: list[Change] = []
    first_only_a: list[str] = []
    first_only_b: list[str] = []
    first_changed: list[Change] = []
    first_moved: list[str] = []

    @property
    def none(self) -> bool:
        """Whether the bundles hold the same."""
        return not (self.head or self.only_a or self.only_b or self.changed or self.moved)


def compare_bundles(a: Path, b: Path) -> Difference:
    """Compare events and decisions with the same event id.

    Raises:
        ErgoCaptureError: one is no bundle, or cannot be read.
    """
    with open_bundle(a) as one, open_bundle(b) as other:
        found = Difference(head=_heads(one, other))
        digests = {event.event_id: _digest(event, record) for event, record in _pairs(other)}
        order = {event_id: place for place, event_id in enumerate(digests)}
        changed: dict[str, tuple[ExternalEventRecord, EpisodeInvocationRecord | None]] = {}
        furthest = -1
        for event, record in _pairs(one):
            digest = digests.pop(event.event_id, None)
            if digest is None:
                found.only_a += 1
                _keep(found.first_only_a, event.event_id)
                continue
            found.common += 1
            place = order[event.event_id]
            if place < furthest:
                found.moved += 1
                _keep(found.first_moved, event.event_id)
            furthest = max(furthest, place)
            if digest != _digest(event, record):
                found.changed += 1
                if len(changed) < MOST_SHOWN:
                    changed[event.event_id] = (event, record)
        found.only_b = len(digests)
        found.first_only_b = list(digests)[:MOST_SHOWN]
        if changed:
            for event, record in _pairs(other):
                if event.event_id in changed:
                    found.first_changed += _changes(*changed.pop(event.event_id), event, record)
    return found


def _pairs(stream: BundleStream) -> Any:
    decisions = stream.decisions()
    for event in stream.events():
        yield event, next(decisions, None)


def _digest(event: ExternalEventRecord, record: EpisodeInvocationRecord | None) -> bytes:
    text = encode_event(event) + (b"" if record is None else encode_decision(record))
    return hashlib.blake2b(text, digest_size=16).digest()


def _heads(one: BundleStream, other: BundleStream) -> list[Change]:
    pairs = [(name, plain(getattr(one, name)), plain(getattr(other, name))) for name in _HEAD]
    return [Change("", name, left, right) for name, left, right in pairs if left != right]


def _changes(
    event_a: ExternalEventRecord,
    record_a: EpisodeInvocationRecord | None,
    event_b: ExternalEventRecord,
    record_b: EpisodeInvocationRecord | None,
) -> list[Change]:
    changes = [
        Change(event_a.event_id, f"event.{name}", _shown(getattr(event_a, name)), _shown(getattr(event_b, name)))
        for name in ("event_time", "kind", "payload", "payload_hash")
        if getattr(event_a, name) != getattr(event_b, name)
    ]
    if record_a is None or record_b is None:
        if record_a is not record_b:
            changes.append(Change(event_a.event_id, "decision", plain(record_a), plain(record_b)))
        return changes
    return changes + [
        Change(event_a.event_id, f"decision.{name}", plain(getattr(record_a, name)), plain(getattr(record_b, name)))
        for name in record_a.__struct_fields__
        if getattr(record_a, name) != getattr(record_b, name)
    ]


def _shown(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else plain(value)


def _keep(shown: list[str], event_id: str) -> None:
    if len(shown) < MOST_SHOWN:
        shown.append(event_id)
