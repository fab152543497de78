"""An object store as a port: put, get, head and list. Nothing here deletes.

The operations block; call them from threads. They are synchronous because the tasks of a cluster have no event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple, Protocol

from ergo_capture.errors import ErgoCaptureError


class StoreError(ErgoCaptureError):
    """An operation on an object store failed."""


class StoreAway(StoreError):
    """The store did not answer with success; the same operation may succeed later."""


class StoreRefused(StoreError):
    """The store refuses: credentials, rights, or no such bucket. Trying again does not help until that is changed."""


class ObjectMissing(StoreError):
    """There is no object with that key."""


class ObjectInfo(NamedTuple):
    """Size and time of an object, as the store reports them."""

    key: str
    #: Bytes.
    size: int
    #: The time at which it was written, by the store's clock.
    modified: datetime


class ObjectStore(Protocol):
    """An object store. Keys have no slash at their beginning.

    Every operation raises StoreAway or StoreRefused if it fails.
    """

    #: The URL that names the store, with its prefix and without a slash at its end.
    url: str

    def put(self, key: str, blocks: Iterable[bytes], size: int) -> None:
        """Write an object, replacing an existing one; on return it is durable.

        Args:
            key: the object's key.
            blocks: its content. An exception that the iterator raises is raised here, and no object is written.
            size: bytes of all blocks together.
        """

    def get(self, key: str) -> Iterator[bytes]:
        """Yield an object's content in blocks.

        Raises:
            ObjectMissing: there is none with that key.
        """

    def head(self, key: str) -> ObjectInfo | None:
        """Return size and time of an object; None if there is none with that key."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects below a prefix, which must end at a slash or at the end of a name, in the order of keys."""

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """Return the names between a prefix and the next slash, sorted."""
