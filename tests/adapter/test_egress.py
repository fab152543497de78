"""Egress channels without processes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.adapter.cases import rows

from ergo_capture.adapter.egress import (
    EgressFailure,
    check_owners,
    check_ready,
    intent_frame,
    intent_id,
    parse_egress_config,
    read_ack,
)
from ergo_capture.adapter.errors import AdapterError
from ergo_capture.kernel.effects import IntentField, IntentRecord, Value
from ergo_capture.kernel.records import CapturedIntentAck
from ergo_capture.kernel.time import U64_MAX

ROWS = rows("egress")
CONFIG = """\
default_ack_timeout = "2s"
[channels.a]
type = "process"
command = ["./a"]
[routes.send]
channel = "a"
ack_timeout = "1500ms"
"""
INTENT = IntentRecord("send", "id-1", ())


@pytest.mark.parametrize("row", [row for row in ROWS if row["egress_provenance"]], ids=lambda row: row["name"])
def test_a_configuration_has_the_reference_provenance(row: dict[str, Any]) -> None:
    """It is computed from normalised durations."""
    assert parse_egress_config(row["egress_toml"]).provenance() == row["egress_provenance"]


def intents_of(row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the intents of a run, each with the event that the engine was called for."""
    return [
        (outcome["event_id"], intent)
        for outcome in row["engine_outcomes"]
        for effect in outcome["effects"]
        for intent in effect.get("intents", [])
    ]


@pytest.mark.parametrize("row", [row for row in ROWS if intents_of(row)], ids=lambda row: row["name"])
def test_the_id_of_an_intent_is_derived_as_the_reference_does(row: dict[str, Any]) -> None:
    """It depends on the graph, the origin event, the node, the kind and the index."""
    graph = next(line for line in row["graph_yaml"].split("\n") if line.startswith("id: ")).removeprefix("id: ")
    for event_id, intent in intents_of(row):
        derived = [
            intent_id(graph, event_id, f"n{node}", intent["kind"], index) for node in range(12) for index in (0, 1)
        ]
        assert intent["intent_id"] in derived


def test_a_route_has_its_own_time_out() -> None:
    """The time-out is in milliseconds; a route without one has the default."""
    config = parse_egress_config(CONFIG + '[routes.other]\nchannel = "a"\n')
    assert (config.timeout_of("send"), config.timeout_of("other")) == (1500, 2000)
    assert config.kinds_of("a") == ("other", "send")
    assert config.kinds_of("b") == ()


@pytest.mark.parametrize(
    ("text", "millis"),
    [("0ms", 0), ("+7s", 7000), ("2m", 120_000), ("3h", 10_800_000), (f"{U64_MAX}ms", U64_MAX)],
)
def test_a_duration_is_a_number_of_a_unit(text: str, millis: int) -> None:
    """The largest number of milliseconds is the largest u64."""
    assert parse_egress_config(CONFIG.replace("2s", text)).default_ack_timeout == millis


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("[channels.a]", "[channels.b]", "egress route for kind 'send' references unknown channel 'a'"),
        ('["./a"]', "[]", "egress channel 'a' process command must not be empty"),
        ('["./a"]', '[" "]', "egress channel 'a' process executable must not be blank"),
        ('["./a"]', "[1]", "invalid type: integer `1`, expected a string"),
        ('type = "process"', 'type = "pipe"', "unknown variant `pipe`, expected `process`"),
        ('type = "process"', "", "missing field `type`"),
        ('"2s"', '"2 s"', "unsupported duration '2 s' (expected suffix ms|s|m|h)"),
        ('"2s"', f'"{U64_MAX + 1}ms"', f"unsupported duration '{U64_MAX + 1}ms' (expected suffix ms|s|m|h)"),
        ('"2s"', '"1d"', "unsupported duration '1d' (expected suffix ms|s|m|h)"),
        ('"2s"', "2", "invalid type: integer `2`, expected a string"),
        (CONFIG.partition("\n")[2], "channels = 1", "invalid type: integer `1`, expected a map"),
        ('default_ack_timeout = "2s"', "", "missing field `default_ack_timeout`"),
        ("[channels.a]", '[channels.""]', "egress channel id must not be empty"),
        ("[routes.send]", '[routes.""]', "egress route kind must not be empty"),
        ('channel = "a"', 'channel = ""', "egress route channel must not be empty"),
        ("[channels.a]", "[channels.a", "(at line 2, column 12)"),
    ],
)
def test_a_configuration_that_the_reference_refuses_is_refused(old: str, new: str, complaint: str) -> None:
    """The error shows what to write instead."""
    with pytest.raises(AdapterError) as caught:
        parse_egress_config(CONFIG.replace(old, new))
    assert caught.value.message.removeprefix("parse egress config TOML: ").endswith(complaint)
    assert (caught.value.code, caught.value.exit_code) == ("egress_config", 78)
    assert "default_ack_timeout" in caught.value.fix


def test_each_kind_of_effect_has_one_owner() -> None:
    """The store owns ``set_context``, and routes own the others; a route that nothing uses is a warning."""
    config = parse_egress_config(CONFIG)
    assert config.check(["set_context", "send"], ["set_context", "send"]) == []
    assert config.check(["send"], []) == ["egress route declared for non-emittable kind 'send'"]
    with pytest.raises(AdapterError, match="egress route kind 'send' is not accepted by adapter"):
        config.check(["set_context"], ["send"])
    with pytest.raises(AdapterError, match="missing effect handler for kind 'other'"):
        config.check(["send", "other"], ["other"])
    check_owners(["set_context"], ["set_context", "send"])
    with pytest.raises(AdapterError, match="missing effect handler for kind 'send'"):
        check_owners(["send"], ["send"])


READY = '{"type":"ready","protocol":"ergo-egress.v1","handled_kinds":'


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "invalid startup frame: Expecting value: line 1 column 1 (char 0)"),
        (
            '{"type":"intent_ack","intent_id":"","status":"","acceptance":""}',
            "expected ready frame, got intent_ack",
        ),
        ('{"type":"ready","protocol":"ergo-egress.v1"}', "invalid startup frame: missing field `handled_kinds`"),
        (f'{READY}["a","b","a"]}}', "ready frame contains duplicate handled_kinds entry 'a'"),
        (f'{READY}["a"]}}', "ready frame missing required handled kind 'send'"),
        (
            f'{READY.replace("v1", "v2")}["send"]}}',
            "ready frame protocol mismatch: expected 'ergo-egress.v1', got 'ergo-egress.v2'",
        ),
        ('{"type":"other"}', "invalid startup frame: unknown variant `other`, expected `ready` or `intent_ack`"),
        ("1", "invalid startup frame: invalid type: integer `1`, expected internally tagged enum InboundFrameTag"),
        # Unlike a driver's frames, these cannot be arrays.
        ('["ready","ergo-egress.v1",["send"]]', "invalid startup frame: trailing characters"),
    ],
)
def test_a_greeting_that_is_none_is_a_violation(line: str, complaint: str) -> None:
    """The error names the channel."""
    with pytest.raises(EgressFailure) as caught:
        check_ready("a", line, ["send"])
    assert str(caught.value) == f"protocol violation on channel 'a': {complaint}"
    assert (caught.value.reason, caught.value.channel) == ("egress_protocol_violation", "a")
    assert caught.value.intent_id is None


def test_a_greeting_may_name_more_than_is_routed() -> None:
    """The kinds may be in any order."""
    check_ready("a", f'{READY}["other","send","more"]}}', ["more", "send"])


@pytest.mark.parametrize(
    ("reason", "words", "intent"),
    [
        ("egress_ack_timeout", "ack timeout on channel 'a' for intent 'd'", "d"),
        ("egress_protocol_violation", "protocol violation on channel 'a': d", None),
        ("egress_io", "I/O failure on channel 'a': d", None),
    ],
)
def test_a_failed_dispatch_is_worded_by_its_reason(reason: str, words: str, intent: str | None) -> None:
    """The words are those of the decision's record."""
    failure = EgressFailure(reason, "a", "d")
    assert (str(failure), failure.intent_id) == (words, intent)
    assert failure.interruption == f"egress dispatch failed: {words}"


def test_an_intent_is_asked_for_in_one_line() -> None:
    """Its fields are sorted by name."""
    fields = (
        IntentField("z", Value(Number=1.0)),
        IntentField("a", Value(Series=(1e16,))),
        IntentField("b", Value(Bool=False)),
    )
    assert intent_frame(IntentRecord("send", "i", fields)) == (
        b'{"type":"intent","intent_id":"i","kind":"send","fields":{"a":[1e+16],"b":false,"z":1.0}}'
    )


def ack(**fields: Any) -> str:
    """Return an ack of the intent."""
    good = {"type": "intent_ack", "intent_id": "id-1", "status": "accepted", "acceptance": "durable"}
    return json.dumps(good | fields)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (ack(intent_id="id-2"), "ack intent_id mismatch: expected 'id-1', got 'id-2'"),
        (
            ack(acceptance="volatile"),
            "ack must be accepted+durable, got status='accepted' acceptance='volatile'",
        ),
        (ack(status="refused"), "ack must be accepted+durable, got status='refused' acceptance='durable'"),
        (ack(egress_ref=3), "invalid ack frame: invalid type: integer `3`, expected a string"),
        (ack(type="ready", protocol="", handled_kinds=[]), "unexpected ready frame after startup"),
        ("\xff", "invalid ack frame: Expecting value: line 1 column 1 (char 0)"),
        ('["intent_ack","id-1","accepted","durable",null]', "invalid ack frame: trailing characters"),
    ],
)
def test_an_ack_that_is_none_is_a_violation(line: str, complaint: str) -> None:
    """It interrupts the run with the reference's sentence."""
    with pytest.raises(EgressFailure) as caught:
        read_ack("a", line, INTENT)
    assert str(caught.value) == f"protocol violation on channel 'a': {complaint}"


def test_further_fields_of_an_ack_are_ignored() -> None:
    """The reference ignores them too."""
    assert read_ack("a", ack(note=1, egress_ref="r"), INTENT) == CapturedIntentAck(
        "id-1", "a", "accepted", "durable", "r"
    )
    assert read_ack("a", ack(), INTENT).egress_ref is None
