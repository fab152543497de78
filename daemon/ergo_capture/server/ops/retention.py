"""Delete the finished bundles that the retention rules select.

A bundle is read and compared with its manifest before it is deleted; one that differs is kept. The manifest is first
renamed to ``SESSION.manifest.json.pruning``; then bundle, receipts and manifest are removed. A start, and every later
round, finishes a deletion that was interrupted.

With ``shipped_to`` a bundle is deleted only while its receipts prove that every target holds it.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
from ergo_capture.bundle.names import MANIFEST_SUFFIX, manifest_path, side_files
from ergo_capture.bundle.receipt import Receipts, receipts_beside
from ergo_capture.bundle.retention import Expired, RetentionRules, select_expired, suspect_times
from ergo_capture.bundle.sequence import PRUNING_SUFFIX
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.server.ops.status_model import RetentionStatus
from ergo_capture.storage import Storage, StorageError, directory_lock

log = structlog.get_logger()

#: Seconds without a round for each second that one took.
_PAUSE_RATIO: Final = 9.0
#: Seconds by which the wall clock may differ from the steady one between two checks without counting as a jump.
_JUMP_SECONDS: Final = 60.0
#: Seconds without deletions by age after a jump of the clock, if no interval is set.
_HOLD_SECONDS: Final = 600.0


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
        #: Called for each bundle that is about to be deleted, with the reason; if it raises, the bundle is kept.
        self.bury: Callable[[Path, str], None] = lambda _bundle, _reason: None
        #: Returns the bytes, by directory, that are freed when the disk is full, and so count as free.
        self.spare_bytes: Callable[[], Mapping[Path, int]] = dict

    def prune(
        self, rules: RetentionRules, *, now: datetime | None = None, graph: str | None = None, dry_run: bool = False
    ) -> Iterator[Pruned]:
        """Delete the bundles that exceed a bound, one a step; first yield the unsound ones, which are kept.

        Args:
            rules: the bounds.
            now: the time; None for the clock's.
            graph: the only graph whose bundles may be deleted; None for all.
            dry_run: whether to return what would be deleted, and delete nothing.

        Raises:
            ErgoCaptureError: a directory could not be read, or a bundle could not be removed.
        """
        now = now or datetime.now(UTC)
        if not dry_run:
            self.finish_begun()
        done: set[StoredBundle] = set()
        for bundle in self._listed(graph):
            if bundle.is_unsound and bundle not in self._unsound:
                self._unsound.add(bundle)
                yield Pruned(Expired(bundle, "unsound"), bundle.problem)
        while True:
            for choice in self._select(rules, now, graph):
                if choice.bundle in done:
                    continue
                kept = self._difference(choice.bundle)
                done.add(choice.bundle)
                if kept is None and not dry_run and not self._delete(choice):
                    continue
                yield Pruned(choice, kept)
                if kept is not None:
                    # Select again: another bundle may have to be deleted in its place.
                    self._unsound.add(choice.bundle)
                    break
            else:
                return

    def finish_begun(self) -> None:
        """Finish deletions that a crash interrupted.

        Raises:
            StorageError: a file cannot be read or removed.
        """
        for doomed in sorted(self.catalogue.directory.glob(f"*/*{MANIFEST_SUFFIX}{PRUNING_SUFFIX}")):
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
                for path in () if original.exists() else (*side_files(bundle), *receipts_beside(bundle)):
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
                free[device] = (
                    free.get(device, 0) + size if device in free else self._storage.free_bytes(directory) + size
                )
        return free

    def _listed(self, graph: str | None) -> list[StoredBundle]:
        self._found = self.catalogue.read()
        self._unsound &= set(self._found)
        return [bundle for bundle in self._found if graph is None or bundle.graph == graph]

    def _select(self, rules: RetentionRules, now: datetime, graph: str | None) -> list[Expired]:
        candidates = [bundle for bundle in self._listed(graph) if bundle not in self._unsound]
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

    def _delete(self, choice: Expired) -> bool:
        """Bury and delete a bundle; return False if it is gone, was replaced since the listing, or lost a receipt."""
        bundle = choice.bundle
        manifest = manifest_path(bundle.path)
        doomed = manifest.with_name(manifest.name + PRUNING_SUFFIX)
        deleted = False
        # Reading a large bundle takes seconds, and its session may have been published again meanwhile.
        with _missing_ok(), directory_lock(manifest.parent) as alone:
            if alone and bundle.is_still_there and (choice.is_given_up or self._is_shipped(bundle)):
                self.bury(bundle.path, choice.reason)
                self._storage.replace(manifest, doomed)
                # Sync first: a bundle without its manifest would never be deleted.
                self._storage.sync_dir(manifest.parent)
                for path in (bundle.path, *side_files(bundle.path), *receipts_beside(bundle.path), doomed):
                    with _missing_ok():
                        self._storage.remove(path)
                deleted = True
        return deleted


@contextmanager
def _missing_ok() -> Iterator[None]:
    """Suppress the error that a file does not exist: the command line prunes too."""
    try:
        yield
    except StorageError as error:
        if error.errno != errno.ENOENT:
            raise


class ClockWatch:
    """Compares the wall clock with one that is never set.

    After a jump, and after a start, bundles are not deleted by age for a while: a clock that is years ahead for a
    moment must not delete young bundles.

    Args:
        wall: the wall clock, in seconds.
        steady: a clock that is never set and runs while the machine sleeps, in seconds.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()
        #: The time of the last jump, or of the start, on the steady clock.
        self._since = steady()
        #: Seconds of the last jump; positive if it was forwards.
        self.jump = 0.0

    def has_jumped(self) -> bool:
        """Return whether the wall clock was set since the last call, rather than corrected slowly."""
        steady = self._steady()
        offset = self._wall() - steady
        jump, self._offset = offset - self._offset, offset
        if abs(jump) <= _JUMP_SECONDS:
            return False
        self.jump, self._since = jump, steady
        return True

    def seconds_to_wait(self, hold: float) -> float:
        """Return the seconds until ages may be judged, ``hold`` seconds after the last jump; 0 for now."""
        return max(0.0, self._since + hold - self._steady())


class Retention:
    """Prunes after each publication and at an interval, in a worker thread.

    Args:
        pruner: deletes the bundles.
        rules: the bounds.
        interval: seconds between rounds; 0 for rounds after publications only.
        clock: says when ages may be judged.
    """

    def __init__(self, pruner: Pruner, rules: RetentionRules, interval: float, clock: ClockWatch | None = None) -> None:
        self._rules = rules
        self._pruner = pruner
        self._interval = interval
        self._clock = clock or ClockWatch()
        self._due = asyncio.Event()
        self._due.set()
        self._is_short = False
        #: Bundles deleted since the start, and the bytes of their files.
        self.pruned = 0
        self.pruned_bytes = 0
        #: The number of bundles with an impossible time of end.
        self.suspects = 0

    def count_as_free(self, spare_bytes: Callable[[], Mapping[Path, int]]) -> None:
        """Count as free the bytes that ``spare_bytes`` returns by directory: they are freed when the disk is full."""
        self._pruner.spare_bytes = spare_bytes

    def bury_with(self, bury: Callable[[Path, str], None]) -> None:
        """Call ``bury`` for each bundle that is about to be deleted, with the reason."""
        self._pruner.bury = bury

    @property
    def ages_held_seconds(self) -> float:
        """Seconds until bundles are deleted by their age again; 0 where they are."""
        return self._clock.seconds_to_wait(self._interval or _HOLD_SECONDS)

    def status(self) -> RetentionStatus | None:
        """Return the status of retention; None if no age is bounded."""
        if not self._rules.have_ages:
            return None
        return RetentionStatus(ages_held_seconds=self.ages_held_seconds, suspects=self.suspects)

    def look(self) -> None:
        """Start a round soon: a bundle was published."""
        self._due.set()

    def apply(self, rules: RetentionRules, interval: float) -> None:
        """Use other bounds, and start a round soon."""
        self._rules, self._interval = rules, interval
        self._due.set()

    async def run(self) -> None:
        """Prune until cancelled; a deletion in progress is finished."""
        try:
            # Do it under any rules: those that began it may be gone from the configuration.
            await to_thread.run_sync(self._pruner.finish_begun)
        except ErgoCaptureError as error:
            self._report_failure(error)
        while True:
            waits = (self._interval, self.ages_held_seconds if self._rules.have_ages else 0)
            with anyio.move_on_after(min(filter(None, waits), default=None)):
                await self._due.wait()
            self._due.clear()
            if self._rules.are_set:
                began = time.monotonic()
                await self.take_round()
                # Pause: with many bundles a round takes long, and every publication asks for one.
                await anyio.sleep(_PAUSE_RATIO * (time.monotonic() - began))

    async def take_round(self) -> None:
        """Delete the bundles that exceed a bound now, and log each."""
        self._look_at_the_clock()
        rules, by_age = self._rules, not self.ages_held_seconds
        steps = self._pruner.prune(rules if by_age else rules.without_ages())
        try:
            while (step := await to_thread.run_sync(next, steps, None)) is not None:
                self._report(step)
                if self._look_at_the_clock() and by_age:
                    # The ages of this round are wrong.
                    self._due.set()
                    return
            self._report_suspects()
            free = await to_thread.run_sync(self._pruner.free_bytes) if rules.keep_free_bytes else {}
        except ErgoCaptureError as error:
            self._report_failure(error)
            return
        short = any(room < rules.keep_free_bytes for room in free.values())
        if short and not self._is_short:
            log.warning(
                telemetry.RETENTION_SHORT,
                keep_free_bytes=rules.keep_free_bytes,
                unshipped=len(self._pruner.unshipped),
                hint="no further bundle may be deleted: free some space, or lower retention.keep_free_bytes; a bundle "
                "that is not shipped stays until retention.give_up_after",
            )
        self._is_short = short

    def _look_at_the_clock(self) -> bool:
        jumped = self._clock.has_jumped()
        if jumped and self._rules.have_ages:
            log.warning(
                telemetry.RETENTION_HELD,
                jump_seconds=round(self._clock.jump, 3),
                seconds=round(self.ages_held_seconds, 3),
                hint="the clock was set: no bundle is deleted by its age for that long; check that the time is right",
            )
        return jumped

    def _report_suspects(self) -> None:
        """Log that times of bundles are impossible, if there are more such bundles than before."""
        suspects = self._pruner.suspects
        if len(suspects) > self.suspects:
            log.warning(
                telemetry.RETENTION_SUSPECT,
                bundles=len(suspects),
                newest=str(suspects[-1].path),
                ended_at=str(suspects[-1].ended_at),
                hint="the clock was wrong when they ended: they are deleted by number, size and free space, and by the "
                "age of bundles published after them",
            )
        self.suspects = len(suspects)

    def _report_failure(self, error: ErgoCaptureError) -> None:
        """Log that a round failed; the next one tries again."""
        log.error(telemetry.RETENTION_FAILED, error=error.message, path=error.path, hint=error.hint)

    def _report(self, step: Pruned) -> None:
        bundle = step.choice.bundle
        if step.kept is not None:
            log.warning(
                telemetry.BUNDLE_UNSOUND,
                bundle=str(bundle.path),
                graph=bundle.graph,
                reason=step.kept,
                hint="it is kept at any age: check it with `ergo-capture verify`, then move it away",
            )
            return
        self.pruned += 1
        self.pruned_bytes += bundle.size
        if step.choice.is_given_up:
            log.error(
                telemetry.RETENTION_GAVE_UP,
                bundle=str(bundle.path),
                graph=bundle.graph,
                bytes=bundle.size,
                reason=step.choice.reason,
                hint="it was deleted and no store has it: see `ergo-capture ship status` and `ergo-capture ship check`",
            )
            return
        log.info(
            telemetry.BUNDLE_PRUNED,
            bundle=str(bundle.path),
            graph=bundle.graph,
            bytes=bundle.size,
            reason=step.choice.reason,
        )
