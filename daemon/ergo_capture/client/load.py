"""Measure a daemon under load, and the best that its disk can do.

``Load`` replaces ``CaptureClient``, because a load must cost less than the daemon that it measures. Its lines are made
beforehand, one thread sends and receives, and only the last acknowledgement of the answers is read.
"""

from __future__ import annotations

import os
import selectors
import socket
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Final, Self, TypeVar

import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.events import ExternalEvent, ExternalEventKind
from ergo_capture.kernel.time import EventTime
from ergo_capture.protocol.capture import (
    PROTOCOL,
    Ack,
    Answer,
    Close,
    Closed,
    Error,
    Hello,
    Open,
    Opened,
    Reject,
    Request,
    Welcome,
    encode,
    event_line,
    read_answers,
)

_PATIENCE_SECONDS: Final = 60.0
_READ_BYTES: Final = 1 << 16
_Kind = TypeVar("_Kind", bound=Answer)


class Figures(msgspec.Struct, frozen=True):
    """The result of a run; times in seconds."""

    events: int
    seconds: float
    #: Time from sending an event to its acknowledgement: median and 99th percentile.
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Return durable events a second."""
        return self.events / self.seconds


class Load:
    """One session of a daemon, driven to its limit; a context manager that hangs up at its end.

    Args:
        path: the daemon's socket.
        window: events that may be unacknowledged at once, from 1.
        payload_bytes: size of each payload, from 12.
        graph: the graph to open.

    Raises:
        ErgoCaptureError: no daemon listens there, or it refuses.
    """

    def __init__(self, path: Path, *, window: int, payload_bytes: int = 256, graph: str = "default") -> None:
        self.window = window
        self._path = path
        self._payload = b'{"pad":"%b"}' % (b"x" * (payload_bytes - 10))
        self._sent = 0
        self._held = b""
        #: Events of one write to the socket: half a window, so that one half is prepared while the other is under way.
        self._piece = max(1, window // 2)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_PATIENCE_SECONDS)
        try:
            self._socket.connect(os.fspath(path))
        except OSError as error:
            raise ErgoCaptureError(
                f"connect to '{path}': {error.strerror}",
                op="connect",
                path=path,
                hint="start a daemon, or leave --socket out to measure one in a temporary place",
            ) from error
        self._ask(Hello(PROTOCOL, "load"), Welcome)
        self._ask(Open(graph, labels={"load": f"window {window}"}), Opened)

    def _ask(self, request: Request, kind: type[_Kind]) -> _Kind:
        """Send a request and return its answer; acknowledgements and rejections before it are dropped."""
        self._socket.sendall(encode(request))
        while True:
            for answer in self._receive():
                if isinstance(answer, kind):
                    return answer
                if not isinstance(answer, Ack | Reject):
                    message = answer.message if isinstance(answer, Error) else f"it answered {answer!r}"
                    raise self._failed(message, answer.hint if isinstance(answer, Error) else "")

    def _receive(self) -> list[Answer]:
        """Wait for more bytes and return the answers that they complete."""
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise self._failed("it hung up")
        lines, newline, rest = (self._held + data).rpartition(b"\n")
        self._held = rest
        return read_answers(lines + newline)

    def _failed(self, reason: str, hint: str = "") -> ErgoCaptureError:
        return ErgoCaptureError(
            f"load daemon at '{self._path}': {reason}",
            op="load daemon",
            path=self._path,
            hint=hint or "see the daemon's log; its limits may be too small for the window",
        )

    def run(self, events: int) -> Figures:
        """Send ``events`` more events and wait until all are acknowledged.

        Raises:
            ErgoCaptureError: the daemon refused one, or hung up.
        """
        self.begin(events)
        while not self.done:
            self.send()
            self.receive()
        return self.figures(events)

    def begin(self, events: int) -> None:
        """Make the lines of ``events`` more events, and start the clock."""
        self._unsent = self._pieces(events)
        self._acked, self._target = self._sent, self._sent + events
        self._waiting: deque[tuple[int, float]] = deque()
        self._waits: list[float] = []
        self._began = time.perf_counter()

    @property
    def done(self) -> bool:
        """Return whether every event of this run is acknowledged."""
        return self._acked >= self._target

    def send(self) -> None:
        """Send as much as the window allows."""
        unsent = self._unsent
        while unsent and self._sent - self._acked + unsent[0][0] <= self.window:
            count, data = unsent.popleft()
            self._sent += count
            self._waiting.append((self._sent, time.perf_counter()))
            self._socket.sendall(data)

    def receive(self) -> None:
        """Wait for more answers and take them.

        Raises:
            ErgoCaptureError: the daemon refused an event, or hung up.
        """
        answers = self._receive()
        for answer in answers:
            if isinstance(answer, Reject | Error):
                raise self._failed(f"{answer.code}: {answer.message}", answer.hint)
        acked = max((answer.accepted for answer in answers if isinstance(answer, Ack)), default=0)
        if acked:
            self._acked = acked
            now = time.perf_counter()
            while self._waiting and self._waiting[0][0] <= acked:
                self._waits.append(now - self._waiting.popleft()[1])

    def figures(self, events: int) -> Figures:
        """Return the result of the run, of ``events`` events."""
        seconds = time.perf_counter() - self._began
        waits = sorted(self._waits)
        return Figures(events, seconds, waits[len(waits) // 2], waits[int(len(waits) * 0.99)])

    def _pieces(self, events: int) -> deque[tuple[int, bytes]]:
        numbers = range(self._sent, self._sent + events)
        kind, payload = ExternalEventKind.DataAvailable, self._payload
        lines = [event_line(ExternalEvent(f"ev-{n:012}", kind, EventTime(n, 0), payload)) for n in numbers]
        step = self._piece
        return deque((len(part), b"".join(part)) for part in (lines[i : i + step] for i in range(0, events, step)))

    def fileno(self) -> int:
        """Return the socket's descriptor, for a selector."""
        return self._socket.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def finish(self) -> Closed:
        """Close the session, wait for its bundle, and return the daemon's answer.

        Raises:
            ErgoCaptureError: the daemon could not publish the bundle.
        """
        self._socket.settimeout(None)
        return self._ask(Close(), Closed)


def run_together(loads: list[Load], events: int) -> Figures:
    """Have each load send ``events`` events, all at once; return the rate of all and the waits of the slowest.

    One thread drives them all, as in redis-benchmark: eight processes would take the processor from the daemon.

    Raises:
        ErgoCaptureError: as ``Load.run``.
    """
    figures = []
    # Make every line before the first is sent: making them is not the daemon's time.
    for load in loads:
        load.begin(events)
    began = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for load in loads:
            load.send()
            selector.register(load, selectors.EVENT_READ, load)
        while selector.get_map():
            for key, _ in selector.select(_PATIENCE_SECONDS):
                load = key.data
                load.receive()
                load.send()
                if load.done:
                    figures.append(load.figures(events))
                    selector.unregister(load)
    seconds = time.perf_counter() - began
    return Figures(len(loads) * events, seconds, max(f.p50 for f in figures), max(f.p99 for f in figures))


def floor(directory: Path, size: int, *, writes: int = 300) -> Figures:
    """Write ``size`` bytes into allocated space and sync them, ``writes`` times; return how long that takes.

    Nothing that is durable on this disk can be faster with one write at a time.

    Raises:
        ErgoCaptureError: the directory cannot be written to.
    """
    block, waits = b"x" * size, []
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix="floor-") as file:
            file.write(block * writes)
            file.flush()
            os.fsync(file.fileno())
            began = time.perf_counter()
            for number in range(writes):
                before = time.perf_counter()
                os.pwrite(file.fileno(), block, number * size)
                os.fdatasync(file.fileno())
                waits.append(time.perf_counter() - before)
            seconds = time.perf_counter() - began
    except OSError as error:
        raise ErgoCaptureError(
            f"measure disk at '{directory}': {error.strerror}",
            op="measure disk",
            path=directory,
            hint="name a directory on the disk in question that you may write to",
        ) from error
    waits.sort()
    return Figures(writes, seconds, waits[len(waits) // 2], waits[int(len(waits) * 0.99)])
