"""Events from outside, and what their payloads may be."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any, Final, Protocol

import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.serde.numbers import STRING, may_leave_range, without_numbers
from ergo_capture.kernel.time import ZERO, EventTime

#: serde_json gives up at 128 nested arrays and objects.
MAX_DEPTH: Final = 127


class ExternalEventKind(Enum):
    """What kind of event this is (``ergo_adapter::ExternalEventKind``); ``Tick`` is read as ``Pump``."""

    Pump = "Pump"
    DataAvailable = "DataAvailable"
    Command = "Command"

    @classmethod
    def _missing_(cls, value: object) -> ExternalEventKind | None:
        return cls.Pump if value == "Tick" else None


class ExternalEventPayloadError(ErgoCaptureError, ValueError):
    """A payload is neither empty nor one JSON object (``ergo_adapter::ExternalEventPayloadError``)."""


class TimeLike(Protocol):
    """Anything with the two fields of a time, already normalised."""

    @property
    def secs(self) -> int:
        """Whole seconds."""

    @property
    def nanos(self) -> int:
        """Nanoseconds below one second."""


class EventLike(Protocol):
    """What the supervisor looks at in an event, and nothing else."""

    @property
    def event_id(self) -> str:
        """The event's name, unique in its session."""

    @property
    def kind(self) -> ExternalEventKind:
        """Pump, DataAvailable or Command."""

    @property
    def at(self) -> TimeLike:
        """The event's time."""


class ExternalEvent(msgspec.Struct, frozen=True, gc=False):
    """One event from outside (``ergo_adapter::ExternalEvent``).

    Build it with ``mechanical_at`` or ``with_payload``: the bare constructor checks nothing.
    """

    event_id: str
    kind: ExternalEventKind
    at: EventTime = ZERO
    #: Empty, or the exact bytes of one JSON object.
    payload: bytes = b""

    @classmethod
    def mechanical(cls, event_id: str, kind: ExternalEventKind) -> ExternalEvent:
        """An event at time zero without a payload."""
        return cls.mechanical_at(event_id, kind, ZERO)

    @classmethod
    def mechanical_at(cls, event_id: str, kind: ExternalEventKind, at: EventTime) -> ExternalEvent:
        """An event without a payload.

        Raises:
            ValueError: ``event_id`` holds a lone surrogate, which no UTF-8 text can.
        """
        event_id.encode()
        return cls(event_id, kind, at, b"")

    @classmethod
    def with_payload(cls, event_id: str, kind: ExternalEventKind, at: EventTime, payload: bytes) -> ExternalEvent:
        """An event with a payload: empty, or one JSON object as UTF-8 bytes, kept exactly as given.

        Raises:
            ExternalEventPayloadError: the payload is refused (``check_payload``).
            ValueError: ``event_id`` holds a lone surrogate, which no UTF-8 text can.
        """
        event_id.encode()
        check_payload(payload)
        return cls(event_id, kind, at, payload)


def check_payload(payload: bytes) -> None:
    """Accept what the reference accepts: nothing, or one JSON object (``payload_values``).

    Raises:
        ExternalEventPayloadError: not JSON (malformed, not UTF-8, a lone surrogate, a number beyond
            f64 as the reference reads it, more than 127 levels) or not an object; both worded as the reference words them.
    """
    if not payload:
        return
    # Why before decoding: the decoder recurses on the C stack, as deep as the caller left room for.
    if payload.count(b"[") + payload.count(b"{") > MAX_DEPTH and depth_of(payload) > MAX_DEPTH:
        raise _not_json("recursion limit exceeded")
    try:
        # Why the text: of a field that is repeated, only the last value is left once it is decoded.
        value = msgspec.json.decode(without_numbers(payload) if may_leave_range(payload) else payload)
    except (ValueError, RecursionError, OverflowError) as error:
        raise _not_json(str(error)) from error
    if not isinstance(value, dict):
        hint = "send an object such as {}, or no payload at all"
        raise ExternalEventPayloadError(f"payload must be a JSON object, got {json_type_name(value)}", hint=hint)


def json_type_name(value: Any) -> str:
    """JSON's own word for the type of a decoded value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    names: dict[type, str] = {dict: "object", list: "array", str: "string"}
    return names.get(type(value), "number")


_STRINGS: Final = re.compile(STRING, re.DOTALL)
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def depth_of(text: bytes) -> int:
    """How many arrays and objects are open at once, at most, in a JSON text."""
    deepest = depth = 0
    for bracket in _STRINGS.sub(b"", text).translate(None, _NOT_BRACKETS):
        if bracket in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


def _not_json(detail: str) -> ExternalEventPayloadError:
    return ExternalEventPayloadError(
        f"payload bytes are not valid JSON: {detail}", hint="send one JSON object in UTF-8, or no payload at all"
    )
