"""Read YAML as the reference does, and keep the place of each value.

The reference parses with a port of libyaml, PyYAML binds libyaml: both split a text alike. PyYAML's own rules for
scalars are those of YAML 1.1 and are not used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from ergo_capture.adapter.errors import extra_missing, spell_path
from ergo_capture.adapter.shapes import Path, rust_debug
from ergo_capture.kernel.serde.parsing import Pairs
from ergo_capture.kernel.time import U64_MAX

_I64_MIN: Final = -(1 << 63)
_U128_MAX: Final = (1 << 128) - 1
_I128_MIN: Final = -(1 << 127)
_MAX_DEPTH: Final = 128
#: How many times aliases may be followed, for each event of the document.
_REPETITIONS: Final = 100
_CORE: Final = "tag:yaml.org,2002:"
_NULLS: Final = dict.fromkeys(("null", "Null", "NULL", "~"))
_BOOLEANS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
#: Numbers that are not finite, which JSON does not have.
_NOT_NUMBERS: Final = frozenset(
    {".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF", "-.inf", "-.Inf", "-.INF", ".nan", ".NaN", ".NAN"}
)
#: An integer, as Python writes one too.
_INTEGER: Final = re.compile(r"[+-]?(?:0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+|0|[1-9][0-9]*)")
_FLOAT: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)
#: Digits after a zero are a string.
_PADDED: Final = re.compile(r"[+-]?0[0-9]+", re.ASCII)
_BOM: Final = "\ufeff"


class YamlError(ValueError):
    """A text is not YAML that the reference reads; ``line`` and ``column`` from 1, if they are known."""

    def __init__(self, message: str, mark: tuple[int, int] | None = None) -> None:
        super().__init__(f"{message}{_spell(mark)}")
        self.line = None if mark is None else mark[0]
        self.column = None if mark is None else mark[1]


def _spell(mark: tuple[int, int] | None) -> str:
    """Return a position as the reference words it, which leaves out the very beginning."""
    return "" if mark is None or mark == (1, 1) else f" at line {mark[0]} column {mark[1]}"


class Document(msgspec.Struct, frozen=True):
    """A value, and the line and column of each value in it, from 1, by its path."""

    #: Objects as Pairs, sorted by key.
    value: Any
    marks: dict[Path, tuple[int, int]]

    def mark_of(self, path: Path) -> tuple[int, int] | None:
        """Return the place of a value; for a missing one, that of the nearest value around it."""
        while path not in self.marks and path:
            path = path[:-1]
        return self.marks.get(path)


def read_yaml(text: str) -> Document:
    """Return the one document of a text.

    Raises:
        YamlError: malformed, several documents, tags that are not of the core set, an integer beyond 64 bits, more
            than 128 levels, or too many aliases.
        AdapterError: PyYAML is not installed.
    """
    reader = _Reader(text)
    value = reader.read((), _MAX_DEPTH)
    reader.finish()
    return Document(value, reader.marks)


class _Reader:
    """Walks the events of the first document."""

    def __init__(self, text: str) -> None:
        try:
            import yaml  # noqa: PLC0415 - an optional package, and nothing else pays for it
        except ImportError as error:
            raise extra_missing(error) from error
        self._yaml = yaml
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise YamlError("stream did not contain valid UTF-8") from error
        # libyaml drops a byte order mark at the beginning; the reference's build of it reads one as a character.
        dropped = _BOM if text.startswith(_BOM) else ""
        self._before = len(dropped.encode())
        text = dropped + text
        self._rest = iter(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        #: The error that ends the document early; it is raised when the text before it has been read.
        self._error: YamlError | None = None
        self._targets: dict[int, int] = {}
        self._aliases: dict[int, int] = {}
        self._events = list(self._document())
        self._at = self._jumps = 0
        self.marks: dict[Path, tuple[int, int]] = {}

    def _document(self) -> Iterator[Any]:
        """Yield the events of the first document, and note where its aliases lead."""
        yaml = self._yaml
        anchors: dict[str, int] = {}
        count = 0
        try:
            for event in self._rest:
                if isinstance(event, yaml.DocumentEndEvent | yaml.StreamEndEvent):
                    return
                if isinstance(event, yaml.StreamStartEvent | yaml.DocumentStartEvent):
                    continue
                if isinstance(event, yaml.AliasEvent):
                    if event.anchor not in anchors:
                        self._error = YamlError("unknown anchor", _mark(event.start_mark))
                        return
                    self._aliases[count] = anchors[event.anchor]
                elif (anchor := getattr(event, "anchor", None)) is not None:
                    # Number anchors as the reference does: a repeated one may get the number of another.
                    anchors[anchor] = len(anchors)
                    self._targets[anchors[anchor]] = count
                yield event
                count += 1
        except yaml.YAMLError as error:
            self._error = _malformed(error, self._before)

    def finish(self) -> None:
        """Raise YamlError if there is an error after the value, or if another document follows."""
        if self._error is not None:
            raise self._error
        try:
            over = all(isinstance(event, self._yaml.StreamEndEvent) for event in self._rest)
        except self._yaml.YAMLError:
            over = False
        if not over:
            raise YamlError("deserializing from YAML containing more than one document is not supported")

    def read(self, path: Path, depth: int) -> Any:
        """Return the next value, which may have at most ``depth`` levels."""
        if not self._events and self._error is None:
            return None
        event = self._next()
        yaml = self._yaml
        mark = _mark(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            return self._jump(path, depth)
        self.marks[path] = mark
        if event.tag is not None and event.tag.startswith("!"):
            raise _at(path, "invalid type: enum, expected any valid JSON value", mark)
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event.value, event.tag, not event.style, path, mark)
        if depth == 0:
            raise YamlError("recursion limit exceeded", mark)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not self._over(yaml.SequenceEndEvent):
                items.append(self.read((*path, len(items)), depth - 1))
            return items
        fields: dict[str, Any] = {}
        while not self._over(yaml.MappingEndEvent):
            key = self._key(path, "a string" if fields else "a string key")
            fields[key] = self.read((*path, key), depth - 1)
        return Pairs(sorted(fields.items()))

    def _next(self) -> Any:
        if self._at >= len(self._events):
            raise self._error or YamlError("EOF while parsing a value")
        self._at += 1
        return self._events[self._at - 1]

    def _over(self, end: type) -> bool:
        over = isinstance(self._next(), end)
        if not over:
            self._at -= 1
        return over

    def _jump(self, path: Path, depth: int) -> Any:
        back = self._follow()
        value = self.read(path, depth)
        self._at = back
        return value

    def _follow(self) -> int:
        """Go to the anchor of the alias that was just read; return the place to come back to."""
        self._jumps += 1
        if self._jumps > _REPETITIONS * len(self._events):
            raise YamlError("repetition limit exceeded")
        back = self._at
        self._at = self._targets[self._aliases[back - 1]]
        return back

    def _key(self, path: Path, expected: str) -> str:
        event = self._next()
        if isinstance(event, self._yaml.AliasEvent):
            back = self._follow()
            target = self._key(path, expected)
            self._at = back
            return target
        if not isinstance(event, self._yaml.ScalarEvent):
            found = "sequence" if isinstance(event, self._yaml.SequenceStartEvent) else "map"
            raise _at(path, f"invalid type: {found}, expected {expected}", _mark(event.start_mark))
        key: str = event.value
        return key


def _mark(mark: Any) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1


def _at(path: Path, text: str, mark: tuple[int, int]) -> YamlError:
    place = spell_path(path).removeprefix("$").removeprefix(".")
    place = f".{place}" if place.startswith("[") else place
    return YamlError(f"{place}: {text}" if path else text, mark)


def _malformed(error: Any, before: int) -> YamlError:
    """Return libyaml's error in the reference's words; ``before`` is the number of bytes before the text."""
    problem_mark = getattr(error, "problem_mark", None)
    if problem_mark is None:
        # The text has a character that YAML does not allow; the reference leaves out the very beginning here too.
        return YamlError(f"{error.reason} at position {error.position - before}" if error.position else error.reason)
    found = YamlError(error.problem, _mark(problem_mark))
    if error.context is not None:
        mark = None if error.context_mark is None else _mark(error.context_mark)
        found.args = (f"{found}, {error.context}{'' if mark == _mark(problem_mark) else _spell(mark)}",)
    return found


def _scalar(text: str, tag: str | None, is_plain: bool, path: Path, mark: tuple[int, int]) -> Any:
    expected = {"bool": "a boolean", "int": "an integer", "float": "a float", "null": "null"}
    kind = None if tag is None or not tag.startswith(_CORE) else tag.removeprefix(_CORE)
    try:
        if kind == "bool":
            return _BOOLEANS[text]
        if kind == "int":
            return _integer(text)
        if kind == "float":
            return _float(text, padded=True)
        if kind == "null":
            return _NULLS[text]
    except LookupError:
        assert kind is not None
        raise _at(path, f"invalid value: string {rust_debug(text)}, expected {expected[kind]}", mark) from None
    except OverflowError as error:
        raise _at(path, str(error), mark) from error
    if tag is not None or not is_plain:
        return text
    if not text or text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    for read in (_integer, _float):
        try:
            return read(text)
        except LookupError:
            continue
        except OverflowError as error:
            raise _at(path, str(error), mark) from error
    return text


def _integer(text: str) -> int:
    """Return an integer; raise LookupError if the text is not one, OverflowError if JSON cannot hold it."""
    if _INTEGER.fullmatch(text) is None:
        raise LookupError
    try:
        value = int(text, 0)
    except ValueError as error:  # Python refuses to read very long ones, which are beyond 128 bits.
        raise LookupError from error
    if not _I128_MIN <= value <= _U128_MAX:
        raise LookupError
    if not _I64_MIN <= value <= U64_MAX:
        raise OverflowError("JSON number out of range")
    return value


def _float(text: str, *, padded: bool = False) -> float | None:
    """Return a float, or None for infinities and NaN; raise LookupError if the text is not a float."""
    if text in _NOT_NUMBERS:
        return None
    if (_PADDED.fullmatch(text) and not padded) or not _FLOAT.fullmatch(text):
        raise LookupError
    value = float(text)
    if math.isinf(value):
        raise LookupError
    return value
