"""Compare two captures, aligned by event id.

Both are read side by side up to the first difference, in constant memory. After it, a digest of each event of the
second capture is kept, about 200 bytes an event. Events with the same id are aligned in their order.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
from typing import Any, Final

import msgspec

from ergo_capture.bundle.reader.elements import DECISIONS, EVENT_COLUMNS, ElementError, ListReader
from ergo_capture.bundle.reader.stream import BundleStream, RecordStream
from ergo_capture.kernel.explanation import CONTEXT, describe_decision, shortened, to_builtins
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord, encode_decision, encode_event

#: How many differences of each kind are kept; all are counted.
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


class First(msgspec.Struct, frozen=True):
    """The first difference of two captures."""

    #: Index of the event in the first and in the second capture, from 0; None if it is missing there.
    a: int | None
    b: int | None
    event_id: str
    sentence: str
    #: The decisions before it, which are the same in both, the nearest last.
    before: list[str]


class Difference(msgspec.Struct):
    """The differences of two captures; ids are in the order of the first one."""

    common: int = 0
    only_a: int = 0
    only_b: int = 0
    changed: int = 0
    #: The least number of events that would have to be moved to bring both into the same order.
    moved: int = 0
    head: list[Change] = []
    first: First | None = None
    first_only_a: list[str] = []
    first_only_b: list[str] = []
    first_changed: list[Change] = []
    first_moved: list[str] = []

    @property
    def none(self) -> bool:
        """Whether the captures hold the same events and decisions."""
        return not (self.head or self.only_a or self.only_b or self.changed or self.moved)


#: An event and its decision; the last events may have none, and in a damaged capture the last decisions no event.
_Pair = tuple[ExternalEventRecord | None, EpisodeInvocationRecord | None]
_Record = ExternalEventRecord | EpisodeInvocationRecord
#: An event id, and the index among the events with that id, from 0.
_Key = tuple[str, int]


def compare(a: RecordStream, b: RecordStream) -> Difference:
    """Compare two captures.

    Raises:
        ErgoCaptureError: a capture cannot be read.
    """
    found = Difference(head=_heads(a, b))
    if isinstance(a, BundleStream) and isinstance(b, BundleStream) and (count := _same_text(a, b)) is not None:
        found.common = count
        return found
    before: deque[_Pair] = deque(maxlen=CONTEXT)
    same = 0
    for one, other in zip_longest(_pairs(a), _pairs(b)):
        if one is None or other is None or one != other:
            _compare_rest(found, a, b, same, list(before))
            return found
        before.append(one)
        same += 1
    found.common = same
    return found


def _same_text(a: BundleStream, b: BundleStream) -> int | None:
    """Return the number of events if the lists of two bundles have the same texts; else, or if one is malformed, None.

    Each block is decoded once and compared as text, in a third of the time of comparing records.
    """
    counts = []
    readers: tuple[ListReader[Any], ...] = (EVENT_COLUMNS, DECISIONS)
    try:
        for reader in readers:
            with a.cursor(reader) as one, b.cursor(reader) as other:
                while (block := one.read()) is not None:
                    if not other.take(one.text, len(block)):
                        return None
                if other.more:
                    return None
                counts.append(one.index)
    except (ElementError, OSError):
        # Comparing the records finds the error again and reports it.
        return None
    return max(counts)


def _compare_rest(found: Difference, a: RecordStream, b: RecordStream, same: int, before: Sequence[_Pair]) -> None:
    """Compare the captures after their first ``same`` events, which are equal."""
    others = {key: (place, _digest(*pair)) for place, key, pair in _placed(b, same)}
    only_in_b = others.copy()
    places: list[int] = []
    changed: dict[_Key, tuple[int, _Pair]] = {}
    for place, key, pair in _placed(a, same):
        other = only_in_b.pop(key, None)
        if other is None:
            found.only_a += 1
            _keep(found.first_only_a, key[0])
            _set_first(
                found, First(place, None, key[0], f"event {key[0]!r} is only in the first", _lines(before, same))
            )
            continue
        places.append(other[0])
        if other[1] != _digest(*pair):
            found.changed += 1
            if len(changed) < MOST_SHOWN:
                changed[key] = place, pair
    found.common = same + len(places)
    found.only_b = len(only_in_b)
    found.first_only_b = [key[0] for key in islice(only_in_b, MOST_SHOWN)]
    for (event_id, _), (place, _) in islice(only_in_b.items(), 1):
        _set_first(
            found, First(None, place, event_id, f"event {event_id!r} is only in the second", _lines(before, same))
        )
    _find_moved(found, a, others, same, places, before)
    if changed:
        for place, key, pair in _placed(b, same):
            if key in changed:
                place_a, pair_a = changed.pop(key)
                changes = _changes(key[0], pair_a, pair)
                found.first_changed += changes
                _set_first(
                    found, First(place_a, place, key[0], _in_words(place_a, key[0], changes), _lines(before, same))
                )


def _find_moved(
    found: Difference,
    a: RecordStream,
    others: dict[_Key, tuple[int, bytes]],
    same: int,
    places: Sequence[int],
    before: Sequence[_Pair],
) -> None:
    """Find the events in another order; ``places`` are their indices in the second capture, in the order of the first."""
    in_order = _longest_increasing(places)
    found.moved = len(places) - len(in_order)
    if not found.moved:
        return
    for place, key, _ in _placed(a, same):
        other = others.get(key)
        if other is not None and other[0] not in in_order:
            _keep(found.first_moved, key[0])
            sentence = f"event {key[0]!r} is at place {place} in the first and at {other[0]} in the second"
            _set_first(found, First(place, other[0], key[0], sentence, _lines(before, same)))


def _longest_increasing(numbers: Sequence[int]) -> set[int]:
    """Return the members of a longest increasing subsequence of distinct numbers (patience sorting)."""
    tops: list[int] = []
    top_places: list[int] = []
    came_from: list[int] = []
    for place, number in enumerate(numbers):
        pile = bisect_left(tops, number)
        if pile == len(tops):
            tops.append(number)
            top_places.append(place)
        else:
            tops[pile] = number
            top_places[pile] = place
        came_from.append(top_places[pile - 1] if pile else -1)
    members = set()
    place = top_places[-1] if top_places else -1
    while place >= 0:
        members.add(numbers[place])
        place = came_from[place]
    return members


def _set_first(found: Difference, here: First) -> None:
    """Keep a difference as the first one if it comes before the known one."""

    def place(first: First) -> int:
        return min(place for place in (first.a, first.b) if place is not None)

    if found.first is None or place(here) < place(found.first):
        found.first = here


def _lines(before: Sequence[_Pair], same: int) -> list[str]:
    """Return the decisions before the first difference, each as a line."""
    numbered = enumerate(before, same - len(before))
    return [f"{place}  {describe_decision(record)}" for place, (_, record) in numbered if record is not None]


def _in_words(place: int, event_id: str, changes: Sequence[Change]) -> str:
    change = changes[0]
    return (
        f"event {event_id!r} at place {place}: {change.field} is {shortened(change.a)} in the first "
        f"and {shortened(change.b)} in the second"
    )


def _placed(stream: RecordStream, start: int) -> Iterator[tuple[int, _Key, _Pair]]:
    """Yield the events from index ``start`` on, each with its index and its key."""
    seen: Counter[str] = Counter()
    for place, pair in enumerate(_pairs(stream)):
        if place >= start:
            event_id = _id_of(pair)
            yield place, (event_id, seen[event_id]), pair
            seen[event_id] += 1


def _pairs(stream: RecordStream) -> Iterator[_Pair]:
    return zip_longest(stream.events(), stream.decisions())


def _id_of(pair: _Pair) -> str:
    record = pair[1] if pair[0] is None else pair[0]
    assert record is not None
    return record.event_id


def _digest(event: ExternalEventRecord | None, record: EpisodeInvocationRecord | None) -> bytes:
    text = (b"" if event is None else encode_event(event)) + (b"" if record is None else encode_decision(record))
    return hashlib.blake2b(text, digest_size=16).digest()


def _heads(one: RecordStream, other: RecordStream) -> list[Change]:
    pairs = [(name, to_builtins(getattr(one, name)), to_builtins(getattr(other, name))) for name in _HEAD]
    return [Change("", name, left, right) for name, left, right in pairs if left != right]


def _changes(event_id: str, one: _Pair, other: _Pair) -> list[Change]:
    return [
        *_fields_that_differ(event_id, "event", one[0], other[0]),
        *_fields_that_differ(event_id, "decision", one[1], other[1]),
    ]


def _fields_that_differ(event_id: str, what: str, one: _Record | None, other: _Record | None) -> list[Change]:
    if one is None or other is None:
        return [] if one is other else [Change(event_id, what, to_builtins(one), to_builtins(other))]
    return [
        Change(event_id, f"{what}.{name}", _shown(getattr(one, name)), _shown(getattr(other, name)))
        for name in one.__struct_fields__
        if getattr(one, name) != getattr(other, name)
    ]


def _shown(value: Any) -> Any:
    # A damaged bundle may hold payloads that are not UTF-8.
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else to_builtins(value)


def _keep(shown: list[str], event_id: str) -> None:
    if len(shown) < MOST_SHOWN:
        shown.append(event_id)
