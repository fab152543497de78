"""The commit thread and its pipes."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.daemons import short_directory
from tests.journal.journals import journal_in
from tests.server.commit.writers import frame, until

from ergo_capture.journal.frame import Position
from ergo_capture.server.commit.commit_thread import CommitThread

DESCRIPTORS = Path("/proc/self/fd")


async def test_outcomes_come_in_order_on_the_loop() -> None:
    """Positions of a batch, an empty list of a call, and whatever either raises."""
    outcomes: list[Any] = []
    with short_directory() as place:
        journal = journal_in(place)
        thread = CommitThread(journal, lambda outcome: outcomes.append((threading.current_thread(), outcome)))
        before = len(list(DESCRIPTORS.iterdir()))
        thread.start(asyncio.get_running_loop())

        def fail() -> None:
            raise KeyboardInterrupt

        thread.commit([frame(1), frame(2)])
        await until(lambda: len(outcomes) == 1)
        thread.call(fail)
        await until(lambda: len(outcomes) == 2)
        seconds = thread.last_seconds
        thread.call(lambda: None)
        await until(lambda: len(outcomes) == 3)
        # Only commits are measured.
        assert thread.last_seconds == seconds > 0
        thread.stop()
        journal.close()
        assert len(list(DESCRIPTORS.iterdir())) == before
    assert {which for which, _ in outcomes} == {threading.current_thread()}
    (_, positions), (_, error), (_, nothing) = outcomes
    assert [type(position) for position in positions] == [Position, Position]
    assert isinstance(error, KeyboardInterrupt)
    assert nothing == []


async def test_a_thread_that_is_stopped_does_what_it_was_given_before() -> None:
    """Each wake-up is for one thing to do."""
    released, done = threading.Event(), threading.Event()
    with short_directory() as place:
        journal = journal_in(place)
        thread = CommitThread(journal, lambda _: pytest.fail("no outcome is delivered after the stop"))
        thread.start(asyncio.get_running_loop())

        def hang() -> None:
            released.wait(5)

        thread.call(hang)
        thread.call(done.set)
        timer = threading.Timer(0.02, released.set)
        timer.start()
        thread.stop()
        timer.join()
        assert done.is_set()
        journal.close()
