"""Deletes finished bundles that have had their time.

A bundle is read whole and compared with its manifest before it goes; what differs stays. The manifest is first
renamed to ``SESSION.manifest.json.pruning``, which says that the bundle beside it is being deleted; then bundle
and manifest are removed. Whoever finds such a name finishes what it says.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio import to_thread

from ergo_capture import telemetry
from ergo_capture.bundle.catalogue import Catalogue, StoredBundle, difference_from_manifest
from ergo_capture.bundle.manifest import ManifestError, read_manifest
from ergo_capture.bundle.names import MANIFEST_SUFFIX, manifest_path
from ergo_capture.bundle.retention import Expired, RetentionRules, select_expired
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.storage import Storage, StorageError, directory_lock

log = structlog.get_logger()

_PRUNING: Final = ".pruning"
#: Time without a round for each second of one.
_REST: Final = 9.0


@dataclass(frozen=True, slots=True)
class Pruned:
    """What became of a bundle that had had its time."""

    choice: Expired
    #: Why it stays all the same; None where it is gone.
    kept: str | None = None


class Pruner:
    """Deletes the bundles of a state directory that its rules let go.

    Args:
        state: the state directory.
        storage: the filesystem.
    """

    def __init__(self, state: Path, storage: Storage) -> None:
        self.catalogue = Catalogue(state / "bundles")
        self._storage = storage
        #: Bundles that are not what their manifests say, so that each is read once.
        self._unsound: set[StoredBundle] = set()

    def prune(
        self, rules: RetentionRules, *, now: datetime | None = None, graph: str | None = None, dry_run: bool = False
    ) -> Iterator[Pruned]:
        """Delete what is to go, one bundle a step; with ``dry_run``, only say what would go.

        Args:
            rules: the bounds.
            now: the time; the clock's without.
            graph: the only graph whose bundles may go; all of them without.
            dry_run: whether everything stays.

        Raises:
            ErgoCaptureError: a directory cannot be read, or a bundle not be removed.
        """
        now = now or datetime.now(UTC)
        if not dry_run:
            self.finish_begun()
        done: set[StoredBundle] = set()
        while True:
            for choice in self._choices(rules, now, graph):
                if choice.bundle in done:
                    continue
                kept = self._difference(choice.bundle)
                done.add(choice.bundle)
                if kept is None and not dry_run and not self._delete(choice.bundle):
                    continue
                yield Pruned(choice, kept)
                if kept is not None:
                    # Another may have to go in its place.
                    self._unsound.add(choice.bundle)
                    break
            else:
                return

    def finish_begun(self) -> None:
        """Finish what a crash interrupted.

        Raises:
            StorageError: a file cannot be read or removed.
        """
        for doomed in sorted(self.catalogue.directory.glob(f"*/*{MANIFEST_SUFFIX}{_PRUNING}")):
            try:
                manifest = read_manifest(doomed)
            except (ManifestError, OSError):
                # Not ours, or gone meanwhile.
                continue
            original = doomed.with_name(doomed.name.removesuffix(_PRUNING))
            bundle = doomed.with_name(Path(manifest.bundle).name or original.name)
            with _already_gone(), directory_lock(doomed.parent) as alone:
                if not alone:
                    continue
                # Why looked at again: recovery may have published the bundle anew, or somebody put another there.
                if bundle.exists() and manifest_path(bundle) == original and not original.exists():
                    if self._difference(StoredBundle(bundle, manifest.graph, manifest.stored[0], manifest)):
                        self._storage.replace(doomed, original)
                        continue
                    self._storage.remove(bundle)
                self._storage.remove(doomed)

    def free_bytes(self) -> int:
        """Bytes free on the disk.

        Raises:
            StorageError: the directory is not there.
        """
        return self._storage.free_bytes(self.catalogue.directory)

    def _choices(self, rules: RetentionRules, now: datetime, graph: str | None) -> list[Expired]:
        found = self.catalogue.read()
        self._unsound &= set(found)
        candidates = [b for b in found if b not in self._unsound and (graph is None or b.graph == graph)]
        return select_expired(candidates, rules, now, self.free_bytes() if rules.keep_free_bytes else 0)

    def _difference(self, bundle: StoredBundle) -> str | None:
        try:
            return difference_from_manifest(bundle)
        except FileNotFoundError:
            # Somebody else was faster; deleting will find nothing to do.
            return None
        except OSError as error:
            # Why no end: one file that cannot be read must not keep all the others for ever.
            return f"it cannot be read: {error.strerror or error}"

    def _delete(self, bundle: StoredBundle) -> bool:
        """Delete what was looked at; False where it is there no more, or not any more what it was."""
        manifest = manifest_path(bundle.path)
        doomed = manifest.with_name(manifest.name + _PRUNING)
        deleted = False
        # Why: reading a large bundle takes seconds, and a session that goes on may have been published meanwhile.
        with _already_gone(), directory_lock(manifest.parent) as alone:
            if alone and bundle.is_still_there:
                self._storage.replace(manifest, doomed)
                # Why before the rest: a bundle without its manifest would stay for ever.
                self._storage.sync_dir(manifest.parent)
                for path in (bundle.path, doomed):
                    with _already_gone():
                        self._storage.remove(path)
                deleted = True
        return deleted

    def __repr__(self) -> str:
        return f"<Pruner {self.catalogue.directory}, {len(self._unsound)} unsound>"


@contextmanager
def _already_gone() -> Iterator[None]:
    """Suppress that a file is not there: somebody else prunes too."""
    try:
        yield
    except StorageError as error:
        if error.errno != errno.ENOENT:
            raise


class Retention:
    """Prunes after each publication, and every so often; in a worker thread, one bundle a hop.

    Args:
        pruner: deletes.
        rules: the bounds.
        interval: seconds between rounds without a publication; 0 for none.
    """

    def __init__(self, pruner: Pruner, rules: RetentionRules, interval: float) -> None:
        self._rules = rules
        self._pruner = pruner
        self._interval = interval
        self._due = anyio.Event()
        self._due.set()
        self._short = False
        #: Bundles deleted since the start, and the bytes of their files.
        self.pruned = 0
        self.pruned_bytes = 0

    def look(self) -> None:
        """Have a round soon: a bundle was published."""
        self._due.set()

    def take_rules(self, rules: RetentionRules, interval: float) -> None:
        """Other bounds from now on; looks at once what is beyond them."""
        self._rules, self._interval = rules, interval
        self._due.set()

    async def run(self) -> None:
        """Until cancelled; a bundle that is being deleted then is deleted."""
        try:
            # Why whatever the rules: those that began it may be gone from the configuration.
            await to_thread.run_sync(self._pruner.finish_begun)
        except ErgoCaptureError as error:
            self._report_failure(error)
        while True:
            with anyio.move_on_after(self._interval or None):
                await self._due.wait()
            self._due = anyio.Event()
            if self._rules.are_set:
                began = time.monotonic()
                await self.take_round()
                # Why: with many bundles a look takes long, and there may be one after each of them.
                await anyio.sleep(_REST * (time.monotonic() - began))

    async def take_round(self) -> None:
        """Delete what is to go now."""
        rules = self._rules
        steps = self._pruner.prune(rules)
        try:
            while (step := await to_thread.run_sync(next, steps, None)) is not None:
                self._report(step)
            short = bool(rules.keep_free_bytes) and (
                await to_thread.run_sync(self._pruner.free_bytes) < rules.keep_free_bytes
            )
        except ErgoCaptureError as error:
            self._report_failure(error)
            return
        if short and not self._short:
            log.warning(
                telemetry.RETENTION_SHORT,
                keep_free_bytes=rules.keep_free_bytes,
                hint="no bundle is left that may go: free some space, or lower retention.keep_free_bytes",
            )
        self._short = short

    def _report_failure(self, error: ErgoCaptureError) -> None:
        """The next round tries again."""
        log.error(telemetry.RETENTION_FAILED, error=error.message, path=error.path, hint=error.hint)

    def _report(self, step: Pruned) -> None:
        bundle = step.choice.bundle
        if step.kept is not None:
            log.warning(
                telemetry.BUNDLE_UNSOUND,
                bundle=str(bundle.path),
                graph=bundle.graph,
                reason=step.kept,
                hint="it is kept whatever its age: look at it with `ergo-capture verify`, then move it away",
            )
            return
        self.pruned += 1
        self.pruned_bytes += bundle.size
        log.info(
            telemetry.BUNDLE_PRUNED,
            bundle=str(bundle.path),
            graph=bundle.graph,
            bytes=bundle.size,
            reason=step.choice.reason,
        )

    def __repr__(self) -> str:
        return f"<Retention {self.pruned} pruned, {self.pruned_bytes} bytes>"
