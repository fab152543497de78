"""The notifier wakes the tasks that wait when it is called, and only those; and the rule for primitives that it states."""

from __future__ import annotations

import ast
import asyncio

from tests.shared import REPOSITORY

from ergo_capture.notifier import Notifier

#: The classes that each library leaves to the other one, by the rule in ``notifier.py``.
UNUSED = {
    "anyio": {"Condition", "Event", "Lock", "Semaphore"},
    "asyncio": {"Condition", "TaskGroup", "timeout", "wait_for"},
}


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


def test_asyncio_shares_state_and_anyio_bounds_tasks() -> None:
    """No file uses a primitive that the rule leaves to the other library."""
    for path in (REPOSITORY / "daemon").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.attr not in UNUSED.get(node.value.id, ()), f"{path.name}:{node.lineno}"
