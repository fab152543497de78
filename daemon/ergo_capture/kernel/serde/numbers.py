"""Find the numbers that the reference refuses as beyond f64.

serde_json does not round correctly: it takes as many of the first digits as fit in a u64, and multiplies by a power of
ten. So near the largest f64, and only there, it refuses some numbers that are within f64, and accepts some that are
not. The reference cannot read a bundle with a payload that it refuses, so this module decides as serde_json does.
"""

from __future__ import annotations

import math
import re
from typing import Final

from ergo_capture.kernel.serde.complaints import OUT_OF_RANGE
from ergo_capture.kernel.serde.tokens import outside_strings

#: Numbers below this are in range for serde_json too: it is a few dozen units in the last place below the largest f64.
CERTAINLY_IN_RANGE: Final = 1.79769313486231e308
_NUMBER: Final = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?)0*([0-9]*))?")
_LARGEST_POWER: Final = 308
_U64_MAX: Final = (1 << 64) - 1
#: How many digits of an exponent are read. With a longer exponent the digits before it make no difference.
_EXPONENT_DIGITS: Final = 10

# A text is reduced for the search to digits (all as 0), e and E (as e), quotes, and what a number can follow (as commas);
# the last two keep apart numbers that only stand near each other.
_REDUCE: Final = bytes(
    48 if 48 <= c <= 57 else ord("e") if c == ord("E") else ord(",") if c in b":[ \t\r\n" else c for c in range(256)
)
_DROP: Final = bytes(set(range(256)) - set(b'0123456789eE",:[ \t\r\n'))
#: A number out of range, so reduced, has an exponent of three digits, or without one this many digits.
LONG_EXPONENT: Final = b"0e000"
MANY_DIGITS: Final = b"0" * 209
#: So begins a number with such an exponent; the digits of hashes and of UUIDs, which follow a quote, have many like it.
_LONG_EXPONENT: Final = re.compile(b",0+e000")
_NUMBERS: Final = outside_strings(rb"(?<![^\s\[,:])-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![^\s,\]}])")


def in_range(number: str) -> bool:
    """Return whether serde_json reads a JSON number; otherwise it says "number out of range"."""
    return abs(float(number)) < CERTAINLY_IN_RANGE or math.isfinite(as_the_reference(number))


def as_the_reference(number: str) -> float:
    """Return the value that serde_json reads a JSON number as; infinity if it refuses the number.

    The digits that a u64 holds are multiplied or divided by one power of ten, which rounds twice.
    """
    match = _NUMBER.fullmatch(number)
    assert match is not None
    minus, whole, fraction, sign, power = match.groups(default="")
    significand, exponent = 0, 0
    for index, digit in enumerate(whole):
        longer = 10 * significand + int(digit)
        if longer > _U64_MAX:
            exponent = len(whole) - index
            break
        significand = longer
    for digit in fraction:
        longer = 10 * significand + int(digit)
        if longer > _U64_MAX:
            break
        significand, exponent = longer, exponent - 1
    exponent += int(sign + (power[:_EXPONENT_DIGITS] or "0"))
    value = float(significand)
    while value and exponent < -_LARGEST_POWER:
        value, exponent = value / 1e308, exponent + _LARGEST_POWER
    if value and exponent > _LARGEST_POWER:
        value = math.inf
    elif value:
        value = value * float(f"1e{exponent}") if exponent >= 0 else value / float(f"1e{-exponent}")
    return -value if minus else value


def may_leave_range(text: bytes) -> bool:
    """Return whether a JSON text may hold a number out of range; False is certain."""
    reduced = text.translate(_REDUCE, _DROP)
    if MANY_DIGITS in reduced:
        return True
    return LONG_EXPONENT in reduced and _LONG_EXPONENT.search(b"," + reduced) is not None


def without_numbers(text: bytes) -> bytes:
    """Return a JSON text with 0 for each of its numbers; malformed numbers are left for the parser to refuse.

    Raises:
        OverflowError: one of them is out of range.
    """
    return _NUMBERS.sub(_zero, text)


def _zero(match: re.Match[bytes]) -> bytes:
    token = match[0]
    if token.startswith(b'"'):
        return token
    if not in_range(token.decode()):
        raise OverflowError(OUT_OF_RANGE)
    return b"0"
