"""Readers: functions from parsed JSON to values, as serde's derived deserialisers work, for any type."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final, NoReturn

from ergo_capture.kernel.serde.complaints import OUT_OF_RANGE, at, in_backticks, invalid_integer, unknown_variant
from ergo_capture.kernel.serde.parsing import Pairs

#: Takes a parsed value and its path (for messages); returns what the value stands for, or raises ValueError.
Reader = Callable[[Any, str], Any]
_ABSENT: Final = object()


def refuse(value: Any, expected: str, path: str) -> NoReturn:
    """Raise the error that something else was expected.

    Raises:
        ValueError: always.
    """
    if isinstance(value, str):
        # A lone surrogate cannot stand in the message.
        string(value, path)
    if isinstance(value, list):
        shown = "an object" if isinstance(value, Pairs) else "an array"
    else:
        shown = f"`{value if isinstance(value, str) else json.dumps(value)}`"
    raise ValueError(at(f"invalid type: {shown}, expected {expected}", path))


def string(value: Any, path: str) -> str:
    """Read Unicode text."""
    if not isinstance(value, str):
        refuse(value, "a string", path)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(at("lone surrogate in a string", path)) from error
    return value


def unsigned(limit: int, name: str) -> Reader:
    """Return a reader of integers from 0 to ``limit``; ``name`` is the type's, for messages."""

    def read(value: Any, path: str) -> int:
        if type(value) is not int:
            refuse(value, name, path)
        if not 0 <= value <= limit:
            raise ValueError(at(invalid_integer(value, name), path))
        return value

    return read


def number(value: Any, path: str) -> float:
    """Read a finite f64."""
    if type(value) not in (int, float):
        refuse(value, "f64", path)
    read = float(value)
    if math.isinf(read):
        raise ValueError(at(OUT_OF_RANGE, path))
    return read


def boolean(value: Any, path: str) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        refuse(value, "a boolean", path)
    return value


def option(read: Reader) -> Reader:
    """Return a reader that reads null as None, and anything else as ``read`` does."""
    return lambda value, path: None if value is None else read(value, path)


def sequence(read: Reader) -> Reader:
    """Return a reader of arrays of what ``read`` reads."""

    def read_all(value: Any, path: str) -> list[Any]:
        if not isinstance(value, list) or isinstance(value, Pairs):
            refuse(value, "a sequence", path)
        return [read(item, f"{path}[{index}]") for index, item in enumerate(value)]

    return read_all


def variant(value: Any, path: str) -> tuple[str, Any]:
    """Return the name and content of an externally tagged variant; a bare string is a unit variant."""
    if isinstance(value, str):
        return string(value, path), None
    if isinstance(value, Pairs) and len(value) == 1:
        ((name, content),) = value
        return string(name, path), content
    refuse(value, "an enum", path)


def unit_enum(cls: type[Enum]) -> Reader:
    """Return a reader of a unit enum: a variant's name, or an object of its name and null."""

    def read(value: Any, path: str) -> Enum:
        name, content = variant(value, path)
        try:
            member = cls(name)
        except ValueError:
            raise ValueError(at(unknown_variant(name, (m.value for m in cls)), path)) from None
        if content is not None:
            refuse(content, "unit", path)
        return member

    return read


def struct(
    build: Callable[..., Any],
    fields: Mapping[str, Reader],
    *,
    optional: Mapping[str, Any] | None = None,
    deny_unknown: bool = False,
) -> Reader:
    """Return a reader of a derived struct: an object with its fields in any order, or an array of them in order.

    ``optional`` gives the fields that may be absent, with their defaults. An array may end before such fields.
    """
    optional = optional or {}
    names = list(fields)

    def read(value: Any, path: str) -> Any:
        if isinstance(value, Pairs):
            pairs: list[tuple[str, Any]] = value
        elif isinstance(value, list):
            if len(value) > len(names):
                raise ValueError(at(f"trailing characters after {len(names)} elements", path))
            pairs = list(zip(names, value, strict=False))
        else:
            refuse(value, "a struct", path)
        found: dict[str, Any] = {}
        for name, item in pairs:
            reader = fields.get(name)
            if reader is None:
                # serde reads the name of an unknown field, and skips its value.
                string(name, path)
                if deny_unknown:
                    message = f"unknown field `{name}`, expected one of {in_backticks(names)}"
                    raise ValueError(at(message, path))
                continue
            if name in found:
                raise ValueError(at(f"duplicate field `{name}`", path))
            found[name] = reader(item, f"{path}.{name}")
        for name in names:
            if name not in found:
                absent = optional.get(name, _ABSENT)
                if absent is _ABSENT:
                    raise ValueError(at(f"missing field `{name}`", path))
                found[name] = absent
        return build(**found)

    return read


def frozen(read: Reader) -> Reader:
    """Return a reader that reads as ``read`` does, and makes a tuple of it."""
    return lambda value, path: tuple(read(value, path))
