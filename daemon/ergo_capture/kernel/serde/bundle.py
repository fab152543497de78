"""Read a bundle's parsed JSON as the reference's derived deserialisers do."""

from __future__ import annotations

from typing import Any, Final

from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.effects import ActionEffect, EffectWrite, IntentField, IntentRecord, Value
from ergo_capture.kernel.events import ExternalEventKind
from ergo_capture.kernel.outcomes import Decision, ErrKind, RunTermination
from ergo_capture.kernel.records import (
    CaptureBundle,
    CapturedActionEffect,
    CapturedIntentAck,
    EpisodeInvocationRecord,
    ExternalEventRecord,
)
from ergo_capture.kernel.serde.complaints import at, unknown_variant
from ergo_capture.kernel.serde.parsing import Pairs
from ergo_capture.kernel.serde.readers import (
    Reader,
    boolean,
    frozen,
    number,
    option,
    refuse,
    sequence,
    string,
    struct,
    unit_enum,
    unsigned,
    variant,
)
from ergo_capture.kernel.time import U64_MAX, EventTime


def read_bundle(value: Any) -> CaptureBundle:
    """Return the bundle that a parsed text holds.

    Raises:
        ValueError: it is not a bundle; the message names the field by its path.
    """
    bundle: CaptureBundle = _BUNDLE(value, "$")
    return bundle


def read_event(value: Any, path: str = "$") -> ExternalEventRecord:
    """Return the event record that a parsed text holds; ``path`` is its place in the bundle, for messages.

    Raises:
        ValueError: it is not an event record; the message names the field by its path.
    """
    record: ExternalEventRecord = _EVENT(value, path)
    return record


def read_decision(value: Any, path: str = "$") -> EpisodeInvocationRecord:
    """Return the decision record that a parsed text holds; ``path`` is its place in the bundle, for messages.

    Raises:
        ValueError: it is not a decision record; the message names the field by its path.
    """
    record: EpisodeInvocationRecord = _DECISION(value, path)
    return record


def _payload(value: Any, path: str) -> bytes:
    if not isinstance(value, list) or isinstance(value, Pairs):
        refuse(value, "a sequence", path)
    try:
        if all(type(item) is int for item in value):
            return bytes(value)
    except ValueError:
        pass
    return bytes(sequence(unsigned(255, "u8"))(value, path))


_err_kind: Final = unit_enum(ErrKind)


def _termination(value: Any, path: str) -> RunTermination:
    name, content = variant(value, path)
    if name == "Failed":
        return RunTermination.Failed(_err_kind(content, f"{path}.Failed"))
    try:
        termination = RunTermination.from_builtins(name)
    except ValueError as error:
        raise ValueError(at(str(error), path)) from error
    if content is not None:
        refuse(content, "unit", path)
    return termination


def _value(value: Any, path: str) -> Value:
    name, content = variant(value, path)
    read = _VALUES.get(name)
    if read is None or isinstance(value, str):
        raise ValueError(at(unknown_variant(name, _VALUES), path))
    fields: dict[str, Any] = {name: read(content, f"{path}.{name}")}
    return Value(**fields)


_U64: Final = unsigned(U64_MAX, "u64")


def _read_time(value: Any, path: str) -> EventTime:
    try:
        time: EventTime = _TIME_FIELDS(value, path)
    except ValueError as error:
        raise ValueError(at(str(error), path)) from error
    return time


_TIME_FIELDS: Final = struct(EventTime, {"secs": _U64, "nanos": unsigned((1 << 32) - 1, "u32")}, deny_unknown=True)
_OPTIONAL_TIME: Final = option(_read_time)

_CONSTRAINTS: Final = struct(
    Constraints,
    {
        "max_in_flight": option(_U64),
        "max_per_window": option(_U64),
        "rate_window": _OPTIONAL_TIME,
        "deadline": _OPTIONAL_TIME,
        "max_retries": _U64,
    },
    optional=dict.fromkeys(("max_in_flight", "max_per_window", "rate_window", "deadline")),
)

_EVENT: Final = struct(
    ExternalEventRecord,
    {
        "event_id": string,
        "event_time": _read_time,
        "kind": unit_enum(ExternalEventKind),
        "payload": _payload,
        "payload_hash": string,
    },
)

_VALUES: Final[dict[str, Reader]] = {
    "Number": number,
    "Series": frozen(sequence(number)),
    "Bool": boolean,
    "String": string,
}

_EFFECT: Final = struct(
    ActionEffect,
    {
        "kind": string,
        "writes": frozen(sequence(struct(EffectWrite, {"key": string, "value": _value}))),
        "intents": frozen(
            sequence(
                struct(
                    IntentRecord,
                    {
                        "kind": string,
                        "intent_id": string,
                        "fields": frozen(sequence(struct(IntentField, {"name": string, "value": _value}))),
                    },
                )
            )
        ),
    },
    optional={"intents": ()},
)

_ACK: Final = struct(
    CapturedIntentAck,
    {
        "intent_id": string,
        "channel": string,
        "status": string,
        "acceptance": string,
        "egress_ref": option(string),
    },
    optional={"egress_ref": None},
)

_DECISION: Final = struct(
    EpisodeInvocationRecord,
    {
        "event_id": string,
        "decision": unit_enum(Decision),
        "schedule_at": _OPTIONAL_TIME,
        "episode_id": _U64,
        "deadline": _OPTIONAL_TIME,
        "termination": option(_termination),
        "retry_count": _U64,
        "effects": frozen(sequence(struct(CapturedActionEffect, {"effect": _EFFECT, "effect_hash": string}))),
        "intent_acks": frozen(sequence(_ACK)),
        "interruption": option(string),
    },
    optional={"schedule_at": None, "deadline": None, "termination": None, "intent_acks": (), "interruption": None},
)

_BUNDLE: Final = struct(
    CaptureBundle,
    {
        "capture_version": string,
        "graph_id": string,
        "config": _CONSTRAINTS,
        "events": sequence(_EVENT),
        "decisions": sequence(_DECISION),
        "adapter_provenance": string,
        "runtime_provenance": string,
        "egress_provenance": option(string),
    },
    optional={"egress_provenance": None},
    deny_unknown=True,
)
