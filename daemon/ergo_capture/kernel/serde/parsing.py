"""Parses JSON as far as serde would: strings, numbers, lists, and objects as their fields in order."""

from __future__ import annotations

import json
import math
import re
import sys
from typing import Any, Final, NoReturn

from ergo_capture.kernel.serde.numbers import CERTAINLY_IN_RANGE, STRING, in_range

#: More arrays and objects than are open at once in a bundle without unknown fields.
_DEPTH: Final = 32
_BRACKETS: Final = re.compile(STRING.decode() + r"|[\[\]{}]", re.DOTALL)
#: Digits, and a sign, of the longest integer that is read as one.
_MOST_DIGITS: Final = 20


class Pairs(list[tuple[str, Any]]):
    """A JSON object as its fields in order, repeated ones included."""


def parse(text: str) -> Any:
    """A JSON text as strings, numbers, lists and pairs; what stands deeper than a bundle goes may be lost.

    Raises:
        ValueError: malformed, or a constant or number that JSON does not have.
    """
    try:
        return _loads(text)
    except RecursionError:
        # Why: serde counts no levels in a field that it ignores, and nothing else in a bundle is that deep.
        return _loads(_shallow(text))


def _loads(text: str) -> Any:
    return json.loads(
        text,
        object_pairs_hook=Pairs,
        parse_constant=_refuse_constant,
        parse_int=_parse_int,
        parse_float=_parse_float,
    )


def _shallow(text: str) -> str:
    """A text of the same length with 0 for each array and object that is too deep, once it is known to be one.

    Raises:
        ValueError: such an array or object is malformed, or has no end.
    """
    #: For each container that is open and too deep, where it begins, and its text so far; before them, the rest's.
    opened: list[tuple[int, list[str]]] = [(0, [])]
    depth = at = 0
    for match in _BRACKETS.finditer(text):
        if match[0] in "[{":
            depth += 1
            if depth > _DEPTH:
                opened[-1][1].append(text[at : match.start()])
                at = match.start()
                opened.append((at, []))
        elif match[0] in "]}":
            depth -= 1
            if len(opened) > 1:
                start, parts = opened.pop()
                try:
                    _loads("".join(parts) + text[at : match.end()])
                except json.JSONDecodeError as error:
                    raise json.JSONDecodeError(error.msg, text, start) from error
                at = match.end()
                opened[-1][1].append("0" if len(opened) > 1 else "0".ljust(at - start))
    if len(opened) > 1:
        raise json.JSONDecodeError("Expecting value", text, len(text))
    return "".join(opened[0][1]) + text[at:]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"expected value, got {name}")


def _parse_int(digits: str) -> int | float:
    # Why: serde_json reads -0 as a float, so that it is not an integer anywhere; what no u64 holds is one too.
    return _parse_float(digits) if digits == "-0" or len(digits) > _MOST_DIGITS else int(digits)


def _parse_float(number: str) -> float:
    # Why not refused here: in a field that is ignored, a number may be out of range.
    value = float(number)
    if abs(value) < CERTAINLY_IN_RANGE:
        return value
    return math.copysign(min(abs(value), sys.float_info.max) if in_range(number) else math.inf, value)
