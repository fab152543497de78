"""Run the episodes of a bundle again with an engine, and compare the decisions."""

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
    """The provenances that a strict replay requires (``replay::replay_checked_strict``)."""

    adapter_provenance: str
    #: None for the one that the engine states.
    runtime_provenance: str | None


class Replayed(msgspec.Struct, frozen=True):
    """The result of a replay."""

    graph_id: str
    #: Decisions that were replayed, up to the first that differs.
    decisions: int
    #: The first difference; None if there is none.
    explanation: Explanation | None


async def replay_stream(
    stream: RecordStream,
    engine: Engine,
    *,
    strict: Strictness | None = None,
    on_progress: Callable[[int], None] = lambda _events: None,
) -> Replayed:
    """Feed a bundle's events to a new supervisor and the engine, and compare decision by decision.

    The reference validates all of a bundle first (``replay::replay_checked``). To report the same error, this checks
    the rest of the bundle when something is wrong; a bundle that replays is read once.

    Args:
        stream: the bundle.
        engine: the engine.
        strict: the provenances to check; None for a replay that is not strict.
        on_progress: called with the number of decisions that were replayed, now and then and at the end.

    Raises:
        ReplayError: the bundle is invalid, or not what a strict replay requires.
        ErgoCaptureError: the bundle cannot be read, or the engine cannot be reached.
    """
    if stream.capture_version != CAPTURE_FORMAT_VERSION:
        raise unsupported_version(stream.capture_version)
    runtime = await engine.provenance(stream.runtime_provenance)
    if strict is not None:
        expected = runtime if strict.runtime_provenance is None else strict.runtime_provenance
        try:
            check_provenance(stream, strict.adapter_provenance, expected)
        except ReplayError:
            # The reference checks hashes and ids before provenances, and payloads after them.
            IntegrityChecker(stream).check_all(payloads=False)
            raise
    unique = strict is not None
    try:
        replayed = await _replay(stream, engine, unique=unique, on_progress=on_progress)
    except ReplayError:
        IntegrityChecker(stream, unique=unique).check_all()
        raise
    if replayed.explanation is not None:
        # Read the decisions to their end: a file that cannot be read is not a bundle, and does not diverge.
        deque(stream.decisions(), maxlen=0)
        IntegrityChecker(stream, unique=unique).check_all()
    return replayed


async def _replay(
    stream: RecordStream, engine: Engine, *, unique: bool, on_progress: Callable[[int], None]
) -> Replayed:
    replaying = _decisions(stream, engine, unique=unique)
    captured_decisions = iter(stream.decisions())
    before: deque[EpisodeInvocationRecord] = deque(maxlen=CONTEXT)
    index = 0
    while True:
        replayed = await anext(replaying, None)
        captured = next(captured_decisions, None)
        if replayed is None and captured is None:
            on_progress(index)
            return Replayed(stream.graph_id, index, None)
        divergence = divergence_at(index, captured, replayed)
        if divergence is not None:
            captured_ahead = _ahead(captured, captured_decisions)
            replayed_ahead = [] if replayed is None else [replayed]
            while len(replayed_ahead) < AHEAD and (record := await anext(replaying, None)) is not None:
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


async def _decisions(stream: RecordStream, engine: Engine, *, unique: bool) -> AsyncIterator[EpisodeInvocationRecord]:
    """Yield the decisions that the events lead to now."""
    constraints = stream.config
    supervisor = Supervisor(stream.graph_id, constraints, _NullLog())
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


class _NullLog:
    """A log that keeps nothing: the entries are what the supervisor returns."""

    def log(self, entry: DecisionLogEntry) -> None:
        """Do nothing."""
