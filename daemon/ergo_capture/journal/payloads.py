"""The bodies of the journal's small frames: JSON objects that describe a session, its parts and its end."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.effects import ActionEffect, IntentRecord
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.ports import RunResult
from ergo_capture.kernel.records import CapturedIntentAck


class Peer(msgspec.Struct, frozen=True):
    """The process that opened a session, as the kernel reports it (SO_PEERCRED)."""

    uid: int
    gid: int
    pid: int


#: The kind of engine whose outcomes depend on the attempts before: recovery counts them.
SCRIPTED: Final = "scripted"
#: The value of ``decided_by`` for a session whose episodes ran elsewhere.
FIXED_NOT_THE_RUN: Final = "fixed, not the run"


class Loss(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Acknowledged events that the daemon does not hold: the body of a LOSS frame.

    Events are lost if the state directory is older than what was acknowledged: a restored backup, a lost write cache.
    The counts are of events in the session.
    """

    acknowledged: int
    #: Events that the daemon held when the client said what was acknowledged.
    held: int
    #: Ids of the last event acknowledged and of the last one held.
    last_acknowledged: str | None = None
    last_held: str | None = None
    #: The session in which the events were acknowledged, if it is another one, which is gone.
    session: str | None = None
    #: Whether a client has chosen to go on.
    resumed: bool = False

    @property
    def missing(self) -> int:
        """The least number of acknowledged events that are missing: others may have taken the place of some."""
        return max(1, self.acknowledged - self.held)

    @property
    def in_words(self) -> str:
        """The loss in words."""
        at_least = "" if self.acknowledged > self.held else "at least "
        behind = "" if self.last_held is None or at_least else f", from behind {self.last_held!r} on"
        of = "" if self.session is None else f" of session {self.session!r}"
        return f"{at_least}{self.missing:,} of {self.acknowledged:,} acknowledged events{of}{behind}"


def join_losses(known: Loss | None, new: Loss) -> Loss:
    """Return the greater of two losses of a session, with ``resumed`` of the later one, ``new``."""
    if known is None or new.missing > known.missing:
        return new
    return msgspec.structs.replace(known, resumed=new.resumed)


class Contract(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The rules that turn the payloads that were sent into those that a graph gets; complete without the configuration.

    With an adapter they are merged with the context store, validated and made canonical.
    """

    #: The text of the adapter's manifest; None without an adapter: payloads are then only made canonical.
    adapter: str | None = None
    #: How numbers are read (``adapter.canonical``).
    numbers: Literal["reference", "exact"] = "reference"
    #: Bytes of JSON that the context store may take; None for no limit.
    context_bytes: int | None = None
    #: The kinds of effects that egress channels carry out; effects of other kinds write the context store.
    routed: tuple[str, ...] = ()


class SessionDescription(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The description of a session: the body of its OPEN frame. Only ``lost`` may change."""

    session: str
    #: The graph's name in the configuration, which is the bundle's ``graph_id``.
    graph: str
    constraints: Constraints
    adapter_provenance: str
    runtime_provenance: str
    #: The kind of engine that it was opened with; the configuration decides which engine runs.
    engine: str
    labels: dict[str, str]
    peer: Peer | None
    #: RFC 3339 in UTC; evidence only, no decision depends on it.
    opened_at: str
    #: Program and version that wrote the journal.
    program: str
    #: The maker of the decisions; empty for the graph's engine.
    decided_by: str = ""
    #: The loss of events up to when this was written; the part that begins then, and later ones, report it too.
    lost: Loss | None = None
    #: How payloads are derived; None where they are captured as they were sent.
    contract: Contract | None = None
    #: The provenance of the egress channels; None without any.
    egress_provenance: str | None = None


class Interruption(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The reason why a session's run ended before its events did. Nothing after it is decided."""

    #: The reference's word: ``driver_terminated``, ``protocol_violation``, ``host_stop_requested``, ``driver_io``,
    #: ``egress_ack_timeout``, ``egress_protocol_violation``, ``egress_io``; or ``context_full``, ``invalid_effect``.
    reason: str
    #: The event that caused it, in words.
    message: str = ""
    #: The egress channel and the intent concerned.
    channel: str | None = None
    intent_id: str | None = None

    @property
    def in_words(self) -> str:
        """The reason and the message, in one sentence."""
        return f"{self.reason}: {self.message}" if self.message else self.reason


class LeftOver(msgspec.Struct, frozen=True):
    """Events that were accepted after an interruption of the run."""

    #: Index in the session, and id, of the first.
    from_index: int
    event_id: str
    count: int

    @property
    def in_words(self) -> str:
        """The number of events, the first one and where they are, in words."""
        events = "1 event" if self.count == 1 else f"{self.count:,} events"
        return f"{events}, from {self.event_id!r} on, in the .rest.jsonl beside the bundle"


class RefusedEvent(msgspec.Struct, frozen=True):
    """An event that was refused when its turn came."""

    #: Its index in the session.
    index: int
    event_id: str
    code: str
    message: str


class Closing(msgspec.Struct, frozen=True, omit_defaults=True):
    """The end of a session: the body of its CLOSE frame."""

    #: ``complete``, ``recovered`` or ``interrupted``.
    ended: str
    #: RFC 3339 in UTC; evidence only.
    closed_at: str
    #: Whether there is a bundle even if the session has no events.
    keep_empty: bool = True
    #: The interruption of the run; None for none.
    interruption: Interruption | None = None
    #: The events after the interruption; None for none.
    left_over: LeftOver | None = None


class Rotation(msgspec.Struct, frozen=True, omit_defaults=True):
    """The end of a part of a session: the body of a ROTATE frame.

    The description of the session is repeated: once the part's bundle is durable, the segments before may be deleted,
    and the OPEN frame with them.
    """

    #: Number of the part that ended, from 1.
    part: int
    #: Whether the part was ended while episodes were deferred; the next part starts without them.
    forced: bool
    #: RFC 3339 in UTC; evidence only.
    rotated_at: str
    description: SessionDescription
    #: Id of the session's last accepted event; it may belong to the next part.
    last_event_id: str | None
    #: The context store at the end of the part; None without an adapter.
    store: dict[str, Any] | None = None
    #: Events of the session that were refused until then.
    refused: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an episode with intents, written before they are sent: the body of an OUTCOME frame.

    The episode is not run again: its decision is this outcome with the acknowledgements that follow.
    """

    #: Index in the session of the event that the decision is recorded for.
    index: int
    #: As ``RunTermination.to_builtins`` gives it.
    termination: Any
    retry_count: int
    effects: tuple[ActionEffect, ...]

    @classmethod
    def of(cls, index: int, retry_count: int, result: RunResult) -> Outcome:
        """Return the outcome of an episode's last attempt."""
        return cls(
            index=index,
            termination=result.termination.to_builtins(),
            retry_count=retry_count,
            effects=result.effects,
        )

    @property
    def intents(self) -> tuple[IntentRecord, ...]:
        """The intents of its effects, in the order in which they are sent."""
        return tuple(intent for effect in self.effects for intent in effect.intents)

    def to_result(self, intent_acks: tuple[CapturedIntentAck, ...] = (), interruption: str | None = None) -> RunResult:
        """Return the result of the last attempt, with the acks of its intents.

        Raises:
            ValueError: the termination is not a valid one.
        """
        termination = RunTermination.from_builtins(self.termination)
        return RunResult(termination, self.effects, intent_acks, interruption)


class Ack(msgspec.Struct, frozen=True):
    """An intent that a channel has durably accepted: the body of an ACK frame."""

    #: Index in the session of the event whose OUTCOME frame holds the intent.
    index: int
    ack: CapturedIntentAck


class Publication(msgspec.Struct, frozen=True):
    """A durable bundle: the body of a PUBLISHED frame."""

    #: Number of the part, from 1.
    part: int
    #: Path of the bundle file; empty where a session without events leaves none.
    bundle: str
    #: Path of the manifest beside it.
    manifest: str
    #: SHA-256 of the bundle file, in hex.
    sha256: str
    #: Whether it is the last bundle of the session.
    final: bool = False
    #: The manifest's ``sequence``; None in frames that 0.1.0 wrote.
    sequence: int | None = None


class SegmentHead(msgspec.Struct, frozen=True):
    """The start of a segment: the body of its first frame, of kind SEGMENT.

    ``batch`` and ``frames`` are the last batch before this segment and the number of its frames there. With them a
    segment that was cut short is told from one that recovery has cut.
    """

    format: int
    program: str
    sequence: int
    batch: int
    frames: int


_encode: Final = msgspec.json.Encoder().encode


Body = SessionDescription | Closing | Rotation | Publication | SegmentHead | Loss | Outcome | Ack


def encode_body(body: Body) -> bytes:
    """Encode the body of a small frame."""
    return _encode(body)


def decode_segment_head(body: bytes) -> SegmentHead:
    """Decode the body of a SEGMENT frame.

    Raises:
        ValueError: the body is not a segment head.
    """
    return msgspec.json.decode(body, type=SegmentHead)
