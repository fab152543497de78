"""Graphs beside adapters."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.adapter.test_accept import MANIFEST

from ergo_capture.adapter import AdapterError, load_adapter
from ergo_capture.adapter.composition import Node, check_composition, emitted_kinds

SEND = (
    "{ name: send, payload_schema: { type: object, properties: { n: { type: number } }, additionalProperties: false } }"
)
ADAPTER = load_adapter(MANIFEST.replace("effects: [", f"effects: [{SEND}, "))


def node(**needs: Any) -> Node:
    """Return a node with its needs."""
    return msgspec.convert({"id": "n0"} | needs, Node)


@pytest.mark.parametrize(
    ("needs", "rule"),
    [
        ({"reads": [{"name": "q", "type": "Number", "required": True}]}, "COMP-1"),
        ({"reads": [{"name": "n", "type": "String"}]}, "COMP-2"),
        ({"writes": [{"name": "q", "type": "Number"}]}, "COMP-11"),
        ({"writes": [{"name": "fixed", "type": "Number"}]}, "COMP-12"),
        ({"writes": [{"name": "n", "type": "Bool"}]}, "COMP-13"),
        ({"intents": [{"kind": "other", "fields": []}]}, "COMP-17"),
        ({"intents": [{"kind": "send", "fields": [{"name": "q", "type": "Number"}]}]}, "COMP-19"),
        ({"intents": [{"kind": "send", "fields": [{"name": "n", "type": "Bool"}]}]}, "COMP-19"),
        ({"intents": [{"kind": "set_context", "fields": []}]}, "COMP-19"),
        ({"reads": [{"name": "q", "type": "Number"}, {"name": "n", "type": "Number"}]}, None),
        ({"writes": [{"name": "n", "type": "Number"}]}, None),
        ({"intents": [{"kind": "send", "fields": [{"name": "n", "type": "Number"}]}]}, None),
    ],
)
def test_a_node_gets_what_it_needs_or_the_rule_is_named(needs: dict[str, Any], rule: str | None) -> None:
    """The message names the rule and the node, and says what to change."""
    if rule is None:
        check_composition(ADAPTER, [node(**needs)])
        return
    with pytest.raises(AdapterError, match="composition failed for node 'n0'") as caught:
        check_composition(ADAPTER, [node(**needs)])
    assert (caught.value.rule, caught.value.where) == (rule, "node 'n0'")
    assert caught.value.fix


def schema(properties: str, more: str = "type: object") -> str:
    """Return a schema in YAML."""
    return f"{{ {more}, properties: {{ {properties} }}, additionalProperties: false }}"


N, V = {"name": "n", "type": "Number"}, {"name": "v", "type": "Series"}


@pytest.mark.parametrize(
    ("fields", "payload_schema", "detail"),
    [
        ([], "{ type: object, additionalProperties: false }", "payload_schema.properties must be present and be an object"),
        ([], "{ type: string }", "payload_schema.type must be 'object', found 'string'"),
        ([], schema("", "title: t"), "payload_schema.type must be present and set to 'object'"),
        ([], schema("", "type: object, allOf: [true]"), "unsupported JSON Schema keyword 'allOf'"),
        ([N], schema("n: { type: number }, q: { type: number }", "type: object, required: [n, q]"), "required field 'q' is not declared in intent.fields"),
        ([N, V], schema("n: { type: number }"), "intent field 'v' is missing from payload_schema.properties"),
        ([N], schema("n: true"), "field 'n' schema must be a JSON object"),
        ([N], schema("n: { type: number, not: {} }"), "field 'n' uses unsupported JSON Schema keyword 'not'"),
        ([N], schema("n: { minimum: 0 }"), "field 'n' schema must declare type 'number'"),
        ([N], schema("n: { type: string }"), "field 'n' expected JSON type 'number', found 'string'"),
        ([V], schema("v: { type: array }"), "field 'v' array schema must define object 'items'"),
        ([V], schema("v: { type: array, items: { type: number, if: {} } }"), "field 'v' array items use unsupported JSON Schema keyword 'if'"),
        ([V], schema("v: { type: array, items: { minimum: 0 } }"), "field 'v' array items must declare type 'number'"),
        ([V], schema("v: { type: array, items: { type: integer } }"), "field 'v' array items expected type 'number', found 'integer'"),
    ],
)  # fmt: skip
def test_the_fields_of_an_intent_fit_its_schema(fields: list[Any], payload_schema: str, detail: str) -> None:
    """The first thing that does not is named."""
    adapter = load_adapter(
        MANIFEST.replace("effects: [", f"effects: [{{ name: send, payload_schema: {payload_schema} }}, ")
    )
    with pytest.raises(AdapterError) as caught:
        check_composition(adapter, [node(intents=[{"kind": "send", "fields": fields}])])
    assert caught.value.message == (
        "action composition failed for node 'n0': Adapter payload_schema for intent kind 'send' is incompatible: "
        f"{detail} (COMP-19)"
    )
    assert caught.value.fix == (
        "Adjust accepts.effects payload_schema to match the intent fields/types declared by the action manifest"
    )


def test_an_intent_of_every_type_may_fit() -> None:
    """Required fields among them."""
    types = {"n": "Number", "b": "Bool", "s": "String", "v": "Series"}
    properties = (
        "n: { type: number }, b: { type: boolean }, s: { type: string }, v: { type: array, items: { type: number } }"
    )
    payload_schema = schema(properties, "type: object, required: [n, v]")
    adapter = load_adapter(
        MANIFEST.replace("effects: [", f"effects: [{{ name: send, payload_schema: {payload_schema} }}, ")
    )
    fields = [{"name": name, "type": kind} for name, kind in types.items()]
    check_composition(adapter, [node(intents=[{"kind": "send", "fields": fields}])])


def test_mirrored_writes_need_set_context() -> None:
    """This holds though their keys are not examined, as in the reference."""
    bare = load_adapter(
        MANIFEST.replace("writable: true", "writable: false").replace("name: set_context", "name: send")
    )
    with pytest.raises(AdapterError, match="COMP-14"):
        check_composition(bare, [node(intents=[{"kind": "send", "fields": [], "mirrored": True}])])


def test_the_kinds_that_a_graph_emits_are_those_of_its_nodes() -> None:
    """Writes, mirrored ones too, are set_context."""
    nodes = [
        node(intents=[{"kind": "send", "fields": [], "mirrored": True}]),
        node(intents=[{"kind": "b", "fields": []}]),
    ]
    assert emitted_kinds(nodes) == ["b", "send", "set_context"]
    assert emitted_kinds([node(reads=[{"name": "n", "type": "Number"}])]) == []
