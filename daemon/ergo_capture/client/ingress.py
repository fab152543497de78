"""An ingress channel in front of others: each event of theirs is durable before the host sees its line.

Lines are passed on unchanged, in the order in which they came. An event's line waits until the event is durable;
another line, such as ``hello``, waits only for those before it. Several channels are merged in the order in which their
events are sent, which is the order in which they become durable.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from ergo_capture.client.connection import UNREACHABLE, ClientError
from ergo_capture.client.session import CaptureClient, Published, Reject
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.notifier import Notifier
from ergo_capture.protocol.capture import DRIVER_PROTOCOL, Code
from ergo_capture.protocol.driver import END_LINE, DriverLine, LineKind, read_driver_line

_READ_BYTES: Final = 64 << 10
#: The channels are not read while more bytes wait to be passed on.
_MOST_HELD: Final = 4 << 20
#: Longest line, in bytes; the daemon's limit is far below.
_LONGEST_LINE: Final = 16 << 20
#: How many rejections are named, and characters of an id: standard error may not be read, and a pipe holds 64 KiB.
_MOST_NAMED: Final = 100
_SHOWN: Final = 100
#: Seconds to wait for the bundle at the end: the host gives a driver five seconds to exit.
_CLOSE_SECONDS: Final = 3.0
#: Seconds before channels that were told to end are killed.
_GRACE_SECONDS: Final = 2.0
#: Refusals after which opening the session is tried again.
_PASSING: Final = frozenset({UNREACHABLE, Code.SHUTTING_DOWN, Code.SESSION_BUSY, Code.STORAGE_FULL})
#: Seconds between two attempts.
_RETRY_SECONDS: Final = 0.5


@dataclass(slots=True, eq=False)
class _Line:
    """A line that was not passed on yet."""

    text: bytes
    #: Whether it need not wait for the daemon.
    is_settled: bool = True
    is_rejected: bool = False


class Channel:
    """A process that prints a driver's stream.

    Args:
        command: the process; its standard input and error are those of this process.

    Raises:
        ErgoCaptureError: it cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.name = command[0]
        try:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)  # noqa: S603 - the user names it
            self._pidfd = os.pidfd_open(self.process.pid)
        except OSError as error:
            raise ErgoCaptureError(
                f"start channel '{self.name}': {error.strerror or error}",
                op="start channel",
                path=self.name,
                hint="name a program that may be run",
            ) from error
        assert self.process.stdout is not None
        self._output = self.process.stdout.fileno()
        os.set_blocking(self._output, False)
        self.has_greeted = self.has_ended = False

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield the lines, newlines included; the last one may have none."""
        begun = bytearray()
        while True:
            await anyio.wait_readable(self._output)
            try:
                data = os.read(self._output, _READ_BYTES)
            except BlockingIOError:
                continue
            *whole, rest = data.split(b"\n")
            for line in whole:
                begun += line
                begun += b"\n"
                yield bytes(begun)
                begun.clear()
            begun += rest
            if not data:
                break
            if len(begun) > _LONGEST_LINE:
                raise ErgoCaptureError(
                    f"read channel '{self.name}': a line is longer than {_LONGEST_LINE} bytes",
                    op="read channel",
                    hint="send smaller events",
                )
        if begun:
            yield bytes(begun)

    async def ended(self) -> int:
        """Wait for the process to end; return its exit code, or the negative number of the signal that ended it."""
        await anyio.wait_readable(self._pidfd)
        return self.process.wait()

    def close(self) -> None:
        """Close the reading end of the pipe that the process prints to."""
        assert self.process.stdout is not None
        self.process.stdout.close()
        os.close(self._pidfd)

    def send_signal(self, number: int) -> None:
        """Send a signal to the process; does nothing if it has ended."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)


class Ingress:
    """One run of channels in front of a host.

    Args:
        path: the daemon's socket.
        channels: the channels, which have been started.
        graph: the graph to open a session of.
        session: the session to resume, in place of a new one.
        labels: labels for the bundle's manifest.
        output: the descriptor that lines are written to.
        window: how many events may be unacknowledged at once.
        report: called with messages for the user.
    """

    def __init__(
        self,
        path: str,
        channels: Sequence[Channel],
        *,
        graph: str = "default",
        session: str | None = None,
        labels: dict[str, str] | None = None,
        output: int = 1,
        window: int = 4096,
        report: Callable[[str], None] = lambda _sentence: None,
    ) -> None:
        self.published: Published | None = None
        #: The numbers of durable events, and of events whose lines were not passed on.
        self.accepted = self.rejected = 0
        #: Lines that were handed on and are no events of the protocol, or not in their place.
        self.uncaptured = 0
        #: Whether the host reads no more.
        self.host_gone = False
        self._path = path
        self._channels = channels
        self._graph = graph
        self._session = session
        self._labels = labels or {}
        self._output = output
        self._window = window
        self._report = report
        self._failure: ErgoCaptureError | None = None
        self._client: CaptureClient | None = None
        #: Set when the session is open.
        self._opened = asyncio.Event()
        #: The attempts to open it.
        self._opening: anyio.CancelScope
        self._tasks: TaskGroup
        self._lines: deque[_Line] = deque()
        self._held_bytes = 0
        #: The events that are on their way to the daemon, by number; and their ids.
        self._unsettled: dict[int, _Line] = {}
        self._ids: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._count = 0
        #: Held by the channel whose line is taken: the order of lines is the order in which events are sent.
        self._turn = asyncio.Lock()
        self._changed = Notifier()
        self._is_greeted = False
        self._is_read = False
        self._all_handed_on = asyncio.Event()

    @property
    def session(self) -> str | None:
        """The session's id, once it was opened."""
        return None if self._client is None else self._client.session

    async def run(self) -> list[int]:
        """Pass on the output of the channels until they have ended; return their exit codes.

        Raises:
            ErgoCaptureError: the daemon refused, or a channel cannot be read; no further line was passed on.
        """
        self._opening = anyio.CancelScope()
        async with anyio.create_task_group() as self._tasks:
            reading = anyio.CancelScope()
            self._tasks.start_soon(self._guarded, self._read_all, reading)
            self._tasks.start_soon(self._guarded, self._hand_on, reading)
            await self._guarded(self._capture)
        if self._failure is not None or self.host_gone:
            await self.stop_channels()
        if self._failure is not None:
            raise self._failure
        return [await channel.ended() for channel in self._channels]

    def send_signal(self, number: int) -> bool:
        """Pass a signal on to the channels; return False if none is running."""
        running = [channel for channel in self._channels if channel.process.poll() is None]
        for channel in running:
            channel.send_signal(number)
        return bool(running)

    async def _guarded(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Run a part of the work; if it fails, end the others."""
        try:
            await work(*arguments)
        except ErgoCaptureError as error:
            if self._failure is None:
                self._failure = error
            self._tasks.cancel_scope.cancel()

    # --- from the channels ---

    async def _read_all(self, reading: anyio.CancelScope) -> None:
        with reading:
            async with anyio.create_task_group() as tasks:
                for channel in self._channels:
                    tasks.start_soon(self._guarded, self._read, channel)
        if self._is_complete and len(self._channels) > 1:
            await self._pass_on(END_LINE)
        self._is_read = True
        self._changed.notify_all()

    @property
    def _is_complete(self) -> bool:
        """Whether each channel has sent ``end``."""
        return all(channel.has_ended for channel in self._channels)

    async def _read(self, channel: Channel) -> None:
        async for text in channel.lines():
            line = read_driver_line(text)
            if len(self._channels) > 1:
                await self._merge(channel, text if text.endswith(b"\n") else text + b"\n", line)
            elif line.kind is LineKind.EVENT and channel.has_greeted and not channel.has_ended:
                await self._send(text, line)
            else:
                # Pass on any line: the host must react as it would without this program.
                channel.has_greeted |= line.kind is LineKind.HELLO
                channel.has_ended |= line.kind is LineKind.END
                self.uncaptured += line.kind not in (LineKind.HELLO, LineKind.END)
                await self._pass_on(text)

    async def _merge(self, channel: Channel, text: bytes, line: DriverLine) -> None:
        """Take a line of one of several channels, so that the host gets one hello and one end."""
        if channel.has_ended:
            # The lines that the host would see of this channel alone.
            await self._pass_on(END_LINE)
            await self._pass_on(text)
        elif not channel.has_greeted:
            if line.kind is not LineKind.HELLO or line.text != DRIVER_PROTOCOL:
                raise ErgoCaptureError(
                    f"read channel '{channel.name}': its first line is not a hello of {DRIVER_PROTOCOL}",
                    op="read channel",
                    hint='print {"type":"hello","protocol":"ergo-driver.v0"} first',
                )
            channel.has_greeted = True
            if not self._is_greeted:
                self._is_greeted = True
                await self._pass_on(text)
        elif line.kind is LineKind.EVENT:
            await self._send(text, line)
        elif line.kind is LineKind.END:
            channel.has_ended = True
        else:
            await self._pass_on(text)

    async def _pass_on(self, text: bytes) -> None:
        async with self._turn:
            await self._room()
            self._hold(_Line(text))

    async def _send(self, text: bytes, found: DriverLine) -> None:
        async with self._turn:
            await self._room()
            line = _Line(text, is_settled=False)
            # Keep its place until the session is open: later lines must not overtake it.
            self._hold(line)
            await self._opened.wait()
            client, event_id = self._client, found.text
            assert client is not None
            # Wait for an event with the same id: after a lost connection it may come back as its own duplicate, and
            # would be confused with this one.
            while event_id in self._ids:
                await client.settled()
            limit = client.limits.get("max_frame_bytes", _LONGEST_LINE)
            if len(found.frame) > limit:
                self._reject(line, event_id, f"{Code.TOO_LARGE}: a line may have {limit:,} bytes")
                return
            self._count += 1
            self._unsettled[self._count] = line
            self._ids[event_id] = self._count
            self._names[self._count] = event_id
            await client.send_line(found.frame, event_id, self._count)

    async def _room(self) -> None:
        while self._held_bytes >= _MOST_HELD or len(self._lines) >= 2 * self._window:
            await self._changed.wait()

    def _hold(self, line: _Line) -> None:
        self._lines.append(line)
        self._held_bytes += len(line.text)
        self._changed.notify_all()

    # --- to and from the daemon ---

    async def _capture(self) -> None:
        """Open the session, wait until everything is handed on, and close it."""
        with self._opening:
            await self._capture_somehow()

    async def _capture_somehow(self) -> None:
        told = False
        while True:
            client = CaptureClient(
                self._path,
                name="ergo-capture ingress",
                window=self._window,
                give_up_after=float("inf"),
                on_reject=self._on_reject,
                on_durable=self._on_durable,
                on_reconnect=lambda _times: self._report("the daemon is back; lines go on"),
            )
            try:
                async with client:
                    session = await client.open(
                        self._graph,
                        session=self._session,
                        labels=self._labels,
                        decided_by="engine" if self._session else "fixed",
                    )
                    self._report(f"session {session}")
                    self._client = client
                    self._opened.set()
                    async with anyio.create_task_group() as watching:
                        watching.start_soon(self._guarded, self._watch, client)
                        await self._all_handed_on.wait()
                        watching.cancel_scope.cancel()
                    await self._close(client)
                    return
            except ClientError as error:
                if self._client is not None or error.code not in _PASSING:
                    raise
                if not told:
                    told = True
                    self._report(f"{error.message}; events wait for it")
            await anyio.sleep(_RETRY_SECONDS)

    async def _watch(self, client: CaptureClient) -> None:
        """Raise if the daemon refuses to continue."""
        while True:
            await client.settled()

    async def _close(self, client: CaptureClient) -> None:
        interrupted = self.host_gone or not self._is_complete
        # The events are durable and the host has seen them, even if this fails.
        with anyio.move_on_after(_CLOSE_SECONDS), suppress(ClientError):
            self.published = await client.close(interrupted=interrupted, keep_empty=False)

    def _on_durable(self, number: int) -> None:
        self.accepted += 1
        self._settle(number)

    def _on_reject(self, reject: Reject) -> None:
        line = self._unsettled.get(reject.place)
        if line is not None:
            self._reject(line, self._names[reject.place], f"{reject.code}: {reject.message}")
            self._settle(reject.place)

    def _reject(self, line: _Line, event_id: str, why: str) -> None:
        line.is_settled = line.is_rejected = True
        self.rejected += 1
        self._changed.notify_all()
        if self.rejected <= _MOST_NAMED:
            self._report(f"not passed on: event {event_id[:_SHOWN]!r}: {why}")
        elif self.rejected == _MOST_NAMED + 1:
            self._report("more events are not passed on; see the count at the end")

    def _settle(self, number: int) -> None:
        line = self._unsettled.pop(number, None)
        if line is not None:
            line.is_settled = True
            event_id = self._names.pop(number)
            if self._ids.get(event_id) == number:
                del self._ids[event_id]
            self._changed.notify_all()

    # --- to the host ---

    async def _hand_on(self, reading: anyio.CancelScope) -> None:
        try:
            while await self._next_settled():
                texts = []
                while self._lines and self._lines[0].is_settled:
                    line = self._lines.popleft()
                    self._held_bytes -= len(line.text)
                    if not line.is_rejected:
                        texts.append(line.text)
                self._changed.notify_all()
                # Write in a thread that can be abandoned: the host may not read while this process has to end.
                await to_thread.run_sync(_write, self._output, b"".join(texts), abandon_on_cancel=True)
        except BrokenPipeError:
            self.host_gone = True
            self._lines.clear()
            reading.cancel()
        self._all_handed_on.set()
        if self._client is None:
            # There was no event: stop opening the session.
            self._opening.cancel()

    async def _next_settled(self) -> bool:
        """Wait until a line can be passed on; return False if there are no more."""
        while True:
            if not self._lines:
                if self._is_read:
                    return False
                await self._changed.wait()
            elif self._lines[0].is_settled:
                return True
            else:
                await self._changed.wait()

    async def stop_channels(self) -> None:
        """End the channels: close the pipes that they print to, then send signals."""
        for channel in self._channels:
            channel.send_signal(signal.SIGTERM)
        with anyio.move_on_after(_GRACE_SECONDS):
            for channel in self._channels:
                await channel.ended()
        for channel in self._channels:
            channel.send_signal(signal.SIGKILL)


def _write(output: int, text: bytes) -> None:
    view = memoryview(text)
    while view:
        view = view[os.write(output, view) :]
