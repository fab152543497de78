"""The wire protocol ``ergo-capture.v1``: every frame that a client or the daemon may send; sans-I/O.

Frames are JSON Lines on a Unix stream socket: one JSON object a line, whose ``type`` is the tag of a class below. A
client sends ``hello``, ``open``, then any number of ``event`` and ``events``, with ``flush`` and ``ping`` in between,
and ``close``. The daemon answers ``welcome``, ``opened``, then ``ack``, ``reject``, ``refused``, ``decision``,
``flushed``, ``left_over`` and ``pong``, and at last ``closed``; an ``error`` ends the connection.

``ack.accepted`` and ``reject.index`` count the events of one connection from 1, in the order sent.

Requests with unknown fields are refused. Readers ignore answers of unknown types, and unknown fields of answers, so
that an older client can talk to a newer daemon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.events import EventLike, ExternalEvent

PROTOCOL: Final = "ergo-capture.v1"
#: The reference's own ingress protocol, which the daemon also accepts: hello, event..., end.
DRIVER_PROTOCOL: Final = "ergo-driver.v0"


class Code(StrEnum):
    """Reasons for a refusal; the same words in answers, logs and counters."""

    BAD_FRAME = "bad_frame"
    TOO_LARGE = "too_large"
    UNSUPPORTED_PROTOCOL = "unsupported_protocol"
    UNKNOWN_GRAPH = "unknown_graph"
    NO_ENGINE = "no_engine"
    NO_EGRESS = "no_egress"
    UNKNOWN_SESSION = "unknown_session"
    SESSION_BUSY = "session_busy"
    DUPLICATE_EVENT_ID = "duplicate_event_id"
    INVALID_PAYLOAD = "invalid_payload"
    STORAGE_FULL = "storage_full"
    STORAGE_FAILED = "storage_failed"
    SHUTTING_DOWN = "shutting_down"
    FORBIDDEN = "forbidden"
    LIMIT = "limit"
    ACKNOWLEDGED_LOST = "acknowledged_lost"
    SCHEMA_VIOLATION = "schema_violation"
    RUN_INTERRUPTED = "run_interrupted"


class Lost(msgspec.Struct, frozen=True):
    """A loss of acknowledged events: what was acknowledged, and what the daemon holds."""

    #: Events of the session that were acknowledged, as the client says, and that the daemon holds.
    acknowledged: int
    held: int
    #: Id of the last event that the daemon holds.
    last_event_id: str | None = None


def describe_loss(session: str, lost: Lost, last_acknowledged: str | None = None) -> str:
    """Return the loss of a session as a sentence: how many events, and from which on."""
    missing = lost.acknowledged - lost.held
    up_to = "" if last_acknowledged is None else f", up to {last_acknowledged!r}"
    if lost.held and missing > 0:
        behind = "" if lost.last_event_id is None else f", from behind {lost.last_event_id!r} on"
        return (
            f"{missing} acknowledged events of session {session!r} are lost{behind}: {lost.acknowledged} were "
            f"acknowledged{up_to}, and the daemon holds {lost.held}"
        )
    if missing > 0:
        return f"all {missing} acknowledged events of session {session!r} are lost{up_to}: the daemon holds none of it"
    last = "" if lost.last_event_id is None else f", up to {lost.last_event_id!r}"
    return (
        f"acknowledged events of session {session!r} are lost: {lost.acknowledged} were acknowledged{up_to}, and the "
        f"daemon holds {lost.held} of which that is none{last}"
    )


class ProtocolError(ErgoCaptureError):
    """An error that ends a connection, with code, message and hint; ``acknowledged_lost`` also has ``lost``."""

    def __init__(self, code: Code, message: str, hint: str, lost: Lost | None = None) -> None:
        super().__init__(message, op="serve a client", hint=hint)
        self.code = code
        self.lost = lost


# --- what a client sends -------------------------------------------------------------------------------------------


class _Request(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    pass


class Hello(_Request, frozen=True, tag="hello"):
    """The first frame: the protocol, and a name for the daemon's logs."""

    protocol: str
    client: str = ""


class Acknowledged(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The events that were acknowledged to a client, by ``opened`` and ``ack``."""

    #: Events of the session.
    events: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    #: Id of the last of them.
    last_event_id: str | None = None


# Defaults are left out, so that a daemon of 0.1.0, which does not know the last fields, does not refuse them.
class Open(_Request, frozen=True, tag="open", omit_defaults=True):
    """Open a session of a graph; with ``session``, resume that one."""

    graph: str = "default"
    session: str | None = None
    labels: dict[str, str] = {}
    #: Whether to send every decision as a ``decision`` frame.
    decisions: bool = False
    #: With ``session``: the events that were acknowledged. The daemon refuses to resume if it holds fewer.
    acknowledged: Acknowledged | None = None
    #: Whether to continue if acknowledged events are missing; in a new session if the whole session is missing.
    resume_after_loss: bool = False
    #: ``fixed`` for a session whose episodes run elsewhere: the graph's engine is not asked.
    decided_by: Literal["engine", "fixed"] = "engine"
    #: Whether the client takes ``note``, ``refused`` and ``left_over``; a client of 0.1.0 would fail at them.
    notices: bool = False


class Flush(_Request, frozen=True, tag="flush"):
    """Publish a snapshot of the session."""


class Close(_Request, frozen=True, tag="close"):
    """End the session and publish its bundle."""


#: The reference's words for why a source of events ended early.
IngressReason = Literal["driver_terminated", "protocol_violation", "host_stop_requested", "driver_io"]


# Unknown fields are ignored, as by a daemon of 0.1.0, which treats it as ``close``.
class End(msgspec.Struct, frozen=True, tag_field="type", tag="end", omit_defaults=True):
    """Close the session: the last frame of ``ergo-driver.v0``, or a ``close`` that says how the events ended."""

    #: Whether the events ended early: the session is then *interrupted*.
    interrupted: bool = False
    #: The reference's word for the reason, for the manifest.
    reason: IngressReason | None = None
    #: Whether a session that accepted no event leaves a bundle.
    keep_empty: bool = True


class Ping(_Request, frozen=True, tag="ping"):
    """Ask for a ``pong``."""


Request = Hello | Open | Flush | Close | End | Ping
#: The types of all frames that a client sends, except the two that hold events.
REQUEST_TYPES: Final = frozenset(kind.__struct_config__.tag for kind in Request.__args__)
#: The types of frames with one event, and with several. Each reader of events has its own class for them: their
#: content is decoded to different depths.
EVENT: Final = "event"
EVENTS: Final = "events"

_EVENT_START: Final = b'{"type":"event","event":'
_EVENT_LINE: Final = _EVENT_START + b'{"event_id":%b,"kind":"%b","at":{"secs":%d,"nanos":%d}%b,"payload":%b}}\n'


def event_line(event: ExternalEvent) -> bytes:
    """Return an event as an ``event`` frame, newline included; newlines between tokens of its payload become spaces."""
    return _EVENT_LINE % (
        _encode(event.event_id),
        event.kind.value.encode(),
        event.at.secs,
        event.at.nanos,
        b"" if event.semantic_kind is None else b',"semantic_kind":' + _encode(event.semantic_kind),
        event.payload.replace(b"\n", b" ") if event.payload else b"null",
    )


def wrap_event(event: bytes | msgspec.Raw) -> bytes:
    """Return the JSON text of an event, without newlines, as an ``event`` frame, newline included."""
    return b"%b%b}\n" % (_EVENT_START, bytes(event))


def unwrap_event(line: bytes) -> bytes:
    """Return the JSON text of the event in a line that ``event_line`` or ``wrap_event`` made; another line as it is."""
    line = line.removesuffix(b"\n")
    return line[len(_EVENT_START) : -1] if line.startswith(_EVENT_START) else line


# --- what the daemon reads -----------------------------------------------------------------------------------------


class UnknownField(NamedTuple):
    """An unknown field of an event."""

    #: Position of the event in its chunk, from 0.
    offset: int
    name: str


@dataclass(slots=True)
class EventChunk:
    """Consecutive well-formed events of one client, whose lines the journal keeps unchanged."""

    #: The event lines, newlines included.
    body: bytes
    events: Sequence[EventLike]
    #: The first unknown field of the connection.
    unknown: UnknownField | None = None
    ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = [event.event_id for event in self.events]


@dataclass(slots=True, frozen=True)
class BadLine:
    """A line that is rejected before a session sees it."""

    code: Code
    message: str
    hint: str
    event_id: str | None = None
    #: Whether it counts towards ``limits.max_bad_frames``: a bad event does not, a bad frame does.
    bad_frame: bool = True


Item = Request | EventChunk | BadLine


# --- what the daemon sends -----------------------------------------------------------------------------------------


class _Answer(msgspec.Struct, frozen=True, tag_field="type"):
    pass


class Welcome(_Answer, frozen=True, tag="welcome"):
    """Answer ``hello``: the protocol, the program, and its limits (bytes and counts, by name)."""

    protocol: str = PROTOCOL
    server: str = ""
    limits: dict[str, int] = {}
    #: Optional fields of ``open`` that it knows: ``acknowledged``, ``decided_by``, ``notices``.
    features: tuple[str, ...] = ()


class Opened(_Answer, frozen=True, kw_only=True, tag="opened"):
    """Answer ``open``; the counts are of events in the session, and zero for a new one."""

    session: str
    resumed: bool = False
    accepted: int
    decided: int = 0
    #: Id of the last accepted event.
    last_event_id: str | None
    #: The known loss of the session; absent for none.
    lost: Lost | msgspec.UnsetType = msgspec.UNSET


class Ack(_Answer, frozen=True, tag="ack"):
    """Up to ``accepted``, every event of this connection is durable or was rejected; up to ``decided``, decided."""

    accepted: int
    decided: int = 0
    #: Accepted events of the session, counted as ``opened.accepted`` counts them; None from a daemon of 0.1.0.
    events: int | None = None


class Reject(_Answer, frozen=True, tag="reject"):
    """The event with this number on this connection was not taken."""

    index: int
    #: None if the line cannot be read that far.
    event_id: str | None
    #: A ``Code``, or a word that a newer daemon uses.
    code: str
    message: str
    hint: str = ""


class Note(_Answer, frozen=True, tag="note"):
    """The event with this number on this connection is accepted, but probably contains a mistake.

    It is sent once on a connection.
    """

    index: int
    event_id: str | None
    message: str
    hint: str = ""


class Refused(_Answer, frozen=True, tag="refused"):
    """An accepted event was refused when its turn came: merged with the context store, its payload breaks the schema.

    It is sent when the refusal is durable, and again after a resume. A session remembers the last 1,000 refusals;
    ``count`` shows a gap.
    """

    #: The event's number in the session, from 1.
    index: int
    event_id: str
    #: A ``Code``, or a word that a newer daemon uses.
    code: str
    message: str
    #: Refused events of the session up to this one.
    count: int


class LeftOver(_Answer, frozen=True, tag="left_over"):
    """The run was interrupted: accepted events from this one on are not decided, and are kept beside the bundle."""

    #: The number in the session, from 1, of the first of them, and its id.
    from_index: int
    event_id: str
    count: int
    #: The reference's word for the reason, and what happened.
    reason: str
    message: str = ""


class DecisionFrame(_Answer, frozen=True, kw_only=True, tag="decision"):
    """A decision of the session: its number, from 1, and the record as the bundle holds it."""

    index: int = 0
    decision: dict[str, Any]


class Flushed(_Answer, frozen=True, tag="flushed"):
    """Answer ``flush``: paths of the snapshot and its manifest, and the snapshot's SHA-256 in hex."""

    bundle: str
    manifest: str
    sha256: str


class Closed(_Answer, frozen=True, kw_only=True, tag="closed"):
    """Answer ``close``: counts of the whole session, its last bundle as in ``flushed``, and the bundles of all parts.

    ``bundle``, ``manifest`` and ``sha256`` are empty if no event was accepted and no empty bundle was wanted.
    """

    events: int = 0
    decisions: int = 0
    session: str = ""
    bundles: list[str] = []
    bundle: str
    manifest: str
    sha256: str
    #: Episodes by ``Completed``, ``TimedOut``, ``Aborted`` or ``Failed(KIND)``, without those of parts that were
    #: published before the daemon started.
    terminations: dict[str, int] = {}
    #: Accepted events that were refused, and that were left over after an interruption of the run.
    refused: int = 0
    left_over: int = 0
    #: The reason for the session's interruption, in one word; empty for none, or if it is unknown.
    reason: str = ""


class Pong(_Answer, frozen=True, tag="pong"):
    """Answer ``ping``."""


class Error(_Answer, frozen=True, tag="error"):
    """The connection ends after this."""

    #: A ``Code``, or a word that a newer daemon uses.
    code: str
    message: str
    hint: str = ""
    #: With ``acknowledged_lost``.
    lost: Lost | msgspec.UnsetType = msgspec.UNSET


Answer = Welcome | Opened | Ack | Reject | Note | Refused | LeftOver | DecisionFrame | Flushed | Closed | Pong | Error

_encode: Final = msgspec.json.Encoder().encode


def encode(frame: Request | Answer) -> bytes:
    """Return a frame as a line, newline included."""
    return _encode(frame) + b"\n"


def encode_error(error: ProtocolError) -> bytes:
    """Return the ``error`` frame that ends a connection."""
    lost = msgspec.UNSET if error.lost is None else error.lost
    return encode(Error(code=error.code, message=error.message, hint=error.hint or "", lost=lost))


def encode_decision_frame(index: int, record: bytes) -> bytes:
    """Return a ``decision`` frame from the JSON text of the record."""
    return b'{"type":"decision","index":%d,"decision":%b}\n' % (index, record)


class _Type(msgspec.Struct, frozen=True):
    type: str


#: The values of ``welcome.features``, for the fields of ``open``: ``acknowledged`` and ``resume_after_loss``;
#: ``decided_by``; ``notices``.
ACKNOWLEDGED: Final = "acknowledged"
DECIDED_BY: Final = "decided_by"
NOTICES: Final = "notices"

_answers: Final = msgspec.json.Decoder(Answer)
_type: Final = msgspec.json.Decoder(_Type)
_KNOWN: Final = frozenset(kind.__struct_config__.tag for kind in Answer.__args__)


def read_answers(lines: bytes) -> list[Answer]:
    """Return the answers in some whole lines; those of a type that this release does not know are left out.

    Raises:
        ValueError: a line is not an answer; the message gives the reason.
    """
    try:
        return _answers.decode_lines(lines)
    except msgspec.ValidationError:
        known = (line for line in lines.split(b"\n") if line.strip() and _type.decode(line).type in _KNOWN)
        return [_answers.decode(line) for line in known]
    except RecursionError as error:
        raise ValueError(str(error)) from error
