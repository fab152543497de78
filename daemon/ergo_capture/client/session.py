"""An asynchronous session with the daemon, which survives the daemon's restarts.

What is not acknowledged is kept. When the connection breaks, the client connects again with back-off,
resumes its session, learns which event was the last to become durable, and sends on from the one after it.
An event sent twice because its acknowledgement was lost is refused by the daemon as a duplicate, which is
how the client learns that it is safe: so each event is in the bundle exactly once, whatever dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from os import PathLike, fspath
from types import TracebackType
from typing import Any, Final, Self

import anyio
import msgspec
from anyio.abc import TaskGroup

from ergo_capture.client.frames import (
    Ack,
    ClientError,
    Published,
    Reject,
    encode,
    error_in,
    event_line,
    no_frame,
    read_as,
)
from ergo_capture.client.in_flight import InFlight
from ergo_capture.client.requests import Requests
from ergo_capture.client.uplink import Uplink
from ergo_capture.client.wire import LOST
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.notifier import Notifier

#: Bytes that are gathered to be sent at once; who has more waits until they are under way.
_SEND_BYTES: Final = 128 * 1024
_CLOSE: Final = encode({"type": "close"}) + b"\n"


class CaptureClient:
    """One session with the daemon.

    Args:
        path: the daemon's socket.
        name: what the daemon's logs call this client.
        window: events that may be unacknowledged at once.
        give_up_after: seconds to go on trying to reach the daemon again; zero to not try at all.
        on_reject: told of each event that is not taken.
        on_decision: told of each decision record, where ``open`` asked for them.
        on_reconnect: told each time the session was taken up again, with how often that has happened.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        name: str = "ergo-capture-client",
        window: int = 1024,
        give_up_after: float = 60.0,
        on_reject: Callable[[Reject], None] | None = None,
        on_decision: Callable[[dict[str, Any]], None] | None = None,
        on_reconnect: Callable[[int], None] | None = None,
    ) -> None:
        self.reconnects = 0
        #: Events of the session that were durable before this client took it up.
        self.resumed_after = 0
        self._uplink = Uplink(fspath(path), name, give_up_after)
        self._window = window
        self._on_reject = on_reject or (lambda _reject: None)
        self._on_decision = on_decision or (lambda _decision: None)
        self._on_reconnect = on_reconnect or (lambda _times: None)
        #: Whether the session is open on this connection, so that events may be sent.
        self._is_open = False
        self._in_flight = InFlight()
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        self._moved = Notifier()
        self._requests = Requests()
        self._failure: ClientError | None = None
        self._tasks: TaskGroup
        #: What came of the session, once it was closed.
        self._closed: Published | None = None
        self._asking = asyncio.Lock()
        self._sending_due = asyncio.Event()

    @property
    def path(self) -> str:
        """The daemon's socket."""
        return self._uplink.path

    @property
    def session(self) -> str | None:
        """The session's id, once it was opened."""
        return self._uplink.session

    @property
    def last_event_id(self) -> str | None:
        """Id of the last event that was durable when the session was opened or resumed."""
        return self._uplink.last_event_id

    @property
    def limits(self) -> dict[str, int]:
        """What the daemon takes: bytes and numbers, by name."""
        return self._uplink.limits

    @property
    def accepted(self) -> int:
        """Events acknowledged as durable, rejections not counted."""
        return self._in_flight.accepted

    @property
    def rejected(self) -> int:
        """Events that the daemon did not take."""
        return self._in_flight.rejected

    # --- life ---

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        try:
            await self._uplink.connect()
        except BaseException:
            await self._tasks.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            with anyio.CancelScope(shield=True):
                await self._uplink.hang_up()

    async def open(
        self,
        graph: str = "default",
        *,
        session: str | None = None,
        labels: dict[str, str] | None = None,
        decisions: bool = False,
    ) -> str:
        """Open a session of ``graph``, or resume ``session``; returns its id.

        Raises:
            ClientError: refused (``unknown_graph``, ``unknown_session``, ``session_busy``, ...); ``misuse`` where one is
                open already.
        """
        if self._uplink.is_asked_for:
            raise ClientError("misuse", "open a session: this client has one already", "use a client for each session")
        request = {"graph": graph, "session": session, "labels": labels or {}, "decisions": decisions}
        opened = await self._uplink.open(request)
        self._is_open = True
        self.resumed_after = opened.accepted
        self._tasks.start_soon(self._read_forever)
        self._tasks.start_soon(self._send_forever)
        assert self.session is not None
        return self.session

    # --- events ---

    async def send(self, event: ExternalEvent) -> None:
        """Send one event; waits while the window is full.

        Raises:
            ClientError: the daemon cannot be reached any more, or ended the session; ``misuse`` where none is open.
        """
        await self.send_line(event_line(event), event.event_id)

    async def send_line(self, line: bytes, event_id: str) -> None:
        """Send one event line, newline included, as it is.

        Raises:
            ClientError: as ``send``.
        """
        # Why all the waiting before: whoever stops waiting has sent nothing.
        while len(self._in_flight) >= self._window or self._outgoing_bytes >= _SEND_BYTES:
            await self._wait()
        self._check()
        self._in_flight.add(line, event_id)
        self._put(line)

    def _put(self, line: bytes) -> None:
        self._outgoing.append(line)
        self._outgoing_bytes += len(line)
        self._sending_due.set()

    async def drain(self) -> None:
        """Wait until everything sent is acknowledged or rejected.

        Raises:
            ClientError: as ``send``.
        """
        while self._in_flight:
            await self._wait()

    # --- requests ---

    async def flush(self) -> Published:
        """Have a snapshot of the session published.

        Raises:
            ClientError: as ``send``.
        """
        return read_as(Published, await self._ask({"type": "flush"}))

    async def close(self) -> Published:
        """End the session and have its bundle published; asked for again, it is the same.

        Raises:
            ClientError: as ``send``; ``unknown_session`` where the session ended while nobody was connected.
        """
        await self.drain()
        async with self._asking:
            if self._closed is None:
                self._check()
                await self._ask_alone(_CLOSE)
            assert self._closed is not None
            return self._closed

    async def ping(self) -> None:
        """Wait for an answer.

        Raises:
            ClientError: as ``send``.
        """
        await self._ask({"type": "ping"})

    async def _ask(self, frame: dict[str, Any]) -> dict[str, Any]:
        async with self._asking:
            self._check()
            return await self._ask_alone(encode(frame) + b"\n")

    async def _ask_alone(self, line: bytes) -> dict[str, Any]:
        self._requests.ask(line)
        self._put(line)
        try:
            while not self._requests.is_answered:
                await self._wait()
            return self._requests.take()
        except asyncio.CancelledError:
            self._requests.give_up(is_asked=self._is_open)
            raise
        finally:
            self._requests.done()

    async def _reconnect(self) -> None:
        """Take the session up again, and queue what is not known to be safe."""
        self._is_open = False
        self._requests.lost()
        opened = await self._uplink.come_back()
        self.reconnects += 1
        self._outgoing = self._in_flight.come_back(opened.accepted - self.resumed_after, self.last_event_id)
        self._moved.notify_all()
        if (asked := self._requests.again()) is not None:
            self._outgoing.append(asked)
        self._outgoing_bytes = sum(map(len, self._outgoing))
        self._is_open = True
        self._sending_due.set()
        self._on_reconnect(self.reconnects)

    # --- tasks ---

    async def _read_forever(self) -> None:
        try:
            while True:
                try:
                    await self._read_some()
                except LOST:
                    if self._closed is not None:
                        return
                    if not self._uplink.patience:
                        raise ClientError("unreachable", f"the daemon at '{self.path}' is gone") from None
                    await self._reconnect()
        except ClientError as error:
            self._failure = error
            self._moved.notify_all()

    async def _read_some(self) -> None:
        if self._uplink.wire is None:
            raise anyio.ClosedResourceError
        for frame in await self._uplink.wire.read_frames():
            self._take(frame)

    def _take(self, frame: dict[str, Any]) -> None:
        kind = frame.get("type")
        if kind == "ack":
            self._in_flight.acked(read_as(Ack, frame).accepted)
            self._moved.notify_all()
        elif kind == "reject":
            reject, index = read_as(Reject, frame), read_as(int, frame.get("index"))
            if self._in_flight.is_rejected(index, duplicate=reject.code == "duplicate_event_id"):
                self._on_reject(msgspec.structs.replace(reject, line=self._in_flight.line_of(index)))
        elif kind == "decision":
            self._on_decision(read_as(dict[str, Any], frame.get("decision")))
        elif kind == "error":
            error = error_in(frame)
            # Why not where it was asked before: what the daemon cannot do, such as a bundle, it could not do then either.
            can_pass = error.code == "shutting_down" or (
                error.code == "storage_failed" and not self._requests.asked_again
            )
            if can_pass and self._uplink.patience:
                raise anyio.EndOfStream
            raise error
        elif kind == "closed":
            self._closed = read_as(Published, frame)
            # Why also where a close was given up: there is one end of a session, whoever asks for it.
            if self._requests.asked == _CLOSE:
                self._requests.answer(frame)
            self._moved.notify_all()
        elif self._requests.pass_over():
            pass
        elif isinstance(kind, str):
            self._requests.answer(frame)
            self._moved.notify_all()
        else:
            raise no_frame("it has no type")

    async def _send_forever(self) -> None:
        # Why no sender does it: one that stops waiting in mid-line would leave the half of it behind.
        while True:
            await self._sending_due.wait()
            self._sending_due.clear()
            # Why: senders that are ready now get into the same write.
            await asyncio.sleep(0)
            wire = self._uplink.wire
            # Why not on a connection that is just made: nothing may come between its hello and the answer to its open.
            if wire is None or not self._is_open or not self._outgoing:
                continue
            data, self._outgoing, self._outgoing_bytes = b"".join(self._outgoing), [], 0
            self._moved.notify_all()
            # Why nothing more: the reading task notices too, reconnects, and what was not acknowledged is sent again.
            with suppress(*LOST):
                await wire.send(data)

    async def _wait(self) -> None:
        self._check()
        await self._moved.wait()
        if not self._requests.is_answered:
            self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._uplink.is_asked_for or self._closed is not None:
            what = "is closed" if self._closed is not None else "was not opened"
            raise ClientError(
                "misuse", f"the session {what}", "open() a session before anything else; one for each client"
            )

    def __repr__(self) -> str:
        return (
            f"<CaptureClient {self.session or 'no session'} at {self.path!r}, {self.accepted} accepted, "
            f"{len(self._in_flight)} in flight, {self.rejected} rejected>"
        )
