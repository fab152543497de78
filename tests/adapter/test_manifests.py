"""Manifests against what the reference accepted, refused and fingerprinted."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.adapter.cases import rows

from ergo_capture.adapter import Adapter, AdapterError, load_adapter
from ergo_capture.kernel.time import U64_MAX

CASES = rows("adapters")
MANIFEST = """\
kind: adapter
id: demo
version: 1.0.0
runtime_compatibility: 0.1.0-alpha.1
context_keys:
  - { name: x, type: Number, required: false, writable: false }
event_kinds:
  - name: tick
    payload_schema: { type: object, properties: { x: { type: number } }, additionalProperties: false }
capture: { format_version: "1", fields: [event.tick] }
"""


def text_of(row: dict[str, Any]) -> str | bytes:
    """Return a manifest's text, or its bytes if they are not text."""
    found: str = row["adapter_yaml"]
    return base64.b64decode(row["adapter_b64"]) if row.get("adapter_b64") else found


@pytest.mark.parametrize("row", [row for row in CASES if row["accepted"]], ids=lambda row: row["name"])
def test_an_accepted_manifest_has_the_reference_fingerprint(row: dict[str, Any]) -> None:
    """The text that is hashed agrees to the byte, and so does the provenance."""
    adapter = load_adapter(text_of(row))
    assert adapter.manifest.canonical().decode() == row["hashed_text"]
    assert adapter.provenance == row["adapter_provenance"]


@pytest.mark.parametrize("row", [row for row in CASES if not row["accepted"]], ids=lambda row: row["name"])
def test_a_refused_manifest_is_refused_in_the_reference_words(row: dict[str, Any]) -> None:
    """The detail that the reference prints is the message; a code, a place and a fix come with it."""
    with pytest.raises(AdapterError) as caught:
        load_adapter(text_of(row))
    error = caught.value
    assert f"detail: {error.message}\n" in row["run"]["stderr"]
    assert error.code in {"manifest_unreadable", "manifest_shape", "manifest_rule"}
    assert error.where
    assert error.fix == error.hint
    assert error.exit_code == 78


@pytest.mark.parametrize("row", [row for row in CASES if "(ADP-" in row["run"]["stderr"]], ids=lambda row: row["name"])
def test_a_broken_rule_is_named_with_its_place_and_the_reference_fix(row: dict[str, Any]) -> None:
    """The path and the fix are those of ``ergo validate``."""
    with pytest.raises(AdapterError) as caught:
        load_adapter(text_of(row))
    error = caught.value
    (told,) = json.loads(row["validate_json"]["stdout"] or row["validate_json"]["stderr"])["errors"]
    assert (error.rule, error.fix) == (told["rule_id"], told["fix"])
    assert error.where.partition(",")[0] == (told["path"] or "$")


@pytest.mark.parametrize(
    ("old", "new", "where", "line", "column"),
    [
        ("version: 1.0.0", "version: 1", "$.version", 3, 10),
        ("type: Number", "type: Numeric", "$.context_keys[0].type", 6, 22),
        ("required: false", "required: no", "$.context_keys[0].required", 6, 40),
        ("{ type: number }", "{ type: null }", "$.event_kinds[0].payload_schema", 9, 21),
        ("{ type: number }", "{ type: object, additionalProperties: false }", "$.event_kinds[0].payload_schema.properties.x", 9, 54),
        ("[event.tick]", "[event.tock]", "$.capture.fields[0]", 10, 42),
    ],
)  # fmt: skip
def test_an_error_says_where_in_the_text(old: str, new: str, where: str, line: int, column: int) -> None:
    """A path into the manifest, with the line and the column of the value."""
    with pytest.raises(AdapterError) as caught:
        load_adapter(MANIFEST.replace(old, new))
    assert caught.value.where == f"{where}, line {line} column {column}"
    assert (caught.value.line, caught.value.column) == (line, column)


VALUES_FIX = "Use field types that map to runtime values: number/integer, boolean, string, or array of numbers"
REQUIRED = "required: [x], properties:"


@pytest.mark.parametrize(
    ("changes", "rule", "message", "where", "fix"),
    [
        (
            {'format_version: "1"': 'format_version: "2"'},
            "COMP-3",
            "adapter composition failed: Unsupported capture format version: '2' (COMP-3)",
            "$.capture.format_version, line 10 column 28",
            "Use a supported capture format version: 1",
        ),
        (
            {"{ type: number }": "{ type: [number, string] }"},
            "ADP-19",
            ("adapter manifest validation failed: Event field 'tick.x' uses unsupported materialization type: "
            "union field types are not supported for context materialization (ADP-19)"),
            "$.event_kinds[0].payload_schema.properties.x, line 9 column 54",
            VALUES_FIX,
        ),
        (
            {"properties:": "required: [q], properties:"},
            "ADP-19",
            ("adapter manifest validation failed: Event field 'tick.q' uses unsupported materialization type: "
            "required field is not declared under payload_schema.properties (ADP-19)"),
            "$.event_kinds[0].payload_schema.properties.q, line 9 column 64",
            VALUES_FIX,
        ),
        (
            {"properties:": REQUIRED, "name: x,": "name: y,"},
            "ADP-18",
            ("adapter manifest validation failed: Required event field 'tick.x' is not declared in adapter context_keys "
            "(ADP-18)"),
            "$.event_kinds[0].payload_schema.properties.x, line 9 column 69",
            "Add context key 'x' to context_keys with matching type",
        ),
        (
            {"properties:": REQUIRED, "type: Number": "type: Bool"},
            "ADP-18",
            ("adapter manifest validation failed: Required event field 'tick.x' type mismatch: context key is 'Bool', "
            "schema requires 'Number' (ADP-18)"),
            "$.event_kinds[0].payload_schema.properties.x, line 9 column 69",
            "Change context key 'x' type to 'Number'",
        ),
        (
            {"{ type: object, properties: { x: { type: number } }, additionalProperties: false }": "{ type: string }"},
            "ADP-19",
            ("adapter manifest validation failed: Event 'tick' payload_schema must be an object schema for context "
            "materialization (ADP-19)"),
            "$.event_kinds[0].payload_schema, line 9 column 21",
            "Set event payload_schema.type to 'object' and declare properties",
        ),
        (
            {"{ type: number }": "{ type: array, items: [{ oneOf: [] }] }"},
            "ADP-8",
            ("adapter manifest validation failed: Invalid payload schema for event 'tick': Schema contains banned keyword: "
            "oneOf (ADP-8)"),
            "$.event_kinds[0].payload_schema, line 9 column 21",
            "Provide a valid JSON Schema (Draft 2020-12)",
        ),
        (
            {"type: object, ": "", "additionalProperties: false": "title: t"},
            "ADP-8",
            ("adapter manifest validation failed: Invalid payload schema for event 'tick': Schema missing "
            "additionalProperties: false (ADP-8)"),
            "$.event_kinds[0].payload_schema, line 9 column 21",
            "Provide a valid JSON Schema (Draft 2020-12)",
        ),
    ],
)  # fmt: skip
def test_a_broken_rule_says_where_and_what_to_do(
    changes: dict[str, str], rule: str, message: str, where: str, fix: str
) -> None:
    """The words are the reference's."""
    text = MANIFEST
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(AdapterError) as caught:
        load_adapter(text)
    error = caught.value
    assert (error.rule, error.message, error.where, error.fix) == (rule, message, where, fix)
    assert (error.code, error.exit_code) == ("manifest_rule", 78)


def test_a_missing_field_is_placed_at_what_should_hold_it() -> None:
    """No nearer place exists."""
    with pytest.raises(AdapterError, match="missing field `fields`") as caught:
        load_adapter(MANIFEST.replace(", fields: [event.tick]", ""))
    assert caught.value.where == "$.capture, line 10 column 10"


@pytest.mark.parametrize(
    ("text", "code", "message", "where", "fix", "mark"),
    [
        (
            "kind: [adapter\nid: demo\n",
            "manifest_unreadable",
            ("parse adapter manifest 'm': did not find expected ',' or ']' at line 2 column 3, while parsing a flow sequence at "
            "line 1 column 7"),
            "line 2 column 3",
            "write one YAML 1.2 document without tags, with integers of 64 bits",
            (2, 3),
        ),
        (
            "a\n---\nb",
            "manifest_unreadable",
            "parse adapter manifest 'm': deserializing from YAML containing more than one document is not supported",
            "the manifest",
            "write one YAML 1.2 document without tags, with integers of 64 bits",
            (None, None),
        ),
        (
            b"kind: adapter\nid: a\nversion: \xff\n",
            "manifest_unreadable",
            "read adapter manifest 'm': stream did not contain valid UTF-8",
            "line 3 column 10",
            "save the manifest as UTF-8",
            (3, 10),
        ),
        (
            "",
            "manifest_shape",
            "decode adapter manifest 'm': invalid type: null, expected struct AdapterManifest",
            "$, line 1 column 1",
            "write the manifest: the file holds nothing",
            (1, 1),
        ),
        (
            MANIFEST.replace("version: 1.0.0", "version: 1"),
            "manifest_shape",
            "decode adapter manifest 'm': invalid type: integer `1`, expected a string",
            "$.version, line 3 column 10",
            "give the field that the message names, with the type that it names",
            (3, 10),
        ),
    ],
)  # fmt: skip
def test_a_text_that_is_no_manifest_is_refused(
    text: str | bytes, code: str, message: str, where: str, fix: str, mark: tuple[int | None, int | None]
) -> None:
    """The error has its name and the place, and says what to write."""
    with pytest.raises(AdapterError) as caught:
        load_adapter(text, name="m")
    error = caught.value
    assert (error.code, error.message, error.where, error.fix) == (code, message, where, fix)
    assert ((error.line, error.column), error.exit_code) == (mark, 78)


def test_an_adapter_reads_numbers_as_it_is_told() -> None:
    """Without a setting, they are read as by the reference."""
    assert load_adapter(MANIFEST).numbers == "reference"
    assert Adapter(load_adapter(MANIFEST).manifest).numbers == "reference"
    assert load_adapter(MANIFEST, numbers="exact").numbers == "exact"


def test_a_malformed_text_is_refused_with_libyamls_complaint() -> None:
    """The words and the position are libyaml's."""
    with pytest.raises(AdapterError, match=r"parse adapter manifest 'adapter\.yaml': ") as caught:
        load_adapter("kind: [adapter\nid: demo\n")
    assert caught.value.code == "manifest_unreadable"
    assert caught.value.line == 2


def test_text_that_is_not_utf8_is_placed_by_line_and_column() -> None:
    """The column counts bytes, since there are no characters."""
    with pytest.raises(AdapterError, match="did not contain valid UTF-8") as caught:
        load_adapter(b"kind: adapter\nid: \xff\n")
    assert (caught.value.line, caught.value.column) == (2, 5)


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        ("0.1.0-alpha.1", True),
        ("0.1.0-alpha", True),
        ("0.1.0-alpha.0", True),
        ("0.1.0-alpha.2", False),
        ("0.1.0-alpha.10", False),
        ("0.1.0-alpha.1.0", False),
        ("0.1.0-ALPHA.2", True),
        ("0.1.0-1", True),
        ("0.1.0", False),
        ("0.0.9", True),
        ("0.1.0-alpha.1+0", False),
        ("0.1.0-alpha.0+zzz", True),
        ("18446744073709551616.0.0", False),
        ("0.1.0-alpha.01", False),
        ("0.1.0-alpha.-", False),
        ("0.1", False),
        ("", False),
    ],
)
def test_runtime_compatibility_is_ordered_as_semantic_versions(version: str, accepted: bool) -> None:
    """Build metadata takes part in the order, as in the reference."""
    text = MANIFEST.replace("runtime_compatibility: 0.1.0-alpha.1", f"runtime_compatibility: '{version}'")
    if accepted:
        load_adapter(text)
        return
    with pytest.raises(AdapterError) as caught:
        load_adapter(text)
    assert caught.value.rule == "ADP-3"


@pytest.mark.parametrize("number", [U64_MAX, U64_MAX + 1, 10**20])
def test_the_numbers_of_a_version_are_of_64_bits(number: int) -> None:
    """This applies to each of the three."""
    for version in (f"{number}.0.0", f"0.{number}.0", f"0.0.{number}-alpha"):
        text = MANIFEST.replace("version: 1.0.0", f"version: {version}")
        if number == U64_MAX:
            load_adapter(text)
            continue
        with pytest.raises(AdapterError) as caught:
            load_adapter(text)
        assert caught.value.rule == "ADP-2"


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ("{ type: object }", "Schema missing additionalProperties: false"),
        ("{ type: [object, 'null'] }", "Schema missing additionalProperties: false"),
        ("{ type: object, additionalProperties: true }", "Schema additionalProperties must be false"),
        ("{ type: object, additionalProperties: {} }", "Schema additionalProperties must be false"),
        ("[]", "Schema must be a JSON object"),
        ("true", "Schema must be a JSON object"),
        ("{ type: object, additionalProperties: false, $ref: other.json }", "External $ref is forbidden: other.json"),
        ("{ type: object, additionalProperties: false, $ref: '#/$defs/none' }", "Pointer '/$defs/none' does not exist"),
        ("{ type: object, additionalProperties: false, not: { anyOf: [] } }", "Schema contains banned keyword: anyOf"),
        ("{ type: object, additionalProperties: false, $ref: 3 }", "Schema $ref must be a string"),
        ("{ type: object, additionalProperties: false, properties: { x: { type: string, pattern: '(' } } }", '"(" is not a "regex"'),
    ],
)  # fmt: skip
def test_a_schema_that_the_reference_bans_is_refused(schema: str, complaint: str) -> None:
    """ADP-8, wherever the keyword stands."""
    text = MANIFEST.replace(
        "{ type: object, properties: { x: { type: number } }, additionalProperties: false }", schema
    )
    with pytest.raises(AdapterError) as caught:
        load_adapter(text)
    assert caught.value.message == (
        f"adapter manifest validation failed: Invalid payload schema for event 'tick': {complaint} (ADP-8)"
    )


def test_a_schema_retrieves_nothing_from_outside() -> None:
    """A reference that is none of ``$ref`` reaches no network."""
    schema = "{ type: object, additionalProperties: false, $dynamicRef: 'http://localhost:1/schema' }"
    text = MANIFEST.replace(
        "{ type: object, properties: { x: { type: number } }, additionalProperties: false }", schema
    )
    with pytest.raises(AdapterError) as caught:
        load_adapter(text)
    assert caught.value.rule == "ADP-8"


PIECES = st.sampled_from(
    ["", "~", "[]", "{}", "x", "1", "1.5", "true", "'", "\n", "  ", "- ", ": ", "type: ", "Number", "oneOf: []", "$ref: '#'",
     "properties: { n: { type: number } }", "required: [x, y]", "additionalProperties: true", "writable: true", "é"]
)  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, len(MANIFEST)), st.integers(0, 30), PIECES), min_size=1, max_size=4))
def test_a_mutilated_manifest_is_accepted_or_refused(cuts: list[tuple[int, int, str]]) -> None:
    """No other error is raised."""
    text = MANIFEST
    for at, length, piece in cuts:
        text = text[:at] + piece + text[at + length :]
    with suppress(AdapterError):
        load_adapter(text)
