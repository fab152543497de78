"""Write to standard error from a thread, so that a reader that stalls delays only the log.

A terminal that was stopped with Ctrl-S, a pager, or a pipe without a reader may block write(2) for any time. The
descriptor is not made non-blocking: the flag belongs to the open file, which the shell, the pager and the engines
share, and their lines would be torn.
"""

from __future__ import annotations

import io
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

#: The largest number of bytes that wait to be written.
MAX_BYTES: Final = 1 << 20


class Dropped(NamedTuple):
    """The number of lines that were dropped because they were not read in time."""

    #: Of level info and below.
    info: int
    #: Of higher levels.
    errors: int


class _Line(NamedTuple):
    number: int
    data: bytes


class LogOutput:
    """Writes lines to a descriptor in a daemon thread of its own; lines wait in memory, up to a limit.

    If there is no room, lines of level info and below are dropped, the oldest first, before any other.

    Args:
        descriptor: the descriptor that the lines are written to.
        on_dropped: called in the thread with the number of dropped lines, once lines are written again.
        max_bytes: the largest number of bytes that wait.
    """

    def __init__(self, descriptor: int, on_dropped: Callable[[Dropped], None], max_bytes: int = MAX_BYTES) -> None:
        self._descriptor = descriptor
        self._on_dropped = on_dropped
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._info: deque[_Line] = deque()
        self._errors: deque[_Line] = deque()
        #: Bytes in the two queues.
        self._bytes = 0
        self._numbers = 0
        #: Lines that were dropped and are not reported yet, and all of them.
        self._dropped = Dropped(0, 0)
        self.total_dropped = 0
        #: Whether the thread is writing a line.
        self._writing = False
        threading.Thread(target=self._work, name="ergo-capture-log", daemon=True).start()

    def write(self, data: bytes, *, is_error: bool) -> None:
        """Queue a line; never blocks."""
        with self._changed:
            if is_error:
                while self._info and self._bytes + len(data) > self._max_bytes:
                    self._bytes -= len(self._info.popleft().data)
                    self._count(info=1)
            if self._bytes and self._bytes + len(data) > self._max_bytes:
                self._count(info=not is_error, errors=is_error)
                return
            self._numbers += 1
            (self._errors if is_error else self._info).append(_Line(self._numbers, data))
            self._bytes += len(data)
            self._changed.notify_all()

    def drain(self, seconds: float) -> None:
        """Wait until every line is written, for at most ``seconds``."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._bytes or self._writing), seconds)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of lines that wait, without the one that is being written."""
        return self._bytes

    def _count(self, *, info: int = 0, errors: int = 0) -> None:
        self._dropped = Dropped(self._dropped.info + info, self._dropped.errors + errors)
        self.total_dropped += info + errors

    def _work(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._bytes)
                queue = (
                    self._errors if not self._info or (self._errors and self._errors[0] < self._info[0]) else self._info
                )
                data = queue.popleft().data
                self._bytes -= len(data)
                self._writing = True
            self._write(data)
            with self._changed:
                dropped = self._dropped
                if not any(dropped) or self._bytes > self._max_bytes // 2:
                    continue
                self._dropped = Dropped(0, 0)
            self._on_dropped(dropped)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                # Another process that shares the open file has made it non-blocking.
                select.select([], [self._descriptor], [])
            except OSError:
                # The reader is gone: the lines are lost, and the daemon continues.
                return


class LogStream(io.RawIOBase):
    """A file in place of standard error, for tracebacks and warnings: they must not block either."""

    def __init__(self, output: LogOutput, descriptor: int) -> None:
        self._output = output
        self._descriptor = descriptor

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Queue bytes, as an error."""
        self._output.write(bytes(data), is_error=True)
        return len(data)

    def fileno(self) -> int:
        """Return the descriptor that the thread writes to."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether that is a terminal."""
        return os.isatty(self._descriptor)
