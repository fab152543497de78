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
    """A node with what it needs."""
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
    """With the node and what to change."""
    if rule is None:
        check_composition(ADAPTER, [node(**needs)])
        return
    with pytest.raises(AdapterError, match="composition failed for node 'n0'") as caught:
        check_composition(ADAPTER, [node(**needs)])
    assert (caught.value.rule, caught.value.where) == (rule, "node 'n0'")
    assert caught.value.fix


def test_mirrored_writes_need_set_context() -> None:
    """Though their keys are not looked at, as in the reference."""
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
