"""Check that an adapter provides the context keys and effects that a graph needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal

import msgspec

from ergo_capture.adapter.contract import Adapter
from ergo_capture.adapter.errors import MANIFEST_RULE, AdapterError
from ergo_capture.adapter.store import SET_CONTEXT
from ergo_capture.errors import ExitCode

_UNSUPPORTED: Final = ("$ref", "oneOf", "anyOf", "allOf", "not", "if", "then", "else")
_JSON_TYPES: Final = {"Number": "number", "Bool": "boolean", "String": "string", "Series": "array"}


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A context key that a node reads or writes, or a field of an intent."""

    name: str
    type: Literal["Number", "Bool", "String", "Series"]
    #: Whether the node can do without it; counts for what is read.
    required: bool = False


class Intent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An intent that an action emits."""

    kind: str
    fields: tuple[Key, ...]
    #: Whether the action writes fields of it into the context.
    mirrored: bool = False


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The needs of a node of the expanded graph."""

    #: Its name in the expanded graph: ``n7``.
    id: str
    reads: tuple[Key, ...] = ()
    writes: tuple[Key, ...] = ()
    intents: tuple[Intent, ...] = ()


def emitted_kinds(nodes: Iterable[Node]) -> list[str]:
    """Return the kinds of effect that a graph can emit, sorted."""
    kinds: set[str] = set()
    for node in nodes:
        if node.writes or any(intent.mirrored for intent in node.intents):
            kinds.add(SET_CONTEXT)
        kinds |= {intent.kind for intent in node.intents}
    return sorted(kinds)


def check_composition(adapter: Adapter, nodes: Iterable[Node]) -> None:
    """Check that an adapter provides what each node needs.

    Raises:
        AdapterError: MANIFEST_RULE, with COMP-1, -2, -11 to -14, -17 or -19 as its rule.
    """
    for node in nodes:
        for error in (*_reads(adapter, node), *_writes(adapter, node), *_intents(adapter, node)):
            raise error


def _broken(stage: str, node: Node, rule: str, summary: str, fix: str) -> AdapterError:
    return AdapterError(
        MANIFEST_RULE,
        f"{stage} composition failed for node '{node.id}': {summary} ({rule})",
        where=f"node '{node.id}'",
        fix=fix,
        rule=rule,
        exit_code=ExitCode.CONFIG,
    )


def _reads(adapter: Adapter, node: Node) -> Iterator[AdapterError]:
    for key in node.reads:
        declared = adapter.context.get(key.name)
        if declared is None:
            if key.required:
                summary = f"Required context key '{key.name}' not provided by adapter"
                yield _broken("source", node, "COMP-1", summary, _add_key(key.name))
        elif declared.type != key.type:
            summary = f"Context key '{key.name}' type mismatch: expected '{key.type}', got '{declared.type}'"
            yield _broken("source", node, "COMP-2", summary, _change_type(key))


def _writes(adapter: Adapter, node: Node) -> Iterator[AdapterError]:
    for key in node.writes:
        declared = adapter.context.get(key.name)
        target = f"Action write target '{key.name}'"
        if declared is None:
            summary = f"{target} not provided by adapter"
            yield _broken("action", node, "COMP-11", summary, _add_key(key.name))
        elif not declared.writable:
            fix = f"Mark context key '{key.name}' as writable in the adapter manifest"
            yield _broken("action", node, "COMP-12", f"{target} is not writable in adapter", fix)
        elif declared.type != key.type:
            summary = f"{target} type mismatch: expected '{key.type}', got '{declared.type}'"
            yield _broken("action", node, "COMP-13", summary, _change_type(key))
    if SET_CONTEXT in emitted_kinds([node]) and SET_CONTEXT not in adapter.effects:
        summary = "Adapter does not accept set_context effect required for writes"
        yield _broken("action", node, "COMP-14", summary, "Add 'set_context' to adapter accepts.effects")


def _intents(adapter: Adapter, node: Node) -> Iterator[AdapterError]:
    schemas = {effect.name: effect.payload_schema for effect in adapter.manifest.effects}
    for intent in node.intents:
        if intent.kind not in schemas:
            summary = f"Adapter does not accept intent effect kind '{intent.kind}' required by action manifest"
            fix = f"Add '{intent.kind}' to adapter accepts.effects"
            yield _broken("action", node, "COMP-17", summary, fix)
            continue
        for detail in _incompatible(intent, schemas[intent.kind]):
            summary = f"Adapter payload_schema for intent kind '{intent.kind}' is incompatible: {detail}"
            fix = (
                "Adjust accepts.effects payload_schema to match the intent fields/types declared by the action manifest"
            )
            yield _broken("action", node, "COMP-19", summary, fix)


def _incompatible(intent: Intent, schema: dict[str, Any]) -> Iterator[str]:
    """Yield the reasons why an intent's fields do not match a schema; only the first is reported."""
    if keyword := _unsupported(schema):
        yield f"unsupported JSON Schema keyword '{keyword}'"
    kind = schema.get("type")
    if not isinstance(kind, str):
        yield "payload_schema.type must be present and set to 'object'"
    if kind != "object":
        yield f"payload_schema.type must be 'object', found '{kind}'"
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        yield "payload_schema.properties must be present and be an object"
        return
    names = [field.name for field in intent.fields]
    for name in schema.get("required", ()):
        if name not in names:
            yield f"required field '{name}' is not declared in intent.fields"
    for field in intent.fields:
        if field.name not in properties:
            yield f"intent field '{field.name}' is missing from payload_schema.properties"
            return
        yield from _field(field, properties[field.name])


def _field(field: Key, schema: Any) -> Iterator[str]:
    name, expected = f"field '{field.name}'", _JSON_TYPES[field.type]
    if not isinstance(schema, dict):
        yield f"{name} schema must be a JSON object"
        return
    if keyword := _unsupported(schema):
        yield f"{name} uses unsupported JSON Schema keyword '{keyword}'"
    actual = schema.get("type")
    if not isinstance(actual, str):
        yield f"{name} schema must declare type '{expected}'"
    if actual != expected:
        yield f"{name} expected JSON type '{expected}', found '{actual}'"
    if field.type != "Series":
        return
    items = schema.get("items")
    if not isinstance(items, dict):
        yield f"{name} array schema must define object 'items'"
        return
    if keyword := _unsupported(items):
        yield f"{name} array items use unsupported JSON Schema keyword '{keyword}'"
    item_type = items.get("type")
    if not isinstance(item_type, str):
        yield f"{name} array items must declare type 'number'"
    if item_type != "number":
        yield f"{name} array items expected type 'number', found '{item_type}'"


def _unsupported(schema: dict[str, Any]) -> str | None:
    return next((keyword for keyword in _UNSUPPORTED if keyword in schema), None)


def _add_key(name: str) -> str:
    return f"Add context key '{name}' to the adapter's context_keys"


def _change_type(key: Key) -> str:
    return f"Change type of '{key.name}' in adapter's context_keys to '{key.type}'"
