"""Canonical payloads: JSON read as the reference reads it, and written as it writes it.

``reference`` reads numbers with the reference's algorithm, which is sometimes off by one unit in the last place.
``exact`` reads the nearest double. Both write the shortest text of the double.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, Final, Literal, NoReturn

import msgspec

from ergo_capture.kernel.effects import spell_exponents
from ergo_capture.kernel.events import MAX_DEPTH
from ergo_capture.kernel.serde.numbers import as_the_reference
from ergo_capture.kernel.serde.parsing import Pairs
from ergo_capture.kernel.serde.tokens import depth_of
from ergo_capture.kernel.time import U64_MAX

Numbers = Literal["reference", "exact"]

_I64_MIN: Final = -(1 << 63)
#: Every integer of at most this many digits fits in a u64 or an i64.
_SURELY_INTEGER: Final = 18
#: In a number of at most this many characters, without an exponent, significand and power of ten are exact doubles, so
#: that one division rounds correctly. Both ways of reading then give the same value.
_SURELY_EXACT: Final = 16
#: An escaped surrogate; encoding the string shows whether it is half of a pair.
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(text: str | bytes, numbers: Numbers = "reference", *, pairs: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
        text: the text; bytes are UTF-8.
        numbers: how numbers that are not integers of 64 bits are read.
        pairs: whether to return objects as Pairs, with repeated fields, or as dicts, with the last of them.

    Raises:
        ValueError: the text is not JSON, has more than 127 levels, a number beyond f64, or a lone surrogate.
    """
    raw = text.encode() if isinstance(text, str) else text
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and depth_of(raw) > MAX_DEPTH:
        raise ValueError("recursion limit exceeded")
    text = raw.decode() if isinstance(text, bytes) else text
    if text.startswith("\ufeff"):
        raise json.JSONDecodeError("Unexpected UTF-8 BOM (decode using utf-8-sig)", text, 0)
    value = _decoders[numbers, pairs].decode(text)
    if _SURROGATE.search(text) is not None:
        _refuse_lone_surrogates(value)
    return value


def _refuse_lone_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("lone surrogate in a string") from error


def write_json(value: Any) -> bytes:
    """Return the canonical text of a value of dicts, lists, strings and numbers: compact, keys sorted by bytes.

    Raises:
        ValueError: a string holds a lone surrogate.
    """
    return spell_exponents(msgspec.json.encode(value, order="sorted"))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"expected value, got {name}")


def _read_as_reference(number: str) -> float:
    if len(number) <= _SURELY_EXACT and "e" not in number and "E" not in number:
        return float(number)
    return _finite(as_the_reference(number))


def _read_exactly(number: str) -> float:
    return _finite(float(number))


def _finite(value: float) -> float:
    if math.isinf(value):
        raise ValueError("number out of range")
    return value


def _reader_of_integers(read_float: Callable[[str], float]) -> Callable[[str], int | float]:
    def read(digits: str) -> int | float:
        if len(digits) <= _SURELY_INTEGER:
            # -0 is not an integer to the reference.
            return -0.0 if digits == "-0" else int(digits)
        if len(digits) <= len(str(U64_MAX)) and _I64_MIN <= (value := int(digits)) <= U64_MAX:
            return value
        return read_float(digits)

    return read


def _decoder(read_float: Callable[[str], float], *, pairs: bool) -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=Pairs if pairs else None,
        parse_constant=_refuse_constant,
        parse_int=_reader_of_integers(read_float),
        parse_float=read_float,
    )


#: Decoders are made once: ``json.loads`` makes one for each text, a third of the time for a small payload.
_decoders: Final[dict[tuple[Numbers, bool], json.JSONDecoder]] = {
    ("reference", False): _decoder(_read_as_reference, pairs=False),
    ("reference", True): _decoder(_read_as_reference, pairs=True),
    ("exact", False): _decoder(_read_exactly, pairs=False),
    ("exact", True): _decoder(_read_exactly, pairs=True),
}
