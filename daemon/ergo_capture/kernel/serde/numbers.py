"""Which numbers the reference can read: those that serde_json finds within f64.

serde_json does not round correctly: it takes the first digits, as many as a u64 holds, and multiplies by a power of
ten. So next to the largest f64, and only there, it refuses some numbers that have one, and takes some that have
none. A payload that the reference cannot read spoils the whole bundle for it, so its answer is the one that counts.
"""

from __future__ import annotations

import math
import re
from typing import Final

from ergo_capture.kernel.time import U64_MAX

#: Far enough below the largest f64, by a few dozen units in the last place, to be certain.
CERTAINLY_IN_RANGE: Final = 1.79769313486231e308
_NUMBER: Final = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?)0*([0-9]*))?")
_LARGEST_POWER: Final = 308
#: An exponent that begins with so many digits is beyond any that a text has digits to make up for.
_EXPONENT_DIGITS: Final = 10

# What is left of a text for the search: digits (all as 0), e and E (as e), quotes and commas, which keep numbers
# apart that only stand near each other.
_REDUCE: Final = bytes(48 if 48 <= c <= 57 else ord("e") if c == ord("E") else c for c in range(256))
_DROP: Final = bytes(set(range(256)) - set(b'0123456789eE",'))
#: What a number has, so reduced, that leaves f64: an exponent of three digits, or without one this many digits.
LONG_EXPONENT: Final = b"0e000"
MANY_DIGITS: Final = b"0" * 209
#: A pattern of strings (with DOTALL), of one without an end too: it would be looked for again from each quote in it.
STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?'
_TOKENS: Final = re.compile(
    STRING + rb"|(?<![^\s\[,:])-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![^\s,\]}])",
    re.DOTALL,
)


def in_range(number: str) -> bool:
    """Whether serde_json reads a JSON number; else it says "number out of range"."""
    return abs(float(number)) < CERTAINLY_IN_RANGE or math.isfinite(as_the_reference(number))


def as_the_reference(number: str) -> float:
    """What serde_json reads a JSON number as; infinity where it refuses it.

    The digits that a u64 holds are multiplied or divided by one power of ten, which rounds twice.
    """
    match = _NUMBER.fullmatch(number)
    assert match is not None
    minus, whole, fraction, sign, power = match.groups(default="")
    significand, exponent = 0, 0
    for index, digit in enumerate(whole):
        longer = 10 * significand + int(digit)
        if longer > U64_MAX:
            exponent = len(whole) - index
            break
        significand = longer
    for digit in fraction:
        longer = 10 * significand + int(digit)
        if longer > U64_MAX:
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
    """Whether a JSON text may hold a number out of range; False is certain."""
    reduced = text.translate(_REDUCE, _DROP)
    return LONG_EXPONENT in reduced or MANY_DIGITS in reduced


def without_numbers(text: bytes) -> bytes:
    """A JSON text with 0 for each of its numbers; what is no number is left for the parser to refuse.

    Raises:
        OverflowError: one of them is out of range.
    """
    return _TOKENS.sub(_zero, text)


def _zero(match: re.Match[bytes]) -> bytes:
    token = match[0]
    if token.startswith(b'"'):
        return token
    if not in_range(token.decode()):
        raise OverflowError("number out of range")
    return b"0"
