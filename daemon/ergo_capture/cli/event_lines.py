"""Event lines from a file or a pipe, for ``ergo-capture send``.

Owns: opening the input, finding the events in it, how far it is read.
Not here: what an event line may hold (``journal/lines.py``): the daemon says what is wrong with one.

The input is JSON Lines: bare events, ``event`` or ``events`` frames, or a whole ``ergo-driver.v0`` stream;
gzip is recognised by itself. Lines are sent as they are: nothing is parsed but what it takes to count.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import msgspec

from ergo_capture.errors import ErgoCaptureError

#: Lines taken at a time, at most.
_SOME: Final = 1000


class _Id(msgspec.Struct):
    event_id: str = ""


class _Line(msgspec.Struct):
    type: str = ""
    event: msgspec.Raw = msgspec.Raw(b"")
    events: list[msgspec.Raw] = []
    event_id: str = ""


#: What frames a stream of events, of this protocol or of the reference's: this command does its own.
_FRAMING: Final = frozenset({"hello", "open", "flush", "ping", "close", "end"})


_line = msgspec.json.Decoder(_Line)
_id = msgspec.json.Decoder(_Id)


class EventLines:
    """The events of one input; a context manager that closes it.

    Args:
        name: the file, or ``-`` for standard input.

    Raises:
        ErgoCaptureError: it cannot be opened.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            if name == "-" and sys.stdin is None:
                raise OSError(errno.EBADF, "it is closed")
            self._file: BinaryIO = sys.stdin.buffer if name == "-" else Path(name).open("rb")  # noqa: SIM115
            self._source = self._unzipped()
            found = os.fstat(self._file.fileno())
        except OSError as error:
            raise self._unreadable(error.strerror or str(error)) from error
        #: Bytes of the file as it lies on the disk; None for a pipe.
        self.size = found.st_size if stat.S_ISREG(found.st_mode) else None
        self._lines = self._events()

    def _unzipped(self) -> BinaryIO:
        if isinstance(self._file, io.BufferedReader) and self._file.peek(2)[:2] == b"\x1f\x8b":
            unzipped: Any = gzip.GzipFile(fileobj=self._file)
            return io.BufferedReader(unzipped)
        return self._file

    @property
    def taken(self) -> int:
        """Bytes of the file that are read; 0 for a pipe."""
        return 0 if self.size is None else self._file.tell()

    def some(self) -> list[tuple[bytes, str]]:
        """Event lines with their ids: what can be read without waiting long; empty only at the end.

        Raises:
            ErgoCaptureError: the input cannot be read on.
        """
        batch: list[tuple[bytes, str]] = []
        try:
            for line in self._lines:
                if line is None:
                    if batch:
                        return batch
                    continue
                batch.append(line)
                if len(batch) == _SOME:
                    return batch
        except (OSError, EOFError, zlib.error) as error:
            raise self._unreadable(str(error), begun=True) from error
        return batch

    def _events(self) -> Iterator[tuple[bytes, str] | None]:
        """Event lines with their ids; None where the next one may have to be waited for."""
        source = self._source
        while chunk := source.read1(1 << 16) if isinstance(source, io.BufferedReader) else source.read(1 << 16):
            if not chunk.endswith(b"\n"):
                chunk += source.readline()
            for line in chunk.split(b"\n"):
                if line.strip():
                    yield from _events_of(line)
            yield None

    def _unreadable(self, reason: str, *, begun: bool = False) -> ErgoCaptureError:
        hint = "name a file that you may read, or - for standard input"
        return ErgoCaptureError(
            f"read events from {'standard input' if self.name == '-' else repr(self.name)}: {reason}",
            op="read events",
            path=self.name,
            hint=hint + "; what was sent before is captured" if begun else hint,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.name != "-":
            self._file.close()

    def __repr__(self) -> str:
        return f"<EventLines {self.name}, {self.taken} of {self.size} bytes>"


def _events_of(line: bytes) -> Iterator[tuple[bytes, str]]:
    try:
        frame = _line.decode(line)
    except (ValueError, RecursionError):
        # Why sent all the same: what is wrong with it is the daemon's to say.
        yield line.strip() + b"\n", ""
        return
    if frame.type == "event":
        yield line.strip() + b"\n", _id_of(frame.event)
    elif frame.type == "events":
        for event in frame.events:
            yield _wrap(event), _id_of(event)
    elif frame.type not in _FRAMING:
        # Why also without an id: a line that is nothing we know is rejected and counted, never left out in silence.
        yield _wrap(line.strip()), frame.event_id


def _id_of(event: msgspec.Raw) -> str:
    try:
        return _id.decode(event).event_id
    except (ValueError, RecursionError):
        return ""


def _wrap(event: bytes | msgspec.Raw) -> bytes:
    return b'{"type":"event","event":' + bytes(event) + b"}\n"
