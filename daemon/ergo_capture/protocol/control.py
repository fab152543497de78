"""The protocol of the control socket: every request of an operator and every answer; sans-I/O.

JSON Lines. A request is one object with a ``command``, an answer one object with a ``type``; ``tap`` has as many
answers as there are decisions to show:

    {"command": "status"}                        {"type": "status", "status": {...}}
    {"command": "metrics"}                       {"type": "metrics", "text": "..."}
    {"command": "reload"}                        {"type": "reloaded", "applied": [...], "restart": [...]}
    {"command": "flush", "session": "..."}       {"type": "flushed", "bundles": [...]}
    {"command": "shutdown"}                      {"type": "stopping", "waits_for": [...]}
    {"command": "bury", "bundle", "reason"}      {"type": "buried"}
    {"command": "tap", "of": "...", "rate": 100} {"type": "tapping", ...}, then {"type": "decision", ...} and
                                                 {"type": "skipped", "count": 240}; {"type": "ended", "how": "..."}
    anything else                                {"type": "error", "code", "message", "hint", "exit_code"}

A tap is the last request on its connection: it ends when the operator hangs up or sends anything.
"""

from __future__ import annotations

from typing import Annotated, Final, Self

import msgspec
from msgspec import Meta

from ergo_capture.errors import ExitCode
from ergo_capture.kernel.events import ExternalEventKind
from ergo_capture.kernel.ports import DecisionLogEntry
from ergo_capture.kernel.records import encode_decision
from ergo_capture.protocol.capture import Code, ProtocolError

#: Longest request, in bytes.
MAX_REQUEST_BYTES: Final = 4096
#: Most decisions a second that a tap shows.
MAX_RATE: Final = 10_000

# --- what an operator sends -----------------------------------------------------------------------------------------


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="command"):
    pass


class StatusRequest(_Request, frozen=True, tag="status"):
    """Ask for the daemon's status."""


class MetricsRequest(_Request, frozen=True, tag="metrics"):
    """Ask for the metrics in Prometheus's text format."""


class ReloadRequest(_Request, frozen=True, tag="reload"):
    """Read the configuration again."""


class FlushRequest(_Request, frozen=True, tag="flush"):
    """Publish a snapshot of one session, or of every open one."""

    session: str | None = None


class ShutdownRequest(_Request, frozen=True, tag="shutdown"):
    """Stop in order, as SIGTERM does."""


class TapRequest(_Request, frozen=True, tag="tap"):
    """Follow the decisions of a graph or a session."""

    of: str
    #: Most decisions a second to show.
    rate: Annotated[int, Meta(ge=1, le=MAX_RATE)] = 100


class BuryRequest(_Request, frozen=True, tag="bury"):
    """Write the signed tombstone of a bundle that is about to be deleted."""

    #: Path of the bundle.
    bundle: str
    reason: str


Request = StatusRequest | MetricsRequest | ReloadRequest | FlushRequest | ShutdownRequest | TapRequest | BuryRequest

COMMANDS: Final = ("status", "metrics", "reload", "flush", "shutdown", "tap", "bury")

# --- what the daemon sends ------------------------------------------------------------------------------------------


class _Answer(msgspec.Struct, frozen=True, tag_field="type"):
    pass


class Status(_Answer, frozen=True, tag="status"):
    """The status, as JSON text."""

    status: msgspec.Raw


class Metrics(_Answer, frozen=True, tag="metrics"):
    """The metrics in Prometheus's text format."""

    text: str


class Reloaded(_Answer, frozen=True, tag="reloaded"):
    """Names of the settings that took effect, and of those that take effect with a restart."""

    applied: list[str]
    restart: list[str]


class Flushed(_Answer, frozen=True, tag="flushed"):
    """Paths of the bundles that were published."""

    bundles: list[str]


class Stopping(_Answer, frozen=True, tag="stopping"):
    """The reasons that the shutdown waits for, as sentences."""

    waits_for: list[str]


class Buried(_Answer, frozen=True, tag="buried"):
    """The tombstone is durable."""


class Tapping(_Answer, frozen=True, tag="tapping"):
    """A tap has begun."""

    of: str
    rate: int


class Time(msgspec.Struct, frozen=True):
    """A time of an event, or of when an episode is due."""

    secs: int
    nanos: int


class TappedDecision(_Answer, frozen=True, tag="decision"):
    """A decision, with its event's kind and time."""

    session: str
    #: The decision's index in the session, from 0, as `cat` counts.
    index: int
    kind: ExternalEventKind
    at: Time
    #: The decision record as the bundle holds it, as JSON text.
    decision: msgspec.Raw

    @classmethod
    def of(cls, session: str, index: int, entry: DecisionLogEntry) -> Self:
        """Return the answer that shows a logged decision."""
        event = entry.event
        record = msgspec.Raw(encode_decision(entry.to_record()))
        return cls(session, index, event.kind, Time(event.at.secs, event.at.nanos), record)


class Skipped(_Answer, frozen=True, tag="skipped"):
    """The number of decisions that are skipped here."""

    count: int


class Ended(_Answer, frozen=True, tag="ended"):
    """The tapped session is over; ``how`` is its end."""

    how: str


class Error(_Answer, frozen=True, tag="error"):
    """The request was refused, or failed."""

    #: A ``Code``, or ``FAILED``.
    code: str
    message: str
    hint: str | None = None
    #: The status with which the operator's command exits.
    exit_code: int = ExitCode.FAILED


Answer = Status | Metrics | Reloaded | Flushed | Stopping | Buried | Tapping | TappedDecision | Skipped | Ended | Error

_KNOWN: Final = frozenset(kind.__struct_config__.tag for kind in Answer.__args__)

#: The code of an error that is not a refusal.
FAILED: Final = "failed"

_requests: Final = msgspec.json.Decoder(Request)
_answers: Final = msgspec.json.Decoder(Answer)
_encode: Final = msgspec.json.Encoder().encode


def encode(message: Request | Answer) -> bytes:
    """Return a request or an answer as a line, newline included."""
    return _encode(message) + b"\n"


def read_request(line: bytes) -> Request:
    """Return the request in a line.

    Raises:
        ProtocolError: ``bad_frame``: it is not a known request.
    """
    try:
        request: Request = _requests.decode(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(
            Code.BAD_FRAME,
            f"not a request of the control socket: {error}",
            "clients connect to the capture socket; a request is one JSON object a line, such as "
            f'{{"command": "status"}}, and commands are {", ".join(COMMANDS)}',
        ) from error
    return request


class _Type(msgspec.Struct, frozen=True):
    type: str


_type: Final = msgspec.json.Decoder(_Type)


def read_answer(line: bytes) -> Answer | None:
    """Return the answer in a line; None if it is of a type that this release does not know.

    Raises:
        ValueError: it is not an answer; the message gives the reason.
    """
    if _type.decode(line).type not in _KNOWN:
        return None
    answer: Answer = _answers.decode(line)
    return answer
