"""Replay: what makes a bundle invalid, where decisions differ, and what is derived from recorded outcomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from ergo_capture import (
    ActionEffect,
    CaptureBundle,
    Constraints,
    EventTime,
    ExternalEvent,
    ExternalEventKind,
    FaultRuntime,
    ReplayError,
    RunTermination,
    compare_decisions,
    first_divergence,
    replay_checked,
    replay_checked_strict,
    validate_bundle_strict,
)
from ergo_capture.kernel.outcomes import Decision
from ergo_capture.kernel.ports import MemoryDecisionLog, RunResult
from ergo_capture.kernel.records import (
    CapturedActionEffect,
    CapturedIntentAck,
    EpisodeInvocationRecord,
    ExternalEventRecord,
)
from ergo_capture.kernel.replay import COMPARED_FIELDS, recorded_outcome, rederive, rehydrate
from ergo_capture.kernel.supervisor import Supervisor

COMPLETED, ABORTED, TIMED_OUT = RunTermination.Completed, RunTermination.Aborted, RunTermination.TimedOut
EVENTS = [
    ExternalEvent.with_payload(f"e{number}", ExternalEventKind.Command, EventTime(number, 0), b'{"n":1}')
    for number in range(3)
]
ONE, OTHER = (CapturedActionEffect.of(ActionEffect(kind, ())) for kind in ("one", "other"))
RECORD = EpisodeInvocationRecord("e", Decision.Invoke, None, 0, None, COMPLETED, 0, (ONE,))


def bundle(runtime: Any = None, **fields: Any) -> CaptureBundle:
    """Return a bundle of three events, with some fields changed."""
    limits = Constraints(max_retries=2)
    log = MemoryDecisionLog()
    supervisor = Supervisor("g", limits, log, runtime or FaultRuntime())
    for event in EVENTS:
        supervisor.drive(event)
    records = [ExternalEventRecord.from_event(event) for event in EVENTS]
    made = CaptureBundle("v3", "g", limits, records, log.records(), "adapter:a", "rpv1:r")
    return msgspec.structs.replace(made, **fields)


def changed(index: int, **fields: Any) -> list[ExternalEventRecord]:
    """Return the event records with fields of one changed."""
    records = bundle().events
    records[index] = msgspec.structs.replace(records[index], **fields)
    return records


def check(made: CaptureBundle, adapter: str = "adapter:a", runtime: str = "rpv1:r") -> None:
    """Validate strictly."""
    validate_bundle_strict(made, expected_adapter_provenance=adapter, expected_runtime_provenance=runtime)


def not_json() -> None:
    """Rehydrate a record whose hash is that of its payload, which is no object."""
    rehydrate(ExternalEventRecord.from_event(ExternalEvent("e", ExternalEventKind.Command, payload=b"[]")))


HINTS = {
    "UnsupportedVersion": "this release reads capture version 'v3'",
    "HashMismatch": "the payload or its hash was changed after the capture; compare with the journal or a backup",
}


@pytest.mark.parametrize(
    ("does", "kind", "message", "event_id", "has_hint"),
    [
        (
            lambda: check(bundle(capture_version="v2")),
            "UnsupportedVersion",
            "unsupported capture version 'v2'",
            None,
            True,
        ),
        (
            lambda: check(bundle(events=changed(1, payload=b"{}"))),
            "HashMismatch",
            "payload hash mismatch for event 'e1'",
            "e1",
            True,
        ),
        (
            lambda: rehydrate(changed(2, payload=b"{}")[2]),
            "HashMismatch",
            "payload hash mismatch for event 'e2'",
            "e2",
            True,
        ),
        (
            not_json,
            "InvalidPayload",
            "invalid payload for event 'e': payload must be a JSON object, got array",
            "e",
            False,
        ),
        (
            lambda: check(bundle(events=changed(2, event_id="e0"))),
            "DuplicateEventId",
            "duplicate event_id 'e0' in strict replay capture input",
            "e0",
            False,
        ),
        (
            lambda: check(bundle(adapter_provenance="none")),
            "UnexpectedAdapterProvidedForNoAdapterCapture",
            "bundle provenance is 'none'; adapter must not be provided",
            None,
            False,
        ),
        (
            lambda: check(bundle(), adapter="none"),
            "AdapterRequiredForProvenancedCapture",
            "bundle is adapter-provenanced; adapter is required",
            None,
            False,
        ),
        (
            lambda: check(bundle(), adapter="adapter:b"),
            "AdapterProvenanceMismatch",
            "adapter provenance mismatch: expected 'adapter:a', got 'adapter:b'",
            None,
            False,
        ),
        (
            lambda: check(bundle(), runtime="rpv1:s"),
            "RuntimeProvenanceMismatch",
            "runtime provenance mismatch: expected 'rpv1:s', got 'rpv1:r'",
            None,
            False,
        ),
    ],
)
def test_an_invalid_bundle_is_refused_as_by_the_reference(
    does: Callable[[], None], kind: str, message: str, event_id: str | None, has_hint: bool
) -> None:
    """The kind of the error, its message and the event are the reference's."""
    with pytest.raises(ReplayError) as raised:
        does()
    error = raised.value
    assert (error.kind, error.message, error.event_id) == (kind, message, event_id)
    assert (error.hint, error.op) == (HINTS[kind] if has_hint else None, "replay")


def test_a_valid_bundle_passes_the_strict_check() -> None:
    """The bundle may have an adapter or none."""
    check(bundle())
    check(bundle(adapter_provenance="none"), adapter="none")


@pytest.mark.parametrize(
    ("captured", "replayed", "index", "expected", "actual", "detail"),
    [
        ((ONE,), (), 0, ONE, None, "expected 1 effects, got 0"),
        ((), (OTHER,), 0, None, OTHER, "expected 0 effects, got 1"),
        ((ONE,), (ONE, OTHER), 1, None, OTHER, "expected 1 effects, got 2"),
        (
            (ONE, ONE),
            (ONE, OTHER),
            1,
            ONE,
            OTHER,
            f"effect mismatch at index 1: expected hash '{ONE.effect_hash}', got '{OTHER.effect_hash}'",
        ),
    ],
)
def test_a_different_effect_is_named_with_both_sides(
    captured: tuple[CapturedActionEffect, ...],
    replayed: tuple[CapturedActionEffect, ...],
    index: int,
    expected: CapturedActionEffect | None,
    actual: CapturedActionEffect | None,
    detail: str,
) -> None:
    """The first place where they differ; the side that has none there has None."""
    one, other = (msgspec.structs.replace(RECORD, effects=effects) for effects in (captured, replayed))
    with pytest.raises(ReplayError) as raised:
        compare_decisions([RECORD, one], [RECORD, other])
    error = raised.value
    assert (error.kind, error.event_id, error.effect_index) == ("EffectMismatch", "e", index)
    assert (error.expected, error.actual) == (expected, actual)
    assert error.message == f"effect mismatch at index {index} for event 'e': {detail}"
    found = first_divergence([RECORD, one], [RECORD, other])
    assert found is not None
    assert (found.index, found.field, found.captured, found.replayed) == (1, "effects", captured, replayed)


OTHERS: dict[str, Any] = {
    "event_id": "f",
    "decision": Decision.Defer,
    "schedule_at": EventTime(1, 0),
    "episode_id": 1,
    "deadline": EventTime(2, 0),
    "termination": ABORTED,
    "retry_count": 1,
}


@pytest.mark.parametrize("field", COMPARED_FIELDS)
def test_every_field_that_counts_is_compared(field: str) -> None:
    """The first one that differs is named."""
    other = msgspec.structs.replace(RECORD, effects=(), **{field: OTHERS[field]})
    found = first_divergence([RECORD, RECORD], [RECORD, other])
    assert found is not None
    assert (found.index, found.event_id, found.field) == (1, "e", field)
    assert (found.captured, found.replayed) == (getattr(RECORD, field), OTHERS[field])
    assert compare_decisions([RECORD], [other]) is False


def test_acks_and_interruptions_are_not_compared() -> None:
    """They are metadata."""
    other = msgspec.structs.replace(RECORD, intent_acks=(CapturedIntentAck("i", "c", "s", "a"),), interruption="x")
    assert first_divergence([RECORD], [other]) is None
    assert compare_decisions([RECORD], [other])


def test_a_stream_that_ends_early_differs() -> None:
    """Either of the two may end early."""
    missing, extra = first_divergence([RECORD, RECORD], [RECORD]), first_divergence([RECORD], [RECORD, RECORD])
    assert missing is not None
    assert (missing.index, missing.event_id, missing.field) == (1, "e", "missing")
    assert (missing.captured, missing.replayed) == (RECORD, None)
    assert extra is not None
    assert (extra.index, extra.event_id, extra.field) == (1, "e", "extra")
    assert (extra.captured, extra.replayed) == (None, RECORD)


class WithEffect:
    """An engine whose episodes have an effect, acks and an interruption."""

    def run(self, *_: object) -> RunResult:
        """Complete."""
        return RunResult(COMPLETED, (ONE.effect,), (CapturedIntentAck("i", "c", "s", "a"),), "cut")


def test_a_decision_holds_all_that_the_engine_reported() -> None:
    """Effects with their hashes, acks, and why it was interrupted."""
    assert bundle(WithEffect()).decisions[1] == EpisodeInvocationRecord(
        "e1", Decision.Invoke, None, 1, None, COMPLETED, 0, (ONE,), (CapturedIntentAck("i", "c", "s", "a"),), "cut"
    )


@pytest.mark.parametrize("runtime", [None, WithEffect(), FaultRuntime(TIMED_OUT), FaultRuntime(ABORTED)])
def test_decisions_are_derived_again_from_their_outcomes(runtime: Any) -> None:
    """Effects, acks and interruptions are taken over."""
    made = bundle(runtime)
    assert rederive(made) == made.decisions


class Noting:
    """An engine that notes what it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def run(self, *arguments: object) -> RunTermination:
        """Complete."""
        self.calls.append(arguments)
        return COMPLETED


@pytest.mark.parametrize("strict", [False, True])
def test_a_replay_gives_the_engine_what_the_capture_holds(strict: bool) -> None:
    """The graph, the events, and the deadline, in order."""
    engine, made = Noting(), bundle(config=Constraints(deadline=EventTime(9, 0)))
    if strict:
        replay_checked_strict(
            made, engine, expected_adapter_provenance="adapter:a", expected_runtime_provenance="rpv1:r"
        )
    else:
        replay_checked(made, engine)
    assert engine.calls == [("g", event.event_id, event, EventTime(9, 0)) for event in EVENTS]


def test_a_decision_that_is_missing_is_derived_as_completed() -> None:
    """One that is too many is left out."""
    made = bundle(FaultRuntime(ABORTED))
    one = msgspec.structs.replace(made, decisions=made.decisions[:1])
    assert [record.termination for record in rederive(one)] == [ABORTED, COMPLETED, COMPLETED]
    more = msgspec.structs.replace(made, decisions=made.decisions * 2)
    assert rederive(more) == made.decisions


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"effects": ()}, (COMPLETED, 0, None)),
        ({"effects": (), "retry_count": 2}, (COMPLETED, 2, None)),
        ({"effects": (), "retry_count": 3}, (COMPLETED, 2, None)),
        ({"effects": (), "termination": TIMED_OUT}, (TIMED_OUT, 2, None)),
        ({}, (COMPLETED, 0, RunResult(COMPLETED, (ONE.effect,)))),
        ({"effects": (), "interruption": "x"}, (COMPLETED, 0, RunResult(COMPLETED, interruption="x"))),
        ({"decision": Decision.Defer, "termination": ABORTED}, (COMPLETED, 0, None)),
        ({"termination": None}, (COMPLETED, 0, None)),
    ],
)
def test_a_recorded_outcome_has_retries_that_the_rule_allows(
    fields: dict[str, Any], outcome: tuple[RunTermination, int, RunResult | None]
) -> None:
    """Other counts show as a divergence, and so does a deferral that is none."""
    assert recorded_outcome(msgspec.structs.replace(RECORD, **fields), 2) == outcome
    assert recorded_outcome(None, 2) == (COMPLETED, 0, None)
