"""One connection to an engine: sends requests and matches the answers to them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from ergo_capture.engine.port import INVALID_REPLY, TIMED_OUT, UNAVAILABLE, SessionPart
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.ports import RunResult
from ergo_capture.kernel.time import EventTime
from ergo_capture.pauses import clock, within
from ergo_capture.protocol.engine import (
    SESSIONS,
    EngineProtocolError,
    LineSplitter,
    Ready,
    encode_begin,
    encode_end,
    encode_run,
    read_ran,
    read_ready,
)

#: The exceptions that mean a broken connection.
LOST: Final = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)

_READ_BYTES: Final = 64 << 10
#: Ids of abandoned runs that are kept to tell a late answer from an unknown one.
_MAX_LATE: Final = 10_000
#: Seconds to wait for the answers to pending runs after the engine has stopped reading or has ended.
_DRAIN_SECONDS: Final = 1.0


class _State(Enum):
    #: Requests are sent, answers are read.
    OPEN = auto()
    #: The engine reads nothing more; answers to pending runs may still come.
    DRAINING = auto()
    #: Nothing is read or sent any more.
    CLOSED = auto()


@dataclass(slots=True, eq=False)
class _Pending:
    """A run that the engine has not answered."""

    event_id: str
    answer: asyncio.Future[RunResult]


class EngineConnection:
    """Sends requests to an engine and hands out its answers.

    Args:
        receive: the stream that the engine writes.
        send: the stream that it reads.
        max_line_bytes: the longest line that it may write.
        counts: counts ``late`` and ``unknown`` answers, and invalid ones as ``nonsense``.
        on_closing: called once, when no more requests are sent, before pending runs end because of it.
        on_invalid_reply: called with the event's id and the error when an answer is not a valid result.
        refuses_unknown: whether an answer to a run that was never requested ends the connection.
    """

    def __init__(
        self,
        receive: ByteReceiveStream,
        send: ByteSendStream,
        max_line_bytes: int,
        counts: Counter[str],
        *,
        on_closing: Callable[[], None],
        on_invalid_reply: Callable[[str, str], None],
        refuses_unknown: bool = False,
    ) -> None:
        self._receive = receive
        self._send = send
        self._lines = LineSplitter(max_line_bytes)
        self._counts = counts
        self._on_closing = on_closing
        self._on_invalid_reply = on_invalid_reply
        self._refuses_unknown = refuses_unknown
        self._state = _State.OPEN
        self._next_number = 0
        self._pending: dict[int, _Pending] = {}
        #: Numbers of abandoned runs; an answer may still come.
        self._late: set[int] = set()
        #: Whether the engine gets ``begin`` and ``end``, and the last part of each session that it was told of.
        self._knows_sessions = False
        self._begun: dict[str, int] = {}
        #: The number of the last message that is not answered; they count downwards.
        self._notice = 0
        #: Messages that are not sent yet, by number; in order.
        self._outgoing: dict[int, bytes] = {}
        self._has_outgoing = asyncio.Event()
        #: Seconds for which the engine has owed an answer, up to ``_silent_since``.
        self._owed = 0.0
        #: Time of ``pauses.clock`` at the last answer, or at the first request after a time without pending runs.
        self._silent_since = 0.0

    async def greet(self) -> Ready:
        """Return the engine's first message.

        Raises:
            EngineProtocolError: it is not ``ready``.
            anyio.EndOfStream, OSError: the engine is gone.
        """
        while True:
            lines = self._lines.feed(await self._receive.receive(_READ_BYTES))
            if lines:
                ready = read_ready(lines[0])
                self._knows_sessions = SESSIONS in ready.features
                for line in lines[1:]:
                    self._accept(line)
                return ready

    async def converse(self, deaf: asyncio.Event | None = None) -> None:
        """Send and receive until the engine is gone or breaks the protocol; then every pending run ends.

        Args:
            deaf: set when the engine reads no more, if that is noticed before a request is sent.

        Raises:
            EngineProtocolError: a line is not a message.
        """
        outcome = UNAVAILABLE
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send_requests, tasks.cancel_scope)
                if deaf is not None:
                    tasks.start_soon(self._drain_once_deaf, deaf, tasks.cancel_scope)
                try:
                    await self._receive_answers()
                finally:
                    tasks.cancel_scope.cancel()
        except* EngineProtocolError as group:
            outcome = INVALID_REPLY
            raise group.exceptions[0] from None
        finally:
            # Do it before the pending runs end: a task that asks again then must find the engine away.
            self._stop_asking()
            self._state = _State.CLOSED
            pending, self._pending = self._pending, {}
            for run in pending.values():
                if not run.answer.done():
                    run.answer.set_result(outcome)

    async def ask(
        self, graph_id: str, event: ExternalEvent, deadline: EventTime | None, of: SessionPart | None = None
    ) -> RunResult:
        """Let the engine run one attempt, and return its result.

        The request is queued before the first await, so that requests keep the order of the calls.
        """
        loop = asyncio.get_running_loop()
        number, self._next_number = self._next_number, self._next_number + 1
        if not self._pending:
            self._silent_since = clock.now()
        answer: asyncio.Future[RunResult] = loop.create_future()
        self._pending[number] = _Pending(event.event_id, answer)
        if of is not None and self._knows_sessions:
            self._begin_part(graph_id, of)
            self._outgoing[number] = encode_run(number, graph_id, event, deadline, *of)
        else:
            self._outgoing[number] = encode_run(number, graph_id, event, deadline)
        self._has_outgoing.set()
        try:
            if deadline is None:
                return await answer
            with suppress(TimeoutError):
                await within(deadline.total_nanos / 1e9, lambda: asyncio.wait([answer]))
                return answer.result()
            if number not in self._outgoing:
                if len(self._late) >= _MAX_LATE:
                    self._late.clear()
                self._late.add(number)
            return TIMED_OUT
        finally:
            # Drop the request: an engine that does not read must not make the daemon keep abandoned requests.
            self._outgoing.pop(number, None)
            if self._pending.pop(number, None) is not None and not self._pending:
                self._owed += clock.now() - self._silent_since

    def _begin_part(self, graph_id: str, of: SessionPart) -> None:
        """Tell the engine of a part before its first run on this connection."""
        if self._begun.get(of.session) != of.part:
            self._begun[of.session] = of.part
            self._say(encode_begin(graph_id, *of))

    def end_part(self, of: SessionPart) -> None:
        """Tell the engine that a part has no further runs, if it was told of its beginning on this connection."""
        if self._state is _State.OPEN and self._begun.get(of.session) == of.part:
            del self._begun[of.session]
            self._say(encode_end(*of))
            self._has_outgoing.set()

    def _say(self, message: bytes) -> None:
        self._notice -= 1
        self._outgoing[self._notice] = message

    async def _receive_answers(self) -> None:
        while True:
            try:
                data = await self._receive.receive(_READ_BYTES)
            except LOST:
                return
            for line in self._lines.feed(data):
                self._accept(line)

    def _accept(self, line: bytes) -> None:
        ran = read_ran(line)
        self._owed, self._silent_since = 0.0, clock.now()
        run = self._pending.pop(ran.id, None)
        if run is None:
            if self._refuses_unknown and not 0 <= ran.id < self._next_number:
                raise EngineProtocolError(f"it answered run {ran.id}, which it was not asked for", op="talk to engine")
            self._counts["late" if ran.id in self._late else "unknown"] += 1
            self._late.discard(ran.id)
            return
        if ran.result is None:
            self._counts["nonsense"] += 1
            self._on_invalid_reply(run.event_id, ran.error)
        if not run.answer.done():
            run.answer.set_result(INVALID_REPLY if ran.result is None else ran.result)

    async def _send_requests(self, conversation: anyio.CancelScope) -> None:
        while True:
            await self._has_outgoing.wait()
            self._has_outgoing.clear()
            outgoing, self._outgoing = self._outgoing, {}
            try:
                await self._send.send(b"".join(outgoing.values()))
            except LOST:
                await self._drain(conversation)

    async def _drain_once_deaf(self, deaf: asyncio.Event, conversation: anyio.CancelScope) -> None:
        await deaf.wait()
        await self._drain(conversation)

    async def _drain(self, conversation: anyio.CancelScope) -> None:
        """Send nothing more; end the conversation when no run is pending, or a second later."""
        self._stop_asking()
        if self._pending:
            with anyio.move_on_after(_DRAIN_SECONDS):
                await asyncio.wait([run.answer for run in self._pending.values()])
        conversation.cancel()

    def _stop_asking(self) -> None:
        if self._state is _State.OPEN:
            self._state = _State.DRAINING
            self._on_closing()

    @property
    def pending(self) -> int:
        """The number of runs that are under way."""
        return len(self._pending)

    @property
    def silence(self) -> float:
        """Seconds that the engine has owed an answer since its last one; time with no run pending does not count.

        Abandoned runs count: an engine that hangs is noticed though each run has a short deadline.
        """
        return self._owed + (clock.now() - self._silent_since if self._pending else 0.0)

    @property
    def unsent_bytes(self) -> int:
        """Bytes of requests that wait for the engine to read."""
        return sum(map(len, self._outgoing.values()))
