"""``ergo-engine.v1``: the protocol between the daemon and an engine outside of it, and its specification; sans-I/O.

JSON Lines, one message a line, UTF-8. The engine speaks first:

    {"type": "ready", "protocol": "ergo-engine.v1", "graphs": ["default"], "runtime_provenance": "rpv1:sha256:..."}

An engine that leaves out ``graphs`` takes any. Then the daemon sends runs, any number of them before it is answered,
and the engine answers in any order:

    {"type": "run", "id": 7, "graph_id": "default", "event_id": "e1", "kind": "Command",
     "at": {"secs": 5, "nanos": 0}, "payload": {"x": 1}, "deadline": {"secs": 1, "nanos": 0}}
    {"type": "ran", "id": 7, "termination": "Completed", "effects": []}

``payload`` is the event's JSON object as the bundle captures it, or null; ``deadline`` is null if there is none. In
``ran``, ``type`` and ``effects`` may be left out, and ``intent_acks`` and ``interruption`` may be added. A termination
is ``"Completed"``, ``"TimedOut"``, ``"Aborted"`` or ``{"Failed": KIND}``. Each run is answered once: answers that are
late, repeated or to no run are counted and dropped. If the id of an answer can be read and the rest cannot, that run
ends as ``Failed(RuntimeError)``; a line that is not a message ends the connection.

An engine that lists ``sessions`` in ``features`` of ``ready`` is told which part of which session a run belongs to:

    {"type": "begin", "graph_id": "default", "session": "20261123T134500Z-1-9c4ef0aa", "part": 1}
    {"type": "end", "session": "20261123T134500Z-1-9c4ef0aa", "part": 1}

``begin`` comes before the part's first run on a connection, ``end`` after its last; neither is answered. ``run`` then
has ``session``, ``part`` and ``semantic_kind`` at its end.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.effects import ActionEffect
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.ports import RunResult
from ergo_capture.kernel.records import CapturedIntentAck, encode_time
from ergo_capture.kernel.time import EventTime

PROTOCOL: Final = "ergo-engine.v1"
#: The value in ``features`` of an engine that gets ``begin`` and ``end``.
SESSIONS: Final = "sessions"


class EngineProtocolError(ErgoCaptureError):
    """The engine sent something that is not a message of the protocol."""


class Ready(msgspec.Struct, frozen=True, tag_field="type", tag="ready"):
    """The engine's first message."""

    protocol: str
    runtime_provenance: str
    #: The graphs it runs; None for any.
    graphs: tuple[str, ...] | None = None
    #: The provenances that it is made for; None if it does not say. Others than the graph's are refused.
    adapter_provenance: str | None = None
    egress_provenance: str | None = None
    #: Further features that it supports: ``sessions``.
    features: tuple[str, ...] = ()


class Ran(msgspec.Struct, frozen=True):
    """An engine's answer: the result of a run, or in ``error`` the reason why the answer is invalid."""

    id: int
    #: None if the answer is invalid.
    result: RunResult | None
    error: str = ""


class _RanMessage(msgspec.Struct, frozen=True):
    id: int
    termination: Any
    effects: tuple[ActionEffect, ...] = ()
    intent_acks: tuple[CapturedIntentAck, ...] = ()
    interruption: str | None = None
    type: str = "ran"


class _RanHead(msgspec.Struct, frozen=True):
    id: int
    type: str = "ran"


_encode: Final = msgspec.json.Encoder().encode
_ready: Final = msgspec.json.Decoder(Ready)
_ran: Final = msgspec.json.Decoder(_RanMessage)
_ran_head: Final = msgspec.json.Decoder(_RanHead)


def encode_run(
    number: int, graph_id: str, event: ExternalEvent, deadline: EventTime | None, session: str = "", part: int = 0
) -> bytes:
    """Return the ``run`` message of an attempt, newline included.

    Args:
        number: its id.
        graph_id: the graph.
        event: the event whose episode it is.
        deadline: the longest time that it may take.
        session: the session, for an engine with the feature ``sessions``; empty for any other.
        part: the part of the session.
    """
    of = b""
    if session:
        of = b',"session":%b,"part":%d,"semantic_kind":%b' % (_encode(session), part, _encode(event.semantic_kind))
    return b'{"type":"run","id":%d,"graph_id":%b,"event_id":%b,"kind":"%b","at":%b,"payload":%b,"deadline":%b%b}\n' % (
        number,
        _encode(graph_id),
        _encode(event.event_id),
        event.kind.value.encode(),
        encode_time(event.at),
        # An event made with the library may have newlines between the tokens of its payload.
        event.payload.replace(b"\n", b" ") or b"null",
        encode_time(deadline),
        of,
    )


def encode_begin(graph_id: str, session: str, part: int) -> bytes:
    """Return the message that a part of a session begins, newline included."""
    return b'{"type":"begin","graph_id":%b,"session":%b,"part":%d}\n' % (_encode(graph_id), _encode(session), part)


def encode_end(session: str, part: int) -> bytes:
    """Return the message that a part of a session has no further runs, newline included."""
    return b'{"type":"end","session":%b,"part":%d}\n' % (_encode(session), part)


def read_ready(line: bytes) -> Ready:
    """Return the engine's first message.

    Raises:
        EngineProtocolError: it is not a ``ready``, or of another protocol.
    """
    try:
        # Decode UTF-8 here: msgspec does not check it in values that it skips.
        ready = _ready.decode(line.decode())
    except (ValueError, RecursionError) as error:
        raise _protocol_error(f"instead of `ready` it said {_shown(line)} ({error})") from error
    if ready.protocol != PROTOCOL:
        raise _protocol_error(f"it speaks {ready.protocol!r} and not {PROTOCOL!r}")
    return ready


def read_ran(line: bytes) -> Ran:
    """Return an answer; if only its id can be read, one without a result.

    Raises:
        EngineProtocolError: it is not a ``ran``, or its id cannot be read.
    """
    try:
        text = line.decode()
        try:
            message = _ran.decode(text)
            kind, result = message.type, _result_of(message)
            answer = Ran(message.id, result)
        except (ValueError, RecursionError) as error:
            head = _ran_head.decode(text)
            kind, answer = head.type, Ran(head.id, None, str(error))
        if kind != "ran":
            raise ValueError(f"its type is {kind!r}")
    except (ValueError, RecursionError) as error:
        raise _protocol_error(f"it said {_shown(line)} ({error})") from error
    return answer


def _result_of(message: _RanMessage) -> RunResult:
    termination = RunTermination.from_builtins(message.termination)
    return RunResult(termination, message.effects, message.intent_acks, message.interruption)


def _shown(line: bytes) -> str:
    return repr(line[:80].decode("utf-8", "replace")) + ("..." if len(line) > 80 else "")


def _protocol_error(what: str) -> EngineProtocolError:
    return EngineProtocolError(
        f"talk to engine: {what}",
        op="talk to engine",
        hint="an engine writes one JSON message a line to its standard output, and nothing else",
    )


class LineSplitter:
    """Splits received bytes into lines of at most ``longest`` bytes."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._begun = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that ``data`` completes, without newlines; blank lines are left out.

        Raises:
            EngineProtocolError: a line is too long; what is held of it is dropped.
        """
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = bytes(self._begun) + lines[0]
            self._begun = bytearray(rest)
        else:
            self._begun += rest
        if len(self._begun) > self._longest or any(len(line) > self._longest for line in lines):
            self._begun = bytearray()
            raise _protocol_error(f"a line of it is longer than {self._longest} bytes")
        return [line for line in lines if line.strip()]

    @property
    def begun(self) -> bool:
        """Return whether a line has begun and not ended."""
        return bool(self._begun)
