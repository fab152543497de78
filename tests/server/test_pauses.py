"""Time limits that do not count the time in which the process did not run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from tests.daemons import running_daemon, short_directory

from ergo_capture.client import CaptureClient
from ergo_capture.pauses import clock, move_on_after, within
from ergo_capture.server.ops import control

#: Long enough to count as a pause.
PAUSE_SECONDS = 1.8


async def pause() -> None:
    """Do not run for a while, as a suspended process; a moment before, so that the clock has beaten."""
    await asyncio.sleep(0.01)
    time.sleep(PAUSE_SECONDS)  # noqa: ASYNC251 - the loop must not run


@asynccontextmanager
async def beating() -> AsyncIterator[None]:
    """Let the process's clock notice pauses."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clock.beat, lambda _seconds: None)
        await asyncio.sleep(0)
        yield
        tasks.cancel_scope.cancel()


async def test_a_limit_stands_still_in_a_pause() -> None:
    """It goes on after the pause."""
    async with beating():
        with move_on_after(1.0) as limit:
            await pause()
            await asyncio.sleep(0.2)
        assert not limit.cancelled_caught
        with move_on_after(0.1) as limit:
            await asyncio.sleep(60)
        assert limit.cancelled_caught


async def test_what_is_awaited_within_a_limit_is_awaited_once() -> None:
    """A pause does not begin it again."""
    begun = 0

    async def wait() -> str:
        nonlocal begun
        begun += 1
        await pause()
        await asyncio.sleep(0.1)
        return "done"

    async with beating():
        assert await within(0.5, wait) == "done"
        assert begun == 1
        with pytest.raises(TimeoutError):
            await within(0.1, lambda: asyncio.sleep(60))


async def test_an_operator_whose_daemon_was_suspended_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control socket keeps the connection."""
    monkeypatch.setattr(control, "IDLE_SECONDS", 1.0)
    async with running_daemon() as daemon, daemon.control() as wire:
        await pause()
        await asyncio.sleep(0.1)
        await wire.say({"command": "status"})
        assert (await wire.read())["type"] == "status"


async def test_a_client_that_was_suspended_tries_again_for_as_long_as_it_was_to() -> None:
    """It looks for a daemon that was started meanwhile."""
    gone = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b'{"type":"welcome","protocol":"ergo-capture.v1","limits":{}}\n')
        await reader.readline()
        if gone.is_set():
            writer.write(b'{"type":"opened","session":"s","accepted":0,"last_event_id":null}\n')
            await reader.read()
        gone.set()
        writer.close()

    with short_directory() as place:
        path = place / "capture.sock"
        first = await asyncio.start_unix_server(answer, str(path))
        async with CaptureClient(path, give_up_after=1.5) as client:
            opening = asyncio.create_task(client.open("default"))
            await gone.wait()
            first.close()
            path.unlink(missing_ok=True)
            await asyncio.sleep(0.2)
            await pause()
            await asyncio.sleep(0.2)
            async with await asyncio.start_unix_server(answer, str(path)):
                assert await opening == "s"
