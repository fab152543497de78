"""``ergo-engine.v1``: how an engine outside the daemon is talked to; sans-I/O, and the protocol's specification.

JSON Lines, one message a line, UTF-8. The engine speaks first:

    {"type": "ready", "protocol": "ergo-engine.v1", "graphs": ["default"], "runtime_provenance": "rpv1:sha256:..."}

``graphs`` may be left out: then the engine takes any. Then the daemon asks, as often as it likes before it is
answered, and the engine answers in any order:

    {"type": "run", "id": 7, "graph_id": "default", "event_id": "e1", "kind": "Command",
     "at": {"secs": 5, "nanos": 0}, "payload": {"x": 1}, "deadline": {"secs": 1, "nanos": 0}}
    {"type": "ran", "id": 7, "termination": "Completed", "effects": []}

``payload`` is the event's JSON object as the client sent it, or null; ``deadline`` is null where there is none. In
``ran``, ``type`` and ``effects`` may be left out, ``intent_acks`` and ``interruption`` may be added. A termination is
``"Completed"``, ``"TimedOut"``, ``"Aborted"`` or ``{"Failed": KIND}``. An id is answered once; what comes late, twice
or unasked is counted and dropped. An answer whose id can be read and whose rest cannot costs that run
(``Failed(RuntimeError)``); a line that is no message costs the connection.
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


class EngineProtocolError(ErgoCaptureError):
    """The engine said something that is no message of the protocol."""


class Ready(msgspec.Struct, frozen=True, tag_field="type", tag="ready"):
    """The engine's first message."""

    protocol: str
    runtime_provenance: str
    #: The graphs it runs; None for any.
    graphs: tuple[str, ...] | None = None


class Ran(msgspec.Struct, frozen=True):
    """How a run ended; ``result`` is None where the engine's answer to that id is nonsense, which ``error`` explains."""

    id: int
    result: RunResult | None
    error: str = ""


class _RanBody(msgspec.Struct, frozen=True):
    id: int
    termination: Any
    effects: tuple[ActionEffect, ...] = ()
    intent_acks: tuple[CapturedIntentAck, ...] = ()
    interruption: str | None = None


class _Id(msgspec.Struct, frozen=True):
    id: int


class _Type(msgspec.Struct, frozen=True):
    type: str = "ran"


_encode: Final = msgspec.json.Encoder().encode
_ready: Final = msgspec.json.Decoder(Ready)
_ran: Final = msgspec.json.Decoder(_RanBody)
_id: Final = msgspec.json.Decoder(_Id)
_type: Final = msgspec.json.Decoder(_Type)


def encode_run(number: int, graph_id: str, event: ExternalEvent, deadline: EventTime | None) -> bytes:
    """The ``run`` message of an attempt, newline included."""
    return b'{"type":"run","id":%d,"graph_id":%b,"event_id":%b,"kind":"%b","at":%b,"payload":%b,"deadline":%b}\n' % (
        number,
        _encode(graph_id),
        _encode(event.event_id),
        event.kind.value.encode(),
        encode_time(event.at),
        # Why newlines go: a payload may hold them between its parts when it came through the library.
        event.payload.replace(b"\n", b" ") or b"null",
        encode_time(deadline),
    )


def read_ready(line: bytes) -> Ready:
    """The engine's first message.

    Raises:
        EngineProtocolError: it is none, or of another protocol.
    """
    try:
        ready = _ready.decode(_utf8(line))
    except (ValueError, RecursionError) as error:
        raise _nonsense(f"instead of `ready` it said {_shown(line)} ({error})") from error
    if ready.protocol != PROTOCOL:
        raise _nonsense(f"it speaks {ready.protocol!r} and not {PROTOCOL!r}")
    return ready


def read_ran(line: bytes) -> Ran:
    """An answer.

    Raises:
        EngineProtocolError: not even its id can be read.
    """
    try:
        text = _utf8(line)
        kind = _type.decode(text).type
        if kind != "ran":
            raise ValueError(f"its type is {kind!r}")
        number = _id.decode(text).id
    except (ValueError, RecursionError) as error:
        raise _nonsense(f"it said {_shown(line)} ({error})") from error
    try:
        body = _ran.decode(text)
        termination = RunTermination.from_builtins(body.termination)
    except (ValueError, RecursionError) as error:
        return Ran(number, None, str(error))
    return Ran(number, RunResult(termination, body.effects, body.intent_acks, body.interruption))


def _utf8(line: bytes) -> str:
    return line.decode()


def _shown(line: bytes) -> str:
    return repr(line[:80].decode("utf-8", "replace")) + ("..." if len(line) > 80 else "")


def _nonsense(what: str) -> EngineProtocolError:
    return EngineProtocolError(
        f"talk to engine: {what}",
        op="talk to engine",
        hint="an engine writes one JSON message a line to its standard output, and nothing else",
    )


class LineSplitter:
    """Bytes to lines of bounded length."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._begun = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now.

        Raises:
            EngineProtocolError: a line is longer than it may be; what there is of it is let go.
        """
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = bytes(self._begun) + lines[0]
            self._begun = bytearray(rest)
        else:
            self._begun += rest
        if len(self._begun) > self._longest or any(len(line) > self._longest for line in lines):
            self._begun = bytearray()
            raise _nonsense(f"a line of it is longer than {self._longest} bytes")
        return [line for line in lines if line.strip()]

    @property
    def begun(self) -> bool:
        """Whether a line has been begun and not ended."""
        return bool(self._begun)

    def __repr__(self) -> str:
        return f"<LineSplitter, {len(self._begun)} bytes of one begun>"
