"""Replay a capture: validate it, decide its events again, and compare the decisions.

``replay_checked`` runs the events through an engine. ``rederive`` needs none: it takes how each episode ended from
the captured decisions, so that only the supervisor's own decisions are tested.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any, Final, Protocol

import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.events import EventLike, ExternalEvent, ExternalEventPayloadError
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.ports import DecisionLogEntry, MemoryDecisionLog, RunResult, RuntimeInvoker
from ergo_capture.kernel.records import (
    CAPTURE_FORMAT_VERSION,
    NO_ADAPTER_PROVENANCE,
    CaptureBundle,
    CapturedActionEffect,
    EpisodeInvocationRecord,
    ExternalEventRecord,
)
from ergo_capture.kernel.supervisor import Run, Supervisor

# --- errors -------------------------------------------------------------------------------------------------------


class ReplayError(ErgoCaptureError):
    """A bundle cannot be replayed, or an effect differs (``ergo_supervisor::replay::ReplayError``).

    ``kind`` is the reference's variant name; ``event_id`` and ``effect_index`` are set where it has them.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        event_id: str | None = None,
        effect_index: int | None = None,
        expected: CapturedActionEffect | None = None,
        actual: CapturedActionEffect | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, op="replay", hint=hint)
        self.kind = kind
        self.event_id = event_id
        self.effect_index = effect_index
        self.expected = expected
        self.actual = actual


def hash_mismatch(event_id: str) -> ReplayError:
    """Return the error for a payload that does not have the recorded hash."""
    return ReplayError(
        "HashMismatch",
        f"payload hash mismatch for event '{event_id}'",
        event_id=event_id,
        hint="the payload or its hash was changed after the capture; compare with the journal or a backup",
    )


def unsupported_version(version: str) -> ReplayError:
    """Return the error for a bundle of another format version."""
    return ReplayError(
        "UnsupportedVersion",
        f"unsupported capture version '{version}'",
        hint=f"this release reads capture version '{CAPTURE_FORMAT_VERSION}'",
    )


def duplicate_event_id(event_id: str) -> ReplayError:
    """Return the error for an event id that occurs twice."""
    return ReplayError(
        "DuplicateEventId", f"duplicate event_id '{event_id}' in strict replay capture input", event_id=event_id
    )


# --- validation ---------------------------------------------------------------------------------------------------


def validate_bundle(bundle: CaptureBundle) -> None:
    """Check the version and every payload hash (``replay::validate_bundle``).

    Raises:
        ReplayError: UnsupportedVersion or HashMismatch.
    """
    if bundle.capture_version != CAPTURE_FORMAT_VERSION:
        raise unsupported_version(bundle.capture_version)
    for record in bundle.events:
        if not record.validate_hash():
            raise hash_mismatch(record.event_id)


def validate_bundle_strict(
    bundle: CaptureBundle, *, expected_adapter_provenance: str, expected_runtime_provenance: str
) -> None:
    """Check as ``validate_bundle``, then event ids and provenances (``replay::validate_bundle_strict``).

    Raises:
        ReplayError: as ``validate_bundle``, DuplicateEventId, or as ``check_provenance``.
    """
    validate_bundle(bundle)
    seen: set[str] = set()
    for record in bundle.events:
        if record.event_id in seen:
            raise duplicate_event_id(record.event_id)
        seen.add(record.event_id)
    check_provenance(bundle, expected_adapter_provenance, expected_runtime_provenance)


def rehydrate(record: ExternalEventRecord) -> ExternalEvent:
    """Return the event of a captured record, after checking its hash and payload.

    Raises:
        ReplayError: HashMismatch or InvalidPayload.
    """
    if not record.validate_hash():
        raise hash_mismatch(record.event_id)
    return valid_event(record)


def valid_event(record: ExternalEventRecord) -> ExternalEvent:
    """Return the event of a captured record, after checking its payload only.

    Raises:
        ReplayError: InvalidPayload.
    """
    try:
        return record.rehydrate()
    except ExternalEventPayloadError as error:
        raise ReplayError(
            "InvalidPayload", f"invalid payload for event '{record.event_id}': {error}", event_id=record.event_id
        ) from error


class Provenanced(Protocol):
    """The provenances of a bundle or of a stream of one."""

    @property
    def adapter_provenance(self) -> str:
        """Return the adapter's provenance, or ``none``."""

    @property
    def runtime_provenance(self) -> str:
        """Return the engine's provenance."""


def check_provenance(bundle: Provenanced, adapter: str, runtime: str) -> None:
    """Check that a bundle was made with this adapter and this engine.

    Raises:
        ReplayError: UnexpectedAdapterProvidedForNoAdapterCapture, AdapterRequiredForProvenancedCapture,
            AdapterProvenanceMismatch or RuntimeProvenanceMismatch.
    """
    captured = bundle.adapter_provenance
    if captured == NO_ADAPTER_PROVENANCE:
        if adapter != NO_ADAPTER_PROVENANCE:
            raise ReplayError(
                "UnexpectedAdapterProvidedForNoAdapterCapture",
                "bundle provenance is 'none'; adapter must not be provided",
            )
    elif adapter == NO_ADAPTER_PROVENANCE:
        raise ReplayError("AdapterRequiredForProvenancedCapture", "bundle is adapter-provenanced; adapter is required")
    elif adapter != captured:
        raise ReplayError(
            "AdapterProvenanceMismatch",
            f"adapter provenance mismatch: expected '{captured}', got '{adapter}'",
        )
    if runtime != bundle.runtime_provenance:
        raise ReplayError(
            "RuntimeProvenanceMismatch",
            f"runtime provenance mismatch: expected '{runtime}', got '{bundle.runtime_provenance}'",
        )


# --- replay with an engine ----------------------------------------------------------------------------------------


def replay_checked(bundle: CaptureBundle, runtime: RuntimeInvoker) -> list[EpisodeInvocationRecord]:
    """Validate a bundle and run its events through a new supervisor (``replay::replay_checked``).

    Returns:
        The decisions that the events lead to now.

    Raises:
        ReplayError: as ``validate_bundle``, or InvalidPayload.
    """
    validate_bundle(bundle)
    return _replay(bundle, runtime)


def replay_checked_strict(
    bundle: CaptureBundle,
    runtime: RuntimeInvoker,
    *,
    expected_adapter_provenance: str,
    expected_runtime_provenance: str,
) -> list[EpisodeInvocationRecord]:
    """Validate a bundle strictly and run its events as ``replay_checked`` does (``replay::replay_checked_strict``).

    Returns:
        The decisions that the events lead to now.

    Raises:
        ReplayError: as ``validate_bundle_strict``, or InvalidPayload.
    """
    validate_bundle_strict(
        bundle,
        expected_adapter_provenance=expected_adapter_provenance,
        expected_runtime_provenance=expected_runtime_provenance,
    )
    return _replay(bundle, runtime)


def _replay(bundle: CaptureBundle, runtime: RuntimeInvoker) -> list[EpisodeInvocationRecord]:
    log = MemoryDecisionLog()
    supervisor = Supervisor(bundle.graph_id, bundle.config, log, runtime)
    for record in bundle.events:
        supervisor.drive(rehydrate(record))
    return log.records()


# --- replay without an engine -------------------------------------------------------------------------------------


def rederive(bundle: CaptureBundle) -> list[EpisodeInvocationRecord]:
    """Decide every event again without an engine, from the recorded outcomes.

    Each episode ends as the captured decision at the same position says, effects included. The format version is
    not checked: call ``validate_bundle`` for that.

    Returns:
        The decisions that the events lead to now.

    Raises:
        ReplayError: HashMismatch or InvalidPayload.
    """
    rederivation = Rederivation(bundle.graph_id, bundle.config)
    return [
        rederivation.decide(rehydrate(record), captured)
        for record, captured in zip_longest(bundle.events, bundle.decisions[: len(bundle.events)])
    ]


class Rederivation:
    """Decides events again, one by one, from the recorded outcomes: ``rederive`` for a bundle that is streamed.

    Args:
        graph_id: the graph whose episodes are decided.
        constraints: the bundle's limits.
    """

    def __init__(self, graph_id: str, constraints: Constraints) -> None:
        self._max_retries = constraints.max_retries
        self._supervisor = Supervisor(graph_id, constraints, _NullDecisionLog())

    def decide(self, event: EventLike, captured: EpisodeInvocationRecord | None) -> EpisodeInvocationRecord:
        """Return the decision that the next event leads to; ``captured`` is the one recorded at its position, if any."""
        step = self._supervisor.offer(event)
        if isinstance(step, Run):
            step = self._supervisor.settle(step, *recorded_outcome(captured, self._max_retries))
        return step.to_record()


class _NullDecisionLog:
    """A decision log that keeps nothing, for a caller that uses the entries the supervisor returns."""

    def log(self, entry: DecisionLogEntry) -> None:
        pass


def recorded_outcome(
    captured: EpisodeInvocationRecord | None, max_retries: int
) -> tuple[RunTermination, int, RunResult | None]:
    """Return how the captured decision says its episode ended, as arguments for ``Supervisor.settle``.

    A retry count that the retry rule cannot produce is replaced by the nearest one that it can, so that it shows as
    a divergence. A captured deferral where the supervisor invokes settles as Completed, which shows as one too.
    """
    if captured is None or captured.decision is not Decision.Invoke or captured.termination is None:
        return RunTermination.Completed, 0, None
    termination, retries = captured.termination, captured.retry_count
    retries = max_retries if termination.retryable else min(retries, max_retries)
    effects = tuple(e.effect for e in captured.effects)
    if not effects and not captured.intent_acks and captured.interruption is None:
        return termination, retries, None
    return termination, retries, RunResult(termination, effects, captured.intent_acks, captured.interruption)


# --- comparison ---------------------------------------------------------------------------------------------------


class Divergence(msgspec.Struct, frozen=True):
    """The first place where two decision streams differ.

    ``field`` is a field of a decision record, or ``missing`` / ``extra`` for a whole record: a captured
    decision that was not replayed, or a replayed one that was not captured.
    """

    #: Position in the decision stream, from 0.
    index: int
    event_id: str
    field: str
    captured: Any
    replayed: Any


#: The fields that are compared, in the reference's order; effects come after them.
COMPARED_FIELDS: Final = (
    "event_id",
    "decision",
    "schedule_at",
    "episode_id",
    "deadline",
    "termination",
    "retry_count",
)


def compare_decisions(captured: Sequence[EpisodeInvocationRecord], replayed: Sequence[EpisodeInvocationRecord]) -> bool:
    """Return whether two decision streams are the same (``replay::compare_decisions``).

    Raises:
        ReplayError: EffectMismatch, for the first record that differs in its effects only.
    """
    if len(captured) != len(replayed):
        return False
    for cap, rep in zip(captured, replayed, strict=True):
        if _first_field(cap, rep) is not None:
            return False
        _compare_effects(cap, rep)
    return True


def first_divergence(
    captured: Iterable[EpisodeInvocationRecord], replayed: Iterable[EpisodeInvocationRecord]
) -> Divergence | None:
    """Return where the streams first differ, or None if they are the same; read no further than that."""
    for index, (cap, rep) in enumerate(zip_longest(captured, replayed)):
        divergence = divergence_at(index, cap, rep)
        if divergence is not None:
            return divergence
    return None


def divergence_at(
    index: int, captured: EpisodeInvocationRecord | None, replayed: EpisodeInvocationRecord | None
) -> Divergence | None:
    """Return how two decisions at the same position differ, or None if they do not.

    Args:
        index: the position, from 0.
        captured: the captured decision; None after the end of that stream.
        replayed: the replayed decision; None likewise.
    """
    if captured == replayed:
        return None
    if captured is None:
        assert replayed is not None
        return Divergence(index, replayed.event_id, "extra", None, replayed)
    if replayed is None:
        return Divergence(index, captured.event_id, "missing", captured, None)
    field = _first_field(captured, replayed)
    if field is not None:
        return Divergence(index, captured.event_id, field, getattr(captured, field), getattr(replayed, field))
    if captured.effects != replayed.effects:
        return Divergence(index, captured.event_id, "effects", captured.effects, replayed.effects)
    return None


def _first_field(captured: EpisodeInvocationRecord, replayed: EpisodeInvocationRecord) -> str | None:
    for field in COMPARED_FIELDS:
        if getattr(captured, field) != getattr(replayed, field):
            return field
    return None


def _compare_effects(captured: EpisodeInvocationRecord, replayed: EpisodeInvocationRecord) -> None:
    cap, rep = captured.effects, replayed.effects
    if len(cap) != len(rep):
        index = min(len(cap), len(rep))
        raise _effect_mismatch(
            captured.event_id,
            index,
            cap[index] if index < len(cap) else None,
            rep[index] if index < len(rep) else None,
            f"expected {len(cap)} effects, got {len(rep)}",
        )
    for index, (one, other) in enumerate(zip(cap, rep, strict=True)):
        if one != other:
            detail = f"effect mismatch at index {index}: expected hash '{one.effect_hash}', got '{other.effect_hash}'"
            raise _effect_mismatch(captured.event_id, index, one, other, detail)


def _effect_mismatch(
    event_id: str,
    index: int,
    expected: CapturedActionEffect | None,
    actual: CapturedActionEffect | None,
    detail: str,
) -> ReplayError:
    return ReplayError(
        "EffectMismatch",
        f"effect mismatch at index {index} for event '{event_id}': {detail}",
        event_id=event_id,
        effect_index=index,
        expected=expected,
        actual=actual,
    )
