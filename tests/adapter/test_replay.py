"""Captures of runs with an adapter, replayed: what the reference says of them, as far as no engine is needed for it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.adapter.cases import graph_id, needs, rows

from ergo_capture import ReplayError, compare_decisions, decode_bundle, replay_checked_strict
from ergo_capture.adapter import AdapterError, load_adapter
from ergo_capture.adapter.composition import Node, check_composition, emitted_kinds
from ergo_capture.adapter.simulate import EngineOutcome, RecordedEngine
from ergo_capture.bundle.reader.opening import BundleFormatError
from ergo_capture.kernel.outcomes import Decision
from ergo_capture.kernel.records import NO_ADAPTER_PROVENANCE, CaptureBundle

ROWS = rows("replay")
UNTOUCHED = {row["graph_yaml"]: decode_bundle(row["capture"].encode()) for row in ROWS if "as-captured" in row["name"]}
#: The first runs another graph, the second the same one on another payload: what then comes out only its engine knows:
#: tests/cli/test_replay_reference.py has one.
NEEDS_THE_ENGINE = {"graph-other-parameter", "event-payload-changed-with-hash"}
CODES = {
    "UnsupportedVersion": "replay.unsupported_capture_version",
    "HashMismatch": "replay.hash_mismatch",
    "InvalidPayload": "replay.event_rehydrate_failed",
    "DuplicateEventId": "replay.duplicate_event_id",
    "AdapterProvenanceMismatch": "replay.adapter_provenance_mismatch",
    "UnexpectedAdapterProvidedForNoAdapterCapture": "replay.unexpected_adapter",
    "AdapterRequiredForProvenancedCapture": "replay.adapter_required",
    "EffectMismatch": "replay.effect_mismatch",
}


def untouched(row: dict[str, Any], captured: CaptureBundle) -> CaptureBundle:
    """Return the capture before it was tampered with; the outcomes of its engine are those of a replay."""
    found = UNTOUCHED.get(row["graph_yaml"])
    return found or next(bundle for bundle in UNTOUCHED.values() if bundle.graph_id == captured.graph_id)


def verdict(row: dict[str, Any]) -> tuple[str | None, str]:
    """Return the reference's code and our message, checked in the reference's order; the code is None for a match."""
    try:
        bundle = decode_bundle(row["capture"].encode())
    except BundleFormatError as error:
        return "replay.host_setup_failed", str(error)
    if graph_id(row) != bundle.graph_id:
        return "replay.graph_id_mismatch", ""
    nodes = [msgspec.convert(needed, Node) for needed in needs(row)]
    taken: tuple[str, ...] = ()
    provenance = NO_ADAPTER_PROVENANCE
    if row["adapter_yaml"] is not None:
        try:
            adapter = load_adapter(row["adapter_yaml"])
            check_composition(adapter, nodes)
        except AdapterError as error:
            return "replay.host_setup_failed", error.message
        taken, provenance = adapter.effects, adapter.provenance
    kinds = {captured.effect.kind for decision in bundle.decisions for captured in decision.effects}
    strange = kinds - {"set_context"} - (set(emitted_kinds(nodes)) & set(taken))
    if strange:
        return "replay.external_effect_kind_unrepresentable", f"missing kinds: {', '.join(sorted(strange))}"
    engine = RecordedEngine(
        EngineOutcome(
            decision.event_id, decision.termination.to_builtins(), tuple(found.effect for found in decision.effects)
        )
        for decision in untouched(row, bundle).decisions
        if decision.decision is Decision.Invoke and decision.termination is not None
    )
    try:
        replayed = replay_checked_strict(
            bundle,
            engine,
            expected_adapter_provenance=provenance,
            expected_runtime_provenance=untouched(row, bundle).runtime_provenance,
        )
        same = compare_decisions(bundle.decisions, replayed)
    except ReplayError as error:
        return CODES[error.kind], error.message
    return (None, "") if same else ("replay.decision_mismatch", "")


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row["name"] not in NEEDS_THE_ENGINE], ids=lambda row: row["name"]
)
def test_a_replay_ends_as_the_references_did(row: dict[str, Any]) -> None:
    """The same code, or a match; the same sentence where we have one."""
    code, message = verdict(row)
    told = [line.removeprefix("code: ") for line in row["stderr"].split("\n") if line.startswith("code: ")]
    assert told == ([] if code is None else [code])
    worded_otherwise = {"capture-not-json", "event-payload-not-json", "adapter-other-version"}
    if row["name"] not in worded_otherwise:
        assert message.removeprefix("invalid payload for event 'a': ") in row["stderr"]
