"""Report the progress of reading bundles to a listener. The command line sets one; a daemon does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Listener(Protocol):
    """An object that the progress is reported to."""

    def begin(self, what: str, total: int) -> None:
        """Note that reading ``what`` begins; ``total`` is its size in bytes, 0 if unknown."""

    def advance(self, count: int) -> None:
        """Note that ``count`` further bytes were read."""


_listener: Listener | None = None


def begin(what: str, total: int) -> None:
    """Report that reading ``what`` begins; ``total`` is its size in bytes, 0 if unknown."""
    if _listener is not None:
        _listener.begin(what, total)


def advance(count: int) -> None:
    """Report that ``count`` further bytes were read."""
    if _listener is not None:
        _listener.advance(count)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Report to a listener what is read within the block; with None, report nothing."""
    global _listener  # noqa: PLW0603 - readers need not know the listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def silence() -> None:
    """Stop reporting: call it in a worker process, because the terminal belongs to its parent."""
    global _listener  # noqa: PLW0603 - as above
    _listener = None
