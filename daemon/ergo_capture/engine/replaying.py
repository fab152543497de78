"""Run the episodes of a bundle again with an engine, and compare the decisions."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from itertools import islice, repeat
from typing import Final

import anyio
import msgspec

from ergo_capture.bundle.proving.effects import MAX_NOTES
from ergo_capture.bundle.proving.prover import prove
from ergo_capture.bundle.reader.stream import BundleStream, RecordStream
from ergo_capture.bundle.verify import IntegrityChecker
from ergo_capture.engine.port import Engine, EngineFault, SessionPart
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.explanation import AHEAD, CONTEXT, Explanation, describe_outcome, explain
from ergo_capture.kernel.fault_runtime import FaultRuntime
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.ports import IN_DOUBT, DecisionLogEntry, RunResult, RuntimeInvoker
from ergo_capture.kernel.records import CAPTURE_FORMAT_VERSION, EpisodeInvocationRecord
from ergo_capture.kernel.replay import ReplayError, check_provenance, divergence_at, unsupported_version
from ergo_capture.kernel.supervisor import Run, Supervisor
from ergo_capture.kernel.time import EventTime
from ergo_capture.units import counted

#: Decisions between two calls of ``on_progress``; an engine that is awaited calls it after each.
_PROGRESS_EVENTS: Final = 1024
#: Seconds without an answer after which ``on_wait`` is called.
_NOTICE_SECONDS: Final = 5.0
#: How many divergences of one bundle are kept; the others are counted.
MAX_DIVERGENCES: Final = 100


class Strictness(msgspec.Struct, frozen=True):
    """The provenances that a strict replay requires (``replay::replay_checked_strict``)."""

    adapter_provenance: str
    #: None for the one that the engine states.
    runtime_provenance: str | None


class ReplayOptions(msgspec.Struct, frozen=True):
    """The options of a replay."""

    #: The provenances to check; None for a replay that is not strict.
    strict: Strictness | None = None
    #: The engine's time-out for one attempt, in seconds; None for no limit.
    timeout: float | None = None
    #: Whether to continue after the first decision that differs.
    all_divergences: bool = False
    #: Whether events after the last decision are left out: those of a session that goes on.
    only_decided: bool = False
    #: The most episodes that may be under way at once; an engine that answers at once runs one after the other.
    pipeline: int = 1
    #: The part for engines with a state for each session, and the semantic kinds of its events; None for none.
    of: SessionPart | None = None
    kinds: Iterable[str | None] | None = None


class Replayed(msgspec.Struct, frozen=True):
    """The result of a replay."""

    graph_id: str
    #: Decisions that were replayed, up to the first that differs, or all.
    decisions: int
    #: How many decisions differ: none or one, unless all were asked for.
    diverged: int
    #: The differences, the first one first; at most ``MAX_DIVERGENCES``.
    explanations: tuple[Explanation, ...]
    #: Remarks on decisions that are the same.
    notes: tuple[str, ...]


class EngineFailed(ErgoCaptureError):
    """The engine gave no valid answer, so that a decision could not be replayed."""

    def __init__(self, index: int, event_id: str, reason: str, captured: EpisodeInvocationRecord | None) -> None:
        there = "nothing" if captured is None else describe_outcome(captured)
        super().__init__(
            f"replay: at decision {index}, event {event_id!r}, the engine failed: {reason}; captured there: {there}",
            op="replay",
            hint="this proves nothing about the graph: correct the engine, or run it by itself to see its output",
        )
        self.index = index
        self.event_id = event_id


class Watcher:
    """Receives the progress of a replay; these methods do nothing."""

    def on_progress(self, decisions: int) -> None:
        """Take the number of decisions replayed so far."""

    def on_wait(self, index: int, event_id: str, seconds: float) -> None:
        """Note that the engine has not answered for ``seconds``."""


async def replay_stream(
    stream: RecordStream,
    engine: Engine,
    options: ReplayOptions = ReplayOptions(),  # noqa: B008 - it is frozen
    watcher: Watcher | None = None,
) -> Replayed:
    """Feed a bundle's events to a new supervisor and the engine, and compare decision by decision.

    The reference validates the whole bundle first (``replay::replay_checked``). To report the same error, this checks
    the rest of the bundle after an error; a bundle without errors is read once.

    If the capture says that an episode was in doubt and not run again, the engine is not asked: the recorded decision
    is taken, with a remark. There is also a remark if the engine fails where it failed at the capture.

    Args:
        stream: the bundle.
        engine: the engine; it must raise ``EngineFault``, so that its errors are not taken for results.
        options: the options.
        watcher: receives the progress.

    Raises:
        ReplayError: the bundle is invalid, or does not meet the requirements of a strict replay.
        EngineFailed: the engine ended, took too long, or answered something invalid, and did not at the capture.
        ErgoCaptureError: the bundle cannot be read, or the engine cannot be reached.
    """
    if stream.capture_version != CAPTURE_FORMAT_VERSION:
        raise unsupported_version(stream.capture_version)
    strict = options.strict
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
    watcher = watcher or Watcher()
    if isinstance(stream, BundleStream):
        if not options.only_decided and _always_completes(engine, stream.config.deadline):
            # Verify instead: every episode is known to complete, so none has to be run.
            proof = prove(stream, unique=unique, completed=True, on_progress=watcher.on_progress)
            if proof is not None:
                return Replayed(stream.graph_id, proof.events, 0, (), ())
        stream.confirm()
    try:
        replayed = await _Replay(stream, engine, options, watcher).run()
    except (ReplayError, EngineFailed):
        IntegrityChecker(stream, unique=unique).check_all()
        raise
    if replayed.explanations:
        # Read the decisions to their end: an error in the file is reported rather than a divergence.
        deque(stream.decisions(), maxlen=0)
        IntegrityChecker(stream, unique=unique).check_all()
    return replayed


def _always_completes(engine: Engine, deadline: EventTime | None) -> bool:
    """Return whether every episode ends as Completed and without effects."""
    invoker = engine.invoker()
    certain = isinstance(invoker, FaultRuntime) and invoker.constant is RunTermination.Completed
    return certain and not (deadline is not None and deadline.is_zero())


class _UnderWay(msgspec.Struct, frozen=True):
    """An event that was offered, and its decision or run."""

    captured: EpisodeInvocationRecord | None
    #: The decision, or the task that runs its episode; None after the last event.
    outcome: EpisodeInvocationRecord | asyncio.Task[EpisodeInvocationRecord] | None


class _Replay:
    def __init__(self, stream: RecordStream, engine: Engine, options: ReplayOptions, watcher: Watcher) -> None:
        self.stream = stream
        self.engine = engine
        self.invoker = engine.invoker()
        self.options = options
        self.watcher = watcher
        self.supervisor = Supervisor(stream.graph_id, stream.config, _NullLog())
        self.integrity = IntegrityChecker(stream, unique=options.strict is not None)
        self.notes: list[str] = []
        self.notes_beyond = 0
        self.events = enumerate(stream.events())
        self.kinds = repeat(None) if options.kinds is None else iter(options.kinds)
        self.decisions = iter(stream.decisions())
        #: Events that were offered and whose decisions were not compared yet, in order.
        self.under_way: deque[_UnderWay] = deque()
        limit = stream.config.max_in_flight
        self.most_under_way = (
            1 if self.invoker is not None else max(1, min(options.pipeline, limit or options.pipeline))
        )
        #: Captured decisions that were read ahead, to explain a divergence.
        self.ahead: deque[EpisodeInvocationRecord] = deque()

    async def run(self) -> Replayed:
        """Replay the run; the arguments are those of the constructor."""
        try:
            replayed = await self._run()
            if self.options.of is not None:
                self.engine.end_part(self.options.of)
            return replayed
        finally:
            for begun in self.under_way:
                if isinstance(begun.outcome, asyncio.Task):
                    begun.outcome.add_done_callback(_ignore)
                    begun.outcome.cancel()

    async def _run(self) -> Replayed:
        before: deque[EpisodeInvocationRecord] = deque(maxlen=CONTEXT)
        explanations: list[Explanation] = []
        index = diverged = 0
        while True:
            try:
                captured, replayed = await self._next()
            except EngineFailed as error:
                if diverged:
                    error.message += f"; before it, {counted(diverged, 'decision')} diverged"
                raise
            if replayed is None and captured is None:
                break
            divergence = divergence_at(index, captured, replayed)
            if divergence is None:
                assert replayed is not None
                before.append(replayed)
            else:
                diverged += 1
                captured_ahead = self._captured_ahead(captured)
                if not self.options.all_divergences:
                    replayed_ahead = await self._replayed_ahead(replayed)
                    explanations.append(explain(divergence, list(before), captured_ahead, replayed_ahead))
                    break
                if len(explanations) < MAX_DIVERGENCES:
                    replayed_ahead = [] if replayed is None else [replayed]
                    explanations.append(explain(divergence, list(before), captured_ahead, replayed_ahead))
                before.clear()
            index += 1
            if index % _PROGRESS_EVENTS == 0 or self.invoker is None:
                self.watcher.on_progress(index)
        self.watcher.on_progress(index)
        if self.notes_beyond:
            self.notes.append(f"and {self.notes_beyond} more such decisions")
        return Replayed(self.stream.graph_id, index, diverged, tuple(explanations), tuple(self.notes))

    def _captured_ahead(self, first: EpisodeInvocationRecord | None) -> list[EpisodeInvocationRecord]:
        """Return the captured decisions from a divergence on, at most as many as are searched."""
        if first is None:
            return []
        begun = [begun.captured for begun in self.under_way if begun.captured is not None]
        self.ahead.extend(islice(self.decisions, max(0, AHEAD - 1 - len(begun) - len(self.ahead))))
        return [first, *begun, *self.ahead][:AHEAD]

    async def _replayed_ahead(self, first: EpisodeInvocationRecord | None) -> list[EpisodeInvocationRecord]:
        """Return the replayed decisions from a divergence on, until the engine fails."""
        found = [] if first is None else [first]
        try:
            while len(found) < AHEAD and (record := (await self._next())[1]) is not None:
                found.append(record)
        except EngineFailed:
            # Report the divergence rather than the failure after it.
            pass
        return found

    async def _next(self) -> tuple[EpisodeInvocationRecord | None, EpisodeInvocationRecord | None]:
        """Return the next captured decision, and the one that its event leads to now; None after the end of either."""
        while len(self.under_way) < self.most_under_way and (begun := self._begin()) is not None:
            self.under_way.append(begun)
        if not self.under_way:
            return None, None
        # Leave it in the queue until it is over, so that it is cancelled with the others.
        first = self.under_way[0]
        outcome = first.outcome
        replayed = await outcome if isinstance(outcome, asyncio.Task) else outcome
        self.under_way.popleft()
        return first.captured, replayed

    def _begin(self) -> _UnderWay | None:
        """Offer the next event; return None if there is neither an event nor a captured decision."""
        captured = self.ahead.popleft() if self.ahead else next(self.decisions, None)
        if captured is None and self.options.only_decided:
            return None
        place, record = next(self.events, (0, None))
        if record is None:
            return None if captured is None else _UnderWay(captured, None)
        event, kind = self.integrity.check(place, record), next(self.kinds, None)
        if self.integrity.complaint is not None:
            raise self.integrity.complaint
        assert isinstance(event, ExternalEvent)
        step = self.supervisor.offer(event if kind is None else msgspec.structs.replace(event, semantic_kind=kind))
        if isinstance(step, DecisionLogEntry):
            return _UnderWay(captured, step.to_record())
        assert isinstance(step, Run)
        self.supervisor.detach()
        if captured is not None and captured.event_id == record.event_id and captured.interruption is not None:
            self._note_interruption(place, captured)
            if _in_doubt(captured):
                entry = self.supervisor.entry_of(step, IN_DOUBT.termination, 0, IN_DOUBT)
                return _UnderWay(captured, entry.to_record())
        if self.invoker is not None:
            return _UnderWay(captured, self._run_at_once(self.invoker, step))
        return _UnderWay(captured, asyncio.create_task(self._run_episode(place, step, captured)))

    def _run_at_once(self, invoker: RuntimeInvoker, run: Run) -> EpisodeInvocationRecord:
        origin, retries = run.origin, 0
        while True:
            outcome = invoker.run(self.stream.graph_id, origin.event_id, origin, self.stream.config.deadline)
            result = outcome if isinstance(outcome, RunResult) else RunResult(outcome)
            if not self.supervisor.wants_retry(result.termination, retries):
                return self.supervisor.entry_of(run, result.termination, retries, result).to_record()
            retries += 1

    async def _run_episode(
        self, place: int, run: Run, captured: EpisodeInvocationRecord | None
    ) -> EpisodeInvocationRecord:
        retries = 0
        while True:
            result = await self._attempt(place, run, captured)
            if not self.supervisor.wants_retry(result.termination, retries):
                return self.supervisor.entry_of(run, result.termination, retries, result).to_record()
            retries += 1

    async def _attempt(self, place: int, run: Run, captured: EpisodeInvocationRecord | None) -> RunResult:
        event_id, origin, deadline = run.trigger.event_id, run.origin, self.stream.config.deadline
        assert isinstance(origin, ExternalEvent)
        notice = asyncio.get_running_loop().call_later(
            _NOTICE_SECONDS, self.watcher.on_wait, place, event_id, _NOTICE_SECONDS
        )
        try:
            with anyio.move_on_after(self.options.timeout):
                graph_id, of = self.stream.graph_id, self.options.of
                return await self.engine.run(graph_id, origin.event_id, origin, deadline, of)
        except EngineFault as fault:
            if captured is None or captured.termination != fault.result.termination:
                raise EngineFailed(place, event_id, fault.reason, captured) from fault
            self._note(f"decision {place}, event {event_id!r}: the engine failed as at the capture: {fault.reason}")
            return fault.result
        finally:
            notice.cancel()
        stray = self.engine.snapshot().get("unknown", 0)
        answered = f", and answered {stray} times a run that it had answered before" if stray else ""
        raise EngineFailed(place, event_id, f"it did not answer within {self.options.timeout:g} s{answered}", captured)

    def _note_interruption(self, place: int, captured: EpisodeInvocationRecord) -> None:
        where = f"decision {place}, event {captured.event_id!r}"
        if _in_doubt(captured):
            self._note(f"{where}, {captured.interruption}; it was not replayed either")
        else:
            self._note(f"{where}: the run was interrupted there: {captured.interruption}; a replay sends no intents")

    def _note(self, note: str) -> None:
        if len(self.notes) < MAX_NOTES:
            self.notes.append(note)
        else:
            self.notes_beyond += 1


def _in_doubt(captured: EpisodeInvocationRecord) -> bool:
    return captured.termination == IN_DOUBT.termination and captured.interruption == IN_DOUBT.interruption


def _ignore(task: asyncio.Task[EpisodeInvocationRecord]) -> None:
    """Retrieve a task's exception, which asyncio would otherwise report."""
    if not task.cancelled():
        task.exception()


class _NullLog:
    """A log that keeps nothing: the entries are what the supervisor returns."""

    def log(self, entry: DecisionLogEntry) -> None:
        """Do nothing."""
