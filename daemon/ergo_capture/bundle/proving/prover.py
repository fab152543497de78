"""Prove that a bundle is sound and that its decisions follow, a block at a time.

A proof is all or nothing: if the bundle is unsound, or unusual in a way that is not covered here, there is none, and
``verify.py`` checks every event by itself and reports the first error.

Events are checked as columns. The text of the decisions to which they lead is composed and compared with the file's;
only a block that differs is decoded, to learn how its episodes ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from ergo_capture.bundle.proving import checking
from ergo_capture.bundle.proving.checking import CheckedEvents, Unproven, check_events
from ergo_capture.bundle.proving.effects import EffectChecker
from ergo_capture.bundle.reader.blocks import EventColumns
from ergo_capture.bundle.reader.decision_texts import DecisionTexts
from ergo_capture.bundle.reader.elements import DECISIONS, EVENT_COLUMNS, ElementCursor, ElementError
from ergo_capture.bundle.reader.stream import BundleStream
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.events import ExternalEventKind, TimeLike
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.ports import DecisionLogEntry
from ergo_capture.kernel.records import CAPTURE_FORMAT_VERSION, EpisodeInvocationRecord, encode_decision
from ergo_capture.kernel.replay import divergence_at, recorded_outcome
from ergo_capture.kernel.supervisor import Run, Supervisor
from ergo_capture.kernel.time import ZERO
from ergo_capture.kernel.uniqueness import SeenIds

_PUMP: Final = ExternalEventKind.Pump
#: The largest number of events for whose ids memory is reserved in advance.
_MOST_EXPECTED: Final = 1 << 24
#: How many events of a stretch are checked together.
_PART: Final = 128


class Proof(msgspec.Struct, frozen=True):
    """The proof that a bundle is sound and that every decision follows."""

    events: int
    #: Remarks on effects, and the details that they sum up.
    notes: tuple[tuple[str, ...], tuple[str, ...]]


def prove(
    stream: BundleStream,
    *,
    unique: bool = True,
    completed: bool = False,
    jobs: int = 1,
    on_progress: Callable[[int], None] = lambda _events: None,
    keep: Callable[[EventColumns, bytes], None] | None = None,
) -> Proof | None:
    """Return a proof; None if there is none, for any reason.

    Args:
        stream: the bundle.
        unique: whether every id must be new.
        completed: whether every episode has to complete, as with the fixed engine, instead of ending as captured.
        jobs: how many processes may check the events of a large bundle.
        on_progress: called after each block with the number of events so far.
        keep: takes each block of events, and the compact text of its decisions, as soon as it is proven; in one process.
    """
    if stream.capture_version != CAPTURE_FORMAT_VERSION:
        return None
    try:
        with stream.cursor(DECISIONS) as decisions:
            prover = _Prover(stream, decisions, unique=unique, completed=completed)
            if keep is not None:
                _prove_and_keep(stream, prover, keep)
                return prover.finish()
            for events in _events(stream, prover, jobs):
                prover.add(events)
                on_progress(prover.count)
            return prover.finish()
    except (Unproven, ElementError, ErgoCaptureError, OSError):
        return None


def _prove_and_keep(stream: BundleStream, prover: _Prover, keep: Callable[[EventColumns, bytes], None]) -> None:
    prover.kept = []
    with stream.cursor(EVENT_COLUMNS) as cursor:
        while (block := cursor.read()) is not None:
            prover.expected = prover.expected or cursor.expected
            prover.add(check_events(block))
            keep(block, b",".join(prover.kept))
            prover.kept.clear()


def _events(stream: BundleStream, prover: _Prover, jobs: int) -> Iterator[CheckedEvents]:
    span, _ = stream.spans
    if jobs > 1 and span.end - span.start >= checking.WORTH_A_PROCESS and (plain := stream.plain_file()) is not None:
        from ergo_capture.bundle.proving.workers import STRETCH, check_stretches  # noqa: PLC0415 - slow to import

        for stretch in check_stretches(*plain, span, jobs, with_times=prover.limited):
            prover.expected = prover.expected or len(stretch.ids) * (span.end - span.start) // STRETCH
            # Divide it: after a decision that differs, the texts of the rest are composed again.
            for start in range(0, len(stretch.ids), _PART):
                yield stretch.part(start, start + _PART)
        return
    with stream.cursor(EVENT_COLUMNS) as cursor:
        while (block := cursor.read()) is not None:
            prover.expected = prover.expected or cursor.expected
            yield check_events(block)


class _Offered(msgspec.Struct, frozen=True, gc=False):
    """An event as the supervisor takes it."""

    event_id: str
    kind: ExternalEventKind
    at: TimeLike


class _Prover:
    def __init__(
        self,
        stream: BundleStream,
        decisions: ElementCursor[list[EpisodeInvocationRecord]],
        *,
        unique: bool,
        completed: bool,
    ) -> None:
        #: Events so far.
        self.count = 0
        self._decisions = decisions
        self._completed = completed
        self._unique = unique
        #: An estimate of the number of events; made after the first of them.
        self.expected = 0
        self._ids: SeenIds | None = None
        self._supervisor = Supervisor(stream.graph_id, stream.config, _NullDecisionLog())
        #: Whether a decision may depend on time.
        self.limited = self._supervisor.is_limited
        self._max_retries = stream.config.max_retries
        self._texts = DecisionTexts(stream.config.deadline, pretty=not decisions.begins_with(b"{"))
        self._effects = EffectChecker()
        #: The text of the decisions that were proven last; None if it is not wanted.
        self.kept: list[bytes] | None = None
        self._pretty = not decisions.begins_with(b"{")
        #: Decisions that were decoded and not compared yet.
        self._decoded: deque[EpisodeInvocationRecord] = deque()

    def add(self, events: CheckedEvents) -> None:
        """Prove the next events and their decisions.

        Raises:
            Unproven: they are not all proven.
        """
        if self._unique:
            if self._ids is None:
                self._ids = SeenIds(min(self.expected, _MOST_EXPECTED))
            if self._ids.add_all(events.ids):
                raise Unproven
        steps = self._steps(events) if self.limited else None
        at, count = 0, len(events.ids)
        while at < count:
            if self._decoded:
                end = min(count, at + len(self._decoded))
                self._compare(events, steps, at, end)
                at = end
                continue
            ids = events.ids[at:] if at else events.ids
            if steps is None:
                text = self._texts.unlimited(ids, events.kinds[at:] if at else events.kinds, self.count + at)
            else:
                text = self._texts.of_steps(ids, steps[at:])
            if self._decisions.take(text, len(ids)):
                if self.kept is not None:
                    self.kept.append(msgspec.json.format(b"[%b]" % text, indent=-1)[1:-1] if self._pretty else text)
                break
            if (decoded := self._decisions.read()) is None:
                raise Unproven
            self._decoded.extend(decoded)
        self.count += count

    def finish(self) -> Proof:
        """Return the proof, after the last event.

        Raises:
            Unproven: there are more decisions.
        """
        if self._decoded or self._decisions.more:
            raise Unproven
        return Proof(self.count, self._effects.notes())

    def _steps(self, events: CheckedEvents) -> list[Run | DecisionLogEntry]:
        """Return the supervisor's steps for events; they do not depend on how episodes end."""
        supervisor = self._supervisor
        steps: list[Run | DecisionLogEntry] = []
        for event in map(_Offered, events.ids, events.kinds, events.times):
            step = supervisor.offer(event)
            if type(step) is Run:
                supervisor.detach()
            steps.append(step)
        return steps

    def _compare(self, events: CheckedEvents, steps: list[Run | DecisionLogEntry] | None, start: int, end: int) -> None:
        """Compare decoded decisions with those of the events from ``start`` to before ``end``."""
        for place in range(start, end):
            captured = self._decoded.popleft()
            if captured.effects:
                self._effects.check(self.count + place, captured)
                if self._effects.wrong is not None:
                    raise Unproven
            step = self._step_without_limits(events, place) if steps is None else steps[place]
            if isinstance(step, Run):
                step = self._entry(step, captured)
            if divergence_at(0, captured, step.to_record()) is not None:
                raise Unproven
            if self.kept is not None:
                self.kept.append(encode_decision(captured))

    def _step_without_limits(self, events: CheckedEvents, place: int) -> Run | DecisionLogEntry:
        episode = self.count + place
        event = _Offered(events.ids[place], events.kinds[place], ZERO)
        if event.kind is _PUMP:
            return self._supervisor.entry_of_deferral(event, None, episode)
        return Run(event, event, episode)

    def _entry(self, run: Run, captured: EpisodeInvocationRecord) -> DecisionLogEntry:
        if not self._completed:
            return self._supervisor.entry_of(run, *recorded_outcome(captured, self._max_retries))
        if captured.interruption is not None:
            # The replay notes it, and may not run the episode again.
            raise Unproven
        return self._supervisor.entry_of(run, RunTermination.Completed, 0)


class _NullDecisionLog:
    def log(self, entry: DecisionLogEntry) -> None:
        pass
