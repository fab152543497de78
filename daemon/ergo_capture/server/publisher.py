"""Compose bundles off the event loop: large ones in a worker process, small ones in a thread."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
import msgspec
import structlog
from anyio import BrokenWorkerProcess, to_process, to_thread

from ergo_capture import telemetry
from ergo_capture.bundle.manifest import SNAPSHOT
from ergo_capture.bundle.names import bundle_path, other_form
from ergo_capture.bundle.sequence import Sequence, greatest_sequence
from ergo_capture.bundle.writer.compose import ComposedBundle, ComposeJob, compose_bundle, publish_bundle
from ergo_capture.child_setup import end_with_parent
from ergo_capture.config.settings import BundleConfig
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.payloads import Publication, SessionDescription
from ergo_capture.seal.keeper import SealKeeper
from ergo_capture.server.follower import FollowedPart, Follower
from ergo_capture.server.session.parts import Part, is_full, utc_now
from ergo_capture.server.session.session import Session
from ergo_capture.storage.write_error import CaptureWriteError

log = structlog.get_logger()

#: Largest bundle, in events, that is composed in a thread. Composing holds the interpreter lock, and so stops every
#: client, for about 5 us an event.
_MAX_EVENTS_IN_THREAD: Final = 2_000


class BundlePublisher:
    """Composes the bundles of sessions' parts (``parts.Publisher``).

    Args:
        state: the state directory.
        journal: the journal's directory.
        bundle: layout and compression of the bundles.
        published_sequence: the greatest number of a bundle in the journal's PUBLISHED frames.
        seals: seals the finished bundles; None for no seals.
        on_published: called with each bundle when it is durable, and with the oldest journal segment of its frames.
    """

    def __init__(
        self,
        state: Path,
        journal: Path,
        bundle: BundleConfig,
        *,
        published_sequence: int = 0,
        seals: SealKeeper | None = None,
        on_published: Callable[
            [SessionDescription, Publication, int], None
        ] = lambda _session, _publication, _segment: None,
    ) -> None:
        self._state = state
        self._journal = journal
        self._bundle = bundle
        self._published_sequence = published_sequence
        self._seals = seals
        self._on_published = on_published
        #: The numbers of finished bundles; None until the greatest one was found.
        self._sequence: Sequence | None = None
        #: Held while it is searched for.
        self._sequence_lock = asyncio.Lock()
        #: SHA-256 of the last snapshot, by session and part.
        self._snapshots: dict[tuple[str, int], str] = {}
        #: Bundles that were published beside a finished one; each is logged once.
        self._diverted: set[str] = set()
        #: Held while a bundle gets its name, so that names are given in the order of the numbers.
        self._publish_lock = asyncio.Lock()
        #: Held while a bundle is composed in a worker process, and in a thread. With two locks, a small session that is
        #: closed does not wait for a large bundle, which takes seconds.
        self._process_lock, self._thread_lock = asyncio.Lock(), asyncio.Lock()
        #: Bundles composed since the start.
        self.published = 0
        #: Composes the bundles of large sessions while they run.
        self.follower = Follower(bundle, self._job_at_begin)

    @property
    def diverted(self) -> int:
        """The number of bundles that were published beside a finished one, since the start."""
        return len(self._diverted)

    def apply(self, bundle: BundleConfig) -> None:
        """Apply a reloaded configuration to the bundles that come next."""
        self._bundle = bundle
        self.follower.apply(bundle)

    async def compose(
        self, description: SessionDescription, part: Part, count: int, ended: str, *, forced: bool = False
    ) -> Publication:
        """Compose and publish the bundle of the part's first ``count`` events; it is durable on return.

        Raises:
            ErgoCaptureError: composing failed; the journal still holds the session.
        """
        # Take it before the first await: events that are decided from now on must not be in the bundle.
        followed = self.follower.take(description.session, part.number)
        job = self._job(description, part, count, ended, forced=forced)
        publication = None if followed is None else await self._finish(followed, job)
        if publication is None:
            publication = await self._compose_whole(job)
        key = description.session, part.number
        if ended == SNAPSHOT:
            self._snapshots[key] = publication.sha256
        else:
            self._snapshots.pop(key, None)
        self.published += 1
        self._on_published(description, publication, part.segment)
        return publication

    async def _finish(self, followed: FollowedPart, job: ComposeJob) -> Publication | None:
        """Finish and publish a bundle that was composed while its session ran; return None if that is not possible."""
        publication: Publication | None = None
        with anyio.CancelScope(shield=True), _errors_of(job):
            composed = await self.follower.finish(followed, job)
            if composed is not None:
                try:
                    publication = await self._publish(composed)
                finally:
                    self.follower.release(composed)
        return publication

    async def _compose_whole(self, job: ComposeJob) -> Publication:
        # Shield composing: if it were cancelled when the client goes, it would begin again. Do not shield the wait for
        # the lock: a drain must end with its time.
        async with self._process_lock if job.count > _MAX_EVENTS_IN_THREAD else self._thread_lock:
            with anyio.CancelScope(shield=True), _errors_of(job):
                try:
                    publication = await self._publish(await _run(job))
                except CaptureWriteError as error:
                    if is_full(error):
                        # The caller tries again: delete the temporary files of running sessions, to make room.
                        await self.follower.make_room()
                    raise
        return publication

    def _job_at_begin(self, session: Session, part: Part) -> ComposeJob:
        """Return the job of a part that goes on, without frames."""
        job = self._job(session.description, part, 0, SNAPSHOT)
        return msgspec.structs.replace(job, event_frames=b"", decision_frames=b"")

    def _job(
        self, description: SessionDescription, part: Part, count: int, ended: str, *, forced: bool = False
    ) -> ComposeJob:
        compressed = self._bundle.compress != "none"
        destination = bundle_path(
            self._state, description.graph, description.session, part.number, compressed=compressed
        )
        return ComposeJob(
            journal=str(self._journal),
            destination=str(destination),
            style=self._bundle.style,
            compress=self._bundle.compress,
            description=description,
            part=part.number,
            first=part.first,
            count=count,
            event_frames=part.event_frames.tobytes(),
            decision_frames=part.decision_frames.tobytes(),
            ended=ended,
            forced=forced,
            store=part.store,
            interruption=part.interruption,
            left_over=part.left_over,
            ended_at=utc_now(),
            own=self._snapshots.get((description.session, part.number), ""),
        )

    async def prepare(self) -> None:
        """Look at the bundles that stand: the first one that is finished would wait for it, a second for 20,000.

        An error is left to the first publication, which tries again and reports it.
        """
        await self._found_sequence()
        if self._seals is not None:
            with suppress(ErgoCaptureError, OSError):
                await to_thread.run_sync(self._seals.catch_up)

    async def _found_sequence(self) -> Sequence:
        async with self._sequence_lock:
            if self._sequence is None:
                found = await to_thread.run_sync(greatest_sequence, self._state / "bundles")
                self._sequence = Sequence(max(found, self._published_sequence))
            return self._sequence

    async def _publish(self, composed: ComposedBundle) -> Publication:
        """Give a composed bundle its name and, if it is finished, the next number."""
        async with self._publish_lock:
            sequence = None if composed.job.ended == SNAPSHOT else await self._found_sequence()
            publication, beside = await to_thread.run_sync(publish_bundle, composed, sequence)
            if self._seals is not None and composed.job.ended != SNAPSHOT:
                # Seal under the lock, in the order of the numbers, and before segments of the bundle may be deleted.
                await to_thread.run_sync(self._seals.seal, Path(publication.manifest))
        if beside is not None and publication.bundle not in self._diverted:
            self._diverted.add(publication.bundle)
            log.error(
                telemetry.BUNDLE_DIVERTED,
                session=composed.job.description.session,
                graph=composed.job.description.graph,
                bundle=publication.bundle,
                beside=str(beside),
                hint="the journal holds other events than that bundle, which stays as it is: was an older state "
                "directory restored? Compare them with `ergo-capture diff`",
            )
        return publication

    async def bundles(self, description: SessionDescription, parts: range, known: Mapping[int, str]) -> list[str]:
        """Return the paths of the bundles of these parts that exist, in order.

        Args:
            description: the session.
            parts: numbers of parts.
            known: paths of parts that were published since the start, by part; others are searched under their names.
        """
        if all(part in known for part in parts):
            return [known[part] for part in parts]
        return await to_thread.run_sync(self._find, description, parts, known)

    def _find(self, description: SessionDescription, parts: range, known: Mapping[int, str]) -> list[str]:
        found = []
        for part in parts:
            plain = bundle_path(self._state, description.graph, description.session, part)
            paths = [Path(known[part])] if part in known else [plain, other_form(plain)]
            found += [str(path) for path in paths if path.is_file()][:1]
        return found


async def _run(job: ComposeJob) -> ComposedBundle:
    if job.count > _MAX_EVENTS_IN_THREAD:
        try:
            return await to_process.run_sync(_compose_in_worker, os.getpid(), job)
        except (BrokenWorkerProcess, OSError) as error:
            # The host may be out of processes: compose in a thread, which is slower.
            log.warning(telemetry.WORKER_BROKEN, error=str(error), bundle=job.destination)
    return await to_thread.run_sync(compose_bundle, job)


def _compose_in_worker(daemon: int, job: ComposeJob) -> ComposedBundle:
    """Compose a bundle in a worker process, which ends with the daemon of that process id.

    A worker that outlived a killed daemon could replace a bundle of the same session that the next daemon published.
    """
    end_with_parent(daemon)
    # After each write the writing thread waits for the interpreter, which expands the next block. The default interval
    # of 5 ms is longer than a block takes.
    sys.setswitchinterval(0.0005)
    return compose_bundle(job)


@contextmanager
def _errors_of(job: ComposeJob) -> Iterator[None]:
    """Turn any error into an ErgoCaptureError: a failed bundle must end neither the daemon nor the shutdown."""
    try:
        yield
    except ErgoCaptureError:
        raise
    except Exception as error:
        if isinstance(error, OSError):
            reason, hint = error.strerror or str(error), "look at the disk and at the daemon's limits"
        else:
            reason, hint = f"{type(error).__name__}: {error}", "this is a defect of ergo-capture"
        raise ErgoCaptureError(
            f"compose bundle '{job.destination}': {reason}",
            op="compose bundle",
            path=job.destination,
            hint=f"{hint}; the journal still holds the session",
        ) from error
