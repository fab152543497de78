"""An object store as a port: put, get, head and list. Nothing here deletes.

The operations block, and are called from threads: the tasks of a cluster have no event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple, Protocol

from ergo_capture.errors import ErgoCaptureError


class StoreError(ErgoCaptureError):
    """An operation on an object store failed."""


class StoreAway(StoreError):
    """The store did not answer, or not with success; the same operation may succeed later."""


class StoreRefused(StoreError):
    """The store refuses: credentials, rights, or no such bucket. It stays so until somebody changes something."""


class ObjectMissing(StoreError):
    """There is no object with that key."""


class ObjectInfo(NamedTuple):
    """What a store says of an object."""

    key: str
    #: Bytes.
    size: int
    #: When it was written, by the store's clock.
    modified: datetime


class ObjectStore(Protocol):
    """An object store. Keys have no slash at their beginning.

    Every operation raises StoreAway or StoreRefused where it fails.
    """

    #: The URL that names the store, with its prefix and without a slash at its end.
    url: str

    def put(self, key: str, blocks: Iterable[bytes], size: int) -> None:
        """Write an object, over one that is there; when this returns, it is durable.

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
        """Return what the store says of an object; None where there is none with that key."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects below a prefix, which ends where a name between slashes ends, in the order of their keys."""

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """Return the names that follow a prefix and are followed by a slash, sorted."""
