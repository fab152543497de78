"""The writer: what becomes one batch and when, how callers wait, and how it ends."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import anyio
import pytest
from tests.daemons import short_directory
from tests.doubles.gated_storage import GatedStorage
from tests.journal.journals import journal_in
from tests.server.commit.writers import NEVER, Recorder, frame, running_writer, until, writer_on

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.frame import FrameKind, Position
from ergo_capture.journal.wal import Journal
from ergo_capture.server.commit.writer import LOOK_SECONDS, WriterClosed
from ergo_capture.storage import RealStorage

# --- batches ---


async def test_what_is_queued_during_a_sync_becomes_the_next_batch() -> None:
    """The order is that of submission, and the number does not matter."""
    storage = GatedStorage()
    async with running_writer(storage) as writer:
        first, behind = Recorder(frame(1)), [Recorder(frame(number)) for number in range(2, 5)]
        with storage.gate("sync", ".journal"):
            writer.submit(first, 72)
            await storage.until_held()
            for submission in behind:
                writer.submit(submission, 72)
            assert writer.snapshot().batches == 0
        assert [await each.until_told() for each in (first, *behind)] == sorted(
            outcome for each in (first, *behind) for outcome in each.outcomes
        )
        snapshot = writer.snapshot()
    assert (snapshot.batches, snapshot.frames, snapshot.bytes_written) == (2, 4, 4 * 72)


async def test_nothing_is_written_before_the_writer_runs() -> None:
    """The journal's thread does not run yet; what waits is written when it starts."""
    with short_directory() as place:
        journal = journal_in(place)
        writer = writer_on(journal)
        early, lazy = Recorder(frame()), Recorder(frame())
        writer.submit(early, 72)
        writer.submit_lazily(lazy, urgent=True)
        assert (writer.snapshot().committing, writer.snapshot().queued) == (False, 2)
        writer.close()
        with anyio.fail_after(5):
            await writer.run()
        journal.close()
    assert early.is_durable
    assert lazy.is_durable
    assert writer.snapshot().batches == 1


async def test_a_submission_without_a_frame_is_left_out_of_its_batch() -> None:
    """Another batch had its data; it is told nothing. A batch of such submissions only is not written."""
    async with running_writer(decision_delay=NEVER) as writer:
        empty, full = Recorder(None), Recorder(frame())
        writer.submit_lazily(empty, urgent=True)
        assert writer.snapshot().committing is False
        writer.submit(empty, 0)
        writer.submit(full, 72)
        await full.until_told()
        assert empty.outcomes == []
        assert writer.snapshot().batches == 1
        writer.submit_lazily(empty)
    assert writer.is_closed
    assert writer.snapshot().batches == 1


async def test_a_snapshot_counts_what_became_durable() -> None:
    """Events and decisions by the counts of their frames; other frames count as frames only."""
    async with running_writer() as writer:
        assert writer.snapshot().last_commit_seconds == 0
        for kind, count in [
            (FrameKind.OPEN, 1),
            (FrameKind.EVENTS, 5),
            (FrameKind.EVENTS, 2),
            (FrameKind.DECISIONS, 3),
            (FrameKind.DECISIONS, 1),
        ]:
            writer.submit(Recorder(frame(1, kind, count, size=32)), 96)
        await until(lambda: writer.snapshot().frames == 5)
        snapshot = writer.snapshot()
    assert (snapshot.batches, snapshot.bytes_written) == (2, 5 * 96)
    assert (snapshot.events, snapshot.decisions) == (7, 4)
    assert 0 < snapshot.last_commit_seconds < 5
    assert (snapshot.refused_batches, snapshot.full, snapshot.failed, snapshot.disk_error) == (0, False, None, None)
    meter = writer.meter.snapshot()
    assert (meter.bytes.total, meter.bytes.sum, meter.events.sum) == (2, 5 * 96, 7)
    assert meter.seconds.sum >= snapshot.last_commit_seconds


async def test_a_snapshot_says_what_waits_and_since_when() -> None:
    """The oldest is in the batch that is being written; once that is durable, it is in the queue."""
    storage = GatedStorage()
    async with running_writer(storage, decision_delay=NEVER) as writer:
        idle = writer.snapshot()
        assert (idle.queued, idle.queued_bytes, idle.committing, idle.oldest_undurable_seconds) == (0, 0, False, 0)
        assert writer.busy_seconds == 0
        with storage.gate("sync", ".journal"):
            writer.submit(Recorder(frame()), 72)
            began = time.monotonic()
            await storage.until_held()
            await asyncio.sleep(0.02)
            writer.submit(Recorder(frame()), 100)
            writer.submit(Recorder(frame()), 11)
            writer.submit_lazily(Recorder(frame()))
            busy, seconds = writer.snapshot(), time.monotonic() - began
            assert 0.02 <= writer.busy_seconds <= 5
        assert (busy.queued, busy.queued_bytes, busy.committing) == (3, 111, True)
        assert busy.oldest_undurable_seconds >= 0.02
        assert abs(busy.oldest_undurable_seconds - seconds) < 1
        await until(lambda: writer.snapshot().batches == 2)
        assert (writer.snapshot().queued_bytes, writer.snapshot().oldest_undurable_seconds) == (0, 0)


async def test_the_age_of_the_oldest_submission_counts_from_when_it_was_queued() -> None:
    """It does not count from the beginning of its batch, or from a later submission."""
    storage = GatedStorage()
    async with running_writer(storage) as writer:
        with storage.gate("sync", ".journal"):
            writer.submit(Recorder(frame()), 72)
            await storage.until_held()
            writer.submit(Recorder(frame()), 72)
            await asyncio.sleep(0.02)
            writer.submit(Recorder(frame()), 72)
        with storage.gate("sync", ".journal"):
            await until(lambda: writer.snapshot().batches == 1)
            assert writer.snapshot().oldest_undurable_seconds >= 0.02
    with short_directory() as place:
        journal = journal_in(place)
        writer = writer_on(journal)
        writer.submit(Recorder(frame()), 72)
        await asyncio.sleep(0.02)
        writer.submit(Recorder(frame()), 72)
        assert 0.02 <= writer.snapshot().oldest_undurable_seconds < 5
        journal.close()


async def test_a_commit_in_a_new_segment_is_reported() -> None:
    """It is reported once for each segment, after its submissions are told."""
    async with running_writer(segment_bytes=4096) as writer:
        reported: list[int] = []
        positions: list[Position] = []
        writer.on_segment = lambda: reported.append(len(positions))
        for number in range(5):
            position = await writer.append(frame(number, size=1500))
            positions.append(position)
    assert [position.segment for position in positions] == [1, 1, 2, 2, 3]
    assert reported == [0, 2, 4]


# --- decisions ---


async def test_decisions_wait_for_an_event_and_share_its_sync() -> None:
    """They are asked for their frame when the batch is made, once, however often they were submitted."""
    async with running_writer(decision_delay=NEVER) as writer:
        lazy, event = Recorder(frame(1)), Recorder(frame(2))
        writer.submit_lazily(lazy)
        writer.submit_lazily(lazy)
        await asyncio.sleep(0.01)
        assert (writer.snapshot().committing, writer.snapshot().queued) == (False, 1)
        lazy.frame = frame(3, FrameKind.DECISIONS, 7)
        writer.submit(event, 72)
        await event.until_told()
        assert lazy.is_durable
        # The event comes first.
        assert event.outcomes[0].offset < lazy.outcomes[0].offset
        snapshot = writer.snapshot()
        assert (snapshot.batches, snapshot.frames, snapshot.decisions, snapshot.queued) == (1, 2, 7, 0)


@pytest.mark.parametrize("how", ["urgent", "urgent before", "hurry", "hurry before", "no delay", "delay", "close"])
async def test_decisions_alone_are_committed(how: str) -> None:
    """They are committed at once if a task waits for them, otherwise after the delay, and at the end."""
    delay = {"no delay": 0.0, "delay": 0.01}.get(how, NEVER)
    async with running_writer(decision_delay=delay) as writer:
        lazy = Recorder(frame())
        if how == "urgent before":
            writer.submit_lazily(Recorder(None), urgent=True)
            writer.submit_lazily(lazy, urgent=True)
            writer.submit_lazily(Recorder(frame()))
        elif how == "hurry before":
            writer.hurry()
            writer.submit_lazily(lazy)
        else:
            writer.submit_lazily(lazy, urgent=how == "urgent")
        # It is the delay of the first one that counts.
        assert writer.snapshot().committing == (how not in {"hurry", "delay", "close"})
        if how == "hurry":
            writer.hurry()
        if how != "close":
            await lazy.until_told()
    assert lazy.is_durable


async def test_only_the_batch_of_an_urgent_decision_is_hurried() -> None:
    """The decisions after it wait for an event again; each delay begins with the first that waits."""
    async with running_writer(decision_delay=0.05) as writer:
        urgent = Recorder(frame())
        writer.submit_lazily(urgent, urgent=True)
        await urgent.until_told()
        for _ in range(2):
            lazy = Recorder(frame())
            began = time.monotonic()
            writer.submit_lazily(lazy)
            assert writer.snapshot().committing is False
            await asyncio.sleep(0.03)
            writer.submit_lazily(Recorder(None))
            await lazy.until_told()
            assert time.monotonic() - began >= 0.05


async def test_the_delay_of_decisions_that_an_event_took_along_is_over() -> None:
    """Later decisions get a whole delay of their own."""
    async with running_writer(decision_delay=0.05) as writer:
        writer.submit_lazily(Recorder(frame()))
        await asyncio.sleep(0.03)
        await writer.append(frame())
        began = time.monotonic()
        lazy = Recorder(frame())
        writer.submit_lazily(lazy)
        await lazy.until_told()
        assert time.monotonic() - began >= 0.05


# --- waiting for room ---


@pytest.mark.parametrize("limit", [{"queue_bytes": 100}, {"queue_frames": 2}], ids=str)
async def test_callers_wait_while_the_queue_is_full(limit: dict[str, Any]) -> None:
    """The limit is in bytes or in submissions; callers wait until a batch takes the queue."""
    storage = GatedStorage()
    async with running_writer(storage, **limit) as writer:
        with storage.gate("sync", ".journal"):
            writer.submit(Recorder(frame()), 1000)
            await storage.until_held()
            await writer.room()
            rooms = [writer.has_room]
            for size in (60, 40):
                writer.submit(Recorder(frame()), size)
                rooms.append(writer.has_room)
            assert rooms == [True, True, False]
            waiter = asyncio.create_task(writer.room())
            await asyncio.sleep(0.01)
            assert not waiter.done()
        await waiter
        assert writer.has_room


async def test_a_waiter_whose_room_another_one_took_waits_again() -> None:
    """One batch makes room for one of three."""
    storage = GatedStorage()
    async with running_writer(storage, queue_frames=1) as writer, anyio.create_task_group() as tasks:
        sent: list[bool] = []

        async def send() -> None:
            await writer.room()
            sent.append(writer.has_room)
            writer.submit(Recorder(frame()), 72)

        with storage.gate("sync", ".journal"):
            writer.submit(Recorder(frame()), 72)
            await storage.until_held()
            writer.submit(Recorder(frame()), 72)
            for _ in range(3):
                tasks.start_soon(send)
            await asyncio.sleep(0.01)
            assert sent == []
        await until(lambda: len(sent) == 3)
        assert sent == [True] * 3


# --- the end ---


async def test_closing_commits_what_is_queued_and_ends() -> None:
    """Submissions that wait for an event are committed too; later ones are refused."""
    storage = GatedStorage()
    async with running_writer(storage, decision_delay=NEVER) as writer:
        queued, lazy = Recorder(frame()), Recorder(frame())
        with storage.gate("sync", ".journal"):
            writer.submit(Recorder(frame()), 72)
            await storage.until_held()
            writer.submit(queued, 72)
            states = [writer.is_closed]
            writer.close()
            writer.submit_lazily(lazy)
            assert [*states, writer.is_closed] == [False, True]
            for attempt in (writer.check, lambda: writer.submit(Recorder(frame()), 72)):
                with pytest.raises(WriterClosed, match=r"^append to journal: the daemon is stopping$") as raised:
                    attempt()
                assert (raised.value.op, raised.value.hint) == (
                    "append to journal",
                    "what was acknowledged is safe; the next start goes on",
                )
            ended = asyncio.create_task(writer.until_ended())
            await asyncio.sleep(0.01)
            assert not ended.done()
        await ended
        assert queued.is_durable
        assert lazy.is_durable


async def test_an_idle_writer_ends_at_once_when_it_is_closed() -> None:
    """Its thread is gone; while it runs, a disk that hangs does not keep the process from its end."""

    def threads() -> list[bool]:
        return [thread.daemon for thread in threading.enumerate() if thread.name == "ergo-capture-commit"]

    async with running_writer() as writer:
        await writer.append(frame())
        assert threads() == [True]
        writer.close()
        await writer.until_ended()
    assert threads() == []


@pytest.mark.parametrize("closed", [False, True])
async def test_an_abandoned_writer_ends_after_the_batch_that_is_being_written(*, closed: bool) -> None:
    """The queue is dropped: nothing of it was acknowledged, and nothing is said about it."""
    storage = GatedStorage()
    async with running_writer(storage) as writer:
        under_way, queued = Recorder(frame()), Recorder(frame())
        with storage.gate("sync", ".journal"):
            writer.submit(under_way, 72)
            await storage.until_held()
            writer.submit(queued, 72)
            if closed:
                writer.close()
            writer.abandon()
            assert writer.is_closed
            with pytest.raises(WriterClosed):
                writer.check()
            ended = asyncio.create_task(writer.until_ended())
            await asyncio.sleep(0.01)
            assert not ended.done()
        await ended
        assert under_way.is_durable
        assert queued.outcomes == []
        assert writer.snapshot().batches == 1
        # Closing it afterwards changes nothing.
        writer.close()
        assert queued.outcomes == []


# --- failures ---


@pytest.mark.parametrize("fails", ["to_frame", "on_durable"])
async def test_p7_a_defect_in_one_submission_stops_the_writer_and_refuses_the_others(fails: str) -> None:
    """P7: otherwise the other submissions would wait for ever, while the daemon looks healthy."""
    with short_directory() as place:
        journal = journal_in(place)
        writer = writer_on(journal)
        before, broken, behind = Recorder(frame(1)), Recorder(frame(2), fails), Recorder(frame(3))
        lazy = Recorder(frame(4))
        for submission in (before, broken, behind):
            writer.submit(submission, 64)
        writer.submit_lazily(lazy)
        with anyio.fail_after(20):
            await writer.run()
        journal.close()
    assert writer.failure is not None
    assert writer.failure.message == "append to journal: RuntimeError: a defect"
    assert writer.snapshot().failed == writer.failure.message
    assert behind.outcomes == lazy.outcomes == [writer.failure]
    assert len(before.outcomes) == len(broken.outcomes) == 1
    with pytest.raises(ErgoCaptureError, match="a defect"):
        writer.submit(Recorder(frame(5)), 64)


# --- looking at the files ---


async def test_commits_that_follow_one_another_do_not_each_look_at_the_journals_files() -> None:
    """Looking costs a client with one event in flight a fifth of its wait."""
    looks = 0

    class Watched(Journal):
        def is_lost(self) -> None:
            nonlocal looks
            looks += 1

    with short_directory() as place:
        journal, _ = Watched.open(place, RealStorage())
        writer = writer_on(journal)
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.run)
            for number in range(200):
                await writer.append(frame(number))
            seconds = time.monotonic() - began
            assert 1 <= looks <= 1 + seconds / LOOK_SECONDS
            await asyncio.sleep(2 * LOOK_SECONDS)
            looked = looks
            await writer.append(frame(200))
            assert looks == looked + 1
            writer.close()
        journal.close()
