"""Find the two long lists of a bundle without decoding their elements.

A list ends where its bracket is closed, whether or not its content is JSON, which its reader checks. So a text is a
bundle if and only if the text without the lists' elements is one, and both lists can be read.

The text after a list does not mark its end: the reference ignores unknown fields of an event, and such a field may
hold anything, even a second bundle.
"""

from __future__ import annotations

import io
import json
import re
from typing import BinaryIO, Final, NamedTuple

from ergo_capture.bundle.reader import meter
from ergo_capture.kernel.serde.tokens import STRUCTURE

#: Bytes read at a time.
_BLOCK: Final = 256 * 1024
#: Most bytes outside of the lists; without a bound, any large file would be held in memory.
MAX_OUTSIDE: Final = 16 << 20
_LISTS: Final = ("events", "decisions")
#: The index of each list in a bundle that is an array of its fields.
_LIST_PLACES: Final = {3: "events", 4: "decisions"}
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'[]{}"'))
_BLANK: Final = b" \t\r\n"
_OPENING: Final = b"[{"
_CLOSING: Final = b"]}"
#: Bytes in which the end of a list is searched for token by token. In 256 KiB that search took three quarters of the
#: verification of a small bundle.
_FINE: Final = 4 * 1024
#: The text before a key that follows a list, and between the name of a list and its elements.
_BEHIND_LIST: Final = re.compile(rb"\][ \t\r\n]*,[ \t\r\n]*\Z")
_BEFORE_LIST: Final = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*\[")
#: Longest white space at such a place for which an outline is guessed, in bytes.
_SPACE: Final = 64


class Span(NamedTuple):
    """Bytes of a file, from ``start`` up to but not including ``end``."""

    start: int
    end: int


class Outline(NamedTuple):
    """A bundle's text without the elements of its lists."""

    #: The text with both lists emptied; if the file ends inside a list, up to that list's opening bracket.
    outside: bytes
    #: The names of the lists, and the bytes between their brackets, in the file's order.
    lists: list[tuple[str, Span]]
    #: Bytes of the text.
    size: int
    #: The list inside which the file ends; None for none.
    cut: str | None
    #: Whether the ends of the lists are guessed.
    guessed: bool = False

    def span(self, name: str) -> Span | None:
        """Return the bytes between a list's brackets; None where the bundle has no such list."""
        return next((span for known, span in self.lists if known == name), None)

    def offset_of(self, position: int) -> int:
        """Return the offset in the file of a byte of ``outside``."""
        for _, span in self.lists:
            if position < span.start:
                break
            position += span.end - span.start
        return position


class _TooLarge(ValueError):
    """The file has more text outside of its lists than a bundle can have."""


def read_outline(file: BinaryIO) -> Outline:
    """Read a file once, from its beginning, in memory that does not grow with the lists.

    Raises:
        ValueError: the file has more text outside of its lists than a bundle can have.
        OSError: the file cannot be read.
    """
    return _Walker(file).run()


def guess_outline(file: BinaryIO) -> Outline | None:
    """Guess the outline of a file that is written like our bundles; return None if it does not look like one.

    Only the beginning of the events is certain. The rest is certain once both lists have been read to their ends and
    every block of them was elements, because a JSON text can be read in only one way.

    Args:
        file: a file that can be sought, at its beginning.

    Raises:
        OSError: the file cannot be read.
    """
    return _Walker(file).guess()


class _Walker:
    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        #: Unconsumed bytes, and their offset in the file.
        self.held = b""
        self.start = 0
        self.outside: list[bytes] = []
        self.outside_bytes = 0
        self.lists: list[tuple[str, Span]] = []
        #: Open brackets, the outermost of them, the commas passed directly inside it, and the last string there.
        self.depth = 0
        self.top = b""
        self.place = 0
        self.key = b""

    def run(self) -> Outline:
        self._more(0)
        if self.held.strip(_BLANK)[:1] not in (b"{", b"[", b""):
            # Refuse a large file of another kind without reading it to its end.
            self._keep(len(self.held))
            return self._outline(None)
        while (name := self._next_list()) is not None:
            begin = self.start
            whole = self._skip()
            self.lists.append((name, Span(begin, self.start)))
            if not whole:
                return self._outline(name)
        return self._outline(None)

    def guess(self) -> Outline | None:
        self._more(0)
        if self._next_list() != "events" or self.top != b"{":
            return None
        begin, size = self.start, self.file.seek(0, io.SEEK_END)
        tail = self._guess_end_of_list(b'"adapter_provenance"', begin, size)
        if tail is None:
            return None
        end = self._guess_end_of_list(b'"decisions"', begin, tail)
        if end is None:
            return None
        between = _BEFORE_LIST.search(key := self._read(end, min(tail, end + 4 * _SPACE)))
        if between is None:
            return None
        middle, after = key[: between.end()], self._read(tail, size)
        lists = [("events", Span(begin, end)), ("decisions", Span(end + len(middle), tail))]
        return Outline(b"".join((*self.outside, middle, after)), lists, size, None, guessed=True)

    def _guess_end_of_list(self, key: bytes, begin: int, end: int) -> int | None:
        """Return the offset of the last bracket that closes a list before that key; None where there is none."""
        held = b""
        while end > begin:
            start = max(begin, end - _BLOCK)
            # Overlap the block read before, so that a match at the seam is found.
            held = self._read(start, end) + held[: 2 * _SPACE]
            at = held.rfind(key)
            while at >= 0:
                before = _BEHIND_LIST.search(held, max(0, at - _SPACE), at)
                if before is not None and held[at + len(key) :].lstrip(_BLANK).startswith(b":"):
                    return start + before.start()
                at = held.rfind(key, 0, at)
            end = start
        return None

    def _read(self, start: int, end: int) -> bytes:
        self.file.seek(start)
        return self.file.read(end - start)

    def _next_list(self) -> str | None:
        """Keep the text up to and including the next list's opening bracket; return the list's name, None at the end."""
        at = 0
        while True:
            match = STRUCTURE.search(self.held, at)
            if match is None or match[1] == b"":
                # There is an unclosed string or no token: keep the bytes before it, and read on.
                at = len(self.held) if match is None else match.start()
                if not self._more(at):
                    self._keep(len(self.held))
                    return None
                at = 0
                continue
            name = self._token(match[0])
            at = match.end()
            if name is not None:
                self._keep(at)
                return name

    def _outline(self, cut: str | None) -> Outline:
        return Outline(b"".join(self.outside), self.lists, self.start + len(self.held), cut)

    def _token(self, token: bytes) -> str | None:
        """Consume one token; return the name of the list that it opens, or None."""
        if token in _OPENING:
            if self.depth == 0:
                self.top = token
            self.depth += 1
            if token == b"[" and self.depth == 2:
                name = _LIST_PLACES.get(self.place) if self.top == b"[" else _name_in(self.key)
                return name if name in _LISTS else None
        elif token in _CLOSING:
            self.depth -= 1
        elif token == b",":
            self.place += self.depth == 1
        elif self.depth == 1:
            self.key = token
        return None

    def _more(self, passed: int) -> bool:
        """Keep the first bytes as text outside of the lists, and read on; return False at the end of the file."""
        self._keep(passed)
        # Double the text in memory: an unclosed string is searched again from its beginning.
        block = self.file.read(max(_BLOCK, len(self.held)))
        self.held += block
        return bool(block)

    def _keep(self, count: int) -> None:
        """Keep the first bytes as text outside of the lists."""
        self.outside.append(self.held[:count])
        self.outside_bytes += count
        self.start += count
        self.held = self.held[count:]
        if self.outside_bytes + len(self.held) > MAX_OUTSIDE:
            raise _TooLarge(f"it has more than {MAX_OUTSIDE} bytes outside of its events and decisions")

    def _skip(self) -> bool:
        """Skip the elements of a list, up to its closing bracket; return False if the file ends before it."""
        depth, inside, at, step = 1, False, 0, max(_BLOCK, 2)
        while True:
            block = self.held[at : at + step] if at or step < len(self.held) else self.held
            # A backslash at the end belongs to the byte that follows it.
            if block.endswith(b"\\") and (len(block) - len(block.rstrip(b"\\"))) % 2:
                block = block[:-1]
            if not block:
                rest = self.held[at:]
                self.start += at
                more = self.file.read(_BLOCK)
                meter.advance(len(more))
                if not more:
                    self.start += len(rest)
                    self.held = b""
                    return False
                self.held, at = rest + more, 0
                continue
            plain = block.replace(rb"\\", b"  ").replace(rb"\"", b"  ") if b"\\" in block else block
            marks = plain.translate(None, _NOT_STRUCTURE).replace(b'""', b"")
            pieces = marks.split(b'"')
            closed, opened = _unmatched(b"".join(pieces[inside::2]))
            if closed >= depth:
                if len(block) > _FINE:
                    step = max(_FINE, len(block) // 8)
                    continue
                at += _end_of_list(plain, depth, inside=inside)
                self.start += at
                self.held = self.held[at:]
                return True
            depth += opened - closed
            inside ^= len(pieces) % 2 == 0
            at += len(block)


def _name_in(key: bytes) -> str | None:
    try:
        name = json.loads(key)
    except ValueError:
        # The parser of the text outside reports it.
        return None
    return name if isinstance(name, str) else None


def _unmatched(brackets: bytes) -> tuple[int, int]:
    """Return how many brackets a text closes that it did not open, and how many it opens and does not close.

    Brackets of different kinds close each other: the text is then not JSON, which its reader reports.
    """
    before = len(brackets) + 1
    while len(brackets) < before:
        before = len(brackets)
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    opened = closed = 0
    for bracket in brackets:
        if bracket in _OPENING:
            opened += 1
        elif opened:
            opened -= 1
        else:
            closed += 1
    return closed, opened


def _end_of_list(plain: bytes, depth: int, *, inside: bool) -> int:
    """Return the offset of the bracket that closes the list, in a block without escaped quotes."""
    at = plain.index(b'"') + 1 if inside else 0
    for match in STRUCTURE.finditer(plain, at):
        if match[0] in _OPENING:
            depth += 1
        elif match[0] in _CLOSING:
            depth -= 1
            if depth == 0:
                return match.start()
    raise AssertionError("the block closes the list")
