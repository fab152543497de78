"""Reads a bundle's JSON the way serde's derived deserialisers do.

Owns: which texts are a bundle and which are not, field by field, leniencies included: a struct may be
an array of its fields in order, a unit variant an object holding null, an optional field absent; an
unknown field is refused in the bundle itself and in times, and ignored elsewhere, whatever it holds; a
repeated field is refused.
Not here: the fast path for texts of the common shape (``capture/elements.py``).
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final, NoReturn

from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.effects import ActionEffect, EffectWrite, IntentField, IntentRecord, Value
from ergo_capture.kernel.events import ExternalEventKind
from ergo_capture.kernel.numbers import CERTAINLY_IN_RANGE, in_range
from ergo_capture.kernel.outcomes import Decision, ErrKind, RunTermination
from ergo_capture.kernel.records import (
    CaptureBundle,
    CapturedActionEffect,
    CapturedIntentAck,
    EpisodeInvocationRecord,
    ExternalEventRecord,
)
from ergo_capture.kernel.time import U64_MAX, EventTime

Reader = Callable[[Any, str], Any]
_ABSENT: Final = object()
#: More arrays and objects than are open at once in a bundle without unknown fields.
_DEPTH: Final = 32
_BRACKETS: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)
#: Digits, and a sign, of the longest integer that is read as one.
_MOST_DIGITS: Final = 20


class _Pairs(list[tuple[str, Any]]):
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
        object_pairs_hook=_Pairs,
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


def read_bundle(value: Any) -> CaptureBundle:
    """The bundle that a parsed text holds.

    Raises:
        ValueError: not a bundle; the message names the field by its path.
    """
    bundle: CaptureBundle = _BUNDLE(value, "$")
    return bundle


def read_event(value: Any, path: str = "$") -> ExternalEventRecord:
    """The event record that a parsed text holds; ``path`` is where in its bundle it stands.

    Raises:
        ValueError: not an event record; the message names the field by its path.
    """
    record: ExternalEventRecord = _EVENT(value, path)
    return record


def read_decision(value: Any, path: str = "$") -> EpisodeInvocationRecord:
    """The decision record that a parsed text holds; ``path`` is where in its bundle it stands.

    Raises:
        ValueError: not a decision record; the message names the field by its path.
    """
    record: EpisodeInvocationRecord = _DECISION(value, path)
    return record


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
    return math.copysign(sys.float_info.max if in_range(number) else math.inf, value)


def _refuse(value: Any, expected: str, path: str) -> NoReturn:
    if isinstance(value, str):
        # Why: what is no text cannot stand in a message.
        _string(value, path)
    shown = "an object" if isinstance(value, _Pairs) else "an array" if isinstance(value, list) else f"`{value}`"
    raise ValueError(f"invalid type: {shown}, expected {expected} - at `{path}`")


def _string(value: Any, path: str) -> str:
    if not isinstance(value, str):
        _refuse(value, "a string", path)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"lone surrogate in a string - at `{path}`") from error
    return value


def _unsigned(limit: int, name: str) -> Reader:
    def read(value: Any, path: str) -> int:
        if type(value) is not int:
            _refuse(value, name, path)
        if not 0 <= value <= limit:
            raise ValueError(f"invalid value: integer `{value}`, expected {name} - at `{path}`")
        return value

    return read


def _float(value: Any, path: str) -> float:
    if type(value) not in (int, float):
        _refuse(value, "f64", path)
    number = float(value)
    if math.isinf(number):
        raise ValueError(f"number out of range - at `{path}`")
    return number


def _bool(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        _refuse(value, "a boolean", path)
    return value


def _option(read: Reader) -> Reader:
    return lambda value, path: None if value is None else read(value, path)


def _sequence(read: Reader) -> Reader:
    def read_all(value: Any, path: str) -> list[Any]:
        if not isinstance(value, list) or isinstance(value, _Pairs):
            _refuse(value, "a sequence", path)
        return [read(item, f"{path}[{index}]") for index, item in enumerate(value)]

    return read_all


def _payload(value: Any, path: str) -> bytes:
    if not isinstance(value, list) or isinstance(value, _Pairs):
        _refuse(value, "a sequence", path)
    try:
        if all(type(item) is int for item in value):
            return bytes(value)
    except ValueError:
        pass
    return bytes(_sequence(_unsigned(255, "u8"))(value, path))


def _variant(value: Any, path: str) -> tuple[str, Any]:
    """The name and content of an externally tagged variant; a bare string is a unit variant."""
    if isinstance(value, str):
        return _string(value, path), None
    if isinstance(value, _Pairs) and len(value) == 1:
        ((name, content),) = value
        return _string(name, path), content
    _refuse(value, "an enum", path)


def _unit_enum(cls: type[Enum]) -> Reader:
    def read(value: Any, path: str) -> Enum:
        name, content = _variant(value, path)
        try:
            member = cls(name)
        except ValueError:
            names = ", ".join(f"`{m.value}`" for m in cls)
            raise ValueError(f"unknown variant `{name}`, expected one of {names} - at `{path}`") from None
        if content is not None:
            _refuse(content, "unit", path)
        return member

    return read


_err_kind: Final = _unit_enum(ErrKind)


def _termination(value: Any, path: str) -> RunTermination:
    name, content = _variant(value, path)
    if name == "Failed":
        return RunTermination.Failed(_err_kind(content, f"{path}.Failed"))
    try:
        termination = RunTermination.from_builtins(name)
    except ValueError as error:
        raise ValueError(f"{error} - at `{path}`") from error
    if content is not None:
        _refuse(content, "unit", path)
    return termination


def _value(value: Any, path: str) -> Value:
    name, content = _variant(value, path)
    read = _VALUES.get(name)
    if read is None or isinstance(value, str):
        names = ", ".join(f"`{known}`" for known in _VALUES)
        raise ValueError(f"unknown variant `{name}`, expected one of {names} - at `{path}`")
    content = read(content, f"{path}.{name}")
    fields: dict[str, Any] = {name: tuple(content) if name == "Series" else content}
    return Value(**fields)


def _struct(
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
        if isinstance(value, _Pairs):
            pairs: list[tuple[str, Any]] = value
        elif isinstance(value, list):
            if len(value) > len(names):
                raise ValueError(f"trailing characters after {len(names)} elements - at `{path}`")
            pairs = list(zip(names, value, strict=False))
        else:
            _refuse(value, "a struct", path)
        found: dict[str, Any] = {}
        for name, item in pairs:
            reader = fields.get(name)
            if reader is None:
                # Why here alone: serde reads the names of fields, and skips what an unknown one holds.
                _string(name, path)
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


def _frozen(read: Reader) -> Reader:
    return lambda value, path: tuple(read(value, path))


_U64: Final = _unsigned(U64_MAX, "u64")


def _read_time(value: Any, path: str) -> EventTime:
    try:
        time: EventTime = _TIME_FIELDS(value, path)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if "at `" in text else f"{text} - at `{path}`") from error
    return time


_TIME_FIELDS: Final = _struct(EventTime, {"secs": _U64, "nanos": _unsigned((1 << 32) - 1, "u32")}, deny_unknown=True)
_OPTIONAL_TIME: Final = _option(_read_time)

_CONSTRAINTS: Final = _struct(
    Constraints,
    {
        "max_in_flight": _option(_U64),
        "max_per_window": _option(_U64),
        "rate_window": _OPTIONAL_TIME,
        "deadline": _OPTIONAL_TIME,
        "max_retries": _U64,
    },
    optional=dict.fromkeys(("max_in_flight", "max_per_window", "rate_window", "deadline")),
)

_EVENT: Final = _struct(
    ExternalEventRecord,
    {
        "event_id": _string,
        "event_time": _read_time,
        "kind": _unit_enum(ExternalEventKind),
        "payload": _payload,
        "payload_hash": _string,
    },
)

_VALUES: Final[dict[str, Reader]] = {
    "Number": _float,
    "Series": _sequence(_float),
    "Bool": _bool,
    "String": _string,
}

_EFFECT: Final = _struct(
    ActionEffect,
    {
        "kind": _string,
        "writes": _frozen(_sequence(_struct(EffectWrite, {"key": _string, "value": _value}))),
        "intents": _frozen(
            _sequence(
                _struct(
                    IntentRecord,
                    {
                        "kind": _string,
                        "intent_id": _string,
                        "fields": _frozen(_sequence(_struct(IntentField, {"name": _string, "value": _value}))),
                    },
                )
            )
        ),
    },
    optional={"intents": ()},
)

_ACK: Final = _struct(
    CapturedIntentAck,
    {
        "intent_id": _string,
        "channel": _string,
        "status": _string,
        "acceptance": _string,
        "egress_ref": _option(_string),
    },
    optional={"egress_ref": None},
)

_DECISION: Final = _struct(
    EpisodeInvocationRecord,
    {
        "event_id": _string,
        "decision": _unit_enum(Decision),
        "schedule_at": _OPTIONAL_TIME,
        "episode_id": _U64,
        "deadline": _OPTIONAL_TIME,
        "termination": _option(_termination),
        "retry_count": _U64,
        "effects": _frozen(_sequence(_struct(CapturedActionEffect, {"effect": _EFFECT, "effect_hash": _string}))),
        "intent_acks": _frozen(_sequence(_ACK)),
        "interruption": _option(_string),
    },
    optional={"schedule_at": None, "deadline": None, "termination": None, "intent_acks": (), "interruption": None},
)

_BUNDLE: Final = _struct(
    CaptureBundle,
    {
        "capture_version": _string,
        "graph_id": _string,
        "config": _CONSTRAINTS,
        "events": _sequence(_EVENT),
        "decisions": _sequence(_DECISION),
        "adapter_provenance": _string,
        "runtime_provenance": _string,
        "egress_provenance": _option(_string),
    },
    optional={"egress_provenance": None},
    deny_unknown=True,
)
