"""Connects, disconnects, rotations and reloads at full speed: no resource grows, nothing is lost."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from pathlib import Path

import pytest
from tests.daemons import DaemonProcess, short_directory
from tests.processes import SOAK_SECONDS

from ergo_capture import EventTime, ExternalEvent, ExternalEventKind
from ergo_capture.cli.support.verification import check
from ergo_capture.client import CaptureClient

CONFIG = """
[journal]
segment_bytes = "4MiB"
[rotation]
max_events = 2000
[retention]
max_bundles = 200
[session]
linger = "200ms"
[graphs.default]
max_per_window = 50
rate_window = "10s"
"""


def held(daemon: DaemonProcess) -> tuple[int, int]:
    """Return the daemon's resident memory in bytes and its number of open descriptors."""
    assert daemon.process is not None
    place = Path(f"/proc/{daemon.process.pid}")
    (line,) = (line for line in (place / "status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024, len(list((place / "fd").iterdir()))


async def come_and_go(daemon: DaemonProcess, seed: int, until: float, counts: dict[str, int]) -> None:
    """Open a session, send, and close it or disconnect, repeatedly."""
    chance = random.Random(seed)
    while time.monotonic() < until:
        async with CaptureClient(daemon.socket, window=512, give_up_after=30) as client:
            await client.open("default", labels={"seed": str(seed)})
            for number in range(chance.randrange(1, 4000)):
                kind = ExternalEventKind.Pump if number % 7 == 6 else ExternalEventKind.DataAvailable
                payload = b"" if kind is ExternalEventKind.Pump else b'{"n":%d}' % number
                await client.send(ExternalEvent.with_payload(f"e{number}", kind, EventTime(number, 0), payload))
                counts["events"] += 1
            if chance.random() < 0.7:
                await client.close()
                counts["closed"] += 1
            else:
                await client.drain()
                counts["left"] += 1


async def reload_now_and_then(daemon: DaemonProcess, until: float) -> None:
    """Change the configuration and send SIGHUP once a second."""
    number = 0
    while time.monotonic() < until:
        number += 1
        daemon.config.write_text(CONFIG.replace("200\n[session]", f"{200 + number % 2}\n[session]"))
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        await asyncio.sleep(1)


async def soak(seconds: float, clients: int) -> None:
    """Load a daemon for so many seconds, and compare its memory at the end with that at half-time."""
    counts = {"events": 0, "closed": 0, "left": 0}
    with short_directory() as place, DaemonProcess(place, place / "state", config=CONFIG) as daemon:
        await asyncio.to_thread(daemon.start)
        # Half of the time: the fragmentation of any allocator grows for minutes under load, ever more slowly.
        warm_until = time.monotonic() + seconds / 2
        async with asyncio.TaskGroup() as tasks:
            for seed in range(clients):
                tasks.create_task(come_and_go(daemon, seed, warm_until, counts))
        warm = held(daemon)
        until = time.monotonic() + seconds / 2
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(reload_now_and_then(daemon, until))
            for seed in range(clients):
                tasks.create_task(come_and_go(daemon, 100 + seed, until, counts))
        await asyncio.sleep(0.5)
        ended = held(daemon)
        warm_mib, ended_mib = warm[0] >> 20, ended[0] >> 20
        print(f"\n{counts}; {warm_mib} MiB warm, {ended_mib} at the end; descriptors {warm[1]}, {ended[1]}")  # noqa: T201
        assert ended[0] < warm[0] + (24 << 20)
        assert ended[1] <= warm[1] + 4
        standing = len(list((daemon.state / "bundles").rglob("*.capture.json")))
        # The bound of the configuration, and those of a few seconds.
        assert standing < 600, standing
        assert await asyncio.to_thread(daemon.stop) == 0
        bundles = sorted((daemon.state / "bundles").rglob("*.capture.json"))
        assert bundles
        for path in bundles:
            verdict = check(path)
            assert verdict["ok"], verdict
            manifest = json.loads(path.with_name(path.name.replace(".capture.", ".manifest.")).read_text())
            assert manifest["events"] == verdict["events"]
        log = daemon.log.read_text()
        assert '"level": "error"' not in log, log[-3000:]
        assert '"level": "critical"' not in log


@pytest.mark.timeout(120)
async def test_a_short_soak_leaks_nothing() -> None:
    """P3, P9: neither memory nor descriptors; every bundle verifies, and no error is logged."""
    await soak(4, 2)


@pytest.mark.soak
@pytest.mark.timeout(2 * SOAK_SECONDS + 300)
async def test_a_soak_at_full_speed_leaks_nothing() -> None:
    """P3, P9: the long version."""
    await soak(SOAK_SECONDS, 4)
