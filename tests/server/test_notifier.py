"""The notifier wakes the tasks that wait when it is called, and only those."""

from __future__ import annotations

import asyncio

from ergo_capture.notifier import Notifier


async def test_notify_all_wakes_every_waiting_task() -> None:
    """Each of three waits ends."""
    notifier = Notifier()
    waits = [notifier.wait() for _ in range(3)]
    notifier.notify_all()
    assert all(wait.done() for wait in waits)


async def test_a_notification_is_not_remembered() -> None:
    """A wait that begins after a notification lasts until the next one."""
    notifier = Notifier()
    notifier.notify_all()
    late = notifier.wait()
    await asyncio.sleep(0)
    assert not late.done()
    notifier.notify_all()
    await late


async def test_a_cancelled_wait_does_not_disturb_the_others() -> None:
    """The other task is woken; the cancelled wait is dropped when the next one begins."""
    notifier = Notifier()
    cancelled, patient = notifier.wait(), notifier.wait()
    cancelled.cancel()
    later = notifier.wait()
    assert notifier._waiters == [patient, later]
    later.cancel()
    notifier.notify_all()
    await patient
