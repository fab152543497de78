"""Parse JSON into strings, numbers, lists, and objects as their fields in order, as serde sees them."""

from __future__ import annotations

import json
import math
import re
import sys
from typing import Any, Final, NoReturn

from ergo_capture.kernel.serde.numbers import CERTAINLY_IN_RANGE, in_range
from ergo_capture.kernel.serde.tokens import STRING

#: More arrays and objects than are open at once in a bundle without unknown fields.
_DEPTH: Final = 32
_BRACKETS: Final = re.compile(STRING.decode() + r"|[\[\]{}]", re.DOTALL)
#: Characters of the longest integer that is read as one: the digits of a u64, or fewer and a sign.
_MOST_DIGITS: Final = 20


class Pairs(list[tuple[str, Any]]):
    """A JSON object as its fields in order, repeated ones included."""


def parse(text: str) -> Any:
    """Return a JSON text as strings, numbers, lists and pairs; values nested deeper than in any bundle may be lost.

    Raises:
        ValueError: malformed, or a constant or number that JSON does not have.
    """
    try:
        return _loads(text)
    except RecursionError:
        # Only a field that serde ignores can be that deep in a bundle, and there serde does not count levels.
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
    """Return a text of the same length with 0 for each array and object that is too deep, after parsing it.

    Raises:
        ValueError: such an array or object is malformed, or has no end.
    """
    # For each open container that is too deep: where it begins, and its text so far. The first entry is the rest.
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
    # serde_json reads -0 as a float, so that it is not an integer anywhere. Integers above u64 also become floats.
    return _parse_float(digits) if digits == "-0" or len(digits) > _MOST_DIGITS else int(digits)


def _parse_float(number: str) -> float:
    # Not refused here: a number may be out of range in a field that is ignored.
    value = float(number)
    if abs(value) < CERTAINLY_IN_RANGE:
        return value
    return math.copysign(min(abs(value), sys.float_info.max) if in_range(number) else math.inf, value)
