"""Events as drivers and clients send them, before they are bound to an adapter."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ergo_capture.adapter.canonical import Numbers, read_json, write_json
from ergo_capture.adapter.errors import INVALID_EVENT, SCHEMA_VIOLATION, AdapterError, spell_path
from ergo_capture.adapter.shapes import (
    ShapeError,
    anything,
    duration,
    option,
    string,
    struct,
    tagged,
    unit,
    variant,
)
from ergo_capture.kernel.events import ExternalEvent, ExternalEventKind
from ergo_capture.kernel.time import ZERO, EventTime

DRIVER_PROTOCOL: Final = "ergo-driver.v0"
#: The names of event kinds; ``Tick`` is an old one of ``Pump``.
EVENT_KINDS: Final = {
    "Pump": ExternalEventKind.Pump,
    "Tick": ExternalEventKind.Pump,
    "DataAvailable": ExternalEventKind.DataAvailable,
    "Command": ExternalEventKind.Command,
}


class HostedEvent(msgspec.Struct, frozen=True):
    """An event with its semantic kind and its payload as sent (``HostedEvent``)."""

    event_id: str
    kind: ExternalEventKind
    at: EventTime = ZERO
    #: The adapter's name for the meaning of the event; None if it was left out.
    semantic_kind: str | None = None
    #: The decoded payload, which need not be an object; None if it was left out.
    payload: Any = None


def without_adapter(event: HostedEvent) -> ExternalEvent:
    """Return an event as a graph without an adapter gets it: its payload is made canonical.

    Raises:
        AdapterError: SCHEMA_VIOLATION.
    """
    try:
        payload = b"" if event.payload is None else write_json(event.payload)
        return ExternalEvent.with_payload(event.event_id, event.kind, event.at, payload)
    except ValueError as error:
        raise AdapterError(
            SCHEMA_VIOLATION,
            f"event build failed: {error}",
            where="$",
            fix="send a JSON object of Unicode text and numbers within f64, or no payload",
        ) from error


_HOSTED_EVENT: Final = struct(
    "HostedEvent",
    HostedEvent,
    {
        "event_id": string,
        "kind": variant(EVENT_KINDS),
        "at": duration,
        "semantic_kind": option(string),
        "payload": option(anything),
    },
    optional=frozenset({"semantic_kind", "payload"}),
)

_FRAMES: Final = {
    "hello": struct("variant ProcessDriverMessage::Hello", lambda protocol: protocol, {"protocol": string}),
    "event": struct("variant ProcessDriverMessage::Event", lambda event: event, {"event": _HOSTED_EVENT}),
    "end": unit,
}


def read_hosted_event(text: str | bytes, numbers: Numbers = "reference") -> HostedEvent:
    """Return the event of a JSON text.

    Raises:
        AdapterError: the text is not JSON (INVALID_EVENT), or not an event.
    """
    try:
        event: HostedEvent = _HOSTED_EVENT(read_json(text, numbers, pairs=True), ())
    except ShapeError as error:
        raise _invalid(f"{error}", spell_path(error.path)) from error
    except ValueError as error:
        raise _invalid(f"not valid JSON: {error}", "the text of the event") from error
    return event


def read_frame(line: str | bytes, numbers: Numbers = "reference") -> tuple[str, Any]:
    """Return a driver's frame: ``hello`` and the protocol, ``event`` and the HostedEvent, or ``end`` and None.

    Raises:
        ValueError: the line is not such a frame.
    """
    return tagged("ProcessDriverMessage", "type", _FRAMES, read_json(line, numbers, pairs=True))


def _invalid(message: str, where: str) -> AdapterError:
    return AdapterError(
        INVALID_EVENT,
        message,
        where=where,
        fix='send {"event_id": ..., "kind": "DataAvailable", "at": {"secs": S, "nanos": N}, "semantic_kind": ..., '
        '"payload": {...}}',
    )
