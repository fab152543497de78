"""Readers of JSON values: what each takes, and what it says of anything else, in serde's words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ergo_capture import EventTime
from ergo_capture.adapter.canonical import read_json
from ergo_capture.adapter.shapes import (
    Path,
    Reader,
    ShapeError,
    anything,
    boolean,
    duration,
    option,
    rust_debug,
    sequence,
    string,
    struct,
    tagged,
    unit,
    unsigned,
    variant,
)


# Made for each test: what makes readers is tested too.
def readers() -> dict[str, Reader]:
    """Return readers by name."""
    fields: dict[str, Reader] = {"x": unsigned(255, "u8"), "y": option(string)}
    kinds: dict[str, Reader] = {
        "on": struct("On", dict, {"x": boolean}),
        "off": unit,
    }
    return {
        "point": struct("Point", dict, fields, optional=frozenset({"y"})),
        "open": struct("Open", dict, fields, defaulted=frozenset({"y"})),
        "one": struct("One", dict, {"x": string}, deny_unknown=True),
        "two": struct("Two", dict, fields, deny_unknown=True),
        "three": struct("Three", dict, fields | {"z": string}, deny_unknown=True),
        "sequence": sequence(boolean),
        "variant": variant({"A": 1, "B": 2}),
        "duration": duration,
        "tagged": lambda value, _path: tagged("Switch", "t", kinds, value),
        "anything": anything,
    }


@pytest.mark.parametrize(
    ("reader", "text", "value"),
    [
        ("point", '{"x":1}', {"x": 1, "y": None}),
        ("point", '{"y":"a","z":[],"x":255}', {"x": 255, "y": "a"}),
        ("point", "[0,null]", {"x": 0, "y": None}),
        ("open", "[0]", {"x": 0, "y": None}),
        ("open", '{"x":0}', {"x": 0, "y": None}),
        ("two", '{"x":1,"y":null}', {"x": 1, "y": None}),
        ("sequence", "[true,false]", (True, False)),
        ("sequence", "[]", ()),
        ("variant", '"A"', 1),
        ("variant", '{"B":null}', 2),
        ("variant", '{"B":{}}', 2),
        ("duration", '{"nanos":2,"secs":1}', EventTime(1, 2)),
        ("duration", "[1,1000000000]", EventTime(2, 0)),
        ("tagged", '{"x":true,"t":"on"}', ("on", {"x": True})),
        ("tagged", '["on",true]', ("on", {"x": True})),
        ("tagged", '{"t":"off","x":1}', ("off", None)),
        ("tagged", '["off"]', ("off", None)),
        ("anything", '{"a":[{"b":1,"b":2}],"c":null}', {"a": [{"b": 2}], "c": None}),
    ],
)
def test_a_value_is_read(reader: str, text: str, value: Any) -> None:
    """A struct may be an array of its fields in order, and a variant an object holding nothing."""
    assert readers()[reader](read_json(text, pairs=True), ()) == value


@pytest.mark.parametrize(
    ("reader", "text", "message", "path"),
    [
        ("point", "[1]", "invalid length 1, expected struct Point with 2 elements", ()),
        ("point", '[1,"a",3]', "invalid length 3, expected fewer elements in array", ()),
        ("point", '{"x":1,"x":2}', "duplicate field `x`", ("x",)),
        ("point", '{"y":"a"}', "missing field `x`", ()),
        ("two", '{"x":1}', "missing field `y`", ()),
        ("point", '{"x":256}', "invalid value: integer `256`, expected u8", ("x",)),
        ("point", '{"x":-1}', "invalid value: integer `-1`, expected u8", ("x",)),
        ("point", '{"x":true}', "invalid type: boolean `true`, expected u8", ("x",)),
        ("point", '{"x":1.5}', "invalid type: floating point `1.5`, expected u8", ("x",)),
        ("point", '{"x":null}', "invalid type: null, expected u8", ("x",)),
        ("point", '{"x":"a"}', 'invalid type: string "a", expected u8', ("x",)),
        ("point", '{"x":{}}', "invalid type: map, expected u8", ("x",)),
        ("point", '{"x":[]}', "invalid type: sequence, expected u8", ("x",)),
        ("point", '{"x":1,"y":2}', "invalid type: integer `2`, expected a string", ("y",)),
        ("point", "[1,2]", "invalid type: integer `2`, expected a string", (1,)),
        ("point", "true", "invalid type: boolean `true`, expected struct Point", ()),
        ("open", "[]", "invalid length 0, expected struct Open with 2 elements", ()),
        ("one", "[]", "invalid length 0, expected struct One with 1 element", ()),
        ("one", '{"z":1}', "unknown field `z`, expected `x`", ("z",)),
        ("two", '{"z":1}', "unknown field `z`, expected `x` or `y`", ("z",)),
        ("three", '{"a":1}', "unknown field `a`, expected one of `x`, `y`, `z`", ("a",)),
        ("sequence", "[true,1]", "invalid type: integer `1`, expected a boolean", (1,)),
        ("sequence", "{}", "invalid type: map, expected a sequence", ()),
        ("sequence", "1", "invalid type: integer `1`, expected a sequence", ()),
        ("variant", '"C"', "unknown variant `C`, expected `A` or `B`", ()),
        ("variant", '{"C":null}', "unknown variant `C`, expected `A` or `B`", ()),
        ("variant", '{"A":1}', "invalid type: integer `1`, expected unit", ()),
        ("variant", '{"A":{"x":1}}', "invalid type: map, expected unit", ()),
        ("variant", "{}", "invalid value: map, expected map with a single key", ()),
        ("variant", '{"A":null,"B":null}', "invalid value: map, expected map with a single key", ()),
        ("variant", "1", "invalid type: integer `1`, expected string or map", ()),
        ("duration", '{"secs":1}', "missing field `nanos`", ()),
        ("duration", "[1]", "invalid length 1, expected struct Duration", ()),
        ("duration", '{"secs":1,"nanos":0,"x":1}', "unknown field `x`, expected `secs` or `nanos`", ("x",)),
        ("duration", '{"secs":0,"nanos":4294967296}', "invalid value: integer `4294967296`, expected u32", ("nanos",)),
        ("duration", "[18446744073709551615,1000000000]", "overflow deserializing Duration", ()),
        ("tagged", '{"t":"on","t":"on"}', "duplicate field `t`", ("t",)),
        ("tagged", "{}", "missing field `t`", ()),
        ("tagged", "[]", "missing field `t`", ()),
        ("tagged", '{"t":1}', "invalid type: integer `1`, expected variant identifier", ("t",)),
        ("tagged", '{"t":"dim"}', "unknown variant `dim`, expected `on` or `off`", ("t",)),
        ("tagged", '"on"', 'invalid type: string "on", expected internally tagged enum Switch', ()),
        ("tagged", '["off",1]', "invalid length 1, expected 0 elements in sequence", ()),
    ],
)  # fmt: skip
def test_another_value_is_refused_with_its_path(reader: str, text: str, message: str, path: Path) -> None:
    """The first offence in the order of the text."""
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$") as raised:
        readers()[reader](read_json(text, pairs=True), ())
    assert raised.value.path == path


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("aé", '"aé"'),
        ('"\\', '"\\"\\\\"'),
        ("\n\r\t\0", '"\\n\\r\\t\\0"'),
        ("\x1b\x7f", '"\\u{1b}\\u{7f}"'),
    ],
)
def test_a_string_is_quoted_as_rust_does(text: str, quoted: str) -> None:
    """Printable characters stay, others are escaped."""
    assert rust_debug(text) == quoted
