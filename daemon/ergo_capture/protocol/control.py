"""What is said on the control socket, sans-I/O: lines in, requests out; answers in, lines out.

JSON Lines. A request is one object with a ``command``; an answer is one object with a ``type``, and ``tap`` is
answered with as many as there are decisions to show:

    {"command": "status"}                        {"type": "status", "status": {...}}
    {"command": "metrics"}                       {"type": "metrics", "text": "..."}
    {"command": "reload"}                        {"type": "reloaded", "applied": [...], "restart": [...]}
    {"command": "flush", "session": "..."}       {"type": "flushed", "bundles": [...]}
    {"command": "shutdown"}                      {"type": "stopping", "waits_for": [...]}
    {"command": "tap", "of": "...", "rate": 100} {"type": "tapping", ...}, then {"type": "decision", ...} and
                                                 {"type": "skipped", "count": 240}; {"type": "ended", "how": "..."}
    anything else                                {"type": "error", "code", "message", "hint", "exit_code"}

A tap is the last thing on its connection: it ends when its operator hangs up or says anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from ergo_capture.kernel.ports import DecisionLogEntry
from ergo_capture.kernel.records import encode_decision
from ergo_capture.protocol.capture import Code, ProtocolError

#: Longest request, in bytes.
MAX_REQUEST_BYTES: Final = 4096
#: Most decisions a second that a tap shows.
MAX_RATE: Final = 10_000


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="command"):
    """One line from an operator."""


class StatusRequest(_Request, frozen=True, tag="status"):
    """How is it?"""


class MetricsRequest(_Request, frozen=True, tag="metrics"):
    """The same as Prometheus reads it."""


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


Request = StatusRequest | MetricsRequest | ReloadRequest | FlushRequest | ShutdownRequest | TapRequest

COMMANDS: Final = ("status", "metrics", "reload", "flush", "shutdown", "tap")

#: The code of an error where what was asked for could not be done.
FAILED: Final = "failed"

_decode: Final = msgspec.json.Decoder(Request).decode
_encode: Final = msgspec.json.Encoder().encode


def read_request(line: bytes) -> Request:
    """The request that a line says.

    Raises:
        ProtocolError: none that is known.
    """
    try:
        request: Request = _decode(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(
            Code.BAD_FRAME,
            f"not a request: {error}",
            f'send one JSON object a line, such as {{"command": "status"}}; commands are {", ".join(COMMANDS)}',
        ) from error
    return request


def answer(kind: str, **fields: Any) -> bytes:
    """One line for the operator."""
    return _encode({"type": kind, **fields}) + b"\n"


@dataclass(frozen=True, slots=True)
class Shown:
    """A decision that is shown."""

    session: str
    #: The decision's number in the session, from 1.
    index: int
    entry: DecisionLogEntry


def encode_shown(shown: Shown) -> bytes:
    """A decision for somebody who taps: as the bundle will hold it, with the event's kind and time."""
    entry = shown.entry
    at = {"secs": entry.event.at.secs, "nanos": entry.event.at.nanos}
    record = msgspec.Raw(encode_decision(entry.to_record()))
    body = {"session": shown.session, "index": shown.index, "kind": entry.event.kind, "at": at, "decision": record}
    return _encode({"type": "decision", **body}) + b"\n"
