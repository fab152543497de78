"""Verify a bundle file without an engine: check that it is sound and that its events lead to its decisions.

A bundle that is sound and usual is proven block by block (``proving``). Any other is judged here, event by event.
Events and decisions are read side by side. Memory grows by 13 to 27 bytes an event for its id, and by what the
supervisor keeps: the deferred episodes.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, zip_longest
from pathlib import Path
from typing import Final

import msgspec

from ergo_capture.bundle.proving.effects import EffectChecker
from ergo_capture.bundle.proving.prover import prove
from ergo_capture.bundle.reader.stream import BundleStream, RecordStream
from ergo_capture.kernel.events import EventLike, ExternalEventKind
from ergo_capture.kernel.records import CAPTURE_FORMAT_VERSION, ExternalEventRecord
from ergo_capture.kernel.replay import (
    Divergence,
    Rederivation,
    ReplayError,
    divergence_at,
    duplicate_event_id,
    rehydrate,
    unsupported_version,
)
from ergo_capture.kernel.time import EventTime
from ergo_capture.kernel.uniqueness import SeenIds

#: Events between two calls of ``on_progress``.
_PROGRESS_EVENTS: Final = 4096


class Verdict(msgspec.Struct, frozen=True):
    """The result of a verification."""

    graph_id: str
    events: int
    decisions: int
    #: The error of an unsound bundle: its version, a hash, a repeated id or a payload; None for a sound one.
    complaint: ReplayError | None
    #: The first decision that does not follow from the events; None if all do.
    divergence: Divergence | None
    #: Remarks on a sound bundle.
    notes: tuple[str, ...]
    #: The facts that the remarks sum up, one by one; at most ``MAX_NOTES``, and a line that counts the others.
    details: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the bundle is sound and nothing diverges."""
        return self.complaint is None and self.divergence is None


def verify_bundle(path: Path, *, jobs: int = 1, on_progress: Callable[[int], None] = lambda _events: None) -> Verdict:
    """Check format, hashes and ids, and derive every decision again from the recorded outcomes.

    Args:
        path: the bundle file.
        jobs: how many processes may read a large bundle.
        on_progress: called every few thousand events with the number of events so far.

    Raises:
        BundleFormatError: the file is not a bundle.
        ErgoCaptureError: the file cannot be read.
    """
    with BundleStream(path, guess=True) as stream:
        return verify_stream(stream, jobs=jobs, on_progress=on_progress)


def verify_stream(
    stream: RecordStream,
    *,
    only_decided: bool = False,
    jobs: int = 1,
    on_progress: Callable[[int], None] = lambda _events: None,
) -> Verdict:
    """Check a run as ``verify_bundle`` does.

    Args:
        stream: the run.
        only_decided: whether events after the last decision are left out: those of a session that goes on.
        jobs: how many processes may read a large bundle.
        on_progress: called every few thousand events with the number of events so far.

    Raises:
        ErgoCaptureError: it cannot be read.
    """
    if isinstance(stream, BundleStream):
        proof = prove(stream, jobs=jobs, on_progress=on_progress)
        if proof is not None:
            return Verdict(stream.graph_id, proof.events, proof.events, None, None, *proof.notes)
        stream.confirm()
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
        # Keep the first error of each kind: the reference checks all hashes first, then all ids, then all payloads.
        self._wrong_hash: ReplayError | None = None
        self._repeated: ReplayError | None = None
        self._bad_payload: ReplayError | None = None

    @property
    def complaint(self) -> ReplayError | None:
        """The error that the reference raises for the events so far (``replay::validate_bundle``, ``_strict``); else None."""
        return self._wrong_hash or self._repeated or self._bad_payload

    def check(self, index: int, record: ExternalEventRecord) -> EventLike | None:
        """Check the next event; return it as the supervisor takes it, or None if it is not sound."""
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
    """An event without its payload, because the supervisor keeps deferred events in memory."""

    event_id: str
    kind: ExternalEventKind
    at: EventTime


class _Verification:
    def __init__(self, stream: RecordStream) -> None:
        self.stream = stream
        self.integrity = IntegrityChecker(stream)
        self.rederivation = Rederivation(stream.graph_id, stream.config)
        self.effects = EffectChecker()
        self.divergence: Divergence | None = None

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
                    self.effects.check(index, captured)
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
        divergence = self.effects.wrong or self.divergence
        return Verdict(stream.graph_id, events, decisions, None, divergence, *self.effects.notes())


def event_of(event: ExternalEventRecord) -> EventLike:
    """Return a captured event as the supervisor takes it, without its payload."""
    return _Offered(event.event_id, event.kind, event.event_time)
