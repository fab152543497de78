"""Reads a bundle of any size: memory does not grow with it.

A stream accepts and refuses what ``decode_bundle`` does, with the same words; what is wrong with an event or a
decision is said when it is reached.
"""

from __future__ import annotations

import json
import stat
import tempfile
from collections.abc import Iterator
from itertools import chain
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Protocol, Self

from ergo_capture.bundle.format import BundleFormatError, complaint_of
from ergo_capture.bundle.reader.elements import DECISIONS, EVENTS, ElementError, ListReader, Record, read_elements
from ergo_capture.bundle.reader.opening import HEAD_BYTES, open_binary, read_hint
from ergo_capture.bundle.reader.outline import Outline, Span, read_outline
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.records import CaptureBundle, EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.kernel.serde import bundle as serde
from ergo_capture.kernel.serde.parsing import parse

_BLOCK: Final = 1 << 20


def open_bundle(path: str | PathLike[str]) -> BundleStream:
    """A bundle file, to be read as a stream; close it, or use it as a context manager.

    The file is walked once to find its parts, about 1 us for 1 KB. A pipe is copied to a temporary file first.

    Raises:
        BundleFormatError: not a bundle; what is in its events and decisions is looked at when they are read.
        ErgoCaptureError: the file cannot be read.
    """
    return BundleStream(Path(path))


class RecordStream(Protocol):
    """Events and decisions of one run, wherever they are; each call of ``events`` or ``decisions`` begins anew."""

    @property
    def capture_version(self) -> str:
        """The format's version."""

    @property
    def graph_id(self) -> str:
        """The graph whose episodes were decided."""

    @property
    def config(self) -> Constraints:
        """The limits under which they were decided."""

    @property
    def adapter_provenance(self) -> str:
        """What the adapter was; ``none`` without one."""

    @property
    def runtime_provenance(self) -> str:
        """What the engine was."""

    @property
    def egress_provenance(self) -> str | None:
        """What dispatched intents, if anything did."""

    def events(self) -> Iterator[ExternalEventRecord]:
        """The events, from the first."""

    def decisions(self) -> Iterator[EpisodeInvocationRecord]:
        """The decisions, from the first."""


class BundleStream:
    """A bundle whose events and decisions are read as they are asked for.

    Every call of ``events`` or ``decisions`` begins anew, and any number of them may be under way at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._copy: BinaryIO | None = None
        self._files: set[BinaryIO] = set()
        try:
            self._spool()
            self._outline = self._walk()
            self._head = self._read_head()
        except OSError as error:
            self.close()
            raise self._unreadable(error) from error
        except BaseException:
            self.close()
            raise
        #: Bytes of the file's text.
        self.size = self._outline.size

    @property
    def capture_version(self) -> str:
        """The format's version, as the bundle says."""
        return self._head.capture_version

    @property
    def graph_id(self) -> str:
        """The graph whose episodes were decided."""
        return self._head.graph_id

    @property
    def config(self) -> Constraints:
        """The limits under which they were decided."""
        return self._head.config

    @property
    def adapter_provenance(self) -> str:
        """What the adapter was; ``none`` without one."""
        return self._head.adapter_provenance

    @property
    def runtime_provenance(self) -> str:
        """What the engine was."""
        return self._head.runtime_provenance

    @property
    def egress_provenance(self) -> str | None:
        """What dispatched intents, if anything did."""
        return self._head.egress_provenance

    def events(self) -> Iterator[ExternalEventRecord]:
        """The events, from the first.

        Raises:
            BundleFormatError: when it comes to something that is no event.
            ErgoCaptureError: the file cannot be read.
        """
        return chain.from_iterable(self.event_blocks())

    def decisions(self) -> Iterator[EpisodeInvocationRecord]:
        """The decisions, from the first.

        Raises:
            BundleFormatError: when it comes to something that is no decision.
            ErgoCaptureError: the file cannot be read.
        """
        return chain.from_iterable(self.decision_blocks())

    def event_blocks(self) -> Iterator[list[ExternalEventRecord]]:
        """The events, some at a time; raises as ``events``."""
        return self._blocks(EVENTS)

    def decision_blocks(self) -> Iterator[list[EpisodeInvocationRecord]]:
        """The decisions, some at a time; raises as ``decisions``."""
        return self._blocks(DECISIONS)

    @property
    def spans(self) -> tuple[Span, Span]:
        """Where in the file the content of its events is, and that of its decisions."""
        return self._span(EVENTS.name), self._span(DECISIONS.name)

    def close(self) -> None:
        """Let go of the file; iterators under way end with an error."""
        for file in list(self._files):
            file.close()
        self._files.clear()
        if self._copy is not None:
            self._copy.close()
            self._copy = None

    def _blocks(self, reader: ListReader[Record]) -> Iterator[list[Record]]:
        span = self._span(reader.name)
        try:
            file = open_binary(self._source)
            self._files.add(file)
            try:
                yield from read_elements(file, span, reader)
            finally:
                self._files.discard(file)
                file.close()
        except ElementError as error:
            raise self._refused(error) from error
        except OSError as error:
            raise self._unreadable(error) from error

    def _span(self, name: str) -> Span:
        span = self._outline.span(name)
        assert span is not None, "a bundle without its lists is refused when it is opened"
        return span

    def _spool(self) -> None:
        """Why: what comes through a pipe can be read only once."""
        self._source = self.path
        if stat.S_ISREG(self.path.stat().st_mode) or self.path.is_dir():
            return
        copy = tempfile.NamedTemporaryFile(prefix="ergo-capture-", suffix=self.path.suffix)  # noqa: SIM115 - ``close``
        self._copy = copy  # type: ignore[assignment]  # it is one in all but its type
        with self.path.open("rb") as pipe:
            while block := pipe.read(_BLOCK):
                copy.write(block)
        copy.flush()
        self._source = Path(copy.name)

    def _walk(self) -> Outline:
        try:
            with open_binary(self._source) as file:
                return read_outline(file)
        except ValueError as error:
            raise self._format_error(str(error)) from error

    def _read_head(self) -> CaptureBundle:
        found = self._outline
        if found.cut is not None:
            raise self._cut_short(found.cut)
        try:
            return serde.read_bundle(parse(found.outside.decode()))
        except json.JSONDecodeError as error:
            at = len(error.doc[: error.pos].encode())
            raise self._format_error(self._malformed(error.msg, found.offset_of(at))) from error
        except UnicodeDecodeError as error:
            at, byte = found.offset_of(error.start), found.outside[error.start]
            text = f"'utf-8' codec can't decode byte 0x{byte:02x} in position {at}: {error.reason}"
            raise self._format_error(text) from error
        except (ValueError, RecursionError) as error:
            raise self._format_error(str(error)) from error

    def _cut_short(self, name: str) -> BundleFormatError:
        """What a JSON parser, which reads the elements first, says of a file that ends inside a list."""
        any_there = False
        try:
            for _ in self._blocks(EVENTS) if name == EVENTS.name else self._blocks(DECISIONS):
                any_there = True
        except BundleFormatError as error:
            return error
        complaint = "Expecting ',' delimiter" if any_there else "Expecting value"
        return self._format_error(self._malformed(complaint, self._outline.size))

    def _malformed(self, complaint: str, offset: int) -> str:
        """What a JSON parser says of a text that it reads whole."""
        lines = column = characters = 0
        with open_binary(self._source) as file:
            while offset and (block := file.read(min(_BLOCK, offset))):
                offset -= len(block)
                lines += block.count(b"\n")
                line = block[block.rfind(b"\n") + 1 :]
                column = _characters(line) + (column if len(line) == len(block) else 0)
                characters += _characters(block)
        return f"{complaint}: line {lines + 1} column {column + 1} (char {characters})"

    def _refused(self, error: ElementError) -> BundleFormatError:
        if error.malformed is None:
            return self._format_error(str(error))
        return self._format_error(self._malformed(error.malformed, error.offset))

    def _format_error(self, text: str) -> BundleFormatError:
        with open_binary(self._source) as file:
            head = file.read(HEAD_BYTES)
        complaint, hint = complaint_of(head, text)
        return BundleFormatError(
            f"read capture bundle '{self.path}': {complaint}", op="read capture bundle", path=self.path, hint=hint
        )

    def _unreadable(self, error: OSError) -> ErgoCaptureError:
        return ErgoCaptureError(
            f"read capture bundle '{self.path}': {error.strerror or error}",
            op="read capture bundle",
            path=self.path,
            hint=read_hint(error),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<BundleStream {self.path}, {self._outline.size} bytes>"


def _characters(text: bytes) -> int:
    """Why so: a span may begin in the midst of a character."""
    return len(text.translate(None, _CONTINUATION))


_CONTINUATION: Final = bytes(range(0x80, 0xC0))
