"""Read a bundle of any size, in memory that does not grow with it.

Errors in an event or a decision are raised when it is reached, all others when the bundle is opened. The messages are
those of a JSON parser that reads the whole text.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Protocol, Self

import msgspec

from ergo_capture.bundle.reader import meter
from ergo_capture.bundle.reader.elements import (
    DECISIONS,
    EVENTS,
    Block,
    ElementCursor,
    ElementError,
    ListReader,
    read_elements,
)
from ergo_capture.bundle.reader.opening import (
    HEAD_BYTES,
    BundleFormatError,
    identity_of,
    malformed,
    open_binary,
    unreadable,
)
from ergo_capture.bundle.reader.outline import Outline, Span, guess_outline, read_outline
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.records import (
    CAPTURE_FORMAT_VERSION,
    CaptureBundle,
    EpisodeInvocationRecord,
    ExternalEventRecord,
)
from ergo_capture.kernel.serde import bundle as serde
from ergo_capture.kernel.serde.parsing import parse

_BLOCK: Final = 1 << 20
#: The bytes of UTF-8 that continue a character.
_CONTINUATION: Final = bytes(range(0x80, 0xC0))
#: The version that a text states. Quotes inside of a string are escaped, so that only a field's name matches.
_VERSION: Final = re.compile(rb'"capture_version"\s*:\s*"([^"\\]*)"')


def open_bundle(path: str | PathLike[str]) -> BundleStream:
    """Open a bundle file as a stream; close it, or use it as a context manager.

    The file is read once to find its parts, at about 1 us for 1 KB. A pipe is copied to a temporary file first.

    Raises:
        BundleFormatError: the file is not a bundle; its events and decisions are checked when they are read.
        ErgoCaptureError: the file cannot be read.
    """
    return BundleStream(Path(path))


class RecordStream(Protocol):
    """Events and decisions of one run; each call of ``events`` or ``decisions`` reads from the first one."""

    @property
    def capture_version(self) -> str:
        """The version of the bundle format."""

    @property
    def graph_id(self) -> str:
        """The graph whose episodes were decided."""

    @property
    def config(self) -> Constraints:
        """The constraints under which they were decided."""

    @property
    def adapter_provenance(self) -> str:
        """The adapter; ``none`` without one."""

    @property
    def runtime_provenance(self) -> str:
        """The engine."""

    @property
    def egress_provenance(self) -> str | None:
        """The provenance of the egress channels; None without any."""

    def events(self) -> Iterator[ExternalEventRecord]:
        """Yield the events."""

    def decisions(self) -> Iterator[EpisodeInvocationRecord]:
        """Yield the decisions."""


class BundleStream:
    """A bundle whose events and decisions are read when they are asked for.

    Any number of iterators may be used at once.

    Args:
        path: the bundle file; with ``text``, only its name in messages.
        text: the content of a bundle file; None to read ``path``.
        guess: whether the ends of the lists may be guessed if the file looks like one of ours. A caller that does not
            read both lists to their ends, or that finds an error, has to call ``confirm``.
    """

    def __init__(self, path: Path | None = None, text: bytes | None = None, *, guess: bool = False) -> None:
        self.path = path
        self._text = text
        self._copy: BinaryIO | None = None
        #: The version in the text, even if the text is malformed otherwise; None for none.
        self._version: str | None = None
        self._files: set[BinaryIO] = set()
        try:
            if path is not None and text is None:
                self._source = self._spool(path)
            self._outline = (self._guess_outline() if guess else None) or self._read_outline()
            self._version = _stated_version(self._outline.outside)
            self._head = self._read_head()
        except OSError as error:
            self.close()
            raise self._unreadable(error) from error
        except BaseException:
            self.close()
            raise
        #: Bytes of the bundle's text.
        self.size = self._outline.size

    @property
    def capture_version(self) -> str:
        """The version of the bundle format."""
        return self._head.capture_version

    @property
    def graph_id(self) -> str:
        """The graph whose episodes were decided."""
        return self._head.graph_id

    @property
    def config(self) -> Constraints:
        """The constraints under which they were decided."""
        return self._head.config

    @property
    def adapter_provenance(self) -> str:
        """The adapter; ``none`` without one."""
        return self._head.adapter_provenance

    @property
    def runtime_provenance(self) -> str:
        """The engine."""
        return self._head.runtime_provenance

    @property
    def egress_provenance(self) -> str | None:
        """The provenance of the egress channels; None without any."""
        return self._head.egress_provenance

    def events(self) -> Iterator[ExternalEventRecord]:
        """Yield the events.

        Raises:
            BundleFormatError: the next element is not an event.
            ErgoCaptureError: the file cannot be read.
        """
        return chain.from_iterable(self.event_blocks())

    def decisions(self) -> Iterator[EpisodeInvocationRecord]:
        """Yield the decisions.

        Raises:
            BundleFormatError: the next element is not a decision.
            ErgoCaptureError: the file cannot be read.
        """
        return chain.from_iterable(self.decision_blocks())

    def event_blocks(self) -> Iterator[list[ExternalEventRecord]]:
        """Yield the events, several at a time; raise as ``events`` does."""
        return self._blocks(EVENTS)

    def decision_blocks(self) -> Iterator[list[EpisodeInvocationRecord]]:
        """Yield the decisions, several at a time; raise as ``decisions`` does."""
        return self._blocks(DECISIONS)

    @contextmanager
    def cursor(self, reader: ListReader[Block]) -> Iterator[ElementCursor[Block]]:
        """Open a cursor at the beginning of a list; it raises ``ElementError`` and ``OSError``."""
        span = self._begin(reader)
        with self._open() as file:
            file.seek(span.start)
            yield ElementCursor(file, span, reader)

    def read(self) -> CaptureBundle:
        """Return the whole bundle; raise as ``events`` and ``decisions`` do."""
        return msgspec.structs.replace(self._head, events=list(self.events()), decisions=list(self.decisions()))

    @property
    def spans(self) -> tuple[Span, Span]:
        """The bytes of the text that are between the brackets of the events, and of the decisions."""
        return self._span(EVENTS.name), self._span(DECISIONS.name)

    def close(self) -> None:
        """Close the file; iterators in use raise an error."""
        for file in list(self._files):
            file.close()
        self._files.clear()
        if self._copy is not None:
            self._copy.close()
            self._copy = None

    def plain_file(self) -> tuple[Path, tuple[int, int, int]] | None:
        """Return the path of the file and its ``identity_of``; None if it is compressed."""
        if self._text is not None:
            return None
        with self._open() as file:
            return (self._source, identity_of(file)) if file.seekable() else None

    def confirm(self) -> None:
        """Find the lists by reading the whole text, if their ends were guessed; raise as the constructor does."""
        if self._outline.guessed:
            try:
                self._outline = self._read_outline()
                self._head = self._read_head()
            except OSError as error:
                raise self._unreadable(error) from error

    def _open(self) -> BinaryIO:
        return open_binary(self._source) if self._text is None else io.BytesIO(self._text)

    def _blocks(self, reader: ListReader[Block]) -> Iterator[Block]:
        span = self._begin(reader)
        try:
            file = self._open()
            self._files.add(file)
            try:
                yield from read_elements(file, span, reader)
            finally:
                self._files.discard(file)
                file.close()
        except ElementError as error:
            message = str(error) if error.syntax is None else self._located(error.syntax, error.offset)
            raise self._malformed(message) from error
        except OSError as error:
            raise self._unreadable(error) from error

    def _begin(self, reader: ListReader[Block]) -> Span:
        """Return the span of a list whose reading begins; report the progress of both lists as one."""
        if reader.name == EVENTS.name:
            meter.begin("reading", sum(span.end - span.start for _, span in self._outline.lists))
        return self._span(reader.name)

    def _span(self, name: str) -> Span:
        span = self._outline.span(name)
        assert span is not None, "a bundle without its lists is refused when it is opened"
        return span

    def _spool(self, path: Path) -> Path:
        """Return the file to read: a copy if the path is a pipe, which can be read only once."""
        if stat.S_ISREG(path.stat().st_mode) or path.is_dir():
            return path
        copy = tempfile.NamedTemporaryFile(prefix="ergo-capture-", suffix=path.suffix)  # noqa: SIM115 - ``close``
        self._copy = copy  # type: ignore[assignment]  # it is one in all but its type
        with path.open("rb") as pipe:
            while block := pipe.read(_BLOCK):
                copy.write(block)
        copy.flush()
        return Path(copy.name)

    def _guess_outline(self) -> Outline | None:
        with self._open() as file:
            outline = guess_outline(file) if file.seekable() else None
        try:
            return outline if outline is not None and serde.read_bundle(parse(outline.outside.decode())) else None
        except (ValueError, RecursionError):
            return None

    def _read_outline(self) -> Outline:
        try:
            with self._open() as file:
                size = os.fstat(file.fileno()).st_size if self._text is None and file.seekable() else 0
                meter.begin("finding the lists", size)
                return read_outline(file)
        except ValueError as error:
            raise self._malformed(str(error)) from error

    def _read_head(self) -> CaptureBundle:
        found = self._outline
        if found.cut is not None:
            raise self._cut_inside(found.cut)
        try:
            return serde.read_bundle(parse(found.outside.decode()))
        except json.JSONDecodeError as error:
            at = len(error.doc[: error.pos].encode())
            raise self._malformed(self._located(error.msg, found.offset_of(at))) from error
        except UnicodeDecodeError as error:
            at, byte = found.offset_of(error.start), found.outside[error.start]
            text = f"'utf-8' codec can't decode byte 0x{byte:02x} in position {at}: {error.reason}"
            raise self._malformed(text) from error
        except (ValueError, RecursionError) as error:
            raise self._malformed(str(error)) from error

    def _cut_inside(self, name: str) -> BundleFormatError:
        """Return the error for a text that ends inside a list: that of its first bad element, or of its end."""
        any_there = False
        try:
            for _ in self._blocks(EVENTS) if name == EVENTS.name else self._blocks(DECISIONS):
                any_there = True
        except BundleFormatError as error:
            return error
        message = "Expecting ',' delimiter" if any_there else "Expecting value"
        return self._malformed(self._located(message, self._outline.size))

    def _located(self, message: str, offset: int) -> str:
        """Return a syntax error's message with line, column and character, as ``json`` writes it."""
        lines = column = characters = 0
        with self._open() as file:
            while offset and (block := file.read(min(_BLOCK, offset))):
                offset -= len(block)
                lines += block.count(b"\n")
                line = block[block.rfind(b"\n") + 1 :]
                column = _characters(line) + (column if len(line) == len(block) else 0)
                characters += _characters(block)
        return f"{message}: line {lines + 1} column {column + 1} (char {characters})"

    def _malformed(self, message: str) -> BundleFormatError:
        if self._version not in (None, CAPTURE_FORMAT_VERSION):
            message = f"it is of capture version '{self._version}', and this release reads '{CAPTURE_FORMAT_VERSION}': {message}"
        with self._open() as file:
            return malformed(self.path, file.read(HEAD_BYTES), message)

    def _unreadable(self, error: OSError) -> ErgoCaptureError:
        assert self.path is not None
        return unreadable(self.path, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _stated_version(outside: bytes) -> str | None:
    found = _VERSION.search(outside)
    return None if found is None else found[1].decode(errors="backslashreplace")


def _characters(text: bytes) -> int:
    """Return the number of characters that begin in a text, which itself may begin within one."""
    return len(text.translate(None, _CONTINUATION))
