"""The bodies of the journal's small frames: JSON objects that say what a session is and what became of it."""

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


#: The value of ``decided_by`` for a session whose episodes ran elsewhere.
FIXED_NOT_THE_RUN: Final = "fixed, not the run"


class Loss(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Events that a client was told are durable and that the daemon does not hold: the body of a LOSS frame.

    It happens where the state directory is older than what was acknowledged: a restored backup, a lost write cache.
    The counts are of events in the session.
    """

    acknowledged: int
    #: Events that the daemon held when it was told.
    held: int
    #: Ids of the last event acknowledged and of the last one held.
    last_acknowledged: str | None = None
    last_held: str | None = None
    #: The session that the events were acknowledged in, where it is another: that one was gone.
    session: str | None = None
    #: Whether a client has chosen to go on.
    resumed: bool = False

    @property
    def missing(self) -> int:
        """Acknowledged events that are missing, at the least: others may have taken the place of some."""
        return max(1, self.acknowledged - self.held)

    @property
    def in_words(self) -> str:
        """What is lost, for people."""
        at_least = "" if self.acknowledged > self.held else "at least "
        behind = "" if self.last_held is None or at_least else f", from behind {self.last_held!r} on"
        of = "" if self.session is None else f" of session {self.session!r}"
        return f"{at_least}{self.missing:,} of {self.acknowledged:,} acknowledged events{of}{behind}"


def join_losses(known: Loss | None, new: Loss) -> Loss:
    """Return the greater of two losses of a session; whether a client goes on is as the later one, ``new``, says."""
    if known is None or new.missing > known.missing:
        return new
    return msgspec.structs.replace(known, resumed=new.resumed)


class Contract(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the payloads that a graph gets are derived from those that were sent, without the configuration.

    With an adapter they are merged with the context store, validated and canonical.
    """

    #: The text of the adapter's manifest; None without an adapter, and payloads are canonical then.
    adapter: str | None = None
    #: How numbers are read (``adapter.canonical``).
    numbers: Literal["reference", "exact"] = "reference"
    #: Bytes of JSON that the context store may take; None for no limit.
    context_bytes: int | None = None
    #: The kinds of effects that egress channels carry out; effects of other kinds write the context store.
    routed: tuple[str, ...] = ()


class SessionDescription(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a session is: the body of its OPEN frame. Nothing of it changes but ``lost``."""

    session: str
    #: The graph's name in the configuration, which is the bundle's ``graph_id``.
    graph: str
    constraints: Constraints
    adapter_provenance: str
    runtime_provenance: str
    #: Name of the engine, for people; the configuration decides which engine runs.
    engine: str
    labels: dict[str, str]
    peer: Peer | None
    #: RFC 3339 in UTC; evidence only, no decision depends on it.
    opened_at: str
    #: Program and version that wrote the journal.
    program: str
    #: What made the decisions, where it was not the graph's engine.
    decided_by: str = ""
    #: What was lost of the session until this was written; the part that begins then, and later ones, say it too.
    lost: Loss | None = None
    #: How payloads are derived; None where they are captured as they were sent.
    contract: Contract | None = None
    #: What the egress channels are; None where intents have none.
    egress_provenance: str | None = None


class Interruption(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why the run of a session ended before its events did. Nothing after it is decided."""

    #: The reference's word: ``driver_terminated``, ``protocol_violation``, ``host_stop_requested``, ``driver_io``,
    #: ``egress_ack_timeout``, ``egress_protocol_violation``, ``egress_io``; or ``context_full``, ``invalid_effect``.
    reason: str
    #: What happened, for people.
    message: str = ""
    #: The egress channel and the intent that it happened to.
    channel: str | None = None
    intent_id: str | None = None

    @property
    def in_words(self) -> str:
        """The reason and what happened, for people."""
        return f"{self.reason}: {self.message}" if self.message else self.reason


class LeftOver(msgspec.Struct, frozen=True):
    """Events that were accepted after an interruption of the run."""

    #: Index in the session, and id, of the first.
    from_index: int
    event_id: str
    count: int

    @property
    def in_words(self) -> str:
        """How many, and from which on, for people."""
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
    """How a session ended: the body of its CLOSE frame."""

    #: ``complete``, ``recovered`` or ``interrupted``.
    ended: str
    #: RFC 3339 in UTC; evidence only.
    closed_at: str
    #: Whether there is a bundle even if the session has no events.
    keep_empty: bool = True
    #: What interrupted the run; None where nothing did.
    interruption: Interruption | None = None
    #: The events after the interruption; None where there are none.
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
    #: Id of the last event of the part.
    last_event_id: str | None
    #: The context store at the end of the part; None without an adapter.
    store: dict[str, Any] | None = None
    #: Events of the session that were refused until then.
    refused: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an episode ended whose intents are about to be sent: the body of an OUTCOME frame.

    From then on the episode is not run again: its decision is this outcome with the acknowledgements that follow.
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
        """Return the result of the last attempt, with what became of its intents.

        Raises:
            ValueError: the termination is none.
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

    ``batch`` and ``frames`` are the last batch before this segment and how many of its frames are there. They tell a
    segment that was cut short from one of which recovery kept a part.
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
