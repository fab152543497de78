"""Download a bundle from a store, and compare it with the hash in its key."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ergo_capture.objects.keys import sha256_of, sha256_of_rest
from ergo_capture.objects.port import ObjectStore, StoreError
from ergo_capture.storage.atomic import AtomicFile, create_parents


def fetch_object(store: ObjectStore, key: str, destination: Path) -> int:
    """Write an object to a file, atomically, and return its size in bytes.

    Raises:
        ObjectMissing: there is no object with that key.
        StoreError: the store does not answer, or the object is a bundle and its hash is not that of its key.
        CaptureWriteError: the file cannot be written; nothing is left of it.
    """
    expected = sha256_of(key) or sha256_of_rest(key)
    digest = hashlib.sha256()
    create_parents(destination)
    with AtomicFile(destination, what="bundle") as file:
        for block in store.get(key):
            digest.update(block)
            file.write(block)
        if expected not in (None, digest.hexdigest()):
            raise StoreError(
                f"read object '{store.url}/{key}': its SHA-256 is {digest.hexdigest()}",
                op="read object",
                path=f"{store.url}/{key}",
                hint="it was changed in the store or on its way; try again, then `ergo-capture ship audit` on its host",
            )
        file.commit()
        return file.bytes_written
