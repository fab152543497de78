"""A pulse: whoever waits is woken, whoever comes later waits for the next one."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ergo_capture.notifier import Pulse


async def test_a_beat_wakes_all_who_wait() -> None:
    """Each of them, and none is left."""
    pulse = Pulse()
    waits = [pulse.wait() for _ in range(3)]
    assert repr(pulse) == "<Pulse, 3 waiting>"
    pulse.beat()
    await asyncio.gather(*waits)
    assert repr(pulse) == "<Pulse, 0 waiting>"


async def test_a_beat_is_not_remembered() -> None:
    """Whoever comes after it waits for the next."""
    pulse = Pulse()
    pulse.beat()
    late = pulse.wait()
    await asyncio.sleep(0)
    assert not late.done()
    pulse.beat()
    await late


async def test_one_that_gives_up_takes_nobody_with_it() -> None:
    """A task that is cancelled in its wait: the others are woken, and it leaves nothing behind."""
    pulse = Pulse()

    async def wait() -> None:
        await pulse.wait()

    patient, impatient = asyncio.create_task(wait()), asyncio.create_task(wait())
    await asyncio.sleep(0)
    impatient.cancel()
    with suppress(asyncio.CancelledError):
        await impatient
    assert repr(pulse) == "<Pulse, 1 waiting>"
    pulse.beat()
    await patient
