"""Runs the episodes of a bundle again with an engine, and compares what comes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from typing import Final

import msgspec

from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.bundle.verify import IntegrityChecker
from ergo_capture.engine.port import Engine
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.explanation import AHEAD, CONTEXT, Explanation, explain
from ergo_capture.kernel.ports import DecisionLogEntry, RunResult
from ergo_capture.kernel.records import CAPTURE_FORMAT_VERSION, EpisodeInvocationRecord
from ergo_capture.kernel.replay import ReplayError, check_provenance, divergence_at, unsupported_version
from ergo_capture.kernel.supervisor import Run, Supervisor

#: Events between two calls of ``on_progress``.
_PROGRESS_EVENTS: Final = 1024


class Strictness(msgspec.Struct, frozen=True):
    """What a strict replay expects (``replay::replay_checked_strict``)."""

    adapter_provenance: str
    #: None for whatever the engine says of itself.
    runtime_provenance: str | None


class Replayed(msgspec.Struct, frozen=True):
    """What a replay came to."""

    graph_id: str
    #: Decisions that were replayed, up to the first that differs.
    decisions: int
    explanation: Explanation | None


async def replay_stream(
    stream: RecordStream,
    engine: Engine,
    *,
    strict: Strictness | None = None,
    on_progress: Callable[[int], None] = lambda _events: None,
) -> Replayed:
    """Feed a bundle's events to a fresh supervisor and the engine; compare decision by decision.

    A bundle is looked through only where something is wrong, so that the reference's first complaint is told and not a
    divergence before it: the reference validates all of a bundle first (``replay::replay_checked``).

    Raises:
        ReplayError: the bundle is unsound, or not what a strict replay expects.
        ErgoCaptureError: it cannot be read, or the engine cannot be reached.
    """
    if stream.capture_version != CAPTURE_FORMAT_VERSION:
        raise unsupported_version(stream.capture_version)
    runtime = await engine.provenance(stream.runtime_provenance)
    if strict is not None:
        expected = runtime if strict.runtime_provenance is None else strict.runtime_provenance
        try:
            check_provenance(stream, strict.adapter_provenance, expected)
        except ReplayError:
            # Why: the reference looks at hashes and ids before, and at payloads after.
            IntegrityChecker(stream).check_all(payloads=False)
            raise
    unique = strict is not None
    try:
        replayed = await _replay(stream, engine, unique=unique, on_progress=on_progress)
    except ReplayError:
        IntegrityChecker(stream, unique=unique).check_all()
        raise
    if replayed.explanation is not None:
        # Why the decisions too: what cannot be read to its end is no bundle, and diverges from nothing.
        deque(stream.decisions(), maxlen=0)
        IntegrityChecker(stream, unique=unique).check_all()
    return replayed


async def _replay(
    stream: RecordStream, engine: Engine, *, unique: bool, on_progress: Callable[[int], None]
) -> Replayed:
    again = _again(stream, engine, unique=unique)
    captured_decisions = iter(stream.decisions())
    before: deque[EpisodeInvocationRecord] = deque(maxlen=CONTEXT)
    index = 0
    while True:
        replayed = await anext(again, None)
        captured = next(captured_decisions, None)
        if replayed is None and captured is None:
            on_progress(index)
            return Replayed(stream.graph_id, index, None)
        divergence = divergence_at(index, captured, replayed)
        if divergence is not None:
            captured_ahead = _ahead(captured, captured_decisions)
            replayed_ahead = [] if replayed is None else [replayed]
            while len(replayed_ahead) < AHEAD and (record := await anext(again, None)) is not None:
                replayed_ahead.append(record)
            return Replayed(stream.graph_id, index, explain(divergence, list(before), captured_ahead, replayed_ahead))
        assert replayed is not None
        before.append(replayed)
        index += 1
        if index % _PROGRESS_EVENTS == 0:
            on_progress(index)


def _ahead(
    first: EpisodeInvocationRecord | None, rest: Iterator[EpisodeInvocationRecord]
) -> list[EpisodeInvocationRecord]:
    return [] if first is None else [first, *islice(rest, AHEAD - 1)]


async def _again(stream: RecordStream, engine: Engine, *, unique: bool) -> AsyncIterator[EpisodeInvocationRecord]:
    """The decisions that the events lead to now."""
    constraints = stream.config
    supervisor = Supervisor(stream.graph_id, constraints, _Nowhere())
    invoker, sound = engine.invoker(), IntegrityChecker(stream, unique=unique)
    for index, record in enumerate(stream.events()):
        event = sound.check(index, record)
        if sound.complaint is not None:
            raise sound.complaint
        assert event is not None
        step = supervisor.offer(event)
        if isinstance(step, DecisionLogEntry):
            yield step.to_record()
            continue
        assert isinstance(step, Run)
        origin, retries = step.origin, 0
        assert isinstance(origin, ExternalEvent)
        while True:
            if invoker is not None:
                outcome = invoker.run(stream.graph_id, origin.event_id, origin, constraints.deadline)
                result = outcome if isinstance(outcome, RunResult) else RunResult(outcome)
            else:
                result = await engine.run(stream.graph_id, origin.event_id, origin, constraints.deadline)
            if not supervisor.wants_retry(result.termination, retries):
                break
            retries += 1
        yield supervisor.settle(step, result.termination, retries, result).to_record()


class _Nowhere:
    """A log for whoever takes the entries from the supervisor's hand."""

    def log(self, entry: DecisionLogEntry) -> None:
        """Kept by nobody."""
