"""Egress channels without processes: their configuration, and every frame of ``ergo-egress.v1``."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from ergo_capture.adapter.canonical import read_json, write_json
from ergo_capture.adapter.errors import EGRESS_CONFIG, INVALID_EFFECT, AdapterError
from ergo_capture.adapter.shapes import Reader, ShapeError, option, refuse, sequence, string, struct, tagged
from ergo_capture.adapter.store import SET_CONTEXT
from ergo_capture.errors import ExitCode
from ergo_capture.kernel.effects import ActionEffect, IntentField, IntentRecord
from ergo_capture.kernel.records import CapturedIntentAck
from ergo_capture.kernel.serde.parsing import Pairs
from ergo_capture.kernel.time import U64_MAX

EGRESS_PROTOCOL: Final = "ergo-egress.v1"
END_FRAME: Final = b'{"type":"end"}'
_MILLIS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}
_DURATION: Final = re.compile(r"\+?([0-9]+)(ms|s|m|h)", re.ASCII)


class EgressFailure(ValueError):
    """A dispatch failed, which interrupts the run.

    Args:
        reason: ``egress_ack_timeout``, ``egress_protocol_violation`` or ``egress_io``.
        channel: the channel's name.
        detail: what was wrong; for a time-out the intent's id.
    """

    def __init__(self, reason: str, channel: str, detail: str) -> None:
        words = {
            "egress_ack_timeout": f"ack timeout on channel '{channel}' for intent '{detail}'",
            "egress_protocol_violation": f"protocol violation on channel '{channel}': {detail}",
            "egress_io": f"I/O failure on channel '{channel}': {detail}",
        }
        super().__init__(words[reason])
        self.reason = reason
        self.channel = channel
        self.intent_id = detail if reason == "egress_ack_timeout" else None

    @property
    def interruption(self) -> str:
        """The text of the decision's ``interruption``."""
        return f"egress dispatch failed: {self}"


class Route(msgspec.Struct, frozen=True):
    """The route of one kind of intents (``EgressRoute``)."""

    channel: str
    #: Milliseconds; None for the default.
    ack_timeout: int | None


class EgressConfig(msgspec.Struct, frozen=True):
    """Channels and routes, each sorted by name (``EgressConfig``)."""

    #: Milliseconds.
    default_ack_timeout: int
    #: The command of each channel.
    channels: Mapping[str, tuple[str, ...]]
    #: By kind of intent.
    routes: Mapping[str, Route]

    def timeout_of(self, kind: str) -> int:
        """Return how long the ack of an intent may take, in milliseconds."""
        timeout = self.routes[kind].ack_timeout
        return self.default_ack_timeout if timeout is None else timeout

    def kinds_of(self, channel: str) -> tuple[str, ...]:
        """Return the kinds that are routed to a channel, sorted."""
        return tuple(kind for kind, route in self.routes.items() if route.channel == channel)

    def provenance(self) -> str:
        """Return ``epv1:sha256:HEX``, as bundles name the configuration."""
        text = msgspec.json.encode(
            {
                "default_ack_timeout": _spell(self.default_ack_timeout),
                "channels": {name: {"type": "process", "command": command} for name, command in self.channels.items()},
                "routes": {
                    kind: {
                        "channel": route.channel,
                        "ack_timeout": None if route.ack_timeout is None else _spell(route.ack_timeout),
                    }
                    for kind, route in self.routes.items()
                },
            }
        )
        return f"epv1:sha256:{hashlib.sha256(text).hexdigest()}"

    def check(self, accepted: Iterable[str], emitted: Iterable[str]) -> list[str]:
        """Check that each kind of effect has one owner, the context store or a route.

        Args:
            accepted: the kinds that the adapter takes (``Adapter.effects``).
            emitted: the kinds that the graph can emit.

        Returns:
            Warnings for routes of kinds that the graph cannot emit.

        Raises:
            AdapterError: EGRESS_CONFIG.
        """
        taken, kinds = tuple(accepted), sorted(dict.fromkeys(emitted))
        for kind in self.routes:
            if kind not in taken:
                raise _unowned(f"egress route kind '{kind}' is not accepted by adapter (accepts.effects)", kind)
        check_owners(taken, kinds, self.routes)
        return [f"egress route declared for non-emittable kind '{kind}'" for kind in self.routes if kind not in kinds]


def check_owners(accepted: Iterable[str], emitted: Iterable[str], routed: Iterable[str] = ()) -> None:
    """Check that each kind that the graph emits and the adapter takes has one owner.

    Raises:
        AdapterError: EGRESS_CONFIG.
    """
    taken, routes = tuple(accepted), tuple(routed)
    for kind in sorted(dict.fromkeys(emitted)):
        if kind not in taken:
            continue
        if kind == SET_CONTEXT and kind in routes:
            raise _unowned(f"ambiguous coverage for kind '{kind}': claimed by both handler and egress", kind)
        if kind != SET_CONTEXT and kind not in routes:
            raise _unowned(f"missing effect handler for kind '{kind}'", kind)


def _unowned(message: str, kind: str) -> AdapterError:
    return AdapterError(
        EGRESS_CONFIG,
        f"egress configuration validation failed: {message}",
        where=f"effect kind '{kind}'",
        fix="give each kind of effect that the adapter accepts and the graph emits one route; set_context needs none",
        exit_code=ExitCode.CONFIG,
    )


def _spell(millis: int) -> str:
    return f"{millis // 1000}s" if millis % 1000 == 0 else f"{millis}ms"


def _duration(value: Any, path: tuple[str | int, ...]) -> int:
    text = string(value, path)
    match = _DURATION.fullmatch(text)
    if match is None or int(match[1]) > U64_MAX:
        raise ShapeError(f"unsupported duration '{text}' (expected suffix ms|s|m|h)", path)
    return int(match[1]) * _MILLIS[match[2]]


def _by_name(read: Reader) -> Reader:
    def read_all(value: Any, path: tuple[str | int, ...]) -> dict[str, Any]:
        if not isinstance(value, Pairs):
            refuse(value, "a map", path)
        return {name: read(item, (*path, name)) for name, item in sorted(value)}

    return read_all


_PROCESS: Final = struct(
    "variant RawEgressChannelConfig::Process", lambda command: command, {"command": sequence(string)}
)
_CONFIG: Final = struct(
    "RawEgressConfig",
    EgressConfig,
    {
        "default_ack_timeout": _duration,
        "channels": _by_name(lambda value, _path: tagged("channel", "type", {"process": _PROCESS}, value)[1]),
        "routes": _by_name(
            struct(
                "RawEgressRoute",
                Route,
                {"channel": string, "ack_timeout": option(_duration)},
                optional=frozenset({"ack_timeout"}),
            )
        ),
    },
)


def parse_egress_config(text: str) -> EgressConfig:
    """Return the configuration that a TOML text describes.

    Raises:
        AdapterError: EGRESS_CONFIG.
    """
    try:
        config: EgressConfig = _CONFIG(_pairs(tomllib.loads(text)), ())
    except (ValueError, RecursionError) as error:
        raise _misconfigured(f"parse egress config TOML: {error}") from error
    for name, command in config.channels.items():
        if not command:
            raise _misconfigured(f"egress channel '{name}' process command must not be empty")
        if not command[0].strip():
            raise _misconfigured(f"egress channel '{name}' process executable must not be blank")
    if "" in config.channels:
        raise _misconfigured("egress channel id must not be empty")
    if "" in config.routes:
        raise _misconfigured("egress route kind must not be empty")
    for kind, route in config.routes.items():
        if not route.channel:
            raise _misconfigured("egress route channel must not be empty")
        if route.channel not in config.channels:
            raise _misconfigured(f"egress route for kind '{kind}' references unknown channel '{route.channel}'")
    return config


def _pairs(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs((key, _pairs(item)) for key, item in value.items())
    return [_pairs(item) for item in value] if isinstance(value, list) else value


def _misconfigured(message: str) -> AdapterError:
    return AdapterError(
        EGRESS_CONFIG,
        message,
        where="egress configuration",
        fix='write default_ack_timeout, [channels.NAME] type = "process", command = [...], and [routes.KIND] channel',
        exit_code=ExitCode.CONFIG,
    )


def check_intents(effect: ActionEffect) -> None:
    """Check that an effect of a kind that is routed to a channel holds intents of that kind, and nothing else.

    Raises:
        AdapterError: INVALID_EFFECT.
    """
    kind = effect.kind
    if effect.writes:
        detail = f"egress-owned effect '{kind}' must not carry writes"
    elif not effect.intents:
        detail = f"egress-owned effect '{kind}' must carry at least one intent"
    elif any(intent.kind != kind for intent in effect.intents):
        detail = f"egress-owned effect '{kind}' contains intent with mismatched kind"
    else:
        return
    raise AdapterError(
        INVALID_EFFECT,
        f"host lifecycle violation: {detail}",
        where=f"effect '{kind}'",
        fix="let the engine report what the graph's actions declare",
    )


def intent_frame(intent: IntentRecord) -> bytes:
    """Return the line, without its newline, that asks a channel to carry out an intent."""
    head = msgspec.json.encode({"type": "intent", "intent_id": intent.intent_id, "kind": intent.kind})
    return head[:-1] + b',"fields":' + write_json({field.name: _plain(field) for field in intent.fields}) + b"}"


def _plain(field: IntentField) -> Any:
    values = (getattr(field.value, name) for name in field.value.__struct_fields__)
    return next(value for value in values if value is not msgspec.UNSET)


_READY: Final = struct(
    "variant StartupInboundMessage::Ready",
    lambda **fields: fields,
    {"protocol": string, "handled_kinds": sequence(string)},
)
_ACK: Final = struct(
    "variant DispatchInboundMessage::IntentAck",
    lambda **fields: fields,
    {"intent_id": string, "status": string, "acceptance": string, "egress_ref": option(string)},
    defaulted=frozenset({"egress_ref"}),
)
_FRAMES: Final = {"ready": _READY, "intent_ack": _ACK}


def _frame(channel: str, name: str, line: str | bytes) -> tuple[str, Any]:
    try:
        value = read_json(line, pairs=True)
        if isinstance(value, list) and not isinstance(value, Pairs):
            # serde reads the tag first, from an array that must not have further elements.
            raise ShapeError("trailing characters", ())
        return tagged("InboundFrameTag", "type", _FRAMES, value)
    except ValueError as error:
        raise EgressFailure("egress_protocol_violation", channel, f"invalid {name} frame: {error}") from error


def check_ready(channel: str, line: str | bytes, required: Iterable[str]) -> None:
    """Check a channel's first line: the protocol, and that it handles the kinds that are routed to it.

    Raises:
        EgressFailure: a violation of the protocol.
    """
    tag, fields = _frame(channel, "startup", line)
    if tag != "ready":
        raise EgressFailure("egress_protocol_violation", channel, "expected ready frame, got intent_ack")
    protocol, handled = fields["protocol"], fields["handled_kinds"]
    if protocol != EGRESS_PROTOCOL:
        detail = f"ready frame protocol mismatch: expected '{EGRESS_PROTOCOL}', got '{protocol}'"
        raise EgressFailure("egress_protocol_violation", channel, detail)
    for index, kind in enumerate(handled):
        if kind in handled[:index]:
            detail = f"ready frame contains duplicate handled_kinds entry '{kind}'"
            raise EgressFailure("egress_protocol_violation", channel, detail)
    for kind in required:
        if kind not in handled:
            detail = f"ready frame missing required handled kind '{kind}'"
            raise EgressFailure("egress_protocol_violation", channel, detail)


def read_ack(channel: str, line: str | bytes, intent: IntentRecord) -> CapturedIntentAck:
    """Return the ack with which a channel answered an intent.

    Raises:
        EgressFailure: a violation of the protocol.
    """
    tag, fields = _frame(channel, "ack", line)
    if tag != "intent_ack":
        raise EgressFailure("egress_protocol_violation", channel, "unexpected ready frame after startup")
    if fields["intent_id"] != intent.intent_id:
        detail = f"ack intent_id mismatch: expected '{intent.intent_id}', got '{fields['intent_id']}'"
        raise EgressFailure("egress_protocol_violation", channel, detail)
    status, acceptance = fields["status"], fields["acceptance"]
    if status != "accepted" or acceptance != "durable":
        detail = f"ack must be accepted+durable, got status='{status}' acceptance='{acceptance}'"
        raise EgressFailure("egress_protocol_violation", channel, detail)
    return CapturedIntentAck(intent.intent_id, channel, status, acceptance, fields["egress_ref"])


def intent_id(graph_id: str, event_id: str, node: str, kind: str, index: int) -> str:
    """Return the id of an intent, made from its origin event and its action's node in the expanded graph."""
    segments = [part.encode() for part in ("eid1", graph_id, event_id, node, kind, str(index))]
    text = b"".join(len(segment).to_bytes(4, "big") + segment for segment in segments)
    return f"eid1:sha256:{hashlib.sha256(text).hexdigest()}"
