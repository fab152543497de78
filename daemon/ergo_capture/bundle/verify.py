"""Verify a bundle file without an engine: it is sound, and its events lead to its decisions.

Events and decisions are read side by side. Memory grows by 13 to 27 bytes an event for its id, and by what the
supervisor keeps: the deferred episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Final

import msgspec

from ergo_capture.bundle.reader.stream import RecordStream, open_bundle
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
from ergo_capture.units import counted

#: Details that are kept; the rest is counted.
MAX_NOTES: Final = 100
#: Events between two calls of ``on_progress``.
_PROGRESS_EVENTS: Final = 4096


class Verdict(msgspec.Struct, frozen=True):
    """The result of a verification."""

    graph_id: str
    events: int
    decisions: int
    #: The error of an unsound bundle: its version, a hash, a repeated id or a payload; None for a sound one.
    complaint: ReplayError | None
    #: The first decision that does not follow from the events; None where all do.
    divergence: Divergence | None
    #: Remarks on a sound bundle.
    notes: tuple[str, ...]
    #: What the remarks sum up, one by one; at most ``MAX_NOTES`` and a line that counts the others.
    details: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the bundle is sound and nothing diverges."""
        return self.complaint is None and self.divergence is None


def verify_bundle(path: Path, *, on_progress: Callable[[int], None] = lambda _events: None) -> Verdict:
    """Check format, hashes and ids, and derive every decision again from the recorded outcomes.

    Args:
        path: the bundle file.
        on_progress: called every few thousand events with the number of events so far.

    Raises:
        BundleFormatError: the file is not a bundle.
        ErgoCaptureError: the file cannot be read.
    """
    with open_bundle(path) as stream:
        return verify_stream(stream, on_progress=on_progress)


def verify_stream(
    stream: RecordStream,
    *,
    only_decided: bool = False,
    on_progress: Callable[[int], None] = lambda _events: None,
) -> Verdict:
    """Check a run as ``verify_bundle`` does.

    Args:
        stream: the run.
        only_decided: whether events behind the last decision are left out: those of a session that goes on.
        on_progress: called every few thousand events with the number of events so far.

    Raises:
        ErgoCaptureError: it cannot be read.
    """
    return _Verification(stream).run(on_progress, only_decided=only_decided)


class IntegrityChecker:
    """Check events one after the other: their hashes, ids and payloads. Memory grows by 13 to 27 bytes an event.

    Args:
        stream: the stream of the events, to look up an id again.
        unique: whether every id must be new.
    """

    def __init__(self, stream: RecordStream, *, unique: bool = True) -> None:
        self._stream = stream
        self._ids = SeenIds() if unique else None
        # One of each kind: the reference checks all hashes first, then all ids, then all payloads.
        self._wrong_hash: ReplayError | None = None
        self._repeated: ReplayError | None = None
        self._bad_payload: ReplayError | None = None

    @property
    def complaint(self) -> ReplayError | None:
        """The error that the reference raises for the events so far (``replay::validate_bundle``, ``_strict``); else None."""
        return self._wrong_hash or self._repeated or self._bad_payload

    def check(self, index: int, record: ExternalEventRecord) -> EventLike | None:
        """Check the next event; return it as the supervisor takes it, or None where it is not sound."""
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
        """Check every event of the stream.

        Raises:
            ReplayError: one is not sound; without ``payloads``, only hashes and ids count.
        """
        for index, record in enumerate(self._stream.events()):
            self.check(index, record)
        if self.complaint is not None and (payloads or self.complaint is not self._bad_payload):
            raise self.complaint

    def _is_before(self, event_id: str, index: int) -> bool:
        # ``SeenIds`` holds hashes of ids: look for the id itself.
        return any(event.event_id == event_id for event in islice(self._stream.events(), index))


class _Offered(msgspec.Struct, frozen=True, gc=False):
    """An event without its payload: the supervisor keeps those that are deferred."""

    event_id: str
    kind: ExternalEventKind
    at: EventTime


class _Verification:
    def __init__(self, stream: RecordStream) -> None:
        self.stream = stream
        self.integrity = IntegrityChecker(stream)
        self.rederivation = Rederivation(stream.graph_id, stream.config)
        self.wrong_effect: Divergence | None = None
        self.divergence: Divergence | None = None
        #: The effects' numbers that the reference misreads.
        self.misread = 0
        self.details: list[str] = []

    def run(self, on_progress: Callable[[int], None], *, only_decided: bool) -> Verdict:
        stream, events, decisions = self.stream, 0, 0
        for index, (event, captured) in enumerate(zip_longest(stream.events(), stream.decisions())):
            if captured is None and only_decided:
                break
            if event is not None:
                events += 1
                self.integrity.check(index, event)
            if captured is not None:
                decisions += 1
                if captured.effects:
                    self._check_effects(index, captured)
            if self.divergence is None and self.integrity.complaint is None:
                replayed = None if event is None else self.rederivation.decide(event_of(event), captured)
                self.divergence = divergence_at(index, captured, replayed)
            if index % _PROGRESS_EVENTS == 0:
                on_progress(events)
        on_progress(events)
        version = stream.capture_version
        complaint = None if version == CAPTURE_FORMAT_VERSION else unsupported_version(version)
        complaint = complaint or self.integrity.complaint
        if complaint is not None:
            return Verdict(stream.graph_id, events, decisions, complaint, None, ())
        divergence = self.wrong_effect or self.divergence
        return Verdict(stream.graph_id, events, decisions, None, divergence, *self._notes())

    def _notes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if not self.misread:
            return (), ()
        note = (
            f"the reference refuses this bundle (effect_mismatch): it misreads {counted(self.misread, 'number')} in "
            "effects; the cure is serde_json's feature `float_roundtrip` in your own build of it"
        )
        more = self.misread - len(self.details)
        return (note,), (*self.details, *([f"and {counted(more, 'more such number')}"] if more else []))

    def _check_effects(self, index: int, record: EpisodeInvocationRecord) -> None:
        if self.wrong_effect is None:
            for effect in record.effects:
                actual = compute_effect_hash(effect.effect)
                if actual != effect.effect_hash:
                    self.wrong_effect = Divergence(index, record.event_id, "effect_hash", effect.effect_hash, actual)
                    break
        for note in _misread_floats(index, record):
            self.misread += 1
            if len(self.details) < MAX_NOTES:
                self.details.append(note)


def event_of(event: ExternalEventRecord) -> EventLike:
    """Return a captured event as the supervisor takes it, without its payload."""
    return _Offered(event.event_id, event.kind, event.event_time)


_NUMBERS: Final = outside_strings(rb"(-?[0-9][-+.0-9e]*)")


def _misread_floats(index: int, record: EpisodeInvocationRecord) -> Iterator[str]:
    """Yield a note for each number of an effect that the reference reads as another number, so that its hash differs."""
    for effect in record.effects:
        for token in _NUMBERS.finditer(encode_effect(effect.effect)):
            if token[1] is None:
                continue
            number = token[1].decode()
            read = as_the_reference(number)
            if read != float(number):
                yield f"it reads {number} in an effect of decision {index}, event {record.event_id!r}, as {read!r}"
