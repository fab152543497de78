"""The writer on a disk that fails, is full, or becomes unwritable while nothing is committed."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Awaitable
from typing import Any

import pytest
import structlog
from tests.doubles.faulty_storage import FaultyStorage
from tests.doubles.gated_storage import GatedStorage
from tests.server.commit.writers import NEVER, Recorder, frame, running_writer, until

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.errors import JournalFailed, JournalFull, JournalLost
from ergo_capture.journal.frame import Position
from ergo_capture.journal.wal import Journal

# --- it fails ---


async def test_p7_a_failed_sync_refuses_what_is_under_way_and_what_is_queued() -> None:
    """P7: the writer ends, and later submissions get the same error."""
    storage = GatedStorage()
    async with running_writer(storage, decision_delay=NEVER, queue_frames=1) as writer:
        await writer.append(frame())
        under_way, queued, lazy = Recorder(frame()), Recorder(frame()), Recorder(frame())
        with storage.gate("sync", ".journal"):
            writer.submit(under_way, 72)
            await storage.until_held()
            storage.fail_next("sync", errno.EIO)
            writer.submit(queued, 72)
            writer.submit_lazily(lazy)
            waiter = asyncio.create_task(writer.room())
            await asyncio.sleep(0.01)
        await writer.until_ended()
        await waiter
        assert isinstance(writer.failure, JournalFailed)
        assert under_way.outcomes == queued.outcomes == lazy.outcomes == [writer.failure]
        assert writer.snapshot().failed == writer.failure.message
        snapshot = writer.snapshot()
        assert (snapshot.refused_batches, snapshot.batches, snapshot.queued, snapshot.full) == (1, 1, 0, False)
        assert writer.is_closed
        assert writer.has_room
        with pytest.raises(JournalFailed):
            writer.check()
        with pytest.raises(JournalFailed):
            await writer.append(frame())
        late = Recorder(frame())
        writer.submit_lazily(late, urgent=True)
        writer.hurry()
        writer.close()
        writer.abandon()
        assert (late.outcomes, writer.snapshot().committing, writer.snapshot().queued) == ([], False, 0)
        with pytest.raises(JournalFailed):
            writer.check()


async def test_an_unexpected_error_of_the_journal_refuses_the_batch_with_a_hint() -> None:
    """The error is not one that the journal expects."""

    class Broken(Journal):
        def write(self, _batch: Any) -> list[Position]:
            raise MemoryError("none left")

    async with running_writer(kind=Broken) as writer:
        submission = Recorder(frame())
        writer.submit(submission, 72)
        error = await submission.until_told()
        assert error.message == "append to journal: MemoryError: none left"
        assert error is writer.failure
        await writer.until_ended()


async def test_nothing_is_told_to_be_durable_once_the_files_are_gone() -> None:
    """No start would find the frames."""
    async with running_writer() as writer:
        await writer.append(frame())
        loss = JournalLost("the segment was removed")
        writer._journal.is_lost = lambda: loss  # type: ignore[method-assign]
        writer._look_due = 0.0
        submissions = [Recorder(frame()), Recorder(frame())]
        for submission in submissions:
            writer.submit(submission, 72)
        await writer.until_ended()
        assert [submission.outcomes for submission in submissions] == [[loss]] * 2
        assert writer.failure is loss
        assert writer.snapshot().batches == 1


async def test_a_failure_found_elsewhere_refuses_everything() -> None:
    """The batch under way is refused too, and its outcome ignored; all get the first failure."""
    storage = GatedStorage()
    async with running_writer(storage) as writer:
        under_way, queued = Recorder(frame()), Recorder(frame())
        failure = JournalLost("the segment was removed")
        with storage.gate("sync", ".journal"):
            writer.submit(under_way, 72)
            await storage.until_held()
            writer.submit(queued, 72)
            writer.fail(failure)
            writer.fail(JournalLost("again"))
        await writer.until_ended()
        assert under_way.outcomes == queued.outcomes == [failure]
        assert writer.failure is failure
        assert writer.snapshot().batches == 0


async def test_a_failure_of_an_idle_writer_ends_it() -> None:
    """No submission has to be refused."""
    async with running_writer() as writer:
        writer.fail(JournalLost("the segment was removed"))
        await writer.until_ended()
        assert writer.is_closed


async def test_an_error_after_the_end_is_none_of_the_writers() -> None:
    """Everything is durable by then."""
    async with running_writer() as writer:
        await writer.append(frame())
    writer.fail(JournalLost("the segment was removed"))
    assert writer.failure is None


async def test_a_waiter_that_was_cancelled_is_not_told() -> None:
    """It is told neither that its frame is durable nor that it was refused."""
    storage = GatedStorage()
    async with running_writer(storage) as writer:
        for outcome in ("durable", "refused"):
            with storage.gate("sync", ".journal"):
                waiter = asyncio.create_task(writer.append(frame()))
                await until(lambda: writer.snapshot().committing)
                waiter.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiter
                if outcome == "refused":
                    writer.fail(JournalLost("the segment was removed"))
            await until(lambda: not writer.snapshot().committing)
        await writer.until_ended()
        assert isinstance(writer.failure, JournalLost)
        assert writer.snapshot().batches == 1


# --- it is full ---


async def test_p8_a_full_disk_refuses_what_was_submitted_and_keeps_decisions() -> None:
    """They are written before those that came meanwhile, once there is room; the log says when it began and ended."""
    storage = GatedStorage()
    async with running_writer(storage, decision_delay=NEVER, retry_delay=0.02) as writer:
        with structlog.testing.capture_logs() as logged:
            submitted, lazy = [Recorder(frame()), Recorder(frame())], [Recorder(frame()), Recorder(frame())]
            with storage.gate("sync", ".journal"):
                writer.submit(Recorder(frame()), 72)
                await storage.until_held()
                storage.fail_next("write", errno.ENOSPC, errno.EDQUOT)
                for decision in lazy:
                    writer.submit_lazily(decision)
                for submission in submitted:
                    writer.submit(submission, 72)
                began = time.monotonic()
            errors = [await submission.until_told() for submission in submitted]
            assert {type(error) for error in errors} == {JournalFull}
            assert writer.failure is None
            snapshot = writer.snapshot()
            assert (snapshot.full, snapshot.refused_batches, snapshot.queued) == (True, 1, 2)
            assert [each.outcomes for each in lazy] == [[], []]
            # Nothing is tried before the delay is over.
            behind, later = Recorder(frame()), Recorder(frame())
            writer.submit_lazily(later)
            writer.submit(behind, 72)
            writer.hurry()
            assert writer.snapshot().committing is False
            assert isinstance(await behind.until_told(), JournalFull)
            assert time.monotonic() - began >= 0.02
            await writer.append(frame())
            seconds = time.monotonic() - began
            assert seconds >= 0.04
        order = [each.outcomes[0] for each in (*lazy, later)]
        assert order == sorted(order)
        assert writer.snapshot().full is False
    assert [(line["event"], line["log_level"]) for line in logged] == [
        ("journal.full", "error"),
        ("journal.resumed", "warning"),
    ]
    full, resumed = logged
    assert (full["error"], full["path"], full["hint"]) == (errors[0].message, errors[0].path, errors[0].hint)
    assert resumed["refused_batches"] == 2
    assert 0.039 <= resumed["seconds"] <= seconds + 0.001
    assert resumed["seconds"] == round(resumed["seconds"], 3)


async def test_appending_waits_while_the_disk_is_full() -> None:
    """The frame is refused each time, and submitted again."""
    storage = FaultyStorage({"write": [errno.ENOSPC] * 3})
    async with running_writer(storage, retry_delay=0.001) as writer:
        assert isinstance(await writer.append(frame()), Position)
        snapshot = writer.snapshot()
        assert (snapshot.refused_batches, snapshot.batches, snapshot.full) == (3, 1, False)


async def test_a_full_disk_does_not_keep_the_writer_from_its_end() -> None:
    """It tries once more when the delay is over."""
    storage = FaultyStorage()
    async with running_writer(storage, retry_delay=0.02) as writer:
        storage.fail_next("write", errno.ENOSPC)
        refused, lazy = Recorder(frame()), Recorder(frame())
        writer.submit(refused, 72)
        writer.submit_lazily(lazy)
        await refused.until_told()
    assert lazy.is_durable


async def test_an_abandoned_writer_ends_though_the_disk_is_full() -> None:
    """It does not wait for the next attempt."""
    storage = FaultyStorage()
    async with running_writer(storage, retry_delay=NEVER) as writer:
        storage.fail_next("write", errno.ENOSPC)
        refused = Recorder(frame())
        writer.submit(refused, 72)
        await refused.until_told()
        writer.abandon()
        await writer.until_ended()


@pytest.mark.parametrize("helps", [True, False])
async def test_room_is_made_before_a_batch_is_refused(*, helps: bool) -> None:
    """This is done once for each batch; no other batch is written before it."""
    storage = FaultyStorage()
    made: list[float] = []

    async def make() -> None:
        await asyncio.sleep(0.02)
        made.append(time.monotonic())

    async with running_writer(storage, decision_delay=NEVER, retry_delay=NEVER) as writer:
        writer.make_room = make
        storage.fail_next("write", errno.ENOSPC, *([] if helps else [errno.ENOSPC]))
        submission, lazy, behind = Recorder(frame()), Recorder(frame()), Recorder(frame())
        with structlog.testing.capture_logs() as logged:
            writer.submit_lazily(lazy)
            writer.submit(submission, 72)
            await until(lambda: any(call.startswith("-write") for call in storage.calls))
            await asyncio.sleep(0.01)
            writer.submit(behind, 72)
            assert writer.snapshot().committing
            outcome = await submission.until_told()
        assert len(made) == 1
        if helps:
            assert await behind.until_told() > outcome
            assert lazy.is_durable
            assert (logged, writer.snapshot().full, writer.snapshot().refused_batches) == ([], False, 0)
        else:
            assert isinstance(outcome, JournalFull)
            assert (lazy.outcomes, behind.outcomes) == ([], [])
            assert (writer.snapshot().full, writer.snapshot().refused_batches) == (True, 1)
            writer.abandon()


async def test_a_failure_while_room_is_made_is_the_end_of_the_batch() -> None:
    """The batch is refused, and not written again."""
    storage = FaultyStorage({"write": [errno.ENOSPC]})
    making = asyncio.Event()

    def make() -> Awaitable[object]:
        return making.wait()

    async with running_writer(storage) as writer:
        writer.make_room = make
        submission = Recorder(frame())
        writer.submit(submission, 72)
        await until(lambda: writer._making_room is not None)
        loss = JournalLost("the segment was removed")
        writer.fail(loss)
        assert submission.outcomes == [loss]
        making.set()
        await writer.until_ended()
        await asyncio.sleep(0.01)
    assert [call for call in storage.calls if "write" in call] == ["-write 0000000000000001.journal"]


# --- it is tested while nothing is committed ---


async def test_a_probe_writes_in_the_commit_thread_and_logs_each_change() -> None:
    """The error is in the state until a probe or a commit succeeds."""
    names: list[str] = []
    errors: list[BaseException | None] = [None]

    def write() -> None:
        names.append(threading.current_thread().name)
        if errors[0] is not None:
            raise errors[0]

    async def probe() -> str | None:
        before = len(names)
        writer.probe(write)
        assert writer.snapshot().committing
        await until(lambda: len(names) > before and not writer.snapshot().committing)
        return writer.snapshot().disk_error

    async with running_writer() as writer:
        with structlog.testing.capture_logs() as logged:
            assert await probe() is None
            errors[0] = ErgoCaptureError("write 'probe': no", path="probe", hint="look at the disk")
            assert await probe() == "write 'probe': no"
            errors[0] = RuntimeError("a defect")
            for _ in range(2):
                assert await probe() == "probe the disk: RuntimeError: a defect"
            errors[0] = None
            assert await probe() is None
            errors[0] = OSError(errno.EIO, "no")
            assert await probe() == "probe the disk: OSError: [Errno 5] no"
            await writer.append(frame())
            assert writer.snapshot().disk_error is None
        snapshot = writer.snapshot()
    assert set(names) == {"ergo-capture-commit"}
    assert (snapshot.batches, snapshot.failed, writer.meter.snapshot().seconds.total) == (1, None, 1)
    assert [(line["event"], line["log_level"]) for line in logged] == [
        ("disk.unwritable", "error"),
        ("disk.writable", "warning"),
        ("disk.unwritable", "error"),
        ("disk.writable", "warning"),
    ]
    assert (logged[0]["error"], logged[0]["path"], logged[0]["hint"]) == (
        "write 'probe': no",
        "probe",
        "look at the disk",
    )


async def test_what_is_submitted_during_a_probe_is_committed_after_it() -> None:
    """A write that hangs counts as a stalled commit."""
    released = threading.Event()
    async with running_writer() as writer:

        def hang() -> None:
            released.wait(5)

        writer.probe(hang)
        submission = Recorder(frame())
        writer.submit(submission, 72)
        await asyncio.sleep(0.02)
        assert submission.outcomes == []
        assert 0.02 <= writer.busy_seconds < 5
        assert 0.02 <= writer.snapshot().oldest_undurable_seconds < 5
        released.set()
        await submission.until_told()
        assert submission.is_durable


async def test_the_disk_is_not_probed_when_a_commit_has_shown_that_it_works() -> None:
    """A commit since the last call counts. No probe starts during a commit, on a full disk, or after the end."""
    storage = GatedStorage()
    async with running_writer(storage, retry_delay=0.02) as writer:
        probes: list[None] = []

        def write() -> None:
            probes.append(None)

        async def probed() -> bool:
            """Return whether a call probes."""
            before = len(probes)
            writer.probe(write)
            await until(lambda: not writer.snapshot().committing)
            return len(probes) > before

        assert await probed()
        await writer.append(frame())
        assert not await probed()
        assert await probed()
        with storage.gate("sync", ".journal"):
            writer.submit(Recorder(frame()), 72)
            await storage.until_held()
            writer.probe(write)
        await until(lambda: not writer.snapshot().committing)
        assert len(probes) == 2
        assert not await probed()
        storage.fail_next("write", errno.ENOSPC)
        full = Recorder(frame())
        writer.submit(full, 72)
        await full.until_told()
        assert not await probed()
        await asyncio.sleep(0.03)
        assert await probed()
        writer.close()
        assert not await probed()


async def test_a_writer_that_is_closed_during_a_probe_ends_after_it() -> None:
    """The queue is empty."""
    async with running_writer() as writer:
        writer.probe(lambda: time.sleep(0.01))
        writer.close()
        await writer.until_ended()
        assert not writer.snapshot().committing
