"""A daemon under attack, as a process of its own, and its measurements."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from tests.daemons import DaemonProcess, Wire, event, short_directory
from tests.server.net.attacks import GONE, MIB, Attacker

QUEUE, HELD = 16, 8
CONFIG = f"""
[log]
burst = 0
[journal]
segment_bytes = "16MiB"
[session]
linger = "1s"
[limits]
queue_bytes = "{QUEUE}MiB"
user_queue_bytes = "{QUEUE}MiB"
held_bytes = "{HELD}MiB"
max_clients = 60
max_user_clients = 60
hello_timeout = "1s"
frame_timeout = "1s"
write_timeout = "500ms"
"""


class Target(Attacker):
    """A daemon under attack, and its measurements."""

    def __init__(self, process: DaemonProcess) -> None:
        super().__init__(process.socket)
        self.process = process
        self.idle = self.memory("VmRSS")

    def memory(self, which: str) -> int:
        """Return the resident bytes of the daemon: ``VmRSS`` now, ``VmHWM`` at most."""
        assert self.process.process is not None
        status = Path(f"/proc/{self.process.process.pid}/status").read_text()
        return int(re.findall(rf"{which}:\s+(\d+) kB", status)[0]) * 1024

    @property
    def bound(self) -> int:
        """The documented bound, without ids: few events of an attack are accepted."""
        return self.idle + 2 * (QUEUE + HELD) * MIB + 32 * MIB

    def logged(self) -> Counter[str]:
        """Return the codes in the daemon's log."""
        records = [json.loads(line) for line in self.process.log.read_text().splitlines()]
        return Counter(record["code"] for record in records if record.get("code"))

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Wire]:
        """Open a session as soon as there is a place for one."""
        while True:
            async with self.wire() as wire:
                try:
                    await wire.open()
                except (AssertionError, *GONE):
                    await anyio.sleep(0.01)
                    continue
                yield wire
                return


@asynccontextmanager
async def target(tmp_path: Path, config: str = CONFIG, ids: int = 0) -> AsyncIterator[Target]:
    """Run a daemon as a process; at the end check its exit and its memory, with ``ids`` bytes for event ids."""
    with short_directory() as place, DaemonProcess(place, tmp_path / "state", config=config) as process:
        await anyio.to_thread.run_sync(process.start)
        it = Target(process)
        yield it
        used, bound = it.memory("VmHWM"), it.bound + ids
        report(f"memory: idle {it.idle / MIB:.0f} MiB, at most {used / MIB:.0f}, bound {bound / MIB:.0f}")
        assert used <= bound
        assert await anyio.to_thread.run_sync(process.stop) == 0


def report(text: str) -> None:
    """Print a figure, shown by ``pytest -rP``."""
    sys.stdout.write(text + "\n")


async def throughput(it: Target, events: int = 6_000, window: int = 200) -> float:
    """Return the events a second of a good client that sends a window when the one before is accepted."""
    async with it.place() as wire:
        began = time.monotonic()
        for first in range(0, events, window):
            await wire.say(*(event(f"e{n}", payload={"x": "y" * 100}) for n in range(first, first + window)))
            await wire.until_ack(first + window)
        took = time.monotonic() - began
        await wire.say({"type": "close"})
        assert (await wire.until("closed"))["events"] == events
    return events / took
