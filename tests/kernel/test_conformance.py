"""The kernel gives the reference's answer for every line of the conformance data."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgspec
import pytest
from tests.shared import conformance, shared

from ergo_capture import (
    ActionEffect,
    CaptureJsonStyle,
    FaultRuntime,
    ReplayError,
    compare_decisions,
    compute_effect_hash,
    decode_bundle,
    encode_bundle,
    first_divergence,
    replay_checked,
    replay_checked_strict,
    validate_bundle,
    validate_bundle_strict,
)
from ergo_capture.bundle.reader.opening import BundleFormatError
from ergo_capture.cli.commands.simulate import run_scenario
from ergo_capture.kernel.effects import EffectWrite, Value, encode_effect
from ergo_capture.kernel.events import ExternalEventPayloadError, check_payload
from ergo_capture.kernel.replay import rederive
from ergo_capture.kernel.scenario import read_scenario
from ergo_capture.kernel.serde import bundle as serde
from ergo_capture.kernel.serde.parsing import parse


def by_name(name: str, key: str = "name") -> Any:
    """Parametrize a test over the lines of a file."""
    lines = conformance(name)
    return pytest.mark.parametrize("line", lines, ids=[f"{i}-{line.get(key, i)}" for i, line in enumerate(lines)])


@by_name("scenarios.jsonl")
def test_a_scenario_gives_the_bundle_of_the_reference(line: Any) -> None:
    """Byte for byte, in both styles, and the same after decoding."""
    bundle = run_scenario(read_scenario(json.dumps(line).encode()))
    assert encode_bundle(bundle).decode() == line["bundle_compact"]
    if "bundle_pretty" in line:
        assert encode_bundle(bundle, CaptureJsonStyle.Pretty).decode() == line["bundle_pretty"]
    assert encode_bundle(decode_bundle(line["bundle_compact"].encode())).decode() == line["bundle_compact"]
    assert first_divergence(bundle.decisions, rederive(bundle)) is None


def verdict(text: str, plan: Any, provenance: tuple[str, str] | None) -> dict[str, Any]:
    """Return the outcome of each stage for a bundle, as the reference's harness recorded it."""
    said: dict[str, Any] = {}
    try:
        bundle = decode_bundle(text.encode())
    except BundleFormatError as error:
        return {"parse": error.message}
    said["parse"] = None
    said["validate"] = complaint_of(lambda: validate_bundle(bundle))
    runtime = FaultRuntime.from_json(json.dumps(plan))
    expected = provenance and {
        "expected_adapter_provenance": provenance[0],
        "expected_runtime_provenance": provenance[1],
    }
    if expected:
        said["validate_strict"] = complaint_of(lambda: validate_bundle_strict(bundle, **expected))
    try:
        replayed = replay_checked_strict(bundle, runtime, **expected) if expected else replay_checked(bundle, runtime)
        said["replay"] = None
        said["compare"] = compare_decisions(bundle.decisions, replayed)
    except ReplayError as error:
        said["compare" if "replay" in said else "replay"] = error.message
    return said


def complaint_of(check: Any) -> str | None:
    """Return the message that a check raises, or None."""
    try:
        check()
    except ReplayError as error:
        return error.message
    return None


@by_name("bundles.jsonl")
def test_a_bundle_gets_the_verdict_of_the_reference(line: Any) -> None:
    """Parsing, validating, replaying and comparing give the same messages."""
    provenance = (line["adapter"], line["runtime"]) if "adapter" in line else None
    said = verdict(line["bundle_text"], {"default": line["default"], "schedule": line["schedule"]}, provenance)
    if line["verdict"]["parse"] is not None:
        assert said["parse"] is not None
        for field in [part for part in line["verdict"]["parse"].split("`")[1:2] if part.isidentifier()]:
            assert field in said["parse"]
    else:
        assert said == line["verdict"]


def decisions(values: Any) -> Any:
    """Return decision records from decoded JSON."""
    return [serde.read_decision(parse(json.dumps(value))) for value in values]


@by_name("compare.jsonl")
def test_decision_streams_compare_as_in_the_reference(line: Any) -> None:
    """The same answer, or the same message; ``first_divergence`` finds one exactly where they differ."""
    captured, replayed = decisions(line["captured"]), decisions(line["replayed"])
    try:
        same, error = compare_decisions(captured, replayed), None
    except ReplayError as raised:
        same, error = None, raised.message
    assert (same, error) == (line["same"], line["error"])
    assert (first_divergence(captured, replayed) is None) == (line["same"] is True)


@by_name("payloads.jsonl", key="payload_hex")
def test_a_payload_is_accepted_or_refused_as_by_the_reference(line: Any) -> None:
    """The message is the same, if it is the reference's own."""
    try:
        check_payload(bytes.fromhex(line["payload_hex"]))
        said = None
    except ExternalEventPayloadError as error:
        said = error.message
    expected = line["error"]
    if expected is None or expected.startswith("payload must be"):
        assert said == expected
    else:
        assert said is not None
        assert said.startswith("payload bytes are not valid JSON: ")


@by_name("effects.jsonl", key="hash")
def test_an_effect_has_the_text_and_hash_of_the_reference(line: Any) -> None:
    """Canonical text and SHA-256."""
    effect = msgspec.json.decode(line["input"], type=ActionEffect)
    assert encode_effect(effect).decode() == line["text"]
    assert compute_effect_hash(effect) == line["hash"]


def test_every_float_is_written_as_by_the_reference() -> None:
    """Positive exponents with a plus, everything else as short as it can be."""
    for line in conformance("floats.jsonl"):
        (number,) = struct.unpack("<d", struct.pack("<Q", line["bits"]))
        effect = ActionEffect("k", (EffectWrite("1e16", Value(Number=number)),))
        expected = f'{{"kind":"k","writes":[{{"key":"1e16","value":{{"Number":{line["text"]}}}}}]}}'
        assert encode_effect(effect).decode() == expected


def test_every_string_is_escaped_as_by_the_reference() -> None:
    """The strings are in the text of effects, which is hashed."""
    for line in conformance("strings.jsonl"):
        text = encode_effect(ActionEffect(line["value"], ()))
        assert text == b'{"kind":%b,"writes":[]}' % bytes.fromhex(line["encoded_hex"])


@by_name("lenient.jsonl", key="id")
def test_unusual_forms_that_the_reference_accepts_are_accepted(line: Any) -> None:
    """Arrays for structs, escaped keys, absent options, carried nanoseconds; written back canonically."""
    if line["kind"] == "payload":
        check_payload(bytes.fromhex(line["payload_hex"]))
    elif line["kind"] == "bundle":
        bundle = decode_bundle(line["bundle_text"].encode())
        assert encode_bundle(bundle).decode().strip() == line["canonical"].strip()
        arguments = line["args"]
        provenance = (arguments["adapter_prov"], arguments["runtime_prov"]) if "adapter_prov" in arguments else None
        said = verdict(line["bundle_text"], {"schedule": arguments["schedule"]}, provenance)
        assert said["compare"] == line["verdict"]["compare"]
    else:
        assert line["kind"] == "compare"
        assert compare_decisions(decisions(line["input"]["captured"]), decisions(line["input"]["replayed"]))


def test_effects_of_the_real_engine_are_read_and_written_back_unchanged() -> None:
    """Every effect in the replies of the real graph runtime."""
    for line in conformance("engine.jsonl"):
        for effect in json.loads(line["reply_text"]).get("effects", []):
            spelled = encode_effect(msgspec.json.decode(json.dumps(effect), type=ActionEffect)).decode()
            assert spelled in line["reply_text"]


REAL = shared("real") / "ergo-cli"


@pytest.mark.parametrize("name", sorted(path.name for path in REAL.glob("cap_*.json")))
def test_a_capture_of_the_real_tool_is_read_and_written_back_unchanged(name: str) -> None:
    """One of them is refused by the reference itself, whose float parser is off by one bit."""
    text = (REAL / name).read_bytes()
    bundle = decode_bundle(text)
    assert encode_bundle(bundle).rstrip(b"\n") == text.rstrip(b"\n")
    for record in bundle.decisions:
        for captured in record.effects:
            assert compute_effect_hash(captured.effect) == captured.effect_hash
    assert first_divergence(bundle.decisions, rederive(bundle)) is None


def test_a_changed_capture_is_detected() -> None:
    """A decision, an effect's value, a payload, the version: each by its own check."""

    def tampered(name: str) -> Any:
        return decode_bundle((REAL / f"tamper_{name}.json").read_bytes())

    changed = first_divergence(tampered("decision").decisions, rederive(tampered("decision")))
    assert changed is not None
    assert changed.field == "decision"
    effects = [e for record in tampered("effect_value").decisions for e in record.effects]
    assert any(compute_effect_hash(e.effect) != e.effect_hash for e in effects)
    with pytest.raises(ReplayError, match="payload hash mismatch"):
        validate_bundle(tampered("payload"))
    with pytest.raises(ReplayError, match="unsupported capture version"):
        validate_bundle(tampered("version"))
