"""The state directory: prepare it, lock it, and remove temporary files that a killed daemon left."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

import structlog

from ergo_capture import telemetry
from ergo_capture.storage import Lock, Storage, StorageError, StorageFile
from ergo_capture.storage.atomic import sweep_temporaries

log = structlog.get_logger()

#: Name of the file that is written to test the disk.
PROBE: Final = "probe"


class StateDirectory:
    """The directory that one daemon uses alone.

    Args:
        path: its path.
        storage: the filesystem.
    """

    def __init__(self, path: Path, storage: Storage) -> None:
        self.path = path
        self.journal = path / "journal"
        self.bundles = path / "bundles"
        self.storage = storage

    def prepare(self) -> None:
        """Create and fsync the directory and its subdirectories.

        Raises:
            StorageError: one cannot be created or synced.
        """
        for directory in (self.path, self.journal, self.bundles):
            self.storage.mkdir(directory)
        # Sync existing directories too: the process that created them may have been killed before its own sync.
        for directory in (self.path, self.bundles):
            self.storage.sync_dir(directory)

    def lock(self) -> Lock:
        """Lock the directory for this daemon alone (P12).

        Raises:
            StorageError: another daemon holds the lock.
        """
        return self.storage.lock(self.path / "lock")

    def probe(self) -> None:
        """Write and sync a small file, to test the disk.

        Raises:
            StorageError: the file cannot be written. A full disk is not an error: commits notice it, and wait for room.
        """
        path = self.path / PROBE
        try:
            file = self._open_probe(path)
            try:
                file.write_at([b"Written now and then, to notice a disk that fails.\n"], 0, sync=True)
            finally:
                file.close()
        except StorageError as error:
            if not error.is_full:
                raise

    def _open_probe(self, path: Path) -> StorageFile:
        try:
            return self.storage.open(path, write=True)
        except StorageError as error:
            if error.errno != errno.ENOENT:
                raise
            return self.storage.open(path, create=True)

    def free_bytes(self) -> int:
        """Return the free space of the directory's file system, in bytes.

        Raises:
            StorageError: the file system does not report it.
        """
        return self.storage.free_bytes(self.path)

    def sweep(self) -> None:
        """Remove the temporary files that a killed daemon left; the caller holds the lock."""
        for directory in (self.bundles, *self.bundles.iterdir()):
            try:
                for path in sweep_temporaries(directory) if directory.is_dir() else ():
                    log.info(telemetry.TEMPORARY_SWEPT, path=str(path))
            except OSError as error:
                # Continue: the file does no harm, and may belong to another user.
                hint = "check its owner and permissions; a bundle in that directory cannot be written either"
                log.warning(telemetry.TEMPORARIES_KEPT, path=str(directory), error=str(error), hint=hint)
