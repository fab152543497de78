"""The one thing that makes data durable: group commit for every session of the daemon.

Rules:

1. "Drain what is there" is the batching rule: whatever queued up while one batch was being synced is the next.
2. One batch at a time, written and synced by one call in one thread; the loop never waits for a disk.
3. What became durable is published (the owners' watermarks move) before anybody is woken.
4. The writer is never cancelled; it ends when its queue is closed and empty.
5. Decisions are collected from their sessions when the batch is made, so that they ride with events. Alone
   they wait up to ``decision_delay`` for an event, unless somebody waits for them.
6. A sync that failed is never tried again (P7): the writer stops, and with it the daemon. A disk that is
   full before the sync refuses what was submitted and keeps what was submitted lazily, decisions that is,
   for the next attempt (P8).

The task only owns the thread's life. Batches go from callback to callback. Why: a client with one event in
flight waits for each turn of the loop, and going through the task took two more of them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable

import msgspec
import structlog

from ergo_capture import telemetry
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.errors import JournalFull
from ergo_capture.journal.wal import Journal
from ergo_capture.server.commit.batch import CommitBatch, Submission
from ergo_capture.server.commit.commit_thread import CommitThread, Outcome

log = structlog.get_logger()


class WriterClosed(ErgoCaptureError):
    """Nothing more is made durable, because the daemon is stopping."""


class WriterSnapshot(msgspec.Struct, frozen=True):
    """What the writer is doing; sizes in bytes, times in seconds."""

    queued: int
    queued_bytes: int
    batches: int
    frames: int
    bytes_written: int
    #: Events and decisions that became durable since the start.
    events: int
    decisions: int
    #: How long the last write and sync took, in the thread.
    last_commit_seconds: float
    refused_batches: int
    committing: bool
    #: Age of the oldest submission that is not durable, be it queued or being written; zero where there is none.
    oldest_undurable_seconds: float
    #: Whether the last attempt found the disk full.
    full: bool
    failed: str | None


class Writer:
    """Commits what sessions submit, batch by batch.

    Args:
        journal: where it goes; nobody else may write to it while the writer runs.
        decision_delay: seconds that decisions alone wait for an event.
        queue_bytes: bytes that may wait before ``room`` makes callers wait.
        queue_frames: submissions that may wait, likewise.
        retry_delay: seconds between attempts while the disk is full.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        decision_delay: float = 0.002,
        queue_bytes: int = 64 << 20,
        queue_frames: int = 65_536,
        retry_delay: float = 0.25,
    ) -> None:
        self._journal = journal
        self._delay = decision_delay
        self._max_bytes = queue_bytes
        self._max_frames = queue_frames
        self._retry_delay = retry_delay
        self._queue: deque[tuple[Submission, int, float]] = deque()
        self._bytes = 0
        self._lazy: dict[Submission, None] = {}
        self._urgent = False
        self._room = asyncio.Event()
        self._ended = asyncio.Event()
        self._closed = self._abandoned = False
        self._started = False
        #: The batch that is being written.
        self._batch: CommitBatch | None = None
        #: Until when nothing is tried, because the disk was full; or until when decisions wait for an event.
        self._timer: asyncio.TimerHandle | None = None
        self._pausing = False
        self._thread = CommitThread(journal, self._completed)
        self._batches = self._frames = self._written = self._events = self._decisions = self._refused = 0
        #: Why the journal can take nothing more, once that is so.
        self.failure: ErgoCaptureError | None = None
        #: Whether the last attempt found the disk full.
        self.full = False
        self._full_since = 0.0
        #: Told of each commit's duration in seconds, its bytes, and the events in it; for the metrics.
        self.on_commit: Callable[[float, int, int], None] = lambda _seconds, _bytes, _events: None

    # --- what sessions call ---

    def check(self) -> None:
        """Raise if nothing more can be made durable.

        Raises:
            WriterClosed: the daemon is stopping.
            ErgoCaptureError: the journal has failed.
        """
        if self.failure is not None:
            raise self.failure
        if self._closed:
            raise WriterClosed(
                "append to journal: the daemon is stopping",
                op="append to journal",
                hint="what was acknowledged is safe; the next start goes on",
            )

    def submit(self, submission: Submission, size: int) -> None:
        """Queue something of about ``size`` bytes; ``on_durable`` or ``on_refused`` will be called.

        Raises:
            WriterClosed: the daemon is stopping.
            ErgoCaptureError: the journal has failed.
        """
        self.check()
        self._queue.append((submission, size, time.monotonic()))
        self._bytes += size
        self._go_on()

    def submit_lazily(self, submission: Submission, *, urgent: bool = False) -> None:
        """Have ``submission`` asked for its frame in the next batch; asking twice is asking once."""
        if self.failure is None:
            self._lazy[submission] = None
            self._urgent |= urgent
            self._go_on()

    def hurry(self) -> None:
        """Somebody waits: commit what is there without waiting for an event."""
        self._urgent = True
        self._go_on()

    @property
    def busy_seconds(self) -> float:
        """How long the batch that is being written is being written; zero where there is none."""
        return 0.0 if self._batch is None else time.monotonic() - self._batch.began

    @property
    def has_room(self) -> bool:
        """Whether a caller may submit without waiting."""
        return self._bytes < self._max_bytes and len(self._queue) < self._max_frames

    async def room(self) -> None:
        """Wait until there is room in the queue; at once where there is."""
        while not self.has_room and self.failure is None:
            self._room.clear()
            await self._room.wait()

    def close(self) -> None:
        """Nothing more will be submitted; the task ends when the queue is empty."""
        self._closed = True
        self._go_on()

    # --- the task ---

    async def run(self) -> None:
        """Own the thread until the writer has been closed and is done, or the journal has failed."""
        self._thread.start(asyncio.get_running_loop())
        self._started = True
        self._go_on()
        try:
            await self._ended.wait()
        finally:
            self._thread.stop()

    def abandon(self) -> None:
        """End now, whatever is still queued: what was acknowledged is safe, the rest was not promised."""
        self._closed = self._abandoned = True
        self._go_on()

    async def until_ended(self) -> None:
        """Wait until the writer is done; ``close`` first."""
        await self._ended.wait()

    # --- from batch to batch ---

    def _go_on(self) -> None:
        """Begin the next batch if it is time for one."""
        if self._abandoned and self._batch is None:
            # Why here: an attempt that was under way may have found the disk full once more.
            self._ended.set()
            return
        if self._batch is not None or self._pausing or not self._started or self.failure is not None:
            return
        if self._queue or (self._lazy and (self._urgent or self._closed or not self._delay)):
            self._begin()
        elif self._lazy:
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._delay, self.hurry)
        elif self._closed:
            self._ended.set()

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queued, self._queue = self._queue, deque()
        lazy, self._lazy = self._lazy, {}
        self._bytes = 0
        self._urgent = False
        batch = CommitBatch(time.monotonic())
        try:
            if queued:
                batch.since = queued[0][2]
            for submission, _, _ in queued:
                batch.add(submission, submission.to_frame())
            batch.firm = len(batch.submissions)
            for submission in lazy:
                batch.add(submission, submission.to_frame())
        except Exception as error:  # noqa: BLE001 - becomes the failure that all are told of
            self._fail([*(submission for submission, _, _ in queued), *lazy], _mistake(error))
            return
        self._room.set()
        if not batch.frames:
            self._go_on()
            return
        self._batch = batch
        self._thread.commit(batch.frames)

    def _completed(self, outcome: Outcome) -> None:
        """The thread is done with the batch; called on the loop."""
        batch, self._batch = self._batch, None
        assert batch is not None
        if isinstance(outcome, BaseException):
            self._refuse(batch, outcome)
            return
        if self.full:
            self.full = False
            seconds = round(time.monotonic() - self._full_since, 3)
            log.warning(telemetry.JOURNAL_RESUMED, seconds=seconds, refused_batches=self._refused)
        self._batches += 1
        self._frames += len(batch.frames)
        self._written += batch.bytes
        self._events += batch.events
        self._decisions += batch.decisions
        self.on_commit(self._thread.last_seconds, batch.bytes, batch.events)
        told = iter(zip(batch.submissions, outcome, strict=True))
        try:
            for submission, position in told:
                submission.on_durable(position)
        except Exception as error:  # noqa: BLE001 - as above
            # Why not gone on with: what is durable and was not told of is found by the next start, and by nothing else.
            self._fail([submission for submission, _ in told], _mistake(error))
            return
        self._go_on()

    def _refuse(self, batch: CommitBatch, outcome: BaseException) -> None:
        self._refused += 1
        error = outcome if isinstance(outcome, ErgoCaptureError) else _mistake(outcome)
        if isinstance(error, JournalFull):
            if not self.full:
                self.full = True
                self._full_since = time.monotonic()
                log.error(telemetry.JOURNAL_FULL, error=error.message, path=error.path, hint=error.hint)
            self._lazy = dict.fromkeys(batch.submissions[batch.firm :]) | self._lazy
            # Why not at once: the disk is still full, and trying is not free.
            self._pausing = True
            asyncio.get_running_loop().call_later(self._retry_delay, self._resume)
            for submission in batch.submissions[: batch.firm]:
                submission.on_refused(error)
            self._go_on()
            return
        self._fail(batch.submissions, error)

    def _fail(self, under_way: Iterable[Submission], error: ErgoCaptureError) -> None:
        """Make nothing more durable, neither what is under way nor what is queued."""
        self.failure = error
        for submission in (*under_way, *(queued[0] for queued in self._queue), *self._lazy):
            submission.on_refused(error)
        self._queue.clear()
        self._lazy.clear()
        self._room.set()
        self._ended.set()

    def _resume(self) -> None:
        self._pausing = False
        self._go_on()

    def snapshot(self) -> WriterSnapshot:
        """What the writer is doing now."""
        since = self._batch.since if self._batch is not None else self._queue[0][2] if self._queue else None
        return WriterSnapshot(
            queued=len(self._queue) + len(self._lazy),
            queued_bytes=self._bytes,
            batches=self._batches,
            frames=self._frames,
            bytes_written=self._written,
            events=self._events,
            decisions=self._decisions,
            last_commit_seconds=self._thread.last_seconds,
            refused_batches=self._refused,
            committing=self._batch is not None,
            oldest_undurable_seconds=0.0 if since is None else time.monotonic() - since,
            full=self.full,
            failed=None if self.failure is None else self.failure.message,
        )

    def __repr__(self) -> str:
        state = "failed" if self.failure else "closed" if self._closed else "open"
        return f"<Writer {state}, {len(self._queue)} queued of {self._bytes} bytes, {self._batches} batches>"


def _mistake(error: BaseException) -> ErgoCaptureError:
    wrapped = ErgoCaptureError(
        f"append to journal: {type(error).__name__}: {error}",
        op="append to journal",
        hint="this is a defect of ergo-capture; what was acknowledged is safe, restart the daemon to go on",
    )
    wrapped.__cause__ = error
    return wrapped
