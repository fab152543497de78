"""Read event lines from a file or a pipe, for ``ergo-capture send``.

The input is JSON Lines: bare events, ``event`` or ``events`` frames, a whole ``ergo-driver.v0`` stream or a fixture
(``input_form.py``), plain or compressed (``input_text.py``). Lines are sent unchanged, and parsed only to find the
events and their ids; the daemon reports errors in events.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Self

import aiofiles
import anyio

from ergo_capture.cli.support.input_form import InputForm
from ergo_capture.cli.support.input_text import READ_BYTES, InputText
from ergo_capture.client.in_flight import EventLine
from ergo_capture.errors import ErgoCaptureError

#: Longest line in bytes, if the daemon has not sent its limit.
MAX_LINE_BYTES: Final = 1 << 20
#: How many bytes of a line that is too long are kept, for messages.
_BEGINNING: Final = 200


class EventLines:
    """The events of one input; an asynchronous context manager that opens and closes it.

    Args:
        name: the file, or ``-`` for standard input.

    Raises:
        ErgoCaptureError: it cannot be opened.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.form = InputForm("standard input" if name == "-" else name)
        #: Bytes of the file on the disk; None for an input without a known end.
        self.size: int | None = None
        #: Bytes that have been read.
        self.taken = 0
        self._file: Any = None
        self._may_wait = False
        #: Whether a person types it.
        self.is_typed = False

    async def batches(
        self, limit: int = MAX_LINE_BYTES, on_too_long: Callable[[bytes, int], None] = lambda _beginning, _number: None
    ) -> AsyncIterator[list[EventLine]]:
        """Yield event lines in lists, as they arrive.

        Args:
            limit: longest line in bytes; longer ones are left out.
            on_too_long: called with the beginning of each line that is left out, and its number, from 1.

        Raises:
            ErgoCaptureError: the input cannot be read any further.
            InputRefused: no event of it can be sent.
        """
        lines, form = _Lines(limit, on_too_long), self.form
        try:
            async for piece in self._pieces():
                number = lines.ended + 1
                if batch := form.events_of(lines.feed(piece), number):
                    yield batch
        except OSError as error:
            raise self._unreadable(error, begun=True) from error
        last = lines.finish()
        events = form.events_of([last], lines.ended + 1) if last else []
        if events := events + form.finish():
            yield events

    async def _pieces(self) -> AsyncIterator[bytes]:
        """Yield the text of the input, decompressed."""
        text = InputText()
        while data := await self._read():
            for piece in text.feed(data):
                yield piece
        for piece in text.finish():
            yield piece

    async def _read(self) -> bytes:
        while True:
            if self._may_wait:
                # Wait here, not in the reading thread, which cannot be cancelled: Ctrl-C would wait for the next line.
                await anyio.wait_readable(self._file.fileno())
            data: bytes | None = await self._file.read(READ_BYTES)
            if data is not None:
                self.taken += len(data)
                return data

    def _unreadable(self, error: Exception, *, begun: bool = False) -> ErgoCaptureError:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        hint = "name a file that you may read, or - for standard input"
        return ErgoCaptureError(
            f"read events from {'standard input' if self.name == '-' else repr(self.name)}: {reason}",
            op="read events",
            path=self.name,
            hint=hint + "; events that were sent before are captured" if begun else hint,
        )

    async def __aenter__(self) -> Self:
        try:
            if self.name == "-":
                # If standard input is closed, descriptor 0 may belong to another file.
                if sys.stdin is None:
                    raise OSError(errno.EBADF, "it is closed")
                self._file = await aiofiles.open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
            else:
                # Without O_NONBLOCK, opening a named pipe waits for its writer, in a thread that cannot be interrupted.
                self._file = await aiofiles.open(self.name, "rb", buffering=0, opener=_open_at_once)
            found = os.fstat(self._file.fileno())
        except OSError as error:
            raise self._unreadable(error) from error
        self.size = found.st_size if stat.S_ISREG(found.st_mode) else None
        # An event loop can wait for these; any other file, such as a device, is read directly.
        self.is_typed = os.isatty(self._file.fileno())
        self._may_wait = stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode) or self.is_typed
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._file is not None:
            await self._file.close()


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


class _Lines:
    """Splits text into lines; those that are longer than a limit are never held whole, and count as empty lines.

    Args:
        limit: bytes of the longest line.
        on_too_long: called with the beginning of each line that is longer, and its number, from 1.
    """

    def __init__(self, limit: int, on_too_long: Callable[[bytes, int], None]) -> None:
        #: The number of lines that have ended.
        self.ended = 0
        self._limit = limit
        self._on_too_long = on_too_long
        self._begun = bytearray()
        #: Whether the rest of the current line is dropped.
        self._skipping = False

    def feed(self, text: bytes) -> list[bytes]:
        """Return the lines that end in a piece of text."""
        first, *others = text.split(b"\n")
        self._hold(first)
        if not others:
            return []
        rest = others.pop()
        lines = [bytes(self._begun), *others]
        if len(text) > self._limit:
            for place, line in enumerate(others, 1):
                if len(line) > self._limit:
                    self._on_too_long(line[:_BEGINNING], self.ended + 1 + place)
                    lines[place] = b""
        self.ended += len(lines)
        self._begun, self._skipping = bytearray(), False
        self._hold(rest)
        return lines

    def finish(self) -> bytes:
        """Return the last line, which has no newline; it may be empty."""
        return bytes(self._begun)

    def _hold(self, text: bytes) -> None:
        """Add to the current line."""
        if self._skipping:
            return
        self._begun += text
        if len(self._begun) > self._limit:
            self._on_too_long(bytes(self._begun[:_BEGINNING]), self.ended + 1)
            self._begun, self._skipping = bytearray(), True
