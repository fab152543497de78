"""Finds where the two long lists of a bundle are, without reading what is in them.

A list ends where its bracket is closed, whatever stands in it: whether that is JSON is found by whoever reads
it. So a text is a bundle if and only if what is left of it is one and both lists can be read.

Why not by looking for what stands behind a list: in an event the reference ignores fields that it does not
know, and such a field may hold anything, a second bundle too.
"""

from __future__ import annotations

import json
from typing import BinaryIO, Final, NamedTuple

from ergo_capture.kernel.serde.tokens import STRUCTURE

#: Bytes read at a time.
_BLOCK: Final = 256 * 1024
#: More bytes than a bundle ever has outside of its lists; without a bound, any large file would be held in memory.
MAX_OUTSIDE: Final = 16 << 20
_LISTS: Final = ("events", "decisions")
#: The place of each list in a bundle that is written as an array of its fields.
_LIST_PLACES: Final = {3: "events", 4: "decisions"}
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'[]{}"'))
_BLANK: Final = b" \t\r\n"
_OPENING: Final = b"[{"
_CLOSING: Final = b"]}"


class Span(NamedTuple):
    """Bytes of a file, from ``start`` up to but not including ``end``."""

    start: int
    end: int


class Outline(NamedTuple):
    """A bundle's text without what is in its lists.

    ``outside`` is the text with both lists emptied; ``lists`` says where in the file their content is, in the
    file's order. Where the file ends inside a list, ``outside`` ends behind that list's opening bracket, and
    ``cut`` is the list's name.
    """

    outside: bytes
    lists: list[tuple[str, Span]]
    size: int
    cut: str | None

    def span(self, name: str) -> Span | None:
        """Where the content of a list is; None where the bundle has no such list."""
        return next((span for known, span in self.lists if known == name), None)

    def offset_of(self, position: int) -> int:
        """The offset in the file of a byte of ``outside``."""
        for _, span in self.lists:
            if position < span.start:
                break
            position += span.end - span.start
        return position


class _TooMuch(ValueError):
    """The file is no bundle; says why."""


def read_outline(file: BinaryIO) -> Outline:
    """Walk a file once, from its beginning; memory does not grow with the lists.

    Raises:
        ValueError: more stands outside of the lists than a bundle can have there.
        OSError: the file cannot be read.
    """
    return _Walker(file).run()


class _Walker:
    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        #: What was read and not yet passed, and its offset in the file.
        self.held = b""
        self.start = 0
        self.outside: list[bytes] = []
        self.outside_bytes = 0
        self.lists: list[tuple[str, Span]] = []
        #: Brackets open; which one is the outermost; commas passed in it, and the last string.
        self.depth = 0
        self.top = b""
        self.place = 0
        self.key = b""

    def run(self) -> Outline:
        self._more(0)
        at = 0
        if self.held.strip(_BLANK)[:1] not in (b"{", b"[", b""):
            # Why at once: a large file of another kind need not be read to its end to be refused.
            self._keep(len(self.held))
            return self._outline(None)
        while True:
            match = STRUCTURE.search(self.held, at)
            if match is None or match[1] == b"":
                # A string that goes on, or nothing more that matters: go on behind what is certain.
                at = len(self.held) if match is None else match.start()
                if not self._more(at):
                    self._keep(len(self.held))
                    return self._outline(None)
                at = 0
                continue
            name = self._token(match[0])
            at = match.end()
            if name is None:
                continue
            self._keep(at)
            begin = self.start
            whole = self._skip()
            self.lists.append((name, Span(begin, self.start)))
            if not whole:
                return self._outline(name)
            at = 0

    def _outline(self, cut: str | None) -> Outline:
        return Outline(b"".join(self.outside), self.lists, self.start + len(self.held), cut)

    def _token(self, token: bytes) -> str | None:
        """Take one token; the name of the list that it opens, if it does."""
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
        """Keep what is passed and read on; False at the end of the file."""
        self._keep(passed)
        # Why as much as is held: a string that goes on is looked at again from its beginning.
        block = self.file.read(max(_BLOCK, len(self.held)))
        self.held += block
        return bool(block)

    def _keep(self, count: int) -> None:
        """The first bytes held stand outside of the lists."""
        self.outside.append(self.held[:count])
        self.outside_bytes += count
        self.start += count
        self.held = self.held[count:]
        if self.outside_bytes + len(self.held) > MAX_OUTSIDE:
            raise _TooMuch(f"it has more than {MAX_OUTSIDE} bytes outside of its events and decisions")

    def _skip(self) -> bool:
        """Pass a list's content, up to its closing bracket; False where the file ends before that."""
        depth, inside = 1, False
        while True:
            # Why held back: a backslash belongs to the byte after it.
            odd = self.held.endswith(b"\\") and (len(self.held) - len(self.held.rstrip(b"\\"))) % 2
            block = self.held[:-1] if odd else self.held
            plain = block.replace(rb"\\", b"  ").replace(rb"\"", b"  ") if b"\\" in block else block
            marks = plain.translate(None, _NOT_STRUCTURE).replace(b'""', b"")
            pieces = marks.split(b'"')
            closed, opened = _unmatched(b"".join(pieces[inside::2]))
            if closed >= depth:
                end = _end_of_list(plain, depth, inside=inside)
                self.start += end
                self.held = self.held[end:]
                return True
            depth += opened - closed
            inside ^= len(pieces) % 2 == 0
            rest = self.held[len(block) :]
            self.start += len(block)
            more = self.file.read(_BLOCK)
            if not more:
                self.start += len(rest)
                self.held = b""
                return False
            self.held = rest + more


def _name_in(key: bytes) -> str | None:
    try:
        name = json.loads(key)
    except ValueError:
        # Whoever parses what is outside says what is wrong with it.
        return None
    return name if isinstance(name, str) else None


def _unmatched(brackets: bytes) -> tuple[int, int]:
    """How many brackets a text closes that it did not open, and how many it opens and does not close.

    Brackets of two kinds that meet are no JSON and are counted as they come.
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
    """Where in a block without escaped quotes the bracket is that closes the list."""
    at = plain.index(b'"') + 1 if inside else 0
    for match in STRUCTURE.finditer(plain, at):
        if match[0] in _OPENING:
            depth += 1
        elif match[0] in _CLOSING:
            depth -= 1
            if depth == 0:
                return match.start()
    raise AssertionError("the block closes the list")
