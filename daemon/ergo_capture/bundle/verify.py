"""Proves a bundle file without an engine: is it sound, and do its events still lead to its decisions.

The file is read twice at once, events and decisions side by side, and memory does not grow with it, but for
13 to 27 bytes an event for its id, and for what the supervisor itself keeps: the episodes that are deferred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Final

import msgspec

from ergo_capture.bundle.reader.stream import BundleStream, RecordStream, open_bundle
from ergo_capture.kernel.effects import compute_effect_hash, encode_effect
from ergo_capture.kernel.events import EventLike, ExternalEventKind
from ergo_capture.kernel.records import CAPTURE_FORMAT_VERSION, EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.kernel.replay import (
    Divergence,
    Rederivation,
    ReplayError,
    divergence_at,
    duplicate_event_id,
    rehydrate,
    unsupported_version,
)
from ergo_capture.kernel.serde.numbers import as_the_reference
from ergo_capture.kernel.serde.tokens import outside_strings
from ergo_capture.kernel.time import EventTime
from ergo_capture.kernel.uniqueness import SeenIds

#: More notes than anybody reads; the rest is counted.
MAX_NOTES: Final = 100
#: Events between two calls of ``on_progress``.
_PROGRESS_EVENTS: Final = 4096


class Verdict(msgspec.Struct, frozen=True):
    """What was found out about a bundle that could be read."""

    graph_id: str
    events: int
    decisions: int
    #: Why it is unsound: an unsupported version, a hash, a repeated id or a payload that is wrong.
    complaint: ReplayError | None
    #: The first decision, if any, that does not follow from the events.
    divergence: Divergence | None
    #: What is worth knowing all the same.
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether it is sound and nothing diverges."""
        return self.complaint is None and self.divergence is None


def verify_bundle(path: Path, *, on_progress: Callable[[int], None] = lambda _events: None) -> Verdict:
    """Check format, hashes and ids, and derive every decision again from the recorded outcomes.

    Raises:
        BundleFormatError: it is no bundle.
        ErgoCaptureError: it cannot be read.
    """
    with open_bundle(path) as stream:
        return _Verification(stream).run(on_progress)


class IntegrityChecker:
    """Looks at events one after the other; memory grows by 13 to 27 bytes an event, for its id.

    Args:
        stream: where the events are from, to look one up again.
        unique: whether no id may come twice.
    """

    def __init__(self, stream: RecordStream, *, unique: bool = True) -> None:
        self._stream = stream
        self._ids = SeenIds() if unique else None
        # Why one for each: whichever comes first in the file, the reference looks for them one after the other.
        self._wrong_hash: ReplayError | None = None
        self._repeated: ReplayError | None = None
        self._bad_payload: ReplayError | None = None

    @property
    def complaint(self) -> ReplayError | None:
        """What the reference would say of the events so far (``replay::validate_bundle``, ``validate_bundle_strict``)."""
        return self._wrong_hash or self._repeated or self._bad_payload

    def check(self, index: int, record: ExternalEventRecord) -> EventLike | None:
        """Look at the next event; returns it as the supervisor takes it, None where it is not what it says."""
        if self._wrong_hash is not None:
            return None
        event = None
        try:
            event = rehydrate(record)
        except ReplayError as error:
            if error.kind == "HashMismatch":
                self._wrong_hash = error
                return None
            self._bad_payload = self._bad_payload or error
        ids, name = self._ids, record.event_id
        if ids is not None and self._repeated is None and ids.add(name) and self._is_before(name, index):
            self._repeated = duplicate_event_id(name)
        return event

    def check_all(self, *, payloads: bool = True) -> None:
        """Look at every event of the stream.

        Raises:
            ReplayError: the complaint, where there is one; without ``payloads``, one about a hash or an id.
        """
        for index, record in enumerate(self._stream.events()):
            self.check(index, record)
        if self.complaint is not None and (payloads or self.complaint is not self._bad_payload):
            raise self.complaint

    def _is_before(self, event_id: str, index: int) -> bool:
        """Why another look: the ids are known by their hashes only."""
        return any(event.event_id == event_id for event in islice(self._stream.events(), index))

    def __repr__(self) -> str:
        return f"<IntegrityChecker, {'nothing wrong so far' if self.complaint is None else self.complaint}>"


class _Offered(msgspec.Struct, frozen=True, gc=False):
    """An event without its payload. Why: the supervisor holds on to those that are deferred."""

    event_id: str
    kind: ExternalEventKind
    at: EventTime


class _Verification:
    def __init__(self, stream: BundleStream) -> None:
        self.stream = stream
        self.soundness = IntegrityChecker(stream)
        self.again = Rederivation(stream.graph_id, stream.config)
        self.wrong_effect: Divergence | None = None
        self.divergence: Divergence | None = None
        self.notes: list[str] = []
        self.notes_beyond = 0

    def run(self, on_progress: Callable[[int], None]) -> Verdict:
        stream, events, decisions = self.stream, 0, 0
        for index, (event, captured) in enumerate(zip_longest(stream.events(), stream.decisions())):
            if event is not None:
                events += 1
                self.soundness.check(index, event)
            if captured is not None:
                decisions += 1
                if captured.effects:
                    self._check_effects(index, captured)
            if self.divergence is None and self.soundness.complaint is None:
                replayed = None if event is None else self.again.decide(event_of(event), captured)
                self.divergence = divergence_at(index, captured, replayed)
            if index % _PROGRESS_EVENTS == 0:
                on_progress(events)
        on_progress(events)
        version = stream.capture_version
        complaint = None if version == CAPTURE_FORMAT_VERSION else unsupported_version(version)
        complaint = complaint or self.soundness.complaint
        if complaint is not None:
            return Verdict(stream.graph_id, events, decisions, complaint, None, ())
        if self.notes_beyond:
            self.notes.append(f"and {self.notes_beyond} more decisions with such numbers")
        divergence = self.wrong_effect or self.divergence
        return Verdict(stream.graph_id, events, decisions, None, divergence, tuple(self.notes))

    def _check_effects(self, index: int, record: EpisodeInvocationRecord) -> None:
        if self.wrong_effect is None:
            for effect in record.effects:
                actual = compute_effect_hash(effect.effect)
                if actual != effect.effect_hash:
                    self.wrong_effect = Divergence(index, record.event_id, "effect_hash", effect.effect_hash, actual)
                    break
        note = next(_misread_floats(index, record), None)
        if note is None:
            return
        if len(self.notes) < MAX_NOTES:
            self.notes.append(note)
        else:
            self.notes_beyond += 1


def event_of(event: ExternalEventRecord) -> EventLike:
    """What the supervisor wants to know of a captured event."""
    return _Offered(event.event_id, event.kind, event.event_time)


_NUMBERS: Final = outside_strings(rb"(-?[0-9][-+.0-9e]*)")


def _misread_floats(index: int, record: EpisodeInvocationRecord) -> Iterator[str]:
    """A note where the reference reads an effect's number as another and so refuses what it wrote itself."""
    for effect in record.effects:
        for token in _NUMBERS.finditer(encode_effect(effect.effect)):
            if token[1] is None:
                continue
            number = token[1].decode()
            read = as_the_reference(number)
            if read != float(number):
                yield (
                    f"the reference may refuse this bundle: it reads {number} in an effect of decision "
                    f"{index} (event {record.event_id!r}) as {read!r}"
                )
