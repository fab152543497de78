"""A load on a daemon, and what the disk below it can do at best.

Why not the client of ``client/session.py``: a load must cost less than what it measures. Lines are made beforehand, one
thread sends and receives, and nothing is parsed but the watermark.
"""

from __future__ import annotations

import os
import re
import selectors
import socket
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from ergo_capture.errors import ErgoCaptureError

_ACCEPTED: Final = re.compile(rb'"accepted":(\d+)')
_LINE: Final = (
    b'{"type":"event","event":{"event_id":"ev-%012d","kind":"DataAvailable","at":{"secs":%d,"nanos":0},"payload":%b}}\n'
)
_PATIENCE_SECONDS: Final = 60.0


class Figures(msgspec.Struct, frozen=True):
    """What a run came to; times in seconds."""

    events: int
    seconds: float
    #: From sending until it was acknowledged as durable: half of the events waited no longer than ``p50``.
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Durable events a second."""
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
        self._payload = b'{"pad":"%b"}' % (b"x" * (payload_bytes - 10))
        self._sent = 0
        self._held = b""
        #: Events of one write to the socket. Why half a window: the client makes the one while the other is under way.
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
        self._say({"type": "hello", "protocol": "ergo-capture.v1", "client": "load"})
        self._expect(path, "welcome")
        self._say({"type": "open", "graph": graph, "labels": {"load": f"window {window}"}})
        self._expect(path, "opened")

    def _say(self, frame: dict[str, Any]) -> None:
        self._socket.sendall(msgspec.json.encode(frame) + b"\n")

    def _expect(self, path: Path, kind: str) -> dict[str, Any]:
        while b"\n" not in self._held:
            data = self._socket.recv(1 << 16)
            if not data:
                break
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        frame: dict[str, Any] = msgspec.json.decode(line) if line else {}
        if frame.get("type") == kind:
            return frame
        if frame.get("type") in ("ack", "reject"):
            return self._expect(path, kind)
        raise ErgoCaptureError(
            f"load daemon at '{path}': {frame.get('message', 'it hung up')}",
            op="load daemon",
            path=path,
            hint=frame.get("hint") or "see the daemon's log",
        )

    def run(self, events: int) -> Figures:
        """Send that many more events and wait until all are acknowledged.

        Raises:
            ErgoCaptureError: the daemon refused one, or hung up.
        """
        self.begin(events)
        while not self.done:
            self.send()
            self.receive()
        return self.figures(events)

    def begin(self, events: int) -> None:
        """Make the lines of that many more events, and start the clock."""
        self._unsent = self._pieces(events)
        self._acked, self._target = self._sent, self._sent + events
        self._waiting: deque[tuple[int, float]] = deque()
        self._waits: list[float] = []
        self._began = time.perf_counter()

    @property
    def done(self) -> bool:
        """Whether all that was begun is acknowledged."""
        return self._acked >= self._target

    def send(self) -> None:
        """Send what the window lets through."""
        unsent = self._unsent
        while unsent and self._sent - self._acked + unsent[0][0] <= self.window:
            count, data = unsent.popleft()
            self._sent += count
            self._waiting.append((self._sent, time.perf_counter()))
            self._socket.sendall(data)

    def receive(self) -> None:
        """Take what the daemon says next.

        Raises:
            ErgoCaptureError: it refused an event, or hung up.
        """
        data = self._socket.recv(1 << 16)
        if not data or b'"reject"' in data:
            raise ErgoCaptureError(
                f"load daemon: {data[:200].decode(errors='replace') or 'it hung up'}",
                op="load daemon",
                hint="see the daemon's log; its limits may be too small for the window",
            )
        self._held += data
        whole, newline, rest = self._held.rpartition(b"\n")
        found = _ACCEPTED.findall(whole)
        if newline:
            self._held = rest
        if found:
            self._acked = int(found[-1])
            now = time.perf_counter()
            while self._waiting and self._waiting[0][0] <= self._acked:
                self._waits.append(now - self._waiting.popleft()[1])

    def figures(self, events: int) -> Figures:
        """What the run that was begun came to."""
        seconds = time.perf_counter() - self._began
        waits = sorted(self._waits)
        return Figures(events, seconds, waits[len(waits) // 2], waits[int(len(waits) * 0.99)])

    def _pieces(self, events: int) -> deque[tuple[int, bytes]]:
        numbers = range(self._sent, self._sent + events)
        lines = [_LINE % (number, number, self._payload) for number in numbers]
        step = self._piece
        return deque((len(part), b"".join(part)) for part in (lines[i : i + step] for i in range(0, events, step)))

    def fileno(self) -> int:
        """The socket's descriptor, for a selector."""
        return self._socket.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def finish(self) -> dict[str, Any]:
        """Close the session and wait for its bundle; the ``closed`` frame.

        Raises:
            ErgoCaptureError: the daemon could not publish it.
        """
        self._socket.settimeout(None)
        self._say({"type": "close"})
        return self._expect(Path(self._socket.getpeername()), "closed")

    def __repr__(self) -> str:
        return f"<Load, window {self.window}, {self._sent} events sent>"


def run_together(loads: list[Load], events: int) -> Figures:
    """Have each load send that many events, all at once; rates of all of them, waits of the slowest.

    Why in one thread: so does redis-benchmark, and eight processes would take the processor from the daemon.

    Raises:
        ErgoCaptureError: as ``Load.run``.
    """
    figures = []
    # Why all before the first is sent: making the lines is not the daemon's time.
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
    """Write ``size`` bytes and sync them, again and again, into space that is there already.

    Nothing that keeps its word on this disk with one write at a time can be faster.

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
