"""Events bound to an adapter."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ergo_capture import ExternalEvent
from ergo_capture.adapter import Adapter, AdapterError, ContextStore, HostedEvent, load_adapter
from ergo_capture.adapter.events import read_hosted_event
from ergo_capture.kernel.events import ExternalEventKind
from ergo_capture.kernel.time import EventTime

MANIFEST = """\
kind: adapter
id: demo
version: 1.0.0
runtime_compatibility: 0.1.0-alpha.1
context_keys:
  - { name: n, type: Number, required: false, writable: true }
  - { name: v, type: Series, required: false, writable: true }
  - { name: fixed, type: Number, required: false, writable: false }
event_kinds:
  - name: full
    payload_schema:
      type: object
      properties:
        n: { type: number, maximum: 10 }
        v: { type: array, items: { type: number } }
        fixed: { type: number }
        note: { type: string }
      required: [n]
      additionalProperties: false
  - name: plain
    payload_schema:
      type: object
      properties: { fixed: { type: number, minimum: 0 }, note: { type: string } }
      additionalProperties: false
accepts:
  effects: [{ name: set_context, payload_schema: { type: object, additionalProperties: false } }]
capture: { format_version: "1", fields: [] }
"""
ADAPTER = load_adapter(MANIFEST)
EXACT = load_adapter(MANIFEST, numbers="exact")


def event(payload: Any, semantic_kind: str | None = "full", **fields: Any) -> str:
    """Return an event's JSON."""
    base = {"event_id": "a", "kind": "DataAvailable", "at": {"secs": 1, "nanos": 2}}
    return json.dumps(base | {"semantic_kind": semantic_kind, "payload": payload} | fields)


def refusal(adapter: Adapter, text: str | bytes, store: ContextStore | None = None) -> AdapterError:
    """Return the error for an event that is refused."""
    with pytest.raises(AdapterError) as caught:
        adapter.accept(text, ContextStore() if store is None else store)
    return caught.value


def test_an_event_is_accepted_with_its_canonical_payload() -> None:
    """Its keys are sorted, and it has no white space."""
    accepted = ADAPTER.accept(event({"v": [1, 2.50], "n": 1.0}), ContextStore())
    assert accepted == ExternalEvent("a", ExternalEventKind.DataAvailable, EventTime(1, 2), b'{"n":1.0,"v":[1,2.5]}')


def test_the_store_fills_what_the_schema_names_and_the_sender_left_out() -> None:
    """Keys that the schema does not name stay out, and the sender's values win."""
    store = ContextStore({"n": 3.0, "v": [1.0]})
    assert ADAPTER.accept(event({}), store).payload == b'{"n":3.0,"v":[1.0]}'
    assert ADAPTER.accept(event({"n": 4}), store).payload == b'{"n":4,"v":[1.0]}'
    assert ADAPTER.accept(event({}, "plain"), store).payload == b"{}"


def test_a_bound_event_names_the_keys_that_have_the_stores_value() -> None:
    """The names are sorted; a key that was sent with another value is not among them."""
    store = ContextStore({"v": [1.0], "n": 3.0})
    assert ADAPTER.bind(read_hosted_event(event({})), store).taken == ("n", "v")
    assert ADAPTER.bind(read_hosted_event(event({"v": []})), store).taken == ("n",)


def test_a_key_that_was_sent_with_the_stores_value_is_named_too() -> None:
    """Payload and store alone tell which these are; 3 is another text than 3.0."""
    store = ContextStore({"n": 3.0})
    assert ADAPTER.bind(read_hosted_event(event({"n": 3.0})), store).taken == ("n",)
    assert ADAPTER.bind(read_hosted_event(event({"n": 3})), store).taken == ()


def test_numbers_are_read_as_the_adapter_was_told() -> None:
    """The same event gives two payloads."""
    text = '{"event_id":"a","kind":"Command","at":[0,0],"semantic_kind":"full","payload":{"n":1.3000000000000003}}'
    assert ADAPTER.accept(text, ContextStore()).payload == b'{"n":1.3000000000000005}'
    assert EXACT.accept(text, ContextStore()).payload == b'{"n":1.3000000000000003}'


def test_a_violation_names_the_rule_and_the_path_in_the_payload() -> None:
    """The message is the reference's."""
    error = refusal(ADAPTER, event({"n": 1, "v": [1, "x"]}))
    assert error.code == "schema_violation"
    assert error.message == (
        "semantic event binding failed: payload does not match schema for semantic event kind 'full': "
        '"x" is not of type "number"'
    )
    assert (error.where, error.rule) == ("$.v[1]", "type")


def test_a_violation_by_a_value_of_the_store_says_so() -> None:
    """The sender could not know the value."""
    error = refusal(ADAPTER, event({}), ContextStore({"n": 11.0}))
    assert (error.where, error.rule) == ("$.n", "maximum")
    assert "the value in the context store" in error.fix


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (event({}, None), "semantic_kind is required in adapter-bound mode"),
        (event({}, "other"), "unknown semantic event kind 'other'"),
        (event(None), "payload is required in adapter-bound mode"),
        (event([]), "payload must be a JSON object"),
        (event("x", None), "payload must be a JSON object"),
        (event(None, "other"), "payload is required in adapter-bound mode"),
    ],
)
def test_an_event_is_refused_in_the_reference_order(text: str, message: str) -> None:
    """The checks are, in order: object, semantic kind, payload, known kind."""
    error = refusal(ADAPTER, text)
    assert (error.code, error.message) == ("schema_violation", message)


def test_an_unknown_kind_names_those_that_there_are() -> None:
    """They are in the manifest's order."""
    assert refusal(ADAPTER, event({}, "other")).fix.endswith("'full', 'plain'")


@pytest.mark.parametrize(
    ("text", "message", "where"),
    [
        ("", "not valid JSON", "the text of the event"),
        (b"\xff", "not valid JSON", "the text of the event"),
        ("[]", "invalid length 0, expected struct HostedEvent with 5 elements", "$"),
        ("3", "invalid type: integer `3`, expected struct HostedEvent", "$"),
        (event({}, event_id=3), "invalid type: integer `3`, expected a string", "$.event_id"),
        (event({}, kind="Never"), "unknown variant `Never`", "$.kind"),
        (event({}, at=None), "invalid type: null, expected struct Duration", "$.at"),
        (event({}, at={"secs": -1, "nanos": 0}), "invalid value: integer `-1`, expected u64", "$.at.secs"),
        (event({}, at={"secs": 1}), "missing field `nanos`", "$.at"),
        (event({}, at={"secs": 1, "nanos": 0, "x": 0}), "unknown field `x`", "$.at.x"),
        (event({}, at={"secs": 2**64 - 1, "nanos": 10**9}), "overflow deserializing Duration", "$.at"),
        ('{"event_id":"a","event_id":"b"}', "duplicate field `event_id`", "$.event_id"),
        ('{"kind":"Pump","at":[0,0]}', "missing field `event_id`", "$"),
    ],
)
def test_a_text_that_is_no_event_is_refused(text: str | bytes, message: str, where: str) -> None:
    """The error gives the place in the text."""
    error = refusal(ADAPTER, text)
    assert error.code == "invalid_event"
    assert message in error.message
    assert error.where == where


def test_what_the_store_could_mend_is_admitted() -> None:
    """A kind that names a writable key is validated when the payload is merged; others are validated at once."""
    ADAPTER.admit(read_hosted_event(event({})))
    ADAPTER.admit(read_hosted_event(event({"n": 99})))
    ADAPTER.admit(read_hosted_event(event({"fixed": 1}, "plain")))
    with pytest.raises(AdapterError, match="less than the minimum") as caught:
        ADAPTER.admit(read_hosted_event(event({"fixed": -1}, "plain")))
    assert caught.value.where == "$.fixed"


def test_what_no_store_could_mend_is_not_admitted() -> None:
    """The kind does not matter."""
    for payload, kind in ((None, "full"), ([], "full"), ({}, None), ({}, "other")):
        with pytest.raises(AdapterError):
            ADAPTER.admit(read_hosted_event(event(payload, kind)))


def test_an_event_made_by_hand_is_checked_too() -> None:
    """UTF-8 cannot hold some strings, and JSON cannot hold some numbers."""
    for event_id, note in (("\ud800", "x"), ("a", "\ud800")):
        made = HostedEvent(event_id, ExternalEventKind.Pump, semantic_kind="full", payload={"n": 1, "note": note})
        with pytest.raises(AdapterError):
            ADAPTER.bind(made, ContextStore())


def test_a_number_next_to_the_largest_is_refused_as_the_reference_refuses_it() -> None:
    """Read exactly, it is the largest double, whose text the reference reads too."""
    text = (
        '{"event_id":"a","kind":"Pump","at":[0,0],"semantic_kind":"plain","payload":{"fixed":1.7976931348623158e308}}'
    )
    assert "out of range" in refusal(ADAPTER, text).message
    assert EXACT.accept(text, ContextStore()).payload == b'{"fixed":1.7976931348623157e+308}'


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["n", "v", "note", "x"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
EVENT = st.fixed_dictionaries(
    {"event_id": st.text(max_size=3) | JSON, "kind": st.sampled_from(["Pump", "Tick", "Command"]) | JSON},
    optional={
        "at": st.just([0, 0]) | JSON,
        "semantic_kind": st.sampled_from(["full", "plain"]) | JSON,
        "payload": JSON,
    },
)
STORE = st.dictionaries(
    st.sampled_from(["n", "v", "fixed"]),
    st.floats(allow_nan=False, allow_infinity=False) | st.lists(st.floats(-9, 9), max_size=2),
)


@given(EVENT, STORE)
def test_accept_raises_nothing_but_adapter_errors(fields: dict[str, Any], values: dict[str, Any]) -> None:
    """The event and the content of the store do not matter."""
    with suppress(AdapterError):
        accepted = ADAPTER.accept(json.dumps(fields), ContextStore(values))
        assert accepted.payload.startswith(b"{")


@given(st.text(max_size=40) | st.binary(max_size=40))
def test_accept_takes_any_text(text: str | bytes) -> None:
    """The text need not be JSON."""
    with suppress(AdapterError):
        ADAPTER.accept(text, ContextStore())
