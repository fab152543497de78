"""Reads JSON values as the reference's derived deserialisers do, in their words.

A value is what ``json`` makes of JSON, with objects as Pairs. Manifests give their fields sorted, because the reference
reads them from a sorted map; frames give them in the order of the text. The first offence in that order is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from ergo_capture.kernel.serde.parsing import Pairs
from ergo_capture.kernel.time import U64_MAX, EventTime

Path = tuple[str | int, ...]
Reader = Callable[[Any, Path], Any]

_U32_MAX: Final = (1 << 32) - 1
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\0"}


class ShapeError(ValueError):
    """A value is not of the expected type; ``path`` is its place."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


def rust_debug(text: str) -> str:
    """Return a string as the reference quotes it in its messages."""
    return '"' + "".join(_ESCAPES.get(c) or (c if c.isprintable() else f"\\u{{{ord(c):x}}}") for c in text) + '"'


def described(value: Any) -> str:
    """Return serde's words for a value that was not expected."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, str):
        return f"string {rust_debug(value)}"
    if isinstance(value, int):
        return f"integer `{value}`"
    if isinstance(value, float):
        return f"floating point `{value}`"
    return "map" if isinstance(value, Pairs) else "sequence"


def refuse(value: Any, expected: str, path: Path) -> NoReturn:
    """Raise ShapeError for a value of another type than ``expected``."""
    raise ShapeError(f"invalid type: {described(value)}, expected {expected}", path)


def plain(value: Any) -> Any:
    """Return a value with dicts for its objects; of a repeated key the last value counts."""
    if isinstance(value, Pairs):
        return {key: plain(item) for key, item in value}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def anything(value: Any, path: Path) -> Any:
    """Read any value (a reader)."""
    del path
    return plain(value)


def string(value: Any, path: Path) -> str:
    """Read a string (a reader)."""
    if not isinstance(value, str):
        refuse(value, "a string", path)
    return value


def boolean(value: Any, path: Path) -> bool:
    """Read true or false (a reader)."""
    if not isinstance(value, bool):
        refuse(value, "a boolean", path)
    return value


def unsigned(limit: int, name: str) -> Reader:
    """Return a reader of integers from 0 to ``limit``; ``name`` is what the type is called."""

    def read(value: Any, path: Path) -> int:
        if type(value) is not int:
            refuse(value, name, path)
        if not 0 <= value <= limit:
            raise ShapeError(f"invalid value: integer `{value}`, expected {name}", path)
        return value

    return read


def option(read: Reader) -> Reader:
    """Return a reader that takes null for None."""
    return lambda value, path: None if value is None else read(value, path)


def sequence(read: Reader) -> Reader:
    """Return a reader of arrays, as tuples."""

    def read_all(value: Any, path: Path) -> tuple[Any, ...]:
        if not isinstance(value, list) or isinstance(value, Pairs):
            refuse(value, "a sequence", path)
        return tuple(read(item, (*path, index)) for index, item in enumerate(value))

    return read_all


def variant(names: Mapping[str, Any]) -> Reader:
    """Return a reader of variants that hold nothing: a name, or an object of the name and null."""
    known = list(names)

    def read(value: Any, path: Path) -> Any:
        name, content = value, None
        if isinstance(value, Pairs):
            if len(value) != 1:
                raise ShapeError("invalid value: map, expected map with a single key", path)
            ((name, content),) = value
        if not isinstance(name, str):
            refuse(name, "string or map", path)
        if name not in names:
            raise unknown_variant(name, known, path)
        if content is not None and not (isinstance(content, Pairs) and not content):
            refuse(content, "unit", path)
        return names[name]

    return read


def unknown_variant(name: str, known: list[str], path: Path) -> ShapeError:
    """Return the error for a name that an enum has not."""
    return ShapeError(f"unknown variant `{name}`, expected {_listed(known)}", path)


def _listed(names: list[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return " or ".join(quoted) if len(quoted) <= 2 else f"one of {', '.join(quoted)}"


def struct(
    name: str,
    build: Callable[..., Any],
    fields: Mapping[str, Reader],
    *,
    optional: frozenset[str] = frozenset(),
    defaulted: frozenset[str] = frozenset(),
    deny_unknown: bool = False,
) -> Reader:
    """Return a reader of a struct: an object with its fields in any order, or an array of all of them in order.

    Args:
        name: the reference's name of the struct.
        build: takes the fields by their names; a trailing underscore is added to those that Python reserves.
        fields: a reader for each field, in order of declaration.
        optional: the fields that an object may leave out, but not an array; they are then None.
        defaulted: the fields that may also be missing at the end of an array.
        deny_unknown: refuse other fields instead of ignoring them.
    """
    names = list(fields)
    # Duration has no derived deserializer, and its message is shorter.
    counted = "" if name == "Duration" else f" with {len(names)} element{'s' if len(names) > 1 else ''}"
    expected = f"struct {name}{counted}"

    def from_array(value: list[Any], path: Path) -> dict[str, Any]:
        found: dict[str, Any] = dict.fromkeys(names)
        for index, (field, item) in enumerate(zip(names, value, strict=False)):
            found[field] = fields[field](item, (*path, index))
        if any(field not in defaulted for field in names[len(value) :]):
            raise ShapeError(f"invalid length {len(value)}, expected {expected}", path)
        if len(value) > len(names):
            raise ShapeError(f"invalid length {len(value)}, expected fewer elements in array", path)
        return found

    def from_object(value: Pairs, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field, item in value:
            read = fields.get(field)
            if read is None:
                if deny_unknown:
                    raise ShapeError(f"unknown field `{field}`, expected {_listed(names)}", (*path, field))
                continue
            if field in found:
                raise ShapeError(f"duplicate field `{field}`", (*path, field))
            found[field] = read(item, (*path, field))
        for field in names:
            if field not in found:
                if field not in optional and field not in defaulted:
                    raise ShapeError(f"missing field `{field}`", path)
                found[field] = None
        return found

    def read(value: Any, path: Path) -> Any:
        if isinstance(value, Pairs):
            return build(**from_object(value, path))
        if isinstance(value, list):
            return build(**from_array(value, path))
        refuse(value, f"struct {name}", path)

    return read


_DURATION: Final = struct(
    "Duration",
    dict,
    {"secs": unsigned(U64_MAX, "u64"), "nanos": unsigned(_U32_MAX, "u32")},
    deny_unknown=True,
)


def duration(value: Any, path: Path) -> EventTime:
    """Read a time: ``{"secs": S, "nanos": N}`` or ``[S, N]`` (a reader)."""
    fields = _DURATION(value, path)
    try:
        return EventTime(**fields)
    except ValueError as error:
        raise ShapeError(str(error), path) from error


def tagged(name: str, tag: str, variants: Mapping[str, Reader], value: Any) -> tuple[str, Any]:
    """Read an internally tagged enum: an object with a tag among its fields, or an array that begins with it.

    Returns:
        The tag, and what the variant's reader made of the rest.
    """
    if isinstance(value, Pairs):
        tags = [item for field, item in value if field == tag]
        if len(tags) > 1:
            raise ShapeError(f"duplicate field `{tag}`", (tag,))
        rest: Any = Pairs((field, item) for field, item in value if field != tag)
    elif isinstance(value, list):
        tags, rest = value[:1], value[1:]
    else:
        refuse(value, f"internally tagged enum {name}", ())
    if not tags:
        raise ShapeError(f"missing field `{tag}`", ())
    if not isinstance(tags[0], str):
        refuse(tags[0], "variant identifier", (tag,))
    read = variants.get(tags[0])
    if read is None:
        raise unknown_variant(tags[0], list(variants), (tag,))
    return tags[0], read(rest, ())


def unit(value: Any, path: Path) -> None:
    """Read the rest of a tagged variant that holds nothing (a reader); further fields of an object are ignored."""
    if value and not isinstance(value, Pairs):
        raise ShapeError(f"invalid length {len(value)}, expected 0 elements in sequence", path)
