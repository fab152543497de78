"""The numbers that a payload and an effect may hold: next to the largest f64, those that the reference reads."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.kernel.texts import bent, read

from ergo_capture.kernel.effects import ActionEffect, EffectWrite, Value, compute_effect_hash, encode_effect
from ergo_capture.kernel.events import ExternalEventPayloadError, check_payload
from ergo_capture.kernel.serde.numbers import as_the_reference
from ergo_capture.kernel.serde.parsing import parse

#: Numbers in many spellings, and whether the reference reads them. It takes the first nineteen digits or so and
#: multiplies, so that zeros after them make a difference, and some that round to infinity have a value.
NUMBERS = [
    ("1.7976931348623157e308", True),
    ("1.7976931348623157e+308", True),
    ("17976931348623157" + "0" * 292, False),
    ("1.797693134862315700000e308", False),
    ("1.7976931348623158e308", False),
    ("179769313486231579e291", True),
    ("1797693.13486231585e302", True),
    ("179769313486231585" + "0" * 291, False),
    ("1.79769313486231592e308", True),
    ("1.79769313486231600e308", False),
    ("1e0000000000000000308", True),
    ("1e0000000000000000309", False),
    ("0." + "0" * 400 + "1e709", True),
    ("0." + "0" * 400 + "1e710", False),
    ("1" + "0" * 400 + "e-92", True),
    ("1" + "0" * 400 + "e-91", False),
    ("0e99999999999999999999", True),
    ("1e99999999999999999999", False),
    ("1e-99999999999999999999", True),
    ("9" * 5000 + "e-4900", True),
    ("9" * 5000 + "e-4600", False),
    ("9" * 5000, False),
]
numbers = pytest.mark.parametrize(("number", "read_there"), NUMBERS, ids=[f"{n[:24]} {len(n)}" for n, _ in NUMBERS])


def taken(payload: str) -> bool:
    """Return whether the kernel accepts a payload."""
    try:
        check_payload(payload.encode())
    except ExternalEventPayloadError:
        return False
    return True


@numbers
def test_a_payload_may_hold_the_numbers_that_the_reference_reads(number: str, read_there: bool) -> None:
    """Anywhere in it; digits in a string do not count."""
    assert taken(f'{{"a":{number}}}') is read_there
    assert taken(f'{{"a":[-{number} ,"x"],"b":1}}') is read_there
    assert taken(f'{{"{number}":"\\"{number}"}}')


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("18446744073709551615", 18446744073709551615.0),
        ("18446744073709551615e-299", 1.8446744073709551e-280),
        ("18446744073709551616e-299", 1.8446744073709554e-280),
        ("1.8446744073709551615e-287", 1.8446744073709552e-287),
        ("1e308", 1e308),
        ("1e309", math.inf),
        ("1e-320", 1e-320),
        ("-123456789e-330", -1.24e-322),
        ("0.5e-400", 0.0),
        ("0e999", 0.0),
    ],
)
def test_a_number_is_read_with_as_many_digits_as_a_u64_holds(number: str, value: float) -> None:
    """The largest u64 among them; then one power of ten is applied, or two where it is too small for one."""
    assert as_the_reference(number) == value


def test_many_containers_side_by_side_are_not_deep() -> None:
    """127 of them within each other are read, one more is not."""
    assert taken('{"a":[' + "[]," * 200 + "{}]}")
    assert taken('{"a":' + "[" * 126 + "]" * 126 + ',"b":[],"c":{}}')
    assert not taken('{"b":[],"a":' + "[" * 127 + "]" * 127 + "}")
    assert not taken('{"a":' + "[" * 100 + "[]," + "[" * 27 + "]" * 127 + "}")
    assert not taken('{"a":' + '[{"b":' * 64 + "1" + "}]" * 64 + "}")


@numbers
def test_an_effect_may_hold_the_numbers_that_the_reference_reads(tmp_path: Path, number: str, read_there: bool) -> None:
    """Alone and in a series."""
    for old, new in (("1.0", number), ('{"Number":1.0}', f'{{"Series":[1.0,-{number}]}}')):
        assert (read(bent(old, new), tmp_path) is not None) is read_there


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (Value(Number=3), Value(Number=3.0)),
        (Value(Number=-0), Value(Number=0.0)),
        (Value(Number=10**16), Value(Number=1e16)),
        (Value(Number=2**53 + 1), Value(Number=2.0**53)),
        (Value(Series=(1, 2.5)), Value(Series=(1.0, 2.5))),
        (Value(Series=[1.0]), Value(Series=(1.0,))),  # type: ignore[arg-type]  # whoever writes a list means it
    ],
)
def test_an_integer_given_for_a_number_is_a_float(given: Value, meant: Value) -> None:
    """Its text and so its hash are a float's; otherwise a reader of the bundle would compute another hash."""
    ours, theirs = (ActionEffect("k", (EffectWrite("x", value),)) for value in (given, meant))
    assert encode_effect(ours) == encode_effect(theirs)
    assert given == meant
    read = msgspec.json.decode(encode_effect(ours), type=ActionEffect)
    assert read == ours
    assert compute_effect_hash(read) == compute_effect_hash(ours)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 10**400, True, "3", None])
def test_a_value_must_be_a_finite_number(number: Any) -> None:
    """JSON has no text for others, and the reference's runtime fails the episode."""
    with pytest.raises(ValueError, match="expected a finite f64"):
        Value(Number=number)
    with pytest.raises(ValueError, match="expected a finite f64"):
        Value(Series=(1.0, number))


def test_a_number_out_of_range_is_found_in_a_repeated_field() -> None:
    """Only the last value of a repeated field counts, but all of them are read."""
    digits = "9" * 309
    assert not taken(f'{{"a":{digits},"a":{{}}}}')
    assert not taken(f'{{"a":{{"b":[{digits}]}},"a":1}}')
    assert taken('{"a":1,"a":{}}')


@pytest.mark.parametrize(
    "number", ["1e5e999", "01e999", "1.e999", "1e999.5", "--1e309", ".1e309", "1e+-309", "1e309e1"]
)
def test_a_malformed_number_is_refused_however_large_it_looks(number: str) -> None:
    """Only well-formed numbers are replaced before the rest is parsed."""
    assert not taken(f'{{"a":{number}}}')
    assert not taken(f'{{"a":1,{number}:1}}')


@pytest.mark.parametrize("start", ['{"a":' + "[" * 200 + '"', '{"a":1e308,"b":"'])
def test_a_string_without_an_end_is_scanned_once(start: str) -> None:
    """The number of escaped quotes in it does not matter: a quarter of a megabyte once took minutes."""
    began = time.perf_counter()
    assert not taken(start + r"\"" * 120_000)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("number", ["1.79769313486231e308", "-1.79769313486231e+308", "1.7976931348623150e308"])
def test_a_number_just_below_the_largest_is_read_as_itself(number: str) -> None:
    """Values between the cheap bound and the largest f64 were once read as the largest."""
    assert parse(number) == float(number)
