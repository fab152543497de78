"""Schemas: what the validator of the reference says."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from ergo_capture.adapter.schemas import PayloadSchema, SchemaError, Violation, context_type

DRAFT_7 = "http://json-schema.org/draft-07/schema#"


def takes(schema: dict[str, Any], value: Any, **rest: Any) -> bool:
    """Whether a property of this schema may have this value."""
    closed = {"type": "object", "properties": {"x": schema}, "additionalProperties": False}
    return PayloadSchema(closed | rest).takes({"x": value})


@pytest.mark.parametrize(
    ("schema", "value", "taken"),
    [
        # 0.61 refuses it: there a dot matches no line separator.
        ({"pattern": "^.$"}, "\u2028", True),
        # 0.61 takes it: there the remainder is of decimals of any length.
        ({"multipleOf": 3}, 1e300, False),
        ({"multipleOf": 0.01}, 4.35, True),
        ({"multipleOf": 0.1}, 0.3, True),
        ({"type": "integer"}, 1e300, True),
        ({"const": 1}, 1.0, True),
        ({"uniqueItems": True}, [1, 1.0], False),
        ({"maximum": 9007199254740992}, 9007199254740993, False),
        ({"pattern": r"^\d+$"}, "١٢", False),
        ({"pattern": r"^\s$"}, "\u2003", True),
        ({"pattern": "^a$"}, "a\n", False),
        ({"minLength": 2}, "\U0001f600", False),
        ({"format": "email"}, "nobody", True),
        ({"contentEncoding": "base64"}, "?", True),
    ],
)
def test_a_verdict_is_that_of_the_reference(schema: dict[str, Any], value: Any, taken: bool) -> None:
    """The reference's build has the series 0.58 of the validator."""
    assert takes(schema, value) is taken


def test_an_older_draft_that_a_schema_names_is_not_heeded() -> None:
    """0.40 takes it: there siblings of a reference are not looked at in a schema that names draft 7."""
    schema = {"$ref": "#/$defs/any", "maximum": 1}
    assert not takes(schema, 2, **{"$schema": DRAFT_7, "$defs": {"any": {"type": "number"}}})


def test_a_schema_of_an_unknown_dialect_is_not_looked_up() -> None:
    """The validator would request it to learn its vocabularies."""
    requested: list[str] = []

    class Dialects(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Dialects) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            dialect = f"http://127.0.0.1:{server.server_port}/dialect"
            assert not takes({"type": "string"}, 1, **{"$schema": dialect})
        finally:
            server.shutdown()
            thread.join()
    assert requested == []


def test_a_valid_payload_has_no_reason_to_be_refused() -> None:
    """This is reported when the validator changes its mind."""
    schema = PayloadSchema({"type": "object", "additionalProperties": False})
    assert schema.violation({}) == Violation("the validator gives no reason", (), "")


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "integer"}, "Number"),
        ({"type": "boolean"}, "Bool"),
        ({"type": "string"}, "String"),
        ({"type": "array", "items": {"type": "integer"}}, "Series"),
    ],
)
def test_a_property_has_a_context_type(schema: Any, kind: str) -> None:
    """The type's word in the schema gives it."""
    assert context_type(schema) == kind


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        (True, "field schema must be an object"),
        ({}, "field schema is missing 'type'"),
        ({"type": ["number", "null"]}, "union field types are not supported for context materialization"),
        ({"type": 3}, "field schema 'type' must be a string"),
        ({"type": "object"}, "unsupported field type 'object'"),
        ({"type": "array"}, "array field requires an 'items' schema"),
        (
            {"type": "array", "items": {"type": "string"}},
            "array field items must be number or integer to materialize as Series",
        ),
        ({"type": "array", "items": True}, "array field items must be number or integer to materialize as Series"),
        (
            {"type": "array", "items": {"type": ["number"]}},
            "array field items must be number or integer to materialize as Series",
        ),
    ],
)
def test_a_property_without_a_context_type_is_refused(schema: Any, complaint: str) -> None:
    """The words are the reference's."""
    with pytest.raises(SchemaError, match=f"^{complaint}$"):
        context_type(schema)
