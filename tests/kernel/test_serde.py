"""Texts that are read or refused as bundles, for which serde's derived readers may be surprising.

Each text is read whole and as a stream, with the same result; each result was checked with the reference.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.kernel.texts import OPEN_STRUCTS, TEXT, TIME, bent, read, records

from ergo_capture import decode_bundle
from ergo_capture.bundle.reader.opening import BundleFormatError
from ergo_capture.kernel.serde.parsing import parse


def test_the_unchanged_text_is_a_bundle(tmp_path: Path) -> None:
    """Otherwise the other tests would prove nothing."""
    assert read(TEXT, tmp_path) == TEXT


@pytest.mark.parametrize("place", range(TEXT.count(TIME)))
@pytest.mark.parametrize("extra", ['"x":null', '"":[1,2]', '"nanos ":0'])
def test_a_time_with_an_unknown_field_is_refused(tmp_path: Path, place: int, extra: str) -> None:
    """``Duration`` is not a derived struct: it refuses unknown fields, which derived structs ignore."""
    assert read(bent(TIME, f'{{"secs":1,{extra},"nanos":0}}', place), tmp_path) is None


@pytest.mark.parametrize("struct", OPEN_STRUCTS)
def test_the_name_of_an_ignored_field_must_be_unicode(tmp_path: Path, struct: str) -> None:
    """A lone surrogate in the name is refused; the field's value is not looked at."""
    assert read(bent(struct, struct + r'"\ud800":0,'), tmp_path) is None
    assert read(bent(struct, struct + r'"x":{"\ud800":"\udc00"},'), tmp_path) == TEXT


@pytest.mark.parametrize(
    "termination",
    [
        '{"Failed":"SemanticError","Failed":"SemanticError"}',
        '{"Failed":{"SemanticError":null,"SemanticError":null}}',
        '{"Completed":null,"Completed":null}',
        '{"Completed":[]}',
        '{"Failed":{"SemanticError":[]}}',
        '{"Failed":["SemanticError"]}',
        '{"Failed":null}',
        '"Failed"',
        "{}",
    ],
)
def test_a_termination_is_one_variant_written_once(tmp_path: Path, termination: str) -> None:
    """A repeated variant is refused even if it is the same."""
    assert read(bent('{"Failed":"SemanticError"}', termination), tmp_path) is None


def test_an_error_kind_may_be_an_object_holding_null(tmp_path: Path) -> None:
    """Any variant without content may be written so."""
    assert read(bent('"SemanticError"', '{"SemanticError":null}'), tmp_path) == TEXT


@pytest.mark.parametrize("struct", OPEN_STRUCTS)
@pytest.mark.parametrize(
    "value",
    [
        "[" * 3000 + "]" * 3000,
        '{"a":[' * 3000 + '"[{"' + "]}" * 3000,
        "9" * 5000,
        "-" + "9" * 5000,
        "[1e999,-1e999,-0]",
        '{"a":1,"a":2}',
        r'"\ud800"',
    ],
    ids=["arrays", "objects", "digits", "negative digits", "numbers", "repeated", "surrogate"],
)
def test_an_ignored_field_may_hold_any_json(tmp_path: Path, struct: str, value: str) -> None:
    """Neither its depth nor its size is limited."""
    assert read(bent(struct, f'{struct}"x":{value},'), tmp_path) == TEXT


@pytest.mark.parametrize(
    "value",
    [
        "[" * 3000 + "]" * 2999,
        "[" * 3000 + "1," + "]" * 3000,
        "[" * 3000 + "}" + "]" * 2999,
        "[" * 3000 + "01" + "]" * 3000,
    ],
    ids=["no end", "comma", "bracket", "zero"],
)
def test_an_ignored_field_must_be_json(tmp_path: Path, value: str) -> None:
    """This holds down to the deepest level."""
    text = bent('"config":{', f'"config":{{"x":{value},')
    path = tmp_path / "b.capture.json"
    path.write_text(text)
    with pytest.raises(BundleFormatError):
        decode_bundle(text.encode())
    with pytest.raises(BundleFormatError):
        records(path)


def test_a_fault_after_a_deep_value_is_told_at_its_place() -> None:
    """Levels that are skipped keep their length."""
    deep = '{"a":' + "[" * 3000 + "]" * 3000 + "}"
    with pytest.raises(json.JSONDecodeError) as raised:
        parse(f"[{deep},x]")
    assert (raised.value.msg, raised.value.pos) == ("Expecting value", len(deep) + 2)
    with pytest.raises(json.JSONDecodeError) as raised:
        parse(deep[:-100])
    assert (raised.value.msg, raised.value.pos) == ("Expecting value", len(deep) - 100)
    open_once = "[" * 3033 + "]" * 3000
    with pytest.raises(json.JSONDecodeError) as raised:
        parse(open_once)
    assert (raised.value.msg, raised.value.pos) == ("Expecting value", len(open_once))
    assert parse(f"[{deep},1]")[1] == 1
    assert len(parse(f"[{deep},{deep},{deep}]")) == 3


@pytest.mark.parametrize(
    ("inner", "message"), [("1,", "Expecting value"), ("01", "Expecting ',' delimiter"), ("}", "Expecting value")]
)
def test_a_fault_in_a_deep_value_is_told_at_what_holds_it(inner: str, message: str) -> None:
    """The place is that of the innermost array or object that is read."""
    with pytest.raises(json.JSONDecodeError) as raised:
        parse("[" * 3000 + inner + "]" * 3000)
    assert (raised.value.msg, raised.value.pos) == (message, 2999)


@pytest.mark.parametrize("old", ['"g"', TIME, '"Command"', '"Invoke"', '"SemanticError"', "[]", '{"Number":1.0}'])
def test_a_deep_array_in_place_of_another_value_is_refused(tmp_path: Path, old: str) -> None:
    """Levels that are too deep are not read, and the value is still an array."""
    assert read(bent(old, "[" * 3000 + "]" * 3000), tmp_path) is None


@pytest.mark.parametrize(
    "old", ["null", TIME, '"Command"', '"Invoke"', '{"Failed":"SemanticError"}', "[]", "1.0", "0,"]
)
@pytest.mark.parametrize("new", [r'"\ud800"', r'{"\udfff":null}', r'"a\udcffb"'])
def test_a_lone_surrogate_is_refused_with_a_printable_message(tmp_path: Path, old: str, new: str) -> None:
    """It may replace a value of any type."""
    text = bent(old, new + "," * (old == "0,"))
    assert read(text, tmp_path) is None
    with pytest.raises(BundleFormatError) as raised:
        decode_bundle(text.encode())
    assert str(raised.value).isprintable()
    assert str(raised.value).encode()


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_a_constant_that_json_has_not_is_refused(name: str) -> None:
    """Python's own reader accepts it."""
    with pytest.raises(ValueError, match=f"^expected value, got {name}$"):
        parse(f"[{name}]")


@pytest.mark.parametrize(
    ("text", "value"), [("-0", -0.0), ("0", 0), (str(2**64 - 1), 2**64 - 1), ("9" * 21, 1e21), ("-1", -1)]
)
def test_an_integer_that_no_u64_holds_is_a_float(text: str, value: float) -> None:
    """Minus zero is a float too."""
    assert repr(parse(text)) == repr(value)
