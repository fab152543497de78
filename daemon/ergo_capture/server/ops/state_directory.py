"""The state directory as the daemon finds it and makes it."""

from __future__ import annotations

from pathlib import Path

import structlog

from ergo_capture import telemetry
from ergo_capture.storage import Lock, Storage
from ergo_capture.storage.atomic import sweep_temporaries

log = structlog.get_logger()


class StateDirectory:
    """The directory that one daemon has to itself.

    Args:
        path: where it is.
        storage: the filesystem.
    """

    def __init__(self, path: Path, storage: Storage) -> None:
        self.path = path
        self.journal = path / "journal"
        self.bundles = path / "bundles"
        self._storage = storage

    def prepare(self) -> None:
        """Have it, and those in it, durably.

        Raises:
            StorageError: one cannot be made, or not be synced.
        """
        for directory in (self.path, self.journal, self.bundles):
            self._storage.mkdir(directory)
        # Why whether they are new or not: who made what is in them may have been killed before it had them durable.
        for directory in (self.path, self.bundles):
            self._storage.sync_dir(directory)

    def lock(self) -> Lock:
        """Take it for this daemon alone (P12).

        Raises:
            StorageError: another daemon has it.
        """
        return self._storage.lock(self.path / "lock")

    def sweep(self) -> None:
        """Remove the temporaries that a kill left; the caller holds the lock."""
        for directory in (self.bundles, *self.bundles.iterdir()):
            try:
                for path in sweep_temporaries(directory) if directory.is_dir() else ():
                    log.info(telemetry.TEMPORARY_SWEPT, path=str(path))
            except OSError as error:
                # Why no end: what stays is in nobody's way, and may not be ours, as what somebody else put there is.
                hint = "look at its owner and permissions; a bundle that belongs there cannot be written either"
                log.warning(telemetry.TEMPORARIES_KEPT, path=str(directory), error=str(error), hint=hint)

    def __repr__(self) -> str:
        return f"<StateDirectory {self.path}>"
