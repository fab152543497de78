"""The records of a capture bundle, and their JSON text exactly as the reference writes it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.effects import ActionEffect, compute_effect_hash, encode_effect
from ergo_capture.kernel.events import ExternalEvent, ExternalEventKind, TimeLike
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.time import EventTime

CAPTURE_FORMAT_VERSION: Final = "v3"
NO_ADAPTER_PROVENANCE: Final = "none"

_encode = msgspec.json.Encoder().encode


class ExternalEventRecord(msgspec.Struct, frozen=True, gc=False):
    """An event as captured (``ergo_adapter::capture::ExternalEventRecord``)."""

    event_id: str
    event_time: EventTime
    kind: ExternalEventKind
    payload: bytes
    #: SHA-256 of ``payload`` in hex.
    payload_hash: str

    @classmethod
    def from_event(cls, event: ExternalEvent) -> ExternalEventRecord:
        """Return the record of an event."""
        return cls(event.event_id, event.at, event.kind, event.payload, hash_payload(event.payload))

    @property
    def payload_text(self) -> str:
        """The payload as text; a damaged bundle may hold bytes that are not UTF-8, which become escapes."""
        return self.payload.decode(errors="backslashreplace")

    def validate_hash(self) -> bool:
        """Return whether ``payload_hash`` is the hash of ``payload``."""
        return self.payload_hash == hash_payload(self.payload)

    def rehydrate(self) -> ExternalEvent:
        """Return the event that the record stands for; its hash is not checked.

        Raises:
            ExternalEventPayloadError: as ``check_payload``.
        """
        return ExternalEvent.with_payload(self.event_id, self.kind, self.event_time, self.payload)


class CapturedActionEffect(msgspec.Struct, frozen=True):
    """An effect with its hash (``ergo_supervisor::CapturedActionEffect``)."""

    effect: ActionEffect
    effect_hash: str

    @classmethod
    def of(cls, effect: ActionEffect) -> CapturedActionEffect:
        """Return the effect with its hash."""
        return cls(effect, compute_effect_hash(effect))


class CapturedIntentAck(msgspec.Struct, frozen=True, omit_defaults=True):
    """A dispatched intent that was durably accepted (``ergo_supervisor::CapturedIntentAck``)."""

    intent_id: str
    channel: str
    status: str
    acceptance: str
    egress_ref: str | None = None


# gc=False here, in events and in log entries: they cannot be part of a cycle, and with 100,000 events the garbage
# collector took a third of the time to traverse them.
class EpisodeInvocationRecord(msgspec.Struct, frozen=True, gc=False):
    """A decision as captured (``ergo_supervisor::EpisodeInvocationRecord``).

    ``intent_acks`` and ``interruption`` are metadata: written when present, never compared.
    """

    event_id: str
    decision: Decision
    schedule_at: EventTime | None
    #: 0 to 2**64 - 1.
    episode_id: int
    deadline: EventTime | None
    termination: RunTermination | None
    #: Attempts after the first, 0 to 2**64 - 1.
    retry_count: int
    effects: tuple[CapturedActionEffect, ...] = ()
    intent_acks: tuple[CapturedIntentAck, ...] = ()
    interruption: str | None = None


class CaptureBundle(msgspec.Struct):
    """Every event and decision of a run (``ergo_supervisor::CaptureBundle``)."""

    capture_version: str
    graph_id: str
    config: Constraints
    events: list[ExternalEventRecord]
    decisions: list[EpisodeInvocationRecord]
    adapter_provenance: str
    runtime_provenance: str
    egress_provenance: str | None = None


def hash_payload(payload: bytes) -> str:
    """Return the SHA-256 of a payload, in hex (``ergo_adapter::capture::hash_payload``)."""
    return hashlib.sha256(payload).hexdigest()


def encode_time(time: TimeLike | None) -> bytes:
    """Return a time as ``{"secs":S,"nanos":N}``, or ``null``."""
    return b"null" if time is None else b'{"secs":%d,"nanos":%d}' % (time.secs, time.nanos)


def encode_event(record: ExternalEventRecord) -> bytes:
    """Return one element of a bundle's ``events``; the payload becomes an array of byte values."""
    return b'{"event_id":%b,"event_time":{"secs":%d,"nanos":%d},"kind":"%b","payload":%b,"payload_hash":%b}' % (
        _encode(record.event_id),
        record.event_time.secs,
        record.event_time.nanos,
        record.kind.value.encode(),
        _encode(list(record.payload)),
        _encode(record.payload_hash),
    )


class _Element(msgspec.Struct, frozen=True, gc=False):
    """An element of ``events``, its fields in the order in which a bundle has them."""

    event_id: str
    event_time: TimeLike
    kind: ExternalEventKind
    payload: list[int]
    payload_hash: str


def encode_events(records: Sequence[ExternalEventRecord]) -> bytes:
    """Return elements of a bundle's ``events``, commas between them.

    One call of the encoder takes two thirds of the time of a call for each. Pass a few dozen events: their payloads are
    lists of numbers meanwhile, and with more events those leave the processor's cache.
    """
    return encode_event_columns(
        [record.event_id for record in records],
        [record.event_time for record in records],
        [record.kind for record in records],
        [record.payload for record in records],
        [record.payload_hash for record in records],
    )


def encode_event_columns(
    ids: Iterable[str],
    times: Iterable[TimeLike],
    kinds: Iterable[ExternalEventKind],
    payloads: Iterable[bytes],
    hashes: Iterable[str],
) -> bytes:
    """Return elements of a bundle's ``events`` as ``encode_events``, from one list for each field."""
    return _encode(list(map(_Element, ids, times, kinds, map(list, payloads), hashes)))[1:-1]


def encode_decisions(records: Sequence[EpisodeInvocationRecord]) -> bytes:
    """Return elements of a bundle's ``decisions``, commas between them."""
    texts: list[str] = []
    deadline: EventTime | None = None
    until = "null"
    names = inside_quotes([record.event_id for record in records])
    for name, record in zip(names, records, strict=True):
        if record.effects or record.intent_acks or record.interruption is not None:
            texts.append(encode_decision(record).decode())
            continue
        if record.deadline is not deadline:
            deadline, until = record.deadline, encode_time(record.deadline).decode()
        at = "null" if record.schedule_at is None else encode_time(record.schedule_at).decode()
        texts.append(
            f'{{"event_id":"{name}","decision":"{_DECISIONS[record.decision]}","schedule_at":{at},"episode_id":'
            f'{record.episode_id},"deadline":{until},"termination":{_TERMINATIONS[record.termination]},"retry_count":'
            f'{record.retry_count},"effects":[]}}'
        )
    return ",".join(texts).encode()


_DECISIONS: Final = {decision: decision.value for decision in Decision}
_TERMINATIONS: Final = {None: "null"} | {each: each.json.decode() for each in RunTermination.every()}


def inside_quotes(texts: Sequence[str]) -> list[str]:
    """Return each text as JSON writes it, without its quotes."""
    if not texts:
        return []
    encoded = _encode(texts).decode()
    if "\\" in encoded:
        return [_encode(text)[1:-1].decode() for text in texts]
    # Splitting is safe: a quote inside a text is escaped with a backslash.
    return encoded[2:-2].split('","')


def encode_decision(record: EpisodeInvocationRecord) -> bytes:
    """Return one element of a bundle's ``decisions``."""
    termination = record.termination
    head = (
        b'{"event_id":%b,"decision":"%b","schedule_at":%b,"episode_id":%d,"deadline":%b,"termination":%b,'
        b'"retry_count":%d,"effects":['
    ) % (
        _encode(record.event_id),
        record.decision.value.encode(),
        encode_time(record.schedule_at),
        record.episode_id,
        encode_time(record.deadline),
        b"null" if termination is None else termination.json,
        record.retry_count,
    )
    if not record.effects and not record.intent_acks and record.interruption is None:
        return head + b"]}"
    effects = b",".join(
        b'{"effect":%b,"effect_hash":%b}' % (encode_effect(e.effect), _encode(e.effect_hash)) for e in record.effects
    )
    acks = b',"intent_acks":' + _encode(record.intent_acks) if record.intent_acks else b""
    interruption = b"" if record.interruption is None else b',"interruption":' + _encode(record.interruption)
    return head + effects + b"]" + acks + interruption + b"}"


def encode_constraints(constraints: Constraints) -> bytes:
    """Return a bundle's ``config``."""
    return (b'{"max_in_flight":%b,"max_per_window":%b,"rate_window":%b,"deadline":%b,"max_retries":%d}') % (
        _encode(constraints.max_in_flight),
        _encode(constraints.max_per_window),
        encode_time(constraints.rate_window),
        encode_time(constraints.deadline),
        constraints.max_retries,
    )


def encode_head(graph_id: str, constraints: Constraints, capture_version: str = CAPTURE_FORMAT_VERSION) -> bytes:
    """Return a bundle's text up to the first event."""
    return b'{"capture_version":%b,"graph_id":%b,"config":%b,"events":[' % (
        _encode(capture_version),
        _encode(graph_id),
        encode_constraints(constraints),
    )


#: A bundle's text between its last event and its first decision.
MIDDLE: Final = b'],"decisions":['


def encode_tail(adapter_provenance: str, runtime_provenance: str, egress_provenance: str | None = None) -> bytes:
    """Return a bundle's text after its last decision, without the newline that ends the file."""
    egress = b"" if egress_provenance is None else b',"egress_provenance":' + _encode(egress_provenance)
    return b'],"adapter_provenance":%b,"runtime_provenance":%b%b}' % (
        _encode(adapter_provenance),
        _encode(runtime_provenance),
        egress,
    )
