"""Read the elements of a bundle's lists, a block at a time.

A block is cut where an element seems to end. A block that cannot be decoded as a whole is read element by element.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sized
from typing import Any, BinaryIO, Final, Generic, TypeVar

from ergo_capture.bundle.reader import meter
from ergo_capture.bundle.reader.blocks import EventColumns, read_decisions, read_event_columns, read_events
from ergo_capture.bundle.reader.outline import Span
from ergo_capture.kernel.serde import bundle as serde
from ergo_capture.kernel.serde.parsing import parse
from ergo_capture.kernel.serde.tokens import STRUCTURE

#: Several elements of a list, as a reader returns them.
Block = TypeVar("Block", bound=Sized)

#: Bytes read and decoded at a time. With 128 KiB the lists of a block's payloads leave the processor's cache, and
#: decoding takes nearly twice as long.
_BLOCK: Final = 32 * 1024
#: Bytes in which the end of an element is searched for; longer ones are read alone.
_LONGEST: Final = 64 << 20
_SEEMS_END: Final = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*\{[ \t\r\n]*\Z")
_BLANK: Final = b" \t\r\n"


class ListReader(Generic[Block]):
    """The two functions that read elements of one list: many at once, and one by one."""

    def __init__(
        self,
        name: str,
        read_block: Callable[[bytes], Block | None],
        read_one: Callable[[Any, str], Block],
    ) -> None:
        self.name = name
        self.read_block = read_block
        self.read_one = read_one


EVENTS: Final = ListReader("events", read_events, lambda value, path: [serde.read_event(value, path)])
DECISIONS: Final = ListReader("decisions", read_decisions, lambda value, path: [serde.read_decision(value, path)])
#: Reads events as columns.
EVENT_COLUMNS: Final = ListReader(
    "events", read_event_columns, lambda value, path: EventColumns.of(serde.read_event(value, path))
)


def read_elements(file: BinaryIO, span: Span, reader: ListReader[Block]) -> Iterator[Block]:
    """Yield the elements of a list, a block at a time.

    Args:
        file: the bundle's text, at any position before the list.
        span: the bytes between the list's brackets.
        reader: how its elements are read.

    Raises:
        ElementError: an element is not a record; those before it were yielded.
        OSError: the file cannot be read.
    """
    file.seek(span.start)
    cursor = ElementCursor(file, span, reader)
    while (block := cursor.read()) is not None:
        yield block


class ElementError(ValueError):
    """An element of a list is not a record.

    Args:
        message: what is wrong.
        index: its place in the list.
        offset: the offset of the element in the text, in bytes; for a syntax error, the offset of the error.
        syntax: the JSON parser's message for a syntax error; None if the element is JSON.
    """

    def __init__(self, message: str, *, index: int, offset: int, syntax: str | None = None) -> None:
        super().__init__(message)
        self.index = index
        self.offset = offset
        self.syntax = syntax


class ElementCursor(Generic[Block]):
    """A place between two elements of a list, from which reading continues.

    Args:
        file: the bundle's text, positioned at the beginning of the list.
        span: the bytes between the list's brackets.
        reader: how its elements are read.
    """

    def __init__(self, file: BinaryIO, span: Span, reader: ListReader[Block]) -> None:
        self.file = file
        self.reader = reader
        #: Bytes that were read, the number of them that are consumed, and the offset of the first one in the file.
        self.held = b""
        self.at = 0
        self.begin = self.start = span.start
        #: Bytes of the list that are still to be read.
        self.left = span.end - span.start
        #: The number of elements that were consumed, and the text of those that were read last.
        self.index = 0
        self.text = b""
        #: The offset at which reading by blocks is tried again: trying after each single element would be quadratic.
        self._alone_until = 0
        #: Whether there are more elements.
        self.more = self._fill_to_element()

    def read(self) -> Block | None:
        """Return the next elements; None at the end of the list.

        Raises:
            ElementError: the next element is not a record.
            OSError: the file cannot be read.
        """
        if not self.more:
            return None
        if self.start + self.at >= self._alone_until:
            cut = self._fill_to_end()
            self.text = b"" if cut is None else self.held[:cut]
            block = None if cut is None else self.reader.read_block(self.text)
            if block and cut is not None:
                self.index += len(block)
                self._consume(cut)
                return block
            self._alone_until = self.start + (cut or _BLOCK)
        end = self._end_of_element()
        self.text = self.held[self.at : end]
        block = self._read_one(self.text)
        self.index += 1
        self._consume(end)
        return block

    @property
    def expected(self) -> int:
        """An estimate of the list's length: as many elements as there are if the rest is as long as those before."""
        consumed = self.start + self.at - self.begin
        return self.index * (consumed + len(self.held) - self.at + self.left) // max(consumed, 1)

    def begins_with(self, text: bytes) -> bool:
        """Return whether the next elements begin with a short text."""
        return self.held.startswith(text, self.at)

    def take(self, text: bytes, count: int) -> bool:
        """Consume the next elements if their text is the given one; return whether it is.

        Args:
            text: whole elements with commas between them.
            count: the number of elements.
        """
        if not self.more:
            return False
        if len(self.held) - self.at <= len(text):
            self._fill(len(text) + _BLOCK)
        if not self.held.startswith(text, self.at):
            return False
        end = self.at + len(text)
        if not self.held.startswith(b",", end):
            if self.left or self.held[end:].strip(_BLANK):
                return False
            end = len(self.held)
        self.index += count
        self._consume(end)
        return True

    def _fill_to_element(self) -> bool:
        self._fill(_BLOCK)
        while self.left and not self.held.strip(_BLANK):
            self._fill(2 * len(self.held))
        return bool(self.held.strip(_BLANK))

    def _fill(self, count: int) -> None:
        """Read until ``count`` unconsumed bytes are held, or to the end of the list."""
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
        meter.advance(len(self.held) - len(parts[0]))

    def _consume(self, end: int) -> None:
        """Consume up to and including the comma at ``end``, or to the end of the list."""
        self.at = min(end + 1, len(self.held))
        self.more = end < len(self.held)

    def _fill_to_end(self) -> int | None:
        """Read at least a block; return where the last whole element in it seems to end, None if none seems to."""
        size = _BLOCK
        self._fill(size)
        # Double the block for longer elements: reading them alone, token by token, takes ten times as long.
        while (cut := self._guess_end()) is None and self.left and size < _LONGEST:
            size *= 2
            self._fill(size)
        return cut

    def _guess_end(self) -> int | None:
        """Return where the last whole element in memory seems to end; None if none seems to."""
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
        """Return where the next element ends: at the comma after it, or at the end of the list."""
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

    def _read_one(self, text: bytes) -> Block:
        start, index = self.start + self.at, self.index
        try:
            # Add two brackets: an element is that deep in a bundle, and depth is limited.
            ((*values,),) = parse(f"[[{text.decode()}]]")
            if not values:
                raise ElementError("Expecting value", index=index, offset=start + len(text), syntax="Expecting value")
            return self.reader.read_one(values[0], f"$.{self.reader.name}[{index}]")
        except ElementError:
            raise
        except json.JSONDecodeError as error:
            message, offset = _syntax_error(text.decode(), error)
            raise ElementError(message, index=index, offset=start + offset, syntax=message) from error
        except UnicodeDecodeError as error:
            at = start + error.start
            message = f"'utf-8' codec can't decode byte 0x{text[error.start]:02x} in position {at}: {error.reason}"
            raise ElementError(message, index=index, offset=at) from error
        except (ValueError, RecursionError) as error:
            raise ElementError(str(error), index=index, offset=start) from error


def _syntax_error(text: str, error: json.JSONDecodeError) -> tuple[str, int]:
    """Return the syntax error of an element and its offset in it, as if nothing followed the element."""
    try:
        parse(f"[[{text}")
    except json.JSONDecodeError as alone:
        error = alone
    return error.msg, len(error.doc[2 : error.pos].encode())
