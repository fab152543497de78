"""Canonical payloads: numbers read in both ways, and the text that is written."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.shared import conformance

from ergo_capture.adapter.canonical import Numbers, read_json, write_json
from ergo_capture.kernel.events import ExternalEventPayloadError, check_payload
from ergo_capture.kernel.serde.numbers import as_the_reference


def canonical_payload(payload: bytes, numbers: Numbers = "reference") -> bytes:
    """Return a payload in canonical form, as it is made of an event line; no payload stays none."""
    check_payload(payload)
    if not payload:
        return payload
    text = write_json(read_json(payload, numbers))
    # A number next to the largest f64 may be written as one that the reference does not read.
    check_payload(text)
    return text


DIGITS = st.text("0123456789", min_size=1, max_size=24)
NUMBER = st.builds(
    lambda sign, whole, fraction, exponent: (
        sign + (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "") + exponent
    ),
    st.sampled_from(["", "-"]),
    DIGITS,
    st.one_of(st.just(""), DIGITS),
    st.one_of(st.just(""), st.integers(-340, 340).map(lambda n: f"e{n}"), st.integers(0, 20).map(lambda n: f"E+{n}")),
)


@pytest.mark.parametrize(
    ("number", "reference", "exact"),
    [
        ("1.3000000000000003", 1.3000000000000005, 1.3000000000000003),
        ("9.999999999999999", 10.0, 9.999999999999999),
        ("0.014330218068535825", 0.014330218068535823, 0.014330218068535825),
        ("1e-400", 0.0, 0.0),
        ("0.1", 0.1, 0.1),
    ],
)
def test_a_number_is_read_as_the_reference_does_or_exactly(number: str, reference: float, exact: float) -> None:
    """The reference is off by a unit in the last place now and then."""
    assert read_json(number) == reference
    assert read_json(number, "exact") == exact


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("1", "1"),
        ("1.0", "1.0"),
        ("-0", "-0.0"),
        ("18446744073709551615", "18446744073709551615"),
        ("18446744073709551616", "1.8446744073709552e+19"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("-9223372036854775809", "-9.223372036854775e+18"),
        ("1e2", "100.0"),
        ("0.00001", "0.00001"),
        ("1e-6", "1e-6"),
        ("1e15", "1000000000000000.0"),
        ("1e16", "1e+16"),
        ("15e15", "1.5e+16"),
        ("5e-324", "5e-324"),
    ],
)
def test_a_number_is_written_as_the_reference_writes_it(number: str, text: str) -> None:
    """Integers of 64 bits plain, floats shortest, with a point or a signed exponent."""
    if number == "-9223372036854775809":
        # The one that the two ways of reading take for different doubles.
        assert write_json(read_json(number, "exact")) == b"-9.223372036854776e+18"
        return
    assert write_json(read_json(number)).decode() == text
    assert write_json(read_json(number, "exact")).decode() == text


def test_floats_are_written_as_the_reference_wrote_them() -> None:
    """Every float of the conformance data."""
    for line in conformance("floats.jsonl"):
        (value,) = struct.unpack("<d", struct.pack("<Q", line["bits"]))
        if math.isfinite(value):
            assert write_json(value).decode() == line["text"]


def test_strings_are_written_as_the_reference_wrote_them() -> None:
    """Every string of the conformance data."""
    for line in conformance("strings.jsonl"):
        assert write_json(line["value"]).hex() == line["encoded_hex"]


@given(NUMBER)
def test_the_reference_reading_is_the_kernel_algorithm(number: str) -> None:
    """The short cut for short numbers changes nothing."""
    expected = as_the_reference(number)
    if math.isinf(expected):
        with pytest.raises(ValueError, match="out of range"):
            read_json(number)
        return
    found = read_json(number)
    assert float(found) == expected
    assert math.copysign(1, found) == math.copysign(1, expected)


@given(NUMBER)
def test_the_exact_reading_is_the_nearest_double(number: str) -> None:
    """Python reads it so."""
    if math.isinf(float(number)):
        with pytest.raises(ValueError, match="out of range"):
            read_json(number, "exact")
        return
    assert float(read_json(number, "exact")) == float(number)


@given(
    st.dictionaries(st.text(), st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.text(), st.integers()))
)
def test_canonical_text_is_sorted_and_stays_as_it_is(value: dict[str, Any]) -> None:
    """Keys by their UTF-8 bytes; exactly read, the text is a fixed point."""
    try:
        text = write_json(read_json(json.dumps(value), "exact"))
    except ValueError:
        # A number beyond f64.
        return
    assert list(json.loads(text)) == sorted(value, key=str.encode)
    assert write_json(read_json(text, "exact")) == text


@pytest.mark.parametrize("numbers", ["reference", "exact"])
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[1.]", "Expecting"),
        ("[01]", "Expecting"),
        ("[NaN]", "NaN"),
        ("[-Infinity]", "Infinity"),
        ("[1e999]", "^number out of range$"),
        ("[" + "9" * 5000 + "]", "^number out of range$"),
        ('"\\ud800"', "lone surrogate"),
        ('{"\\udc00": 1}', "lone surrogate"),
        ("[" * 128 + "]" * 128, "^recursion limit exceeded$"),
        ('"\n"', "control character"),
        ("", "Expecting"),
        ("\ufeff1", "^Unexpected UTF-8 BOM"),
        ("1 2", "Extra data"),
    ],
)
def test_what_is_no_json_is_refused(text: str, complaint: str, numbers: Numbers) -> None:
    """Strict JSON, as deep as the reference goes, with numbers within f64."""
    with pytest.raises(ValueError, match=complaint):
        read_json(text, numbers)


def test_an_escaped_backslash_before_a_surrogate_is_no_surrogate() -> None:
    """Only what is a lone surrogate after decoding is refused."""
    assert read_json('["\\\\ud800", "\\ud83d\\ude00"]') == ["\\ud800", "\U0001f600"]


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"", b""),
        (b"{}", b"{}"),
        (b' {"b": 2.50, "a": [1, {"z": 1, "y": 1}]} ', b'{"a":[1,{"y":1,"z":1}],"b":2.5}'),
        (b'{"a":1,"a":2}', b'{"a":2}'),
        (b'{"\xef\xbf\xbd":1,"\xf0\x9f\x98\x80":2}', b'{"\xef\xbf\xbd":1,"\xf0\x9f\x98\x80":2}'),
    ],
)
def test_a_payload_is_made_canonical(payload: bytes, text: bytes) -> None:
    """No payload stays none."""
    assert canonical_payload(payload) == text


@pytest.mark.parametrize("payload", [b"[]", b"1", b"{", b"\xff", b'{"a":1e999}'])
def test_a_payload_that_is_no_object_is_refused(payload: bytes) -> None:
    """The error is the kernel's."""
    with pytest.raises(ExternalEventPayloadError):
        canonical_payload(payload)


def test_payloads_are_taken_and_refused_as_the_reference_does() -> None:
    """The conformance data of the kernel, which knows nothing of canonical text."""
    for line in conformance("payloads.jsonl"):
        payload = bytes.fromhex(line["payload_hex"])
        if line["error"] is None:
            canonical_payload(payload)
            continue
        with pytest.raises(ExternalEventPayloadError):
            canonical_payload(payload)


def test_127_levels_are_read() -> None:
    """Other containers beside them do not matter; one level more is too deep."""
    deep = "[" * 126 + "]" * 126
    assert read_json(f"[{deep},[],[]]")[1:] == [[], []]
    with pytest.raises(ValueError, match="recursion limit exceeded"):
        read_json(f"[[{deep}]]")


@pytest.mark.parametrize("number", ["8.683244e-56", "8.683244E-56"])
def test_a_short_number_with_an_exponent_is_rounded_twice(number: str) -> None:
    """The reference does so. A number without an exponent is rounded once."""
    assert read_json(number) == 8.683243999999999e-56
    assert read_json(number, "exact") == 8.683244e-56
