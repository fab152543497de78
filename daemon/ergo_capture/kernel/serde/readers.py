"""Reads parsed JSON the way serde's derived deserialisers do, whatever type they are derived for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final, NoReturn

from ergo_capture.kernel.serde.parsing import Pairs

#: From a parsed value, and its path for the complaint, to what it stands for; ValueError where it is none.
Reader = Callable[[Any, str], Any]
_ABSENT: Final = object()


def refuse(value: Any, expected: str, path: str) -> NoReturn:
    """Say that something else was expected.

    Raises:
        ValueError: always.
    """
    if isinstance(value, str):
        # Why: what is no text cannot stand in a message.
        string(value, path)
    shown = "an object" if isinstance(value, Pairs) else "an array" if isinstance(value, list) else f"`{value}`"
    raise ValueError(f"invalid type: {shown}, expected {expected} - at `{path}`")


def string(value: Any, path: str) -> str:
    """Unicode text (a reader)."""
    if not isinstance(value, str):
        refuse(value, "a string", path)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"lone surrogate in a string - at `{path}`") from error
    return value


def unsigned(limit: int, name: str) -> Reader:
    """Reads integers from 0 to ``limit``; ``name`` is what the type is called."""

    def read(value: Any, path: str) -> int:
        if type(value) is not int:
            refuse(value, name, path)
        if not 0 <= value <= limit:
            raise ValueError(f"invalid value: integer `{value}`, expected {name} - at `{path}`")
        return value

    return read


def number(value: Any, path: str) -> float:
    """A finite f64 (a reader)."""
    if type(value) not in (int, float):
        refuse(value, "f64", path)
    read = float(value)
    if math.isinf(read):
        raise ValueError(f"number out of range - at `{path}`")
    return read


def boolean(value: Any, path: str) -> bool:
    """True or false (a reader)."""
    if not isinstance(value, bool):
        refuse(value, "a boolean", path)
    return value


def option(read: Reader) -> Reader:
    """Reads null as None, and anything else as ``read`` does."""
    return lambda value, path: None if value is None else read(value, path)


def sequence(read: Reader) -> Reader:
    """Reads an array of what ``read`` reads."""

    def read_all(value: Any, path: str) -> list[Any]:
        if not isinstance(value, list) or isinstance(value, Pairs):
            refuse(value, "a sequence", path)
        return [read(item, f"{path}[{index}]") for index, item in enumerate(value)]

    return read_all


def variant(value: Any, path: str) -> tuple[str, Any]:
    """The name and content of an externally tagged variant; a bare string is a unit variant."""
    if isinstance(value, str):
        return string(value, path), None
    if isinstance(value, Pairs) and len(value) == 1:
        ((name, content),) = value
        return string(name, path), content
    refuse(value, "an enum", path)


def unit_enum(cls: type[Enum]) -> Reader:
    """Reads a variant of an enum that holds nothing: its name, or an object of its name and null."""

    def read(value: Any, path: str) -> Enum:
        name, content = variant(value, path)
        try:
            member = cls(name)
        except ValueError:
            names = ", ".join(f"`{m.value}`" for m in cls)
            raise ValueError(f"unknown variant `{name}`, expected one of {names} - at `{path}`") from None
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
    """A derived struct: from an object with its fields in any order, or from an array of them in order.

    ``optional`` are the fields that may be absent, with what then stands in for them. An array may stop
    before the fields serde gives a default, and only before those, so it may be shorter at the end.
    """
    optional = optional or {}
    names = list(fields)

    def read(value: Any, path: str) -> Any:
        if isinstance(value, Pairs):
            pairs: list[tuple[str, Any]] = value
        elif isinstance(value, list):
            if len(value) > len(names):
                raise ValueError(f"trailing characters after {len(names)} elements - at `{path}`")
            pairs = list(zip(names, value, strict=False))
        else:
            refuse(value, "a struct", path)
        found: dict[str, Any] = {}
        for name, item in pairs:
            reader = fields.get(name)
            if reader is None:
                # Why here alone: serde reads the names of fields, and skips what an unknown one holds.
                string(name, path)
                if deny_unknown:
                    known = ", ".join(f"`{n}`" for n in names)
                    raise ValueError(f"unknown field `{name}`, expected one of {known} - at `{path}`")
                continue
            if name in found:
                raise ValueError(f"duplicate field `{name}` - at `{path}`")
            found[name] = reader(item, f"{path}.{name}")
        for name in names:
            if name not in found:
                absent = optional.get(name, _ABSENT)
                if absent is _ABSENT:
                    raise ValueError(f"missing field `{name}` - at `{path}`")
                found[name] = absent
        return build(**found)

    return read


def frozen(read: Reader) -> Reader:
    """Reads as ``read`` does, and makes a tuple of it."""
    return lambda value, path: tuple(read(value, path))
