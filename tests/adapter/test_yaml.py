"""YAML as the reference reads it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ergo_capture.adapter.shapes import plain
from ergo_capture.adapter.yaml_reader import YamlError, read_yaml


def value_of(text: str) -> Any:
    """Return the value of a text."""
    return plain(read_yaml(text).value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("on", "on"),
        ("2020-01-01", "2020-01-01"),
        ("true", True),
        ("TRUE", True),
        ("tRUE", "tRUE"),
        ("~", None),
        ("Null", None),
        ("nULL", "nULL"),
        ("0x1F", 31),
        ("-0x1F", -31),
        ("0x-1", "0x-1"),
        ("0o17", 15),
        ("0b11", 3),
        ("017", "017"),
        ("-07", "-07"),
        ("1_000", "1_000"),
        ("+3", 3),
        ("+-3", "+-3"),
        ("0", 0),
        ("18446744073709551615", 18446744073709551615),
        ("-9223372036854775808", -9223372036854775808),
        # Beyond 128 bits an integer is read as a float.
        ("340282366920938463463374607431768211456", 3.402823669209385e38),
        ("-170141183460469231731687303715884105729", -1.7014118346046923e38),
        ("1" * 200, float("1" * 200)),
        ("1" * 5000, "1" * 5000),
        ("0b" + "1" * 129, "0b" + "1" * 129),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.5e1", -5.0),
        ("1e400", "1e400"),
        (".", "."),
        (".nan", None),
        ("-.inf", None),
        ("+.INF", None),
        ("+.nan", "+.nan"),
        ("infinity", "infinity"),
        ("0x", "0x"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 5", "5"),
        ("!!int '5'", 5),
        ("!!float 007", 7.0),
        ("!!float 5", 5.0),
        ("!!null '~'", None),
        ("!!bool 'true'", True),
        ("!!binary aGk=", "aGk="),
        ("!!seq [1]", [1]),
    ],
)
def test_a_scalar_is_resolved_by_the_core_schema(text: str, value: Any) -> None:
    """The type counts too: 1 is not 1.0, and not True."""
    found = value_of(text)
    assert found == value
    assert type(found) is type(value)


def test_minus_zero_is_an_integer_and_minus_zero_point_zero_is_not() -> None:
    """``-0`` is read as an integer, unlike in JSON."""
    assert repr(value_of("[-0, -0.0]")) == "[0, -0.0]"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing\n", None),
        ("a: 1\na: 2", {"a": 2}),
        ("1: x\ntrue: y\n~: z", {"1": "x", "true": "y", "~": "z"}),
        ("a: &x { b: 1 }\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("&k a: 1\nb: *k", {"a": 1, "b": "a"}),
        ("a: &k b\n*k : c\nd: e", {"a": "b", "b": "c", "d": "e"}),
        ("x: &m { a: 1 }\ny: { <<: *m, b: 2 }", {"x": {"a": 1}, "y": {"<<": {"a": 1}, "b": 2}}),
        ("a: 1\r\nb: 2\r\n...\r\n", {"a": 1, "b": 2}),
        ("--- \na: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
        # As in the reference, which numbers anchors by how many names there are.
        ("[&a 1, &a 2, &b 3, *a]", [1, 2, 3, 3]),
    ],
)
def test_a_document_is_read(text: str, value: Any) -> None:
    """Keys are strings as they are written; of a repeated one the last value counts; merge keys are keys."""
    assert value_of(text) == value


MORE = "deserializing from YAML containing more than one document is not supported"


@pytest.mark.parametrize(
    ("text", "message", "mark"),
    [
        ("a: 1\n---\nb: 2", MORE, None),
        ("a: 1\n...\nb: [", MORE, None),
        ("\ufeffa: 1\nb: 2", MORE, None),
        ("a:\n\t- 1", "found character that cannot start any token at line 2 column 1, while scanning for the next token", (2, 1)),
        ("! 5", "invalid type: enum, expected any valid JSON value", (1, 1)),
        ("a: !mine 1", "a: invalid type: enum, expected any valid JSON value at line 1 column 4", (1, 4)),
        ("- !mine [1]", ".[0]: invalid type: enum, expected any valid JSON value at line 1 column 3", (1, 3)),
        ("x: {y: [!mine z]}", "x.y[0]: invalid type: enum, expected any valid JSON value at line 1 column 9", (1, 9)),
        ("a: !!bool yes", 'a: invalid value: string "yes", expected a boolean at line 1 column 4', (1, 4)),
        ("a: !!int x", 'a: invalid value: string "x", expected an integer at line 1 column 4', (1, 4)),
        ("a: !!float x", 'a: invalid value: string "x", expected a float at line 1 column 4', (1, 4)),
        ("a: !!null x", 'a: invalid value: string "x", expected null at line 1 column 4', (1, 4)),
        ("18446744073709551616", "JSON number out of range", (1, 1)),
        ("340282366920938463463374607431768211455", "JSON number out of range", (1, 1)),
        ("-170141183460469231731687303715884105728", "JSON number out of range", (1, 1)),
        ("0b" + "1" * 128, "JSON number out of range", (1, 1)),
        ("a: -9223372036854775809", "a: JSON number out of range at line 1 column 4", (1, 4)),
        ("a: !!int 18446744073709551616", "a: JSON number out of range at line 1 column 4", (1, 4)),
        ("[a]: 1", "invalid type: sequence, expected a string key", (1, 1)),
        ("{a: 1, [b]: c}", "invalid type: sequence, expected a string at line 1 column 8", (1, 8)),
        ("a:\n  ? {b: c}\n  : d", "a: invalid type: map, expected a string key at line 2 column 5", (2, 5)),
        ("a: {b: &k [1], *k : c}", "a: invalid type: sequence, expected a string at line 1 column 8", (1, 8)),
        ("a: *nowhere", "unknown anchor at line 1 column 4", (1, 4)),
        ("a: &x [*x]", "recursion limit exceeded at line 1 column 4", (1, 4)),
        ("a: " + "[" * 129 + "]" * 129, "recursion limit exceeded at line 1 column 131", (1, 131)),
        ("a: [b", "did not find expected ',' or ']' at line 2 column 1, while parsing a flow sequence at line 1 column 4", (2, 1)),
        ("'abc", "found unexpected end of stream at line 1 column 5, while scanning a quoted scalar", (1, 5)),
        ("a: b: c", "mapping values are not allowed in this context at line 1 column 5", (1, 5)),
        ("\x01a", "control characters are not allowed", None),
        ("a\x01b", "control characters are not allowed at position 1", None),
        ("\ufeffa\x01b", "control characters are not allowed at position 4", None),
        ("a: \ud800", "stream did not contain valid UTF-8", None),
    ],
)  # fmt: skip
def test_what_the_reference_does_not_read_is_refused(text: str, message: str, mark: tuple[int, int] | None) -> None:
    """The message has libyaml's or serde's words, and the position."""
    with pytest.raises(YamlError) as caught:
        read_yaml(text)
    assert str(caught.value) == message
    assert (caught.value.line, caught.value.column) == (mark or (None, None))


def test_a_text_is_read_without_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML has a parser of its own, whose words are others."""
    monkeypatch.delattr("yaml.CSafeLoader", raising=False)
    assert value_of("a: [1, x]") == {"a": [1, "x"]}
    with pytest.raises(YamlError) as caught:
        read_yaml("a:\n\t- 1")
    where = "at line 2 column 1, while scanning for the next token"
    assert str(caught.value) == f"found character '\\t' that cannot start any token {where}"


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}")])
def test_128_levels_are_read(opening: str, closing: str) -> None:
    """One more is too deep."""
    value_of(opening * 127 + "[]" + closing * 127)
    with pytest.raises(YamlError, match="recursion limit exceeded"):
        value_of(opening * 128 + "[]" + closing * 128)


def test_aliases_that_multiply_are_cut_off() -> None:
    """A billion laughs: so many times as the document has events, and a hundredfold."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(YamlError, match="repetition limit exceeded"):
        read_yaml("\n".join(lines))


@pytest.mark.parametrize(("scalars", "allowed"), [(48, True), (47, False)])
def test_aliases_are_followed_a_hundred_times_for_each_event(scalars: int, allowed: bool) -> None:
    """With 48 scalars there are 503 events; 242 aliases of 206, and the 206 themselves, are followed 50,300 times."""
    text = f"[&a x, &b [{', '.join(['*a'] * 206)}], [{', '.join(['*b'] * 242)}]{', x' * scalars}]"
    if allowed:
        assert value_of(text)[2] == [["x"] * 206] * 242
        return
    with pytest.raises(YamlError, match="repetition limit exceeded"):
        read_yaml(text)


def test_a_value_is_found_by_its_path() -> None:
    """Lines and columns from 1; for what is not there, those of what is around it."""
    document = read_yaml("a:\n  - { b: 1 }\n  - x\n")
    assert document.mark_of(("a", 0, "b")) == (2, 10)
    assert document.mark_of(("a", 1)) == (3, 5)
    assert document.mark_of(("a", 0, "c", "d")) == (2, 5)
    assert document.mark_of(("a", 0, "b", "c")) == (2, 10)
    assert document.mark_of(("b",)) == (1, 1)


SNIPPETS = st.sampled_from(
    [*"abc:-? \n\t[]{},&*!|>'\"%@`#~.01x\ufeff\x00\ud800é", "a: ", "- ", "&a ", "*a", "---\n"],
)


@given(st.lists(SNIPPETS, max_size=30).map("".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No other error is raised."""
    with suppress(YamlError):
        read_yaml(text)
