"""Events from outside the graph, and the check of their payloads."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import cache
from typing import Annotated, Any, Final, Protocol

import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.serde.complaints import TOO_DEEP
from ergo_capture.kernel.serde.numbers import may_leave_range, without_numbers
from ergo_capture.kernel.serde.tokens import depth_of
from ergo_capture.kernel.time import ZERO, EventTime

#: The largest number of nested arrays and objects: serde_json fails at 128.
MAX_DEPTH: Final = 127
#: Arrays and objects open at once in most payloads; the size of the decoder for them doubles with each.
_USUAL_DEPTH: Final = 5
#: A number that stands between payloads.
_BETWEEN: Final = (1 << 63) - 1


class ExternalEventKind(Enum):
    """The kind of an event (``ergo_adapter::ExternalEventKind``); ``Tick`` is read as ``Pump``."""

    Pump = "Pump"
    DataAvailable = "DataAvailable"
    Command = "Command"

    @classmethod
    def _missing_(cls, value: object) -> ExternalEventKind | None:
        return cls.Pump if value == "Tick" else None


class ExternalEventPayloadError(ErgoCaptureError, ValueError):
    """A payload is neither empty nor one JSON object (``ergo_adapter::ExternalEventPayloadError``)."""


class TimeLike(Protocol):
    """A time whose nanoseconds are below one second."""

    @property
    def secs(self) -> int:
        """Return whole seconds."""

    @property
    def nanos(self) -> int:
        """Return the nanoseconds, below one second."""


class EventLike(Protocol):
    """The part of an event that the supervisor reads."""

    @property
    def event_id(self) -> str:
        """Return the event's id, unique in its session."""

    @property
    def kind(self) -> ExternalEventKind:
        """Return the event's kind."""

    @property
    def at(self) -> TimeLike:
        """Return the event's time."""


class ExternalEvent(msgspec.Struct, frozen=True, gc=False):
    """One event from outside (``ergo_adapter::ExternalEvent``).

    Build it with ``mechanical_at`` or ``with_payload``: the constructor checks nothing.
    """

    event_id: str
    kind: ExternalEventKind
    at: EventTime = ZERO
    #: Empty, or the exact bytes of one JSON object.
    payload: bytes = b""
    #: The adapter's name for its meaning, if the sender gives one; engines get it, bundles do not hold it.
    semantic_kind: str | None = None

    @classmethod
    def mechanical(cls, event_id: str, kind: ExternalEventKind) -> ExternalEvent:
        """Return an event at time zero without a payload."""
        return cls.mechanical_at(event_id, kind, ZERO)

    @classmethod
    def mechanical_at(
        cls, event_id: str, kind: ExternalEventKind, at: EventTime, *, semantic_kind: str | None = None
    ) -> ExternalEvent:
        """Return an event without a payload.

        Raises:
            ValueError: ``event_id`` or ``semantic_kind`` holds a lone surrogate, which no UTF-8 text can.
        """
        _check_texts(event_id, semantic_kind)
        return cls(event_id, kind, at, b"", semantic_kind)

    @classmethod
    def with_payload(
        cls,
        event_id: str,
        kind: ExternalEventKind,
        at: EventTime,
        payload: bytes,
        *,
        semantic_kind: str | None = None,
    ) -> ExternalEvent:
        """Return an event with a payload: empty, or one JSON object as UTF-8 bytes, kept exactly as given.

        Raises:
            ExternalEventPayloadError: the payload is refused (``check_payload``).
            ValueError: ``event_id`` or ``semantic_kind`` holds a lone surrogate, which no UTF-8 text can.
        """
        _check_texts(event_id, semantic_kind)
        check_payload(payload)
        return cls(event_id, kind, at, payload, semantic_kind)


def _check_texts(event_id: str, semantic_kind: str | None) -> None:
    event_id.encode()
    if semantic_kind is not None:
        semantic_kind.encode()


def check_payload(payload: bytes) -> None:
    """Check a payload as the reference does: it is empty, or one JSON object (``payload_values``).

    Raises:
        ExternalEventPayloadError: not JSON (malformed, not UTF-8, a lone surrogate, a number that the reference
            finds out of range, more than 127 levels), or not an object; in the reference's words.
    """
    if not payload:
        return
    # Check the depth first: the decoder recurses on the C stack, and the room there depends on its caller.
    if payload.count(b"[") + payload.count(b"{") > MAX_DEPTH and depth_of(payload) > MAX_DEPTH:
        raise _not_json(TOO_DEEP)
    try:
        # Check numbers in the text: of a repeated field, the decoded value holds only the last.
        value = msgspec.json.decode(without_numbers(payload) if may_leave_range(payload) else payload)
    except (ValueError, RecursionError, OverflowError) as error:
        raise _not_json(str(error)) from error
    if not isinstance(value, dict):
        hint = "send an object such as {}, or no payload at all"
        raise ExternalEventPayloadError(f"payload must be a JSON object, got {json_type_name(value)}", hint=hint)


def are_payloads(payloads: Sequence[bytes]) -> bool:
    """Return whether ``check_payload`` accepts every one of many.

    They are first decoded together, which takes an eighth of the time of one call for each: as a list with a number
    between two payloads that no payload may hold. The number of objects alone would not prove that each payload is one:
    ``{"a":"x`` and ``y"}`` are one together, ``{},{}`` are two. But a newline cannot be in a string, a value without a
    key cannot be in an object, and that number cannot be in an array, so each payload begins and ends outside of all
    three. The decoder refuses deep nesting and large numbers; then each payload is checked by itself.
    """
    payloads = [payload for payload in payloads if payload]
    try:
        if bytes([payload[0] for payload in payloads]).count(b"{") == len(payloads):
            found = _objects_decoder().decode(b"[%b]" % (b",\n%d," % _BETWEEN).join(payloads))
            if len(found) == max(0, 2 * len(payloads) - 1):
                return True
    except (ValueError, RecursionError):
        pass
    try:
        for payload in payloads:
            check_payload(payload)
    except ExternalEventPayloadError:
        return False
    return True


@cache
def _objects_decoder() -> msgspec.json.Decoder[list[Any]]:
    """Return the decoder of ``are_payloads``; it takes as long to make as importing a module."""
    value: Any
    integer = Annotated[int, msgspec.Meta(ge=-(1 << 63), lt=_BETWEEN)]
    # Beyond that, serde_json may find a number out of range.
    real = Annotated[float, msgspec.Meta(ge=-1e308, le=1e308)]
    value = scalar = None | bool | str | integer | real
    for _ in range(_USUAL_DEPTH - 1):
        value = scalar | list[value] | dict[str, value]
    return msgspec.json.Decoder(list[dict[str, value] | Annotated[int, msgspec.Meta(ge=_BETWEEN)]])


def json_type_name(value: Any) -> str:
    """Return JSON's name for the type of a decoded value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    names: dict[type, str] = {dict: "object", list: "array", str: "string"}
    return names.get(type(value), "number")


def _not_json(detail: str) -> ExternalEventPayloadError:
    return ExternalEventPayloadError(
        f"payload bytes are not valid JSON: {detail}", hint="send one JSON object in UTF-8, or no payload at all"
    )
