"""Follow large open sessions: compose their bundles while they run, in a worker process at low priority.

After any error the bundle is composed from the journal at the end, as if the session had not been followed. If the disk
is full, the temporary files are the first to be deleted.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import anyio
import structlog
from anyio import to_thread
from anyio.abc import ByteReceiveStream

from ergo_capture import telemetry
from ergo_capture.bundle.writer.compose import ComposedBundle, ComposeJob
from ergo_capture.child_process import ChildProcess
from ergo_capture.config.settings import BundleConfig
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.server.compose_worker import (
    LENGTH_BYTES,
    Advance,
    Answer,
    Drop,
    Finish,
    Progress,
    Request,
    pack,
)
from ergo_capture.server.ops.status_model import ComposingStatus
from ergo_capture.server.session.parts import Part
from ergo_capture.server.session.session import Session, SessionState
from ergo_capture.storage.atomic import sweep_temporaries

log = structlog.get_logger()

_COMMAND: Final = (sys.executable, "-P", "-c", "from ergo_capture.server.compose_worker import main; main()")
#: The least decided events, and bytes of event lines, of a part that is followed: smaller ones are composed quickly.
_FEWEST_EVENTS: Final = 20_000
_FEWEST_BYTES: Final = 16 << 20
#: The events, and bytes of event lines, by which a bundle may be behind its session.
_LAG_EVENTS: Final = 1_000
_LAG_BYTES: Final = 1 << 20
#: Seconds until the sessions are examined again if none is to be followed now.
_PAUSE: Final = 0.1
#: Seconds without following after the disk was full or the worker ended.
_SUSPENSION: Final = 60.0
#: Seconds in which the worker must have removed its files.
_DROP_SECONDS: Final = 2.0


_NOTHING: Final = Progress(0, 0)


@dataclass(eq=False, slots=True)
class FollowedPart:
    """A part whose bundle the worker has begun."""

    #: Its number in the worker.
    number: int
    #: The job that it was begun with; it has no frames.
    job: ComposeJob
    #: Frames that were sent.
    events_sent: int = 0
    decisions_sent: int = 0
    progress: Progress = _NOTHING
    #: Bytes of the part's event lines when all that was decided had been written.
    bytes: int = 0
    #: Held while a request for it is under way.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class WorkerEnded(Exception):
    """The worker process has ended, or could not be started."""


#: The exceptions that a call to the worker may raise.
_FAILURES: Final = (ErgoCaptureError, RuntimeError, WorkerEnded)


class Follower:
    """Has the bundles of large open sessions composed while they run.

    Args:
        config: whether to follow sessions, and how large the temporary files may be.
        job_of: returns the job of a part of a session, without its frames.
    """

    def __init__(self, config: BundleConfig, job_of: Callable[[Session, Part], ComposeJob]) -> None:
        self._config = config
        self._job_of = job_of
        self._numbers = count(1)
        #: By session and part.
        self._parts: dict[tuple[str, int], FollowedPart] = {}
        self._worker: _Worker | None = None
        #: Bundles that are being finished.
        self._finishing = 0
        #: Files of finished bundles that have no name yet.
        self._finished: set[Path] = set()
        self._suspended_until = 0.0

    def apply(self, config: BundleConfig) -> None:
        """Apply a reloaded configuration."""
        self._config = config

    @property
    def file_bytes(self) -> int:
        """Bytes of the temporary files of bundles that are followed."""
        return sum(self.spare_bytes().values())

    @property
    def suspended_seconds(self) -> float:
        """Seconds until sessions are followed again after the disk was full or the worker ended."""
        return max(0.0, self._suspended_until - time.monotonic())

    def spare_bytes(self) -> dict[Path, int]:
        """Return the bytes of the temporary files by directory: they are given up where the disk is full."""
        found: dict[Path, int] = {}
        for part in self._parts.values():
            directory = Path(part.job.destination).parent
            found[directory] = found.get(directory, 0) + part.progress.file_bytes
        return found

    def status(self) -> ComposingStatus | None:
        """Return what is under way; None where bundles are composed at the end only."""
        if self._config.compose != "while running":
            return None
        return ComposingStatus(
            bundles=len(self._parts),
            events=sum(part.progress.composed for part in self._parts.values()),
            bytes=self.file_bytes,
            limit=int(self._config.running_bytes),
            suspended_seconds=self.suspended_seconds,
        )

    # --- following ---

    async def run(self, sessions: Mapping[str, Session]) -> None:
        """Follow the sessions until cancelled; then the worker ends, and its files are gone."""
        try:
            while True:
                try:
                    if not await self._take_step(sessions):
                        await anyio.sleep(_PAUSE)
                except _FAILURES as error:
                    await self._suspend(getattr(error, "message", str(error)))
                    if isinstance(error, WorkerEnded):
                        await self._end_worker()
        finally:
            with anyio.CancelScope(shield=True):
                await self._end_worker()

    async def _take_step(self, sessions: Mapping[str, Session]) -> bool:
        """Have the part that is furthest behind go on; return False where none is to go on now."""
        if self._config.compose != "while running":
            if self._parts:
                await self.drop()
            return False
        await self._drop_stale(sessions)
        if self._finishing or self.suspended_seconds or self.file_bytes >= self._config.running_bytes:
            return False
        behind, session = max(
            ((self._lag(session), session) for session in sessions.values()),
            key=lambda found: found[0],
            default=(0, None),
        )
        if session is None or not behind:
            return False
        await self._advance(session)
        return True

    def _lag(self, session: Session) -> int:
        """Return how many events a session's bundle is behind; zero where that is little, or it is not followed."""
        part = session.parts.current
        decided = session.decided - part.first
        if session.state is not SessionState.OPEN or session.description.contract is not None:
            # Bundles of sessions with a contract are composed at the end.
            return 0
        followed = self._parts.get((session.description.session, part.number))
        if followed is None:
            return decided if decided >= _FEWEST_EVENTS or (decided and part.bytes >= _FEWEST_BYTES) else 0
        lag = decided - followed.progress.composed
        return lag if lag >= _LAG_EVENTS or (lag and part.bytes - followed.bytes >= _LAG_BYTES) else 0

    async def _drop_stale(self, sessions: Mapping[str, Session]) -> None:
        """Drop the bundles of sessions that have failed."""
        stale = [key for key in self._parts if (found := sessions.get(key[0])) is None or found.failure is not None]
        if stale:
            await self._drop([self._parts.pop(key) for key in stale])

    async def _advance(self, session: Session) -> None:
        part, bytes_now = session.parts.current, session.parts.current.bytes
        key = session.description.session, part.number
        followed = self._parts.get(key)
        if followed is None:
            followed = self._parts[key] = FollowedPart(next(self._numbers), self._job_of(session, part))
        decided = session.decided - part.first
        request = Advance(
            followed.number,
            followed.job,
            part.event_frames[followed.events_sent :].tobytes(),
            part.decision_frames[followed.decisions_sent :].tobytes(),
            decided,
        )
        followed.events_sent, followed.decisions_sent = len(part.event_frames), len(part.decision_frames)
        async with followed.lock:
            progress = await self._call(request)
            assert isinstance(progress, Progress)
            followed.progress = progress
            if progress.composed >= decided:
                followed.bytes = bytes_now

    # --- finishing a bundle ---

    def take(self, session: str, part: int) -> FollowedPart | None:
        """Return the part if it is followed, and stop following it; the caller finishes its bundle."""
        followed = self._parts.pop((session, part), None)
        if followed is not None:
            self._finishing += 1
        return followed

    async def finish(self, followed: FollowedPart, job: ComposeJob) -> ComposedBundle | None:
        """Finish the bundle of a part that was taken; return None if it has to be composed from its beginning."""
        try:
            async with followed.lock:
                composed: ComposedBundle | None = await self._call(Finish(followed.number, job))
        except _FAILURES as error:
            log.warning(telemetry.COMPOSE_REPEATED, bundle=job.destination, error=getattr(error, "message", str(error)))
            return None
        finally:
            self._finishing -= 1
        if composed is not None:
            self._finished.add(Path(composed.file))
        return composed

    def release(self, composed: ComposedBundle) -> None:
        """Stop keeping the file of a finished bundle, which has its final name now or is not wanted."""
        self._finished.discard(Path(composed.file))

    def room_to_make(self) -> Awaitable[None] | None:
        """Return an awaitable that removes all temporary files; None if there are none."""
        return self.make_room() if self._parts else None

    async def make_room(self) -> None:
        """Remove all temporary files because the disk is full, and follow no session for a while."""
        await self._suspend("the disk is full")

    async def drop(self) -> None:
        """Remove all temporary files; the bundles are then composed at the end."""
        parts = list(self._parts.values())
        self._parts.clear()
        await self._drop(parts)

    async def _drop(self, parts: Iterable[FollowedPart]) -> None:
        with anyio.move_on_after(_DROP_SECONDS) as patience, suppress(*_FAILURES):
            await self._call(Drop([part.number for part in parts]))
        if patience.cancelled_caught and not self._finishing:
            await self._end_worker()

    async def _suspend(self, reason: str) -> None:
        """Remove all temporary files, and follow no session for a while."""
        self._suspended_until = time.monotonic() + _SUSPENSION
        if self._parts:
            freed, parts = self.file_bytes, len(self._parts)
            await self.drop()
            log.warning(telemetry.COMPOSE_SUSPENDED, bundles=parts, bytes=freed, seconds=_SUSPENSION, reason=reason)

    # --- the worker ---

    async def _call(self, what: Advance | Finish | Drop) -> Any:
        if self._worker is None:
            if not isinstance(what, Advance):
                raise WorkerEnded("the worker has ended")
            try:
                self._worker = _Worker()
            except OSError as error:
                raise WorkerEnded(error.strerror or str(error)) from error
        return await self._worker.call(what)

    async def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        self._parts.clear()
        if worker is not None:
            await worker.end()
            await to_thread.run_sync(_sweep, worker.directories, worker.pid, self._finished)


def _sweep(directories: Iterable[Path], process: int, keep: Container[Path]) -> None:
    for directory in directories:
        with suppress(OSError):
            sweep_temporaries(directory, process, keep)


class _Worker:
    """The worker process, and the calls to it.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self) -> None:
        self._child = ChildProcess(_COMMAND)
        self.pid = self._child.process.pid
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._requests: asyncio.Queue[bytes] = asyncio.Queue()
        #: The directories in which it has written files.
        self.directories: set[Path] = set()
        self._has_ended = False
        self._task = asyncio.create_task(self._run())

    async def call(self, what: Advance | Finish | Drop) -> Any:
        """Return the worker's answer.

        Raises:
            WorkerEnded: it ends before it answers.
            ErgoCaptureError: the request failed.
            RuntimeError: the request failed by a defect.
        """
        if self._has_ended:
            raise WorkerEnded(self._child.how_ended() or "the worker has ended")
        if isinstance(what, Advance):
            self.directories.add(Path(what.job.destination).parent)
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._requests.put_nowait(pack(Request(number, what)))
        try:
            return await answer
        finally:
            self._waiting.pop(number, None)

    async def _run(self) -> None:
        sending: asyncio.Task[None] | None = None
        errors: asyncio.Task[None] | None = None
        try:
            sending = asyncio.create_task(self._send())
            errors = asyncio.create_task(_discard(await self._child.open_reader(self._child.process.stderr)))
            await self._receive(await self._child.open_reader(self._child.process.stdout))
        finally:
            self._has_ended = True
            for task in (sending, errors):
                if task is not None:
                    task.cancel()
            await self._child.wait(_DROP_SECONDS)
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(WorkerEnded(self._child.how_ended() or "the worker has ended"))

    async def _send(self) -> None:
        stdin = await self._child.open_stdin()
        with suppress(OSError):
            while True:
                await stdin.send(await self._requests.get())

    async def _receive(self, stdout: ByteReceiveStream) -> None:
        data = bytearray()
        with suppress(anyio.EndOfStream, OSError):
            while True:
                data += await stdout.receive(1 << 16)
                while len(data) >= LENGTH_BYTES:
                    end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
                    if len(data) < end:
                        break
                    # The data is trusted: only our own child has the other end of the pipe.
                    answer: Answer = pickle.loads(data[LENGTH_BYTES:end])  # noqa: S301
                    del data[:end]
                    self._settle(answer)

    def _settle(self, answer: Answer) -> None:
        future = self._waiting.get(answer.number)
        if future is None or future.done():
            return
        if answer.error is None:
            future.set_result(answer.value)
        else:
            future.set_exception(answer.error)

    async def end(self) -> None:
        """End the process and remove its temporary files; if it still answers, it removes them itself."""
        await self._child.end()
        await asyncio.wait([self._task], timeout=_DROP_SECONDS)
        self._task.cancel()
        self._child.close()


async def _discard(stream: ByteReceiveStream) -> None:
    with suppress(anyio.EndOfStream, OSError):
        while True:
            await stream.receive()
