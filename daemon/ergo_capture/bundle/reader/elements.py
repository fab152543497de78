"""Reads the elements of a bundle's lists, many at a time.

A block is cut where an element seems to end. One that cannot be decoded in one go is read element by element.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, Generic, TypeVar

from ergo_capture.bundle.reader.blocks import read_decisions, read_events
from ergo_capture.bundle.reader.outline import Span
from ergo_capture.kernel.serde import bundle as serde
from ergo_capture.kernel.serde.parsing import parse
from ergo_capture.kernel.serde.tokens import STRUCTURE

Record = TypeVar("Record")

#: Bytes read and decoded at a time.
_BLOCK: Final = 128 * 1024
_SEEMS_END: Final = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*\{[ \t\r\n]*\Z")
_BLANK: Final = b" \t\r\n"


class ListReader(Generic[Record]):
    """How the elements of one list are read: many in one go, or one by one."""

    def __init__(
        self,
        name: str,
        read_block: Callable[[bytes], list[Record] | None],
        read_one: Callable[[Any, str], Record],
    ) -> None:
        self.name = name
        self.read_block = read_block
        self.read_one = read_one

    def __repr__(self) -> str:
        return f"<Reader of {self.name}>"


EVENTS: Final = ListReader("events", read_events, serde.read_event)
DECISIONS: Final = ListReader("decisions", read_decisions, serde.read_decision)


def read_elements(file: BinaryIO, span: Span, reader: ListReader[Record]) -> Iterator[list[Record]]:
    """The records of a list, a block at a time; ``file`` stands anywhere before the list.

    Raises:
        ElementError: an element is not one; what came before it was yielded.
        OSError: the file cannot be read.
    """
    file.seek(span.start)
    return _Elements(file, span, reader).blocks()


class ElementError(ValueError):
    """An element of a list is not one.

    ``index`` is its place in the list, ``offset`` that of its text in the file, or, for a text that is no JSON, of
    the byte where that shows; ``syntax`` is the JSON parser's word for it, None where the text is JSON.
    """

    def __init__(self, message: str, *, index: int, offset: int, syntax: str | None = None) -> None:
        super().__init__(message)
        self.index = index
        self.offset = offset
        self.syntax = syntax


class _Elements(Generic[Record]):
    def __init__(self, file: BinaryIO, span: Span, reader: ListReader[Record]) -> None:
        self.file = file
        self.reader = reader
        #: What was read, how much of it is passed, and the offset of its first byte in the file.
        self.held = b""
        self.at = 0
        self.start = span.start
        #: Bytes of the list that are still to be read.
        self.left = span.end - span.start
        #: Elements passed.
        self.index = 0

    def blocks(self) -> Iterator[list[Record]]:
        more = self._more_than_blank()
        while more:
            self._fill(_BLOCK)
            cut = self._guess()
            records = None if cut is None else self.reader.read_block(self.held[:cut])
            if records and cut is not None:
                self.index += len(records)
                more = self._pass(cut)
                yield records
                continue
            # Why up to there: asking again for each element whether the rest is harmless would take forever.
            until = self.start + (cut or _BLOCK)
            while more and self.start + self.at < until:
                end = self._end_of_element()
                record = self._read_one(self.held[self.at : end])
                self.index += 1
                more = self._pass(end)
                yield [record]

    def _more_than_blank(self) -> bool:
        self._fill(_BLOCK)
        while self.left and not self.held.strip(_BLANK):
            self._fill(2 * len(self.held))
        return bool(self.held.strip(_BLANK))

    def _fill(self, count: int) -> None:
        """Hold so many bytes that are not passed, or all that are left."""
        parts = [self.held[self.at :]]
        self.start += self.at
        self.at = 0
        missing = min(count - len(parts[0]), self.left)
        while missing > 0:
            part = self.file.read(missing)
            if not part:
                self.left = 0
                break
            parts.append(part)
            missing -= len(part)
            self.left -= len(part)
        self.held = b"".join(parts)

    def _pass(self, end: int) -> bool:
        """Go on behind the comma at ``end``; False where the list ends there."""
        self.at = min(end + 1, len(self.held))
        return end < len(self.held)

    def _guess(self) -> int | None:
        """Where in what is held the last whole element seems to end; None where no element seems to."""
        if not self.left:
            return len(self.held)
        at = self.held.rfind(b'"event_id"')
        while at > 0:
            match = _SEEMS_END.search(self.held, max(0, at - 64), at)
            if match is not None:
                return match.start() + match[0].index(b",")
            at = self.held.rfind(b'"event_id"', 0, at)
        return None

    def _end_of_element(self) -> int:
        """Where the first element not passed certainly ends: at the comma behind it, or at the end of the list."""
        at, depth = self.at, 0
        while True:
            match = STRUCTURE.search(self.held, at)
            if match is None or match[1] == b"":
                if not self.left:
                    return len(self.held)
                at = (len(self.held) if match is None else match.start()) - self.at
                self._fill(2 * (len(self.held) - self.at))
                continue
            token, at = match[0], match.end()
            if token in b"[{":
                depth += 1
            elif token in b"]}":
                depth -= 1
            elif token == b"," and depth == 0:
                return match.start()

    def _read_one(self, text: bytes) -> Record:
        start, index = self.start + self.at, self.index
        try:
            # Why two brackets: an element stands that deep in a bundle, and depth is limited.
            ((*values,),) = parse(f"[[{text.decode()}]]")
            if not values:
                raise ElementError("Expecting value", index=index, offset=start + len(text), syntax="Expecting value")
            return self.reader.read_one(values[0], f"$.{self.reader.name}[{index}]")
        except ElementError:
            raise
        except json.JSONDecodeError as error:
            complaint, offset = _syntax_error(text.decode(), error)
            raise ElementError(complaint, index=index, offset=start + offset, syntax=complaint) from error
        except UnicodeDecodeError as error:
            at = start + error.start
            message = f"'utf-8' codec can't decode byte 0x{text[error.start]:02x} in position {at}: {error.reason}"
            raise ElementError(message, index=index, offset=at) from error
        except (ValueError, RecursionError) as error:
            raise ElementError(str(error), index=index, offset=start) from error

    def __repr__(self) -> str:
        return f"<_Elements of {self.reader.name}, {self.index} passed, {self.left} bytes to be read>"


def _syntax_error(text: str, error: json.JSONDecodeError) -> tuple[str, int]:
    """What is wrong with an element, and at which of its bytes, as if nothing came after it."""
    try:
        parse(f"[[{text}")
    except json.JSONDecodeError as alone:
        error = alone
    return error.msg, len(error.doc[2 : error.pos].encode())
