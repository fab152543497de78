"""The digest of the context store's values in the events of a bundle, for its manifest (``merged``).

``merged`` is the SHA-256, in lower-case hex, of one record for each event that holds a value of the store, in order:

* the event's index in the bundle, from 0: 8 bytes, big endian
* how many keys it holds: 4 bytes, big endian
* each key, sorted by its bytes: its length in bytes (4 bytes, big endian), and its UTF-8

A key counts if the event's captured payload and the store, when the event is decided, have the same canonical text for
it. So a key that was sent with the store's value counts too, and the keys follow from the bundle and the store at its
beginning alone. Events without such a key add nothing; a bundle without such events has the digest of no bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


class MergedDigest:
    """Computes the digest of a bundle from its events, in order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, index: int, keys: Sequence[str]) -> None:
        """Add an event.

        Args:
            index: its index in the bundle, from 0.
            keys: the keys of the store that it holds (``Bound.taken``), sorted.
        """
        if keys:
            self._digest.update(index.to_bytes(8, "big") + len(keys).to_bytes(4, "big"))
            for key in keys:
                name = key.encode()
                self._digest.update(len(name).to_bytes(4, "big") + name)

    def hexdigest(self) -> str:
        """Return the digest of the events so far, in hex."""
        return self._digest.hexdigest()
