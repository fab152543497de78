"""Publishes bundles: off the loop, a large one and a small one at a time."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio import BrokenWorkerProcess, to_process, to_thread

from ergo_capture import telemetry
from ergo_capture.bundle.names import bundle_path, manifest_path
from ergo_capture.bundle.writer.compose import ComposeJob, compose_bundle
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.payloads import Publication, SessionDescription
from ergo_capture.server.session.parts import Part, utc_now

log = structlog.get_logger()

#: Above this many events a bundle is composed in a worker process. Why: composing is Python from end to end
#: and would hold the interpreter, and with it every client, for about 5 us an event.
_IN_THREAD: Final = 2_000
#: ``prctl``'s number for the signal that a process gets when its parent ends.
_PR_SET_PDEATHSIG: Final = 1


class BundlePublisher:
    """Makes bundles of sessions' parts (``parts.Publisher``).

    Args:
        state: the state directory.
        journal: the journal's directory.
        style: ``compact`` or ``pretty``.
        compress: ``none`` or ``zstd``.
        on_published: told of each finished bundle after it is durable; the seam for whoever moves them on.
    """

    def __init__(
        self,
        state: Path,
        journal: Path,
        *,
        style: str = "compact",
        compress: str = "none",
        on_published: Callable[[SessionDescription, Publication], None] = lambda _description, _publication: None,
    ) -> None:
        self._state = state
        self._journal = journal
        #: Layout and compression of the bundles that come next.
        self.style = style
        self.compress = compress
        self._on_published = on_published
        #: One bundle at a time in a worker process, and one in a thread. Why apart: a large one takes seconds, and whoever
        #: closes a small session is not to wait for it.
        self._apart, self._beside = anyio.Lock(), anyio.Lock()
        #: Bundles published since the start.
        self.published = 0

    async def publish(
        self, description: SessionDescription, part: Part, count: int, ended: str, *, forced: bool = False
    ) -> Publication:
        """Compose ``count`` events of the part and publish them durably.

        Raises:
            ErgoCaptureError: with what failed; the journal still holds the session.
        """
        compressed = self.compress != "none"
        destination = bundle_path(
            self._state, description.graph, description.session, part.number, compressed=compressed
        )
        job = ComposeJob(
            journal=str(self._journal),
            destination=str(destination),
            manifest=str(manifest_path(destination)),
            style=self.style,
            compress=self.compress,
            description=description,
            part=part.number,
            first=part.first,
            count=count,
            event_frames=part.event_frames.tobytes(),
            decision_frames=part.decision_frames.tobytes(),
            ended=ended,
            forced=forced,
            ended_at=utc_now(),
        )
        # Why shielded: a bundle that is half composed when a client goes would be composed again. And why not the wait
        # before: a drain whose time is over must not stand in line.
        async with self._apart if count > _IN_THREAD else self._beside:
            with anyio.CancelScope(shield=True):
                publication = await _compose(job)
        self.published += 1
        self._on_published(description, publication)
        return publication

    def __repr__(self) -> str:
        return f"<BundlePublisher {self._state / 'bundles'}, {self.published} published>"


def compose_apart(job: ComposeJob) -> Publication:
    """Compose in a worker process; the same as ``compose_bundle`` but for how its threads take turns."""
    # Why: the thread that writes comes back from each write to an interpreter that expands the next block, and
    # would wait for it for 5 ms, longer than a block takes.
    sys.setswitchinterval(0.0005)
    return compose_bundle(job)


def _compose_for(daemon: int, job: ComposeJob) -> Publication:
    """As ``compose_apart``, for a daemon of that process id and as long as it lives.

    Why no longer: a worker that outlives a daemon that was killed could put its bundle in the place of what the next
    daemon published of the same session.
    """
    # Why suppressed: only Linux knows how. Elsewhere the one look below has to do.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != daemon:
        sys.exit(1)
    return compose_apart(job)


async def _compose(job: ComposeJob) -> Publication:
    try:
        return await _compose_apart_or_here(job)
    except ErgoCaptureError:
        raise
    except OSError as error:
        # Why here: whoever waits for a bundle knows what to do without one, and an error of the system is no mistake
        # of ours.
        raise _not_composed(job, error.strerror or str(error), "look at the disk and at the daemon's limits") from error
    except Exception as error:
        # Why that too: one bundle less is no reason to end, for the daemon or for its stop.
        raise _not_composed(job, f"{type(error).__name__}: {error}", "this is a defect of ergo-capture") from error


async def _compose_apart_or_here(job: ComposeJob) -> Publication:
    if job.count > _IN_THREAD:
        try:
            return await to_process.run_sync(_compose_for, os.getpid(), job)
        except (BrokenWorkerProcess, OSError) as error:
            # Why not fatal: a host may be out of processes; slower is better than not at all.
            log.warning(telemetry.WORKER_BROKEN, error=str(error), bundle=job.destination)
    return await to_thread.run_sync(compose_bundle, job)


def _not_composed(job: ComposeJob, why: str, hint: str) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"compose bundle '{job.destination}': {why}",
        op="compose bundle",
        path=job.destination,
        hint=f"{hint}; the journal still holds the session",
    )
