"""One connection to an engine: who asked what, and whose answer this is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from ergo_capture.engine.port import INVALID_REPLY, TIMED_OUT, UNAVAILABLE
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.ports import RunResult
from ergo_capture.kernel.time import EventTime
from ergo_capture.protocol.engine import EngineProtocolError, LineSplitter, Ready, encode_run, read_ran, read_ready

_READ_BYTES: Final = 64 << 10
#: Ids of runs given up that are kept to tell a late answer from an unknown one.
_MOST_LATE: Final = 10_000
#: Seconds that an engine which hears nothing more, or has ended, is still listened to.
LAST_WORDS_SECONDS: Final = 1.0


class EngineConnection:
    """Asks an engine and hands out its answers.

    Args:
        receive: what the engine says.
        send: what it hears.
        longest: bytes of a line, at most.
        counts: counts ``late`` and ``unknown`` answers, and those that are ``nonsense``.
        on_over: told when the conversation is over, before those who wait for an answer are.
    """

    def __init__(
        self,
        receive: ByteReceiveStream,
        send: ByteSendStream,
        longest: int,
        counts: Counter[str],
        on_over: Callable[[], None],
    ) -> None:
        self._on_over = on_over
        self._receive = receive
        self._send = send
        self._lines = LineSplitter(longest)
        self._counts = counts
        self._next = 0
        self._pending: dict[int, asyncio.Future[RunResult]] = {}
        #: Asked and given up; an answer may still come.
        self._late: set[int] = set()
        #: Requests that are not sent yet, by number; in order.
        self._outgoing: dict[int, bytes] = {}
        self._something = asyncio.Event()
        #: Seconds that it owed answers and gave none, up to when it was last asked with nothing else pending.
        self._owed = 0.0
        #: When that was, or when it last answered, in the loop's time.
        self._since = 0.0
        self._over = False

    async def greet(self) -> Ready:
        """The engine's first message.

        Raises:
            EngineProtocolError: it said something else.
            anyio.EndOfStream, OSError: it is gone.
        """
        while True:
            lines = self._lines.feed(await self._receive.receive(_READ_BYTES))
            if lines:
                first, *rest = lines
                ready = read_ready(first)
                for line in rest:
                    self._take(line)
                return ready

    async def converse(self) -> None:
        """Send and hear until the engine is gone or talks nonsense; every run that is under way ends then.

        Raises:
            EngineProtocolError: a line is no message.
        """
        outcome = UNAVAILABLE
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send_forever, tasks.cancel_scope)
                try:
                    await self._hear()
                finally:
                    tasks.cancel_scope.cancel()
        except* EngineProtocolError as group:
            outcome = INVALID_REPLY
            raise group.exceptions[0] from None
        finally:
            self._over = True
            # Why first: whoever is told that the engine is away and asks again must find it away.
            self._on_over()
            pending, self._pending = self._pending, {}
            for answer in pending.values():
                if not answer.done():
                    answer.set_result(outcome)

    async def _hear(self) -> None:
        while True:
            try:
                data = await self._receive.receive(_READ_BYTES)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                return
            for line in self._lines.feed(data):
                self._take(line)

    def _take(self, line: bytes) -> None:
        ran = read_ran(line)
        self._owed, self._since = 0.0, asyncio.get_running_loop().time()
        answer = self._pending.pop(ran.id, None)
        if answer is None:
            self._counts["late" if ran.id in self._late else "unknown"] += 1
            self._late.discard(ran.id)
            return
        if ran.result is None:
            self._counts["nonsense"] += 1
        if not answer.done():
            answer.set_result(INVALID_REPLY if ran.result is None else ran.result)

    async def _send_forever(self, conversation: anyio.CancelScope) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            outgoing, self._outgoing = self._outgoing, {}
            try:
                await self._send.send(b"".join(outgoing.values()))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                # Why not at once: most often it is gone, and its last answers are still to be heard. Why at all: one that
                # only closed its ears would be asked in vain until it counts as hanging.
                await anyio.sleep(LAST_WORDS_SECONDS)
                conversation.cancel()

    async def ask(self, graph_id: str, event: ExternalEvent, deadline: EventTime | None) -> RunResult:
        """Have the engine run one attempt; it is asked before this first waits, so that requests keep their order."""
        if self._over:
            return UNAVAILABLE
        loop = asyncio.get_running_loop()
        number, self._next = self._next, self._next + 1
        if not self._pending:
            self._since = loop.time()
        answer: asyncio.Future[RunResult] = loop.create_future()
        self._pending[number] = answer
        self._outgoing[number] = encode_run(number, graph_id, event, deadline)
        self._something.set()
        try:
            if deadline is None:
                return await answer
            with anyio.move_on_after(deadline.total_nanos / 1e9):
                return await answer
            if number not in self._outgoing:
                if len(self._late) >= _MOST_LATE:
                    self._late.clear()
                self._late.add(number)
            return TIMED_OUT
        finally:
            # Why: an engine that does not listen must not make us keep what nobody waits for.
            self._outgoing.pop(number, None)
            if self._pending.pop(number, None) is not None and not self._pending:
                self._owed += loop.time() - self._since

    @property
    def waiting(self) -> int:
        """Runs that are under way."""
        return len(self._pending)

    @property
    def silence(self) -> float:
        """Seconds that the engine has owed an answer since it last gave one, however often it was given up.

        Why not since it was asked: an engine that nobody asks anything says nothing either.
        """
        return self._owed + (asyncio.get_running_loop().time() - self._since if self._pending else 0.0)

    @property
    def unsent_bytes(self) -> int:
        """Bytes of requests that wait for the engine to listen."""
        return sum(map(len, self._outgoing.values()))

    def __repr__(self) -> str:
        return f"<EngineConnection {self._next} asked, {self.waiting} under way>"
