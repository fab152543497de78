"""Delete the finished bundles that the retention rules select.

A bundle is read and compared with its manifest before it is deleted; one that differs is kept. The manifest is first
renamed to ``SESSION.manifest.json.pruning``; then bundle, receipts and manifest are removed. A start, and every later
round, finishes a deletion that was interrupted.

Bundles are deleted several at a time: one listing of the directory and one sync of its names for all of them. The
directory's lock is held for a moment only, and left free in between: publications need it too.

With ``shipped_to`` a bundle is deleted only while its receipts prove that every target holds it.
"""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ergo_capture.bundle.catalogue import Catalogue, StoredBundle, difference_from_manifest
from ergo_capture.bundle.manifest import ManifestError, read_manifest
from ergo_capture.bundle.names import MANIFEST_SUFFIX, bundle_stem, manifest_path, side_files
from ergo_capture.bundle.receipt import Receipts, receipts_in
from ergo_capture.bundle.retention import Expired, RetentionRules, select_expired, suspect_times
from ergo_capture.bundle.sequence import PRUNING_SUFFIX
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.storage import LOCK_PAUSE, Storage, StorageError, directory_lock

#: How many bundles are deleted together at most, and the seconds after which no further one is read, or deleted under
#: the same lock.
_TOGETHER: Final = 64
_TOGETHER_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Pruned:
    """The result for a bundle that was selected."""

    choice: Expired
    #: The reason why it is kept; None if it was deleted.
    kept: str | None = None


class Pruner:
    """Deletes bundles of a state directory.

    Args:
        state: the state directory.
        storage: the filesystem.
    """

    def __init__(self, state: Path, storage: Storage) -> None:
        self.catalogue = Catalogue(state / "bundles")
        self._storage = storage
        #: Bundles that differ from their manifests; each is read once.
        self._unsound: set[StoredBundle] = set()
        #: The bundles of the last listing.
        self._found: list[StoredBundle] = []
        #: Those of them with an impossible time of end.
        self.suspects: list[StoredBundle] = []
        #: Those of them that must be shipped first and are not shipped.
        self.unshipped: list[StoredBundle] = []
        self._receipts = Receipts({})
        #: The rules' ``announced``.
        self._announced = ""
        #: Seconds that the last round took to find the expired bundles.
        self.look_seconds = 0.0
        #: Called for each bundle that is about to be deleted, with the reason; if it raises, the bundle is kept.
        self.bury: Callable[[Path, str], None] = lambda _bundle, _reason: None
        #: Returns the bytes, by directory, that are freed when the disk is full, and so count as free.
        self.spare_bytes: Callable[[], Mapping[Path, int]] = dict

    def prune(
        self,
        rules: RetentionRules,
        *,
        now: datetime | None = None,
        graph: str | None = None,
        dry_run: bool = False,
        may_delete: Callable[[], bool] = lambda: True,
    ) -> Iterator[Pruned]:
        """Delete the bundles that exceed a bound, some at a time; first yield the unsound ones, which are kept.

        Args:
            rules: the bounds.
            now: the time; None for the clock's.
            graph: the only graph whose bundles may be deleted; None for all.
            dry_run: whether to return what would be deleted, and delete nothing.
            may_delete: called before each deletion; False ends the round.

        Raises:
            ErgoCaptureError: a directory could not be read, or a bundle could not be removed.
        """
        now = now or datetime.now(UTC)
        began = time.monotonic()
        if not dry_run:
            self.finish_begun()
        self.look_seconds = time.monotonic() - began
        done: set[StoredBundle] = set()
        while True:
            began = time.monotonic()
            listed = self._listed(graph)
            chosen = [choice for choice in self._select(listed, rules, now) if choice.bundle not in done]
            self.look_seconds += time.monotonic() - began
            for bundle in listed:
                if bundle.is_unsound and bundle not in self._unsound:
                    self._unsound.add(bundle)
                    yield Pruned(Expired(bundle, "unsound"), bundle.problem)
            unsound = len(self._unsound)
            while chosen:
                sound, kept = self._read_some(chosen)
                del chosen[: len(sound) + (kept is not None)]
                done.update(choice.bundle for choice in sound)
                if dry_run:
                    yield from map(Pruned, sound)
                    sound.clear()
                while sound:
                    if not may_delete():
                        return
                    yield from self._delete_some(sound)
                if kept is not None:
                    self._unsound.add(kept.choice.bundle)
                    yield kept
            if len(self._unsound) == unsound:
                return
            # Select again: others may have to be deleted in the place of those that are kept.

    def _read_some(self, chosen: list[Expired]) -> tuple[list[Expired], Pruned | None]:
        """Compare the first few bundles with their manifests; return the sound ones, and the one behind them if not."""
        sound: list[Expired] = []
        until = time.monotonic() + _TOGETHER_SECONDS
        for choice in chosen[:_TOGETHER]:
            difference = self._difference(choice.bundle)
            if difference is not None:
                return sound, Pruned(choice, difference)
            sound.append(choice)
            if time.monotonic() > until:
                break
        return sound, None

    def finish_begun(self) -> None:
        """Finish deletions that a crash interrupted.

        Raises:
            StorageError: a file cannot be read or removed.
        """
        marked = sorted(self.catalogue.directory.glob(f"*/*{MANIFEST_SUFFIX}{PRUNING_SUFFIX}"))
        receipts = {directory: _receipts_in(directory) for directory in {path.parent for path in marked}}
        for doomed in marked:
            try:
                manifest = read_manifest(doomed)
            except (ManifestError, OSError):
                # It is not one of ours, or was removed meanwhile.
                continue
            original = doomed.with_name(doomed.name.removesuffix(PRUNING_SUFFIX))
            bundle = doomed.with_name(Path(manifest.bundle).name or original.name)
            with _missing_ok(), directory_lock(doomed.parent) as alone:
                if not alone:
                    continue
                # Recovery may have published the bundle again, or a user may have put another one there.
                if bundle.exists() and manifest_path(bundle) == original and not original.exists():
                    if self._difference(StoredBundle(bundle, manifest.graph, manifest.stored[0], manifest)):
                        self._storage.replace(doomed, original)
                        continue
                    self._storage.remove(bundle)
                of_bundle = receipts[doomed.parent].get(bundle_stem(bundle), ())
                for path in () if original.exists() else (*side_files(bundle), *of_bundle):
                    with _missing_ok():
                        self._storage.remove(path)
                self._storage.remove(doomed)

    def free_bytes(self) -> dict[int, int]:
        """Return the free bytes of each file system with bundles, by device.

        Raises:
            ErgoCaptureError: a directory cannot be read.
        """
        try:
            places = {self.catalogue.directory.stat().st_dev: self.catalogue.directory}
        except OSError as error:
            raise StorageError("look at directory", self.catalogue.directory, error) from error
        for bundle in self._found:
            # A graph's directory may be a link to one on another disk.
            places.setdefault(bundle.device, bundle.path.parent)
        free = {device: self._storage.free_bytes(place) for device, place in places.items()}
        for directory, size in self.spare_bytes().items():
            with suppress(OSError):
                device = directory.stat().st_dev
                free[device] = (free[device] if device in free else self._storage.free_bytes(directory)) + size
        return free

    def _listed(self, graph: str | None) -> list[StoredBundle]:
        self._found = self.catalogue.read()
        self._unsound &= set(self._found)
        return [bundle for bundle in self._found if graph is None or bundle.graph == graph]

    def _select(self, listed: list[StoredBundle], rules: RetentionRules, now: datetime) -> list[Expired]:
        candidates = [bundle for bundle in listed if bundle not in self._unsound]
        self.suspects = suspect_times(candidates, now)
        if self._receipts.places != dict(rules.shipped_to):
            self._receipts = Receipts(rules.shipped_to)
        self._announced = rules.announced
        self._receipts.forget_gone(self._found)
        self.unshipped = [bundle for bundle in candidates if bundle.problem is None and not self._is_shipped(bundle)]
        free = self.free_bytes() if rules.keep_free_bytes else {}
        return select_expired(candidates, rules, now, free, {bundle.path for bundle in self.unshipped})

    def _is_shipped(self, bundle: StoredBundle) -> bool:
        """Return whether every target that must hold a bundle does, by its receipts, and its announcement is made."""
        if self._receipts.holders(bundle) != self._receipts.places.keys():
            return False
        return not self._announced or not self._receipts.unannounced(bundle, self._announced)

    def _difference(self, bundle: StoredBundle) -> str | None:
        try:
            return difference_from_manifest(bundle)
        except FileNotFoundError:
            # It was removed meanwhile: deleting it does nothing.
            return None
        except OSError as error:
            # A file that cannot be read must not stop the deletion of others.
            return f"it cannot be read: {error.strerror or error}"

    def _delete_some(self, sound: list[Expired]) -> Iterator[Pruned]:
        """Delete the first few bundles, and take them off the list; yield those that were deleted.

        A bundle is left if it is gone, was replaced since the listing, or lost a receipt.
        """
        directory = sound[0].bundle.path.parent
        here = list(itertools.takewhile(lambda choice: choice.bundle.path.parent == directory, sound))
        handled = len(here)
        begun: list[Expired] = []
        failure: ErgoCaptureError | None = None
        with _missing_ok(), directory_lock(directory) as alone:
            until = time.monotonic() + _TOGETHER_SECONDS
            for number, choice in enumerate(here if alone else (), start=1):
                try:
                    if self._begin(choice):
                        begun.append(choice)
                except ErgoCaptureError as error:
                    failure = error
                    break
                if time.monotonic() > until:
                    handled = number
                    break
            self._finish(directory, [choice.bundle.path for choice in begun])
        del sound[:handled]
        yield from map(Pruned, begun)
        if failure is not None:
            raise failure
        time.sleep(LOCK_PAUSE)

    def _begin(self, choice: Expired) -> bool:
        """Bury a bundle and mark its manifest; return False if the bundle must not be deleted."""
        bundle = choice.bundle
        # Reading a large bundle takes seconds, and its session may have been published again meanwhile.
        if not bundle.is_still_there or not (choice.is_given_up or self._is_shipped(bundle)):
            return False
        self.bury(bundle.path, choice.reason)
        manifest = manifest_path(bundle.path)
        try:
            self._storage.replace(manifest, _mark_of(manifest))
        except StorageError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    def _finish(self, directory: Path, bundles: list[Path]) -> None:
        """Remove bundles of a directory whose manifests are marked, and the files beside them."""
        if not bundles:
            return
        # Sync first: a bundle without its manifest would never be deleted.
        self._storage.sync_dir(directory)
        receipts = _receipts_in(directory)
        for bundle in bundles:
            of_bundle = receipts.get(bundle_stem(bundle), ())
            for path in (bundle, *side_files(bundle), *of_bundle, _mark_of(manifest_path(bundle))):
                with _missing_ok():
                    self._storage.remove(path)


def _mark_of(manifest: Path) -> Path:
    """Return the name that a manifest has while its bundle is being deleted."""
    return manifest.with_name(manifest.name + PRUNING_SUFFIX)


def _receipts_in(directory: Path) -> dict[str, list[Path]]:
    try:
        return receipts_in(directory)
    except OSError as error:
        raise StorageError("list directory", directory, error) from error


@contextmanager
def _missing_ok() -> Iterator[None]:
    """Suppress the error that a file does not exist: the command line prunes too."""
    try:
        yield
    except StorageError as error:
        if error.errno != errno.ENOENT:
            raise
