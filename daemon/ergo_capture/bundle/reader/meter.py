"""Tell a listener how far the reading of bundles is. The command line listens and shows it; a daemon does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Listener(Protocol):
    """What is told how far something is."""

    def begin(self, what: str, total: int) -> None:
        """Note that something begins to be read; ``total`` is in bytes, 0 where it is not known."""

    def advance(self, count: int) -> None:
        """Note that so many bytes were read."""


_listener: Listener | None = None


def begin(what: str, total: int) -> None:
    """Say what is read from now on, and how many bytes it has; 0 where that is not known."""
    if _listener is not None:
        _listener.begin(what, total)


def advance(count: int) -> None:
    """Say that so many bytes were read."""
    if _listener is not None:
        _listener.advance(count)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Tell a listener what is read within the block, and nobody with None."""
    global _listener  # noqa: PLW0603 - who reads need not know who listens
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def silence() -> None:
    """Tell nobody any more: in a worker process, whose parent has the terminal."""
    global _listener  # noqa: PLW0603 - as above
    _listener = None
