"""Segment garbage collection: which segments are deleted, and when."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
from tests.daemons import short_directory
from tests.doubles.faulty_storage import FaultyStorage
from tests.journal.journals import journal_in
from tests.server.commit.writers import frame, until

from ergo_capture.journal.wal import Journal
from ergo_capture.server.commit.segment_gc import SegmentCollector
from ergo_capture.storage import StorageError


@asynccontextmanager
async def four_segments() -> AsyncIterator[tuple[Journal, FaultyStorage, Path]]:
    """Make a journal that writes to its fourth segment."""
    with short_directory() as place:
        storage = FaultyStorage()
        journal = journal_in(place, storage)
        while journal.current_segment < 4:
            journal.commit([frame(size=3000)])
        yield journal, storage, place
        journal.close()


@pytest.mark.parametrize(("oldest", "left"), [(3, [3, 4]), (1, [1, 2, 3, 4]), (None, [4]), (9, [4])])
async def test_segments_before_the_oldest_that_is_needed_are_deleted(oldest: int | None, left: list[int]) -> None:
    """If no session needs any, all but the current one are deleted."""
    async with four_segments() as (journal, _, place):
        await SegmentCollector(journal, lambda: oldest).collect()
        assert list(journal.segments) == left
        names = sorted(path.name for path in place.glob("0*.journal"))
        assert [int(name.removesuffix(".journal")) for name in names] == left


async def test_segments_are_deleted_only_when_it_is_asked_for() -> None:
    """Several requests before a collection count as one."""
    async with four_segments() as (journal, _, _place):
        asked: list[int] = []

        def oldest_needed() -> int:
            asked.append(len(asked) + 2)
            return asked[-1]

        collector = SegmentCollector(journal, oldest_needed)
        task = asyncio.create_task(collector.run())
        await asyncio.sleep(0.005)
        assert asked == []
        for times in (1, 2):
            collector.request()
            collector.request()
            await until(lambda: len(asked) == times)  # noqa: B023 - awaited at once
            await asyncio.sleep(0.005)
        assert asked == [2, 3]
        await until(lambda: list(journal.segments) == [3, 4])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_after_a_failed_deletion_none_is_tried() -> None:
    """A power loss must not leave an older segment without those after it."""
    async with four_segments() as (journal, storage, _):
        storage.fail_next("remove", None, errno.EIO)
        collector = SegmentCollector(journal, lambda: None)
        collector.request()
        with structlog.testing.capture_logs() as logged:
            await asyncio.wait_for(collector.run(), 5)
        assert list(journal.segments) == [2, 3, 4]
        (line,) = logged
        assert (line["event"], line["log_level"]) == ("segment.kept", "error")
        assert line["error"].startswith("remove '")
        assert line["path"].endswith("0000000000000002.journal")
        assert line["hint"] == "the disk reports errors: check the kernel's log before anything else"


async def test_an_error_is_raised_to_who_collects() -> None:
    """The start of the daemon is such a caller."""
    async with four_segments() as (journal, storage, _):
        storage.fail_next("sync_dir", errno.EIO)
        with pytest.raises(StorageError):
            await SegmentCollector(journal, lambda: 2).collect()
