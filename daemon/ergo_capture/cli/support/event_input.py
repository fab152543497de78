"""Event lines from a file or a pipe, for ``ergo-capture send``.

The input is JSON Lines: bare events, ``event`` or ``events`` frames, or a whole ``ergo-driver.v0`` stream. Gzip is
recognised by its first bytes. Lines are sent unchanged, and only as much is parsed as it takes to find the events and
their ids; the daemon reports what is wrong with an event.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, NamedTuple, Self

import aiofiles
import anyio
import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.protocol.capture import EVENT, EVENTS, REQUEST_TYPES, wrap_event

#: Bytes read at a time.
_READ_BYTES: Final = 1 << 18
_GZIP: Final = b"\x1f\x8b"
#: zlib's ``wbits`` for a gzip member with its header and checksum.
_MEMBER: Final = 31


class EventLine(NamedTuple):
    """A line to send, and the id of its event; the id is empty where the line has none."""

    line: bytes
    event_id: str
    #: Number of the line in the input, from 1.
    number: int


class _Id(msgspec.Struct):
    event_id: str = ""


class _Line(msgspec.Struct):
    type: str = ""
    event: msgspec.Raw = msgspec.Raw(b"")
    events: list[msgspec.Raw] = []
    event_id: str = ""


_line = msgspec.json.Decoder(_Line)
_id = msgspec.json.Decoder(_Id)


class EventLines:
    """The events of one input; an asynchronous context manager that opens and closes it.

    Args:
        name: the file, or ``-`` for standard input.

    Raises:
        ErgoCaptureError: it cannot be opened.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        #: Bytes of the file on the disk; None for an input without a known end.
        self.size: int | None = None
        #: Bytes that have been read.
        self.taken = 0
        self._file: Any = None
        self._may_wait = False

    async def batches(self) -> AsyncIterator[list[EventLine]]:
        """Yield event lines in batches, as they arrive.

        Raises:
            ErgoCaptureError: the input cannot be read any further.
        """
        begun, number = bytearray(), 1
        try:
            async for text in self._texts():
                whole, newline, rest = text.rpartition(b"\n")
                if newline:
                    lines = (bytes(begun) + whole).split(b"\n")
                    begun = bytearray(rest)
                    if batch := [event for n, line in enumerate(lines, number) for event in _events_of(line, n)]:
                        yield batch
                    number += len(lines)
                else:
                    begun += text
        except (OSError, EOFError, zlib.error) as error:
            raise self._unreadable(error, begun=True) from error
        if last := list(_events_of(bytes(begun), number)):
            yield last

    async def _texts(self) -> AsyncIterator[bytes]:
        """Yield the input in pieces, decompressed."""
        data = b""
        while len(data) < len(_GZIP) and (more := await self._read()):
            data += more
        zipped = _Gunzip() if data.startswith(_GZIP) else None
        while data:
            yield data if zipped is None else zipped.feed(data)
            data = await self._read()
        if zipped is not None:
            zipped.finish()

    async def _read(self) -> bytes:
        while True:
            if self._may_wait:
                # Wait here and not in the reading thread: that cannot be cancelled, and Ctrl-C would wait for the next line.
                await anyio.wait_readable(self._file.fileno())
            data: bytes | None = await self._file.read(_READ_BYTES)
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
            hint=hint + "; what was sent before is captured" if begun else hint,
        )

    async def __aenter__(self) -> Self:
        try:
            if self.name == "-":
                # Where standard input is closed, descriptor 0 may belong to another file.
                if sys.stdin is None:
                    raise OSError(errno.EBADF, "it is closed")
                self._file = await aiofiles.open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
            else:
                self._file = await aiofiles.open(self.name, "rb", buffering=0)
            found = os.fstat(self._file.fileno())
        except OSError as error:
            raise self._unreadable(error) from error
        self.size = found.st_size if stat.S_ISREG(found.st_mode) else None
        # An event loop can wait for these; anything else, such as a device, is read at once.
        self._may_wait = stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode) or os.isatty(self._file.fileno())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._file is not None:
            await self._file.close()


class _Gunzip:
    """A decompressor for gzip members, one after the other."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_MEMBER)

    def feed(self, data: bytes) -> bytes:
        """Return the text of the next bytes."""
        text = b""
        while data:
            if self._member.eof:
                # A member may be followed by zeros, and then by another member.
                data = data.lstrip(b"\0")
                if not data:
                    break
                self._member = zlib.decompressobj(_MEMBER)
            text += self._member.decompress(data)
            data = self._member.unused_data
        return text

    def finish(self) -> None:
        """Raise EOFError if the last member is cut off."""
        if not self._member.eof:
            raise EOFError("the compressed file is cut off before its end")


def _events_of(line: bytes, number: int) -> Iterator[EventLine]:
    line = line.strip()
    if not line:
        return
    try:
        frame = _line.decode(line)
    except (ValueError, RecursionError):
        # Send it all the same: the daemon reports what is wrong with it.
        yield EventLine(line + b"\n", "", number)
        return
    if frame.type == EVENT:
        yield EventLine(line + b"\n", _id_of(frame.event), number)
    elif frame.type == EVENTS:
        for event in frame.events:
            yield EventLine(wrap_event(event), _id_of(event), number)
    # Frames around the events are left out: `send` writes its own.
    elif frame.type not in REQUEST_TYPES:
        # Also without an id: the daemon rejects and counts an unknown line, and none is dropped silently.
        yield EventLine(wrap_event(line), frame.event_id, number)


def _id_of(event: msgspec.Raw) -> str:
    try:
        return _id.decode(event).event_id
    except (ValueError, RecursionError):
        return ""
