"""Group commit: the writer makes data durable for every session of the daemon.

Rules:

1. Everything that is queued while one batch is synced becomes the next batch.
2. One thread writes and syncs one batch at a time; the event loop never waits for a disk.
3. Submissions learn that they are durable before any other task is woken.
4. The writer is never cancelled. It ends when it is closed and its queue is empty.
5. Decisions are collected from their sessions when a batch is built, so that they share a sync with events. A batch of
   decisions alone waits up to ``decision_delay`` for an event, unless a task waits for the decisions.
6. A failed sync is never tried again (P7): the writer stops, and with it the daemon. If the disk is full before the
   sync, what was submitted with ``submit`` is refused, and what was submitted with ``submit_lazily`` (decisions) is
   kept for the next attempt (P8).

The writer's task only starts and ends the thread. Batches are started from callbacks: a task would cost two more turns
of the event loop, and a client with one event in flight would wait for them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum, auto
from typing import Final

import msgspec
import structlog

from ergo_capture import telemetry
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.errors import JournalFull
from ergo_capture.journal.frame import PendingFrame, Position
from ergo_capture.journal.wal import Journal
from ergo_capture.server.commit.batch import CommitBatch, FrameSubmission, Submission
from ergo_capture.server.commit.commit_thread import CommitThread, Outcome
from ergo_capture.server.commit.meter import CommitMeter
from ergo_capture.server.failures import internal_error

log = structlog.get_logger()

#: Seconds between two checks that the journal's files are still there.
LOOK_SECONDS: Final = 0.01


class WriterClosed(ErgoCaptureError):
    """Nothing more is made durable, because the daemon is stopping."""


class WriterSnapshot(msgspec.Struct, frozen=True):
    """The state of the writer; sizes in bytes, times in seconds."""

    queued: int
    queued_bytes: int
    batches: int
    frames: int
    bytes_written: int
    #: Events and decisions that became durable since the start.
    events: int
    decisions: int
    #: Duration of the last write and sync, measured in the thread.
    last_commit_seconds: float
    refused_batches: int
    committing: bool
    #: Age of the oldest submission that is not durable, queued or being written; zero where there is none.
    oldest_undurable_seconds: float
    #: Whether the last attempt found the disk full.
    full: bool
    failed: str | None
    #: The reason why the last probe of an idle daemon could not write to the state directory; None if it could.
    disk_error: str | None = None


class _State(Enum):
    OPEN = auto()
    #: Commits what is queued, then ends.
    CLOSING = auto()
    #: Takes nothing more from its queue, and ends after the batch that is being written: it is abandoned, or has failed.
    ABANDONED = auto()


class Writer:
    """Commits submissions, batch by batch.

    Args:
        journal: the journal to write to; no other code may write to it while the writer runs.
        decision_delay: seconds that decisions alone wait for an event.
        queue_bytes: bytes that may be queued before ``room`` makes callers wait.
        queue_frames: submissions that may be queued, likewise.
        retry_delay: seconds between attempts while the disk is full.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        decision_delay: float,
        queue_bytes: int,
        queue_frames: int,
        retry_delay: float = 0.25,
    ) -> None:
        self._delay = decision_delay
        self._max_bytes = queue_bytes
        self._max_frames = queue_frames
        self._retry_delay = retry_delay
        self._state = _State.OPEN
        #: Whether no batch may begin: before the thread has started, and between attempts while the disk is full.
        self._paused = True
        #: Submissions with their size and the time they were queued.
        self._queue: deque[tuple[Submission, int, float]] = deque()
        self._bytes = 0
        self._lazy: dict[Submission, None] = {}
        #: Whether a task waits for a submission in ``_lazy``.
        self._urgent = False
        self._room = asyncio.Event()
        self._ended = asyncio.Event()
        #: The batch that is being written.
        self._batch: CommitBatch | None = None
        #: Commits decisions that have waited long enough for an event.
        self._timer: asyncio.TimerHandle | None = None
        self._journal = journal
        self._thread = CommitThread(journal, self._on_outcome)
        self._batches = self._frames = self._written = self._events = self._decisions = self._refused = 0
        #: Durations and sizes of commits, for the metrics.
        self.meter = CommitMeter()
        #: The error that ended the writer, once the journal has failed.
        self.failure: ErgoCaptureError | None = None
        #: Whether the last attempt found the disk full.
        self.full = False
        self._full_since = 0.0
        #: The reason why the last probe failed; None if it succeeded, or if a commit has succeeded since.
        self.disk_error: str | None = None
        #: Commits at the last probe.
        self._probed_at = 0
        #: A commit that begins at this time or later checks that the journal's files are still there.
        self._look_due = 0.0
        #: Called when a commit was the first one in its segment.
        self.on_segment: Callable[[], None] = lambda: None
        #: Called when the disk is full: deletes temporary files of the daemon; returns None if there are none.
        self.make_room: Callable[[], Awaitable[object] | None] = lambda: None
        #: The last task that waited for ``make_room``, held here because the loop alone does not keep it.
        self._making_room: asyncio.Task[None] | None = None
        self._segment = 0

    # --- submitting ---

    def check(self) -> None:
        """Raise if nothing more can be made durable.

        Raises:
            WriterClosed: the daemon is stopping.
            ErgoCaptureError: the journal has failed.
        """
        if self.failure is not None:
            raise self.failure
        if self._state is not _State.OPEN:
            raise WriterClosed(
                "append to journal: the daemon is stopping",
                op="append to journal",
                hint="what was acknowledged is safe; the next start goes on",
            )

    def submit(self, submission: Submission, size: int) -> None:
        """Queue a submission of about ``size`` bytes; its ``on_durable`` or ``on_refused`` will be called.

        Raises:
            WriterClosed: the daemon is stopping.
            ErgoCaptureError: the journal has failed.
        """
        self.check()
        self._queue.append((submission, size, time.monotonic()))
        self._bytes += size
        self._start_batch_if_due()

    def submit_lazily(self, submission: Submission, *, urgent: bool = False) -> None:
        """Ask ``submission`` for its frame when the next batch is made; asking twice has the effect of asking once.

        Args:
            submission: what is to become durable.
            urgent: whether a task waits for it, so that it must not wait for an event.
        """
        if self.failure is None:
            self._lazy[submission] = None
            self._urgent |= urgent
            self._start_batch_if_due()

    async def append(self, frame: PendingFrame) -> Position:
        """Write one frame, and return its position once it is durable; waits while the disk is full.

        Raises:
            WriterClosed: the daemon is stopping.
            ErgoCaptureError: the journal has failed.
        """
        while True:
            submission = FrameSubmission(frame, asyncio.get_running_loop().create_future())
            self.submit(submission, frame.size)
            try:
                return await submission.done
            except JournalFull:
                continue

    def hurry(self) -> None:
        """Commit decisions without waiting for an event."""
        self._urgent = True
        self._start_batch_if_due()

    @property
    def has_room(self) -> bool:
        """Whether there is room in the queue. True after a failure, so that no caller waits: ``submit`` raises."""
        full = self._bytes >= self._max_bytes or len(self._queue) >= self._max_frames
        return not full or self.failure is not None

    async def room(self) -> None:
        """Wait until there is room in the queue."""
        while not self.has_room:
            self._room.clear()
            await self._room.wait()

    # --- the task ---

    async def run(self) -> None:
        """Run the thread until the writer has been closed and has ended, or the journal has failed."""
        self._thread.start(asyncio.get_running_loop())
        self._resume()
        try:
            await self._ended.wait()
        finally:
            self._thread.stop()

    def close(self) -> None:
        """Accept no more submissions; the writer ends when its queue is empty."""
        if self._state is _State.OPEN:
            self._state = _State.CLOSING
        self._start_batch_if_due()

    def abandon(self) -> None:
        """End after the batch that is being written, and drop the queue, of which nothing was acknowledged."""
        self._state = _State.ABANDONED
        self._start_batch_if_due()

    @property
    def is_closed(self) -> bool:
        """Whether submissions are refused."""
        return self._state is not _State.OPEN

    async def until_ended(self) -> None:
        """Wait until the writer has ended; call ``close`` first."""
        await self._ended.wait()

    # --- batches ---

    def _start_batch_if_due(self) -> None:
        if self._batch is not None:
            return
        if self._state is _State.ABANDONED:
            self._ended.set()
            return
        if self._paused:
            return
        closing = self._state is _State.CLOSING
        if self._queue or (self._lazy and (self._urgent or closing or not self._delay)):
            self._start_batch()
        elif self._lazy:
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._delay, self.hurry)
        elif closing:
            self._ended.set()

    def _start_batch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queued, self._queue = self._queue, deque()
        lazy, self._lazy = self._lazy, {}
        self._bytes = 0
        self._urgent = False
        began = time.monotonic()
        batch = CommitBatch(began, queued[0][2] if queued else began)
        try:
            for submission, _, _ in queued:
                batch.add(submission)
            batch.firm = len(batch.submissions)
            for submission in lazy:
                batch.add(submission)
        except Exception as error:  # noqa: BLE001 - becomes the failure that every submission is told
            self._fail(
                [*(submission for submission, _, _ in queued), *lazy], internal_error("append to journal", error)
            )
            return
        self._room.set()
        if not batch.frames:
            self._start_batch_if_due()
            return
        self._batch = batch
        self._thread.commit(batch.frames)

    def _on_outcome(self, outcome: Outcome) -> None:
        batch, self._batch = self._batch, None
        if batch is None:
            # The writer has failed meanwhile, and has refused the submissions.
            return
        if batch.is_probe:
            self._take_probe(outcome)
            return
        if isinstance(outcome, BaseException):
            self._refuse(batch, outcome)
            return
        # Check before anything is acknowledged: no start would find data in a file without a name. Do not check at each
        # commit: a system call releases the interpreter lock, and taking it back from the commit thread costs a client
        # with one event in flight a fifth of its wait.
        if batch.began >= self._look_due:
            self._look_due = batch.began + LOOK_SECONDS
            if (loss := self._journal.is_lost()) is not None:
                self._fail(batch.submissions, loss)
                return
        self._note_disk(None)
        if self.full:
            self.full = False
            seconds = round(time.monotonic() - self._full_since, 3)
            log.warning(telemetry.JOURNAL_RESUMED, seconds=seconds, refused_batches=self._refused)
        self._batches += 1
        self._frames += len(batch.frames)
        self._written += batch.bytes
        self._events += batch.events
        self._decisions += batch.decisions
        self.meter.note(self._thread.last_seconds, batch.bytes, batch.events)
        durable = iter(zip(batch.submissions, outcome, strict=True))
        try:
            for submission, position in durable:
                submission.on_durable(position)
        except Exception as error:  # noqa: BLE001 - as above
            # Stop: the remaining submissions are durable but do not learn it. The next start finds them.
            self._fail([submission for submission, _ in durable], internal_error("append to journal", error))
            return
        if outcome[-1].segment != self._segment:
            self._segment = outcome[-1].segment
            self.on_segment()
        self._start_batch_if_due()

    def _refuse(self, batch: CommitBatch, outcome: BaseException) -> None:
        if isinstance(outcome, JournalFull) and not batch.is_last_attempt and (room := self.make_room()) is not None:
            batch.is_last_attempt = True
            # Count it as being written: no other batch may come before it.
            self._batch = batch
            self._making_room = asyncio.get_running_loop().create_task(self._try_again(batch, room))
            return
        self._refused += 1
        error = outcome if isinstance(outcome, ErgoCaptureError) else internal_error("append to journal", outcome)
        if not isinstance(error, JournalFull):
            self._fail(batch.submissions, error)
            return
        if not self.full:
            self.full = True
            self._full_since = time.monotonic()
            log.error(telemetry.JOURNAL_FULL, error=error.message, path=error.path, hint=error.hint)
        self._lazy = dict.fromkeys(batch.submissions[batch.firm :]) | self._lazy
        # Pause: the disk is probably still full, and each attempt has a cost.
        self._paused = True
        asyncio.get_running_loop().call_later(self._retry_delay, self._resume)
        for submission in batch.submissions[: batch.firm]:
            submission.on_refused(error)
        self._start_batch_if_due()

    async def _try_again(self, batch: CommitBatch, room: Awaitable[object]) -> None:
        """Write a batch again when room has been made."""
        await room
        if self._batch is batch:
            self._thread.commit(batch.frames)

    def _resume(self) -> None:
        self._paused = False
        self._start_batch_if_due()

    def fail(self, error: ErgoCaptureError) -> None:
        """Refuse everything that is under way or queued, and end: the journal cannot be relied on any more."""
        if not self._ended.is_set():
            batch, self._batch = self._batch, None
            self._fail(() if batch is None else batch.submissions, error)

    def _fail(self, under_way: Iterable[Submission], error: ErgoCaptureError) -> None:
        """Refuse everything that is under way or queued, and end."""
        self._state = _State.ABANDONED
        self.failure = error
        for submission in (*under_way, *(queued[0] for queued in self._queue), *self._lazy):
            submission.on_refused(error)
        self._queue.clear()
        self._lazy.clear()
        self._room.set()
        self._ended.set()

    # --- the disk ---

    def probe(self, write: Callable[[], None]) -> None:
        """Test whether the disk can be written, unless a commit has shown it since the last call.

        Args:
            write: writes and syncs something. It is called in the commit thread, so a write that hangs counts as a
                stalled commit.
        """
        commits, self._probed_at = self._probed_at, self._batches
        if self._batch is None and self._state is _State.OPEN and not self._paused and commits == self._batches:
            now = time.monotonic()
            self._batch = CommitBatch(now, now, is_probe=True)
            self._thread.call(write)

    def _take_probe(self, outcome: Outcome) -> None:
        error = None
        if isinstance(outcome, BaseException):
            error = outcome if isinstance(outcome, ErgoCaptureError) else internal_error("probe the disk", outcome)
        self._note_disk(error)
        self._start_batch_if_due()

    def _note_disk(self, error: ErgoCaptureError | None) -> None:
        """Note whether the disk can be written, and log each change."""
        if error is not None and self.disk_error is None:
            log.error(telemetry.DISK_UNWRITABLE, error=error.message, path=error.path, hint=error.hint)
        elif error is None and self.disk_error is not None:
            log.warning(telemetry.DISK_WRITABLE)
        self.disk_error = None if error is None else error.message

    # --- inspection ---

    @property
    def busy_seconds(self) -> float:
        """Seconds since the batch that is being written began; zero where there is none."""
        return 0.0 if self._batch is None else time.monotonic() - self._batch.began

    def snapshot(self) -> WriterSnapshot:
        """Return the writer's current state."""
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
            disk_error=self.disk_error,
        )
