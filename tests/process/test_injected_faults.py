"""The daemon when its system calls fail: strace injects the errors from outside."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.daemons import DaemonProcess, Wire, event, short_directory
from tests.shared import traceable

from ergo_capture import decode_bundle

pytestmark = pytest.mark.skipif(not traceable(), reason="needs strace, and permission to trace")


@contextmanager
def faults(daemon: DaemonProcess, fault: str) -> Iterator[None]:
    """Make system calls of a running daemon fail as ``strace --inject`` says; each thread counts its own."""
    assert daemon.process is not None
    calls = fault.partition(":")[0]
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={fault}"]
    with subprocess.Popen([*command, "-p", str(daemon.process.pid)], stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        # It writes this line when it has attached to every thread.
        assert "attached" in strace.stderr.readline()
        try:
            yield
        finally:
            strace.send_signal(signal.SIGINT)
            strace.stderr.read()


@asynccontextmanager
async def running() -> AsyncIterator[DaemonProcess]:
    """Run a daemon that has finished its start-up writes."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        await anyio.to_thread.run_sync(daemon.start)
        yield daemon


@asynccontextmanager
async def session(daemon: DaemonProcess) -> AsyncIterator[Wire]:
    """Connect a client with a session."""
    async with await anyio.connect_unix(str(daemon.socket)) as stream:
        wire = Wire(stream)
        await wire.open()
        yield wire


async def told(daemon: DaemonProcess, count: int) -> list[dict[str, Any]]:
    """Send events one after the other until the daemon ends the connection; return all its replies."""
    async with session(daemon) as wire:
        frames: list[dict[str, Any]] = []
        try:
            for number in range(1, count + 1):
                await wire.say(event(f"e{number}"))
                frames += await wire.until_ack(number)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return frames
        return frames + await wire.rest()


async def recovered_ids(daemon: DaemonProcess, name: str) -> list[str]:
    """Start the daemon again, resume and close the session, and return the event ids in its bundle."""
    await anyio.to_thread.run_sync(daemon.start)
    async with await anyio.connect_unix(str(daemon.socket)) as stream:
        wire = Wire(stream)
        await wire.open(session=name)
        await wire.say({"type": "close"})
        closed = await wire.until("closed")
    assert await anyio.to_thread.run_sync(daemon.stop) == 0
    return [record.event_id for record in decode_bundle(Path(closed["bundle"]).read_bytes()).events]


@pytest.mark.parametrize("when", [2, 5])
async def test_a_failed_write_is_neither_acknowledged_nor_retried(when: int) -> None:
    """P7: the daemon exits with 1; after a restart what it acknowledged is there."""
    async with running() as daemon:
        with faults(daemon, f"pwritev2:error=EIO:when={when}"):
            frames = await told(daemon, 50)
            assert daemon.process is not None
            assert await anyio.to_thread.run_sync(daemon.process.wait, 30) == 1
        said = daemon.until_logged("journal.failed")
        assert "Input/output error" in said["error"]
        assert said["hint"]
        opened = daemon.until_logged("session.opened")["session"]
        rejected = {frame["index"] for frame in frames if frame["type"] == "reject"}
        accepted = max([frame["accepted"] for frame in frames if frame["type"] == "ack"], default=0)
        kept = await recovered_ids(daemon, opened)
        owed = [f"e{number}" for number in range(1, accepted + 1) if number not in rejected]
        assert kept[: len(owed)] == owed


async def test_a_full_disk_rejects_events_until_there_is_space() -> None:
    """P8: with storage_full; later events are accepted."""
    async with running() as daemon:
        async with session(daemon) as wire:
            codes: list[str | None] = []
            kept: list[str] = []
            with faults(daemon, "pwritev2:error=ENOSPC:when=2..4"):
                while "storage_full" not in codes or len(kept) < 3:
                    number = len(codes) + 1
                    await wire.say(event(f"e{number}"))
                    rejects = [f for f in await wire.until_ack(number) if f["type"] == "reject"]
                    codes.append(rejects[0]["code"] if rejects else None)
                    if not rejects:
                        kept.append(f"e{number}")
                    assert number < 200
        assert await anyio.to_thread.run_sync(daemon.stop) == 0
        assert await recovered_ids(daemon, wire.opened["session"]) == kept


async def test_an_interrupted_write_is_repeated_before_the_acknowledgement() -> None:
    """EINTR is not an error."""
    async with running() as daemon:
        async with session(daemon) as wire:
            with faults(daemon, "pwritev2:error=EINTR:when=1+2"):
                for number in range(1, 11):
                    await wire.say(event(f"e{number}"))
                    assert [f["type"] for f in await wire.until_ack(number)].count("reject") == 0
        assert await anyio.to_thread.run_sync(daemon.stop) == 0
        name = wire.opened["session"]
        assert await recovered_ids(daemon, name) == [f"e{number}" for number in range(1, 11)]


@pytest.mark.parametrize("call", ["rename,renameat,renameat2", "fsync"], ids=["rename", "fsync"])
async def test_a_bundle_that_cannot_be_published_is_published_after_a_restart(call: str) -> None:
    """P3: there is no partial bundle under the final name, and the client is told."""
    async with running() as daemon:
        async with session(daemon) as wire:
            await wire.say(*(event(f"e{number}") for number in range(5)))
            await wire.until_ack(5, 5)
            with faults(daemon, f"{call}:error=EIO"):
                await wire.say({"type": "close"})
                error = (await wire.rest())[-1]
        assert (error["type"], error["code"]) == ("error", "storage_failed")
        assert not list((daemon.state / "bundles").rglob("*.capture.json"))
        await anyio.to_thread.run_sync(daemon.stop)
        await anyio.to_thread.run_sync(daemon.start)
        await anyio.to_thread.run_sync(daemon.until_logged, "bundle.published")
        assert await anyio.to_thread.run_sync(daemon.stop) == 0
        (bundle,) = (daemon.state / "bundles").rglob("*.capture.json")
        assert len(decode_bundle(bundle.read_bytes()).events) == 5
