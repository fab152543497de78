"""Send one bundle to one store.

The order:

1. stream the file and hash it, holding back its last block until size and hash are known to be the manifest's;
2. verify the object in the store;
3. write the manifest's object, which marks the bundle as whole;
4. write the receipt, under the directory's lock.

A kill at any point leaves no receipt, so everything is done again, with the same keys. Nothing is cleaned up after an
ambiguous failure.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from ergo_capture.bundle.catalogue import StoredBundle
from ergo_capture.bundle.names import COMPRESSED_SUFFIX, bundle_stem, manifest_path, rest_path
from ergo_capture.bundle.proof import difference_from
from ergo_capture.bundle.receipt import (
    Place,
    Receipt,
    encode_receipt,
    hash_seal,
    is_other_form,
    read_seal_text,
    receipt_path,
)
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.objects.keys import encode_shipped_manifest, manifest_key, object_key, rest_key
from ergo_capture.objects.port import ObjectStore, StoreError
from ergo_capture.plain_file import open_plain
from ergo_capture.storage import directory_lock
from ergo_capture.storage.atomic import write_bytes_atomic

_READ_BYTES: Final = 1 << 20
#: For a larger file, in bytes, the store is first asked whether it has the object.
_LARGE_BYTES: Final = 64 << 20
#: An older object is written again: a bucket's lifecycle rule counts the days from its writing.
_FRESH: Final = timedelta(days=1)


class Unsound(ErgoCaptureError):
    """A bundle's file differs from its manifest; nothing was sent."""


class Changed(ErgoCaptureError):
    """A bundle was published again or removed while it was sent; the next look finds the current one."""


class Differs(StoreError):
    """The store returns another content than was written."""


class Stopped(ErgoCaptureError):
    """Sending was stopped, and the upload aborted."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A bundle that a store holds."""

    receipt: Receipt
    #: Whether the store had the bundle already, from an attempt with an unknown end.
    was_there: bool


class Sender:
    """Sends bundles to one target's store. Its methods block; any thread may call them.

    Args:
        store: the store.
        target: the target's name.
        place: the target's store, for receipts.
        host: the name of this host, for the keys of manifests.
        verify: ``read`` to read the object back and hash it, ``head`` to compare its size.
        on_bytes: called with the number of bytes of each block that is sent or read back.
    """

    def __init__(
        self,
        store: ObjectStore,
        target: str,
        place: Place,
        host: str,
        verify: Literal["read", "head"] = "read",
        on_bytes: Callable[[int], object] = lambda _count: None,
    ) -> None:
        self.store = store
        self.target = target
        self._place = place
        self._host = host
        self._verify = verify
        self._on_bytes = on_bytes
        self._stop = threading.Event()

    def stop(self) -> None:
        """Abort uploads at their next block; an upload in a single request is finished."""
        self._stop.set()

    def send(self, bundle: StoredBundle, *, is_repeated: bool = False) -> Sent:
        """Send a bundle and its manifest, verify them, and write the receipt.

        Args:
            bundle: a finished bundle, as it was listed.
            is_repeated: whether an earlier attempt failed: the store is then asked first whether it has the object.

        Raises:
            StoreError: the store failed, refused, or differs.
            Unsound: the bundle differs from its manifest.
            Changed: the bundle was replaced or removed meanwhile.
            Stopped: ``stop`` was called.
            ErgoCaptureError: the bundle cannot be read, or the receipt cannot be written.
        """
        assert bundle.manifest is not None
        try:
            manifest_text = manifest_path(bundle.path).read_bytes()
            size, sha256 = self._measure(bundle)
        except OSError as error:
            raise _unreadable(bundle.path, error) from error
        manifest_sha256 = hashlib.sha256(manifest_text).hexdigest()
        if not bundle.is_still_there:
            raise _changed(bundle.path)
        key = object_key(sha256, compressed=bundle.path.name.endswith(COMPRESSED_SUFFIX))
        was_there = (is_repeated or size > _LARGE_BYTES) and self._is_there(key, size)
        if was_there:
            was_there = self._difference(key, size, sha256) is None
        if not was_there:
            self._put(key, self._blocks(bundle.path, size, sha256), size)
            self._require(key, size, sha256)
        rest = self._send_rest(bundle)
        seal = read_seal_text(bundle.path)
        about = encode_shipped_manifest(self._host, key, manifest_text, rest, seal)
        about_key = manifest_key(bundle.manifest, manifest_sha256, bundle_stem(bundle.path), self._host)
        self._put(about_key, [about], len(about))
        self._require(about_key, len(about), hashlib.sha256(about).hexdigest())
        receipt = Receipt(
            target=self.target,
            url=self._place.url,
            endpoint=self._place.endpoint,
            key=key,
            bytes=size,
            file_sha256=sha256,
            manifest_key=about_key,
            manifest_sha256=manifest_sha256,
            verified=self._verify,
            shipped_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            seal_sha256=hash_seal(seal),
        )
        with directory_lock(bundle.path.parent) as alone:
            if not alone or not bundle.is_still_there:
                # The store's copy is right, but the bundle here was replaced meanwhile.
                raise _changed(bundle.path)
            write_bytes_atomic(receipt_path(bundle.path, self.target), encode_receipt(receipt), what="receipt")
        return Sent(receipt, was_there)

    def _send_rest(self, bundle: StoredBundle) -> str | None:
        """Send the file with left-over events, and verify it; return its key, or None if there is none."""
        assert bundle.manifest is not None
        rest = bundle.manifest.rest
        if rest is None:
            return None
        key = rest_key(rest.sha256)
        self._put(key, self._blocks(rest_path(bundle.path), rest.bytes, rest.sha256), rest.bytes)
        self._require(key, rest.bytes, rest.sha256)
        return key

    def _measure(self, bundle: StoredBundle) -> tuple[int, str]:
        """Return size and SHA-256 of the file: those in the manifest, or for a file compressed since, its own.

        Raises:
            Unsound: its text differs from the manifest.
            OSError: it cannot be read.
        """
        assert bundle.manifest is not None
        if not is_other_form(bundle):
            return bundle.manifest.stored
        problem = difference_from(bundle.path, bundle.manifest, follow=False)
        if problem is not None:
            raise _unsound(bundle.path, problem)
        digest = hashlib.sha256()
        size = 0
        for block in _read(bundle.path):
            size += len(block)
            digest.update(block)
        return size, digest.hexdigest()

    def _blocks(self, path: Path, size: int, sha256: str) -> Iterator[bytes]:
        """Yield a file's blocks, the last one only if size and hash are right: otherwise no object is created."""
        digest, total, held = hashlib.sha256(), 0, b""
        try:
            for block in _read(path):
                if self._stop.is_set():
                    raise Stopped(f"send '{path}': stopped", op="send bundle", path=path)
                digest.update(block)
                total += len(block)
                if held:
                    self._on_bytes(len(held))
                    yield held
                held = block
        except OSError as error:
            raise _unreadable(path, error) from error
        if total != size:
            raise _unsound(path, f"it has {total} bytes, and {size} by its manifest")
        if digest.hexdigest() != sha256:
            raise _unsound(path, "its SHA-256 differs from its manifest")
        self._on_bytes(len(held))
        yield held

    def _put(self, key: str, blocks: Iterable[bytes], size: int) -> None:
        if self._stop.is_set():
            raise Stopped(f"write object '{key}': stopped", op="send bundle", path=key)
        self.store.put(key, blocks, size)

    def _is_there(self, key: str, size: int) -> bool:
        info = self.store.head(key)
        return info is not None and info.size == size and datetime.now(UTC) - info.modified < _FRESH

    def _require(self, key: str, size: int, sha256: str) -> None:
        problem = self._difference(key, size, sha256)
        if problem is not None:
            raise Differs(
                f"verify object '{self.store.url}/{key}': {problem}",
                op="verify object",
                path=f"{self.store.url}/{key}",
                hint="it is sent again; if this repeats, do not trust the store, or the network to it",
            )

    def _difference(self, key: str, size: int, sha256: str) -> str | None:
        """Return what is wrong with an object in the store, in words; None for nothing."""
        if self._verify == "head":
            info = self.store.head(key)
            found = None if info is None else info.size
            return None if found == size else f"it has {found} bytes, and {size} were written"
        digest, total = hashlib.sha256(), 0
        for block in self.store.get(key):
            if self._stop.is_set():
                raise Stopped(f"verify object '{key}': stopped", op="verify object", path=key)
            digest.update(block)
            total += len(block)
            self._on_bytes(len(block))
        if total != size:
            return f"it has {total} bytes, and {size} were written"
        return None if digest.hexdigest() == sha256 else "its SHA-256 is not that of what was written"


def _read(path: Path) -> Iterator[bytes]:
    with open_plain(path, follow=False) as file:
        while block := file.read(_READ_BYTES):
            yield block


def _unsound(path: Path, problem: str) -> Unsound:
    return Unsound(
        f"send '{path}': {problem}",
        op="send bundle",
        path=path,
        hint="check it with `ergo-capture verify`, then move it away; it is not sent",
    )


def _changed(path: Path) -> Changed:
    return Changed(f"send '{path}': it was published again, or removed, meanwhile", op="send bundle", path=path)


def _unreadable(path: Path, error: OSError) -> ErgoCaptureError:
    if isinstance(error, FileNotFoundError):
        return _changed(path)
    return ErgoCaptureError(
        f"send '{path}': read it: {error.strerror or error}",
        op="send bundle",
        path=path,
        hint="check the owner and the permissions of the path, and the disk",
    )
