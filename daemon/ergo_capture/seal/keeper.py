"""Seal bundles as they are published, and bury those that retention deletes.

A bundle is sealed after its manifest is durable and before its segments of the journal may be deleted. A crash in
between leaves a manifest without a seal, which is sealed before the next one.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from ergo_capture.bundle.manifest import ManifestError, read_manifest_text
from ergo_capture.bundle.names import MANIFEST_SUFFIX, TOMBSTONES, seal_path
from ergo_capture.bundle.sequence import numbered_manifests
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.seal.chain import (
    Seal,
    Sealed,
    Tombstone,
    decode_seal,
    decode_tombstones,
    encode_seal,
    make_seal,
    make_tombstone,
)
from ergo_capture.seal.keys import SealKey, is_signed
from ergo_capture.storage.atomic import write_bytes_atomic


class SealKeeper:
    """Seals the bundles of one state directory. Its methods block, and may be called from several threads.

    Args:
        bundles: the directory of the bundles.
        key: the key that signs.
    """

    def __init__(self, bundles: Path, key: SealKey) -> None:
        self._bundles = bundles
        self._key = key
        self._lock = threading.Lock()
        #: The last seal; None before the first one.
        self._head: Seal | None = None
        self._is_read = False
        #: Bundles sealed since the start.
        self.sealed = 0

    def seal(self, manifest: Path) -> None:
        """Seal a bundle whose manifest is durable, and earlier ones that a crash left without a seal.

        Args:
            manifest: the manifest's file.

        Raises:
            CaptureWriteError: a seal cannot be written.
            ErgoCaptureError: a manifest cannot be read.
        """
        with self._lock:
            self._catch_up()
            self._seal(manifest)

    def catch_up(self) -> None:
        """Seal the bundles that a crash left without a seal, unless that was done; the next seal then takes no time.

        Raises:
            CaptureWriteError: a seal cannot be written.
            ErgoCaptureError: a manifest cannot be read.
        """
        with self._lock:
            self._catch_up()

    def bury(self, bundle: Path, reason: str) -> None:
        """Write the tombstone of a bundle that is about to be deleted, durably; do nothing if it has no seal.

        Raises:
            ErgoCaptureError: it cannot be written.
        """
        seal = read_seal(seal_path(bundle))
        if seal is None:
            return
        stone = make_tombstone(self._key, seal, datetime.now(UTC).isoformat(timespec="milliseconds"), reason)
        path = self._bundles / TOMBSTONES
        with self._lock:
            try:
                _append(path, msgspec.json.encode(stone) + b"\n")
            except OSError as error:
                raise ErgoCaptureError(
                    f"write tombstone of '{bundle}' to '{path}': {error.strerror}",
                    op="write tombstone",
                    path=path,
                    hint="the bundle is kept until it can be written",
                ) from error

    def _catch_up(self) -> None:
        """Find the last seal, and seal what was published after it; do nothing if that was done."""
        if self._is_read:
            return
        self._head, unsealed = _last_seal(self._bundles)
        self._is_read = True
        try:
            for manifest in unsealed:
                self._seal(manifest)
        except BaseException:
            self._is_read = False
            raise

    def _seal(self, manifest: Path) -> None:
        path = seal_path_of(manifest)
        try:
            text = manifest.read_bytes()
            number = msgspec.json.decode(text, type=dict[str, Any]).get("sequence")
        except (OSError, ValueError) as error:
            raise ErgoCaptureError(
                f"seal '{manifest}': {error}", op="seal bundle", path=manifest, hint="check the disk"
            ) from error
        if number is None:
            # A bundle of 0.1.0 has no number, and is not sealed.
            return
        sha256 = hashlib.sha256(text).hexdigest()
        standing = read_seal(path)
        if standing is not None and (standing.number, standing.manifest_sha256) == (number, sha256):
            return
        seal = make_seal(self._key, number, None if self._head is None else self._head.link, sha256)
        write_bytes_atomic(path, encode_seal(seal), what="seal")
        self._head = seal
        self.sealed += 1


def read_seal(path: Path) -> Seal | None:
    """Return the seal in a file; None if there is none, or if it cannot be read."""
    try:
        return decode_seal(path.read_bytes())
    except OSError:
        return None


def read_tombstones(bundles: Path) -> Iterator[Tombstone]:
    """Yield the tombstones of a directory of bundles.

    Raises:
        OSError: the file cannot be read.
    """
    with suppress(FileNotFoundError), (bundles / TOMBSTONES).open("rb") as lines:
        yield from decode_tombstones(lines)


def sealed_bundles(bundles: Path) -> Iterator[Sealed]:
    """Yield the finished bundles below a directory with their seals; snapshots are not sealed."""
    for manifest in _manifests(bundles):
        try:
            text = read_manifest_text(manifest)
            number = msgspec.json.decode(text, type=dict[str, Any]).get("sequence")
            sha256 = hashlib.sha256(text).hexdigest()
        except (OSError, ManifestError, ValueError, RecursionError):
            number, sha256 = None, ""
        seal = read_seal(seal_path_of(manifest))
        yield Sealed(str(manifest), number if isinstance(number, int) else None, sha256, seal)


def seal_path_of(manifest: Path) -> Path:
    """Return the path of the seal beside a manifest."""
    return seal_path(manifest.with_name(manifest.name.removesuffix(MANIFEST_SUFFIX)))


def _manifests(bundles: Path) -> Iterator[Path]:
    with suppress(OSError):
        for folder in sorted(path for path in bundles.iterdir() if path.is_dir()):
            with suppress(OSError):
                yield from sorted(path for path in folder.iterdir() if path.name.endswith(MANIFEST_SUFFIX))


def _last_seal(bundles: Path) -> tuple[Seal | None, list[Path]]:
    """Return the last seal, and the manifests that were published after it, in their order.

    The seals are read from the greatest number of a manifest downwards, and only as far as that. A damaged seal may
    have any number, and is left out.
    """
    manifests = [each for each in numbered_manifests(bundles) if each[1].name.endswith(MANIFEST_SUFFIX)]
    numbered = sorted((number, path) for number, path in manifests if number is not None)
    head: Seal | None = None
    after: list[tuple[int, Path]] = []
    while numbered and head is None:
        after.append(numbered.pop())
        head = _later(None, read_seal(seal_path_of(after[-1][1])))
    # A manifest that was damaged since, or a bundle that was deleted, may have a later one.
    for _, path in (each for each in manifests if each[0] is None):
        head = _later(head, read_seal(seal_path_of(path)))
    for stone in read_tombstones(bundles):
        head = _later(head, stone.seal)
    return head, [path for number, path in reversed(after) if head is not None and number > head.number]


def _later(head: Seal | None, seal: Seal | None) -> Seal | None:
    """Return the later one of two seals, the second only if it is sound."""
    if seal is None or (head is not None and seal.number <= head.number):
        return head
    return seal if is_signed(seal.key, seal.signature, seal.content) else head


def _append(path: Path, line: bytes) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_APPEND, 0o640)
    try:
        size = os.fstat(fd).st_size
        # End a line that a crash has cut, so that it is not joined with this one.
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = b"\n" + line
        written = os.write(fd, line)
        while written < len(line):
            written += os.write(fd, line[written:])
        os.fsync(fd)
    finally:
        os.close(fd)
    if not size:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
