"""Attacks on a daemon that is a process of its own: its memory stays within the documented bound, others are served.

Each attack is counted under its code. The bound is the README's: what the daemon takes when idle, twice the events
and lines that may wait, and 96 MiB. Throughput beside an attack is printed and not asserted: it is the machine's.
"""

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
import pytest
from tests.daemons import PATIENCE, DaemonProcess, Wire, command_environment, event, short_directory
from tests.server.attacks import (
    GONE,
    MIB,
    Attack,
    Attacker,
    asking_and_never_reading,
    bad_frames,
    crowd,
    deep_nesting,
    fewer_bad_frames,
    half_frames,
    header_only,
    invalid_utf8,
    many_long_lines,
    never_reading,
    one_long_line,
    resets,
    slow_loris,
    smaller_crowd,
)
from tests.shared import REPOSITORY

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
write_timeout = "1s"
"""


class Target(Attacker):
    """A daemon under attack, and what is measured of it."""

    def __init__(self, process: DaemonProcess) -> None:
        super().__init__(process.socket)
        self.process = process
        self.idle = self.memory("VmRSS")

    def memory(self, which: str) -> int:
        """Resident bytes of the daemon: ``VmRSS`` now, ``VmHWM`` at most."""
        assert self.process.process is not None
        status = Path(f"/proc/{self.process.process.pid}/status").read_text()
        return int(re.findall(rf"{which}:\s+(\d+) kB", status)[0]) * 1024

    @property
    def bound(self) -> int:
        """The README's bound, without ids: no attack here has many accepted."""
        return self.idle + 2 * (QUEUE + HELD) * MIB + 32 * MIB

    def logged(self) -> Counter[str]:
        """The codes in the daemon's log."""
        records = [json.loads(line) for line in self.process.log.read_text().splitlines()]
        return Counter(record["code"] for record in records if record.get("code"))

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Wire]:
        """A session as soon as there is a place for one."""
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
async def target(tmp_path: Path, config: str = CONFIG) -> AsyncIterator[Target]:
    """A daemon as a process; in the end it must stop in order, within its memory."""
    with short_directory() as place, DaemonProcess(place, tmp_path / "state", config=config) as process:
        await anyio.to_thread.run_sync(process.start)
        it = Target(process)
        yield it
        used, bound = it.memory("VmHWM"), it.bound
        report(f"memory: idle {it.idle / MIB:.0f} MiB, at most {used / MIB:.0f}, bound {bound / MIB:.0f}")
        assert used <= bound
        assert await anyio.to_thread.run_sync(process.stop) == 0


def report(text: str) -> None:
    """A figure for whoever runs the tests with ``-rP``."""
    sys.stdout.write(text + "\n")


async def throughput(it: Target, events: int = 6_000, window: int = 200) -> float:
    """Events a second of a client that behaves: each window sent when the one before is accepted."""
    async with it.place() as wire:
        began = time.monotonic()
        for first in range(0, events, window):
            await wire.say(*(event(f"e{n}", payload={"x": "y" * 100}) for n in range(first, first + window)))
            await wire.until_ack(first + window)
        took = time.monotonic() - began
        await wire.say({"type": "close"})
        assert (await wire.until("closed"))["events"] == events
    return events / took


ATTACKS: list[tuple[Attack, str]] = [
    (slow_loris, "limit"),
    (header_only, "limit"),
    (half_frames, "bad_frame"),
    (resets, "bad_frame"),
    (one_long_line, "too_large"),
    (many_long_lines, "limit"),
    (deep_nesting, "bad_frame"),
    (invalid_utf8, "bad_frame"),
    (never_reading, "limit"),
    (asking_and_never_reading, "limit"),
    (smaller_crowd, "limit"),
    (fewer_bad_frames, "bad_frame"),
]


@pytest.mark.parametrize(("attack", "code"), ATTACKS, ids=lambda value: getattr(value, "__name__", None))
async def test_an_attack_is_answered_with_its_code_and_takes_no_memory(
    attack: Attack, code: str, tmp_path: Path
) -> None:
    """P9: the daemon stays within its bound, and whoever comes next is served."""
    async with target(tmp_path) as it:
        await attack(it)
        with anyio.fail_after(20):
            while not (it.codes + it.logged())[code]:
                await anyio.sleep(0.01)
        await throughput(it, events=200)
        report(f"{attack.__name__}: answered {dict(it.codes)}, logged {dict(it.logged())}")


async def beside(tmp_path: Path, attacks: list[Attack]) -> None:
    """Measure a client that behaves, alone and beside attackers in a process of their own."""
    async with target(tmp_path) as it:
        await throughput(it, events=1_000)
        alone = await throughput(it)
        for attack in attacks:
            command = [sys.executable, "-m", "tests.server.attacks", str(it.socket), attack.__name__]
            environment = {**command_environment(), "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'daemon'}"}
            before = it.process.log.read_text().count("session.opened")
            async with await anyio.open_process(command, stdout=None, stderr=None, env=environment) as attacker:
                with anyio.fail_after(PATIENCE):
                    while it.process.log.read_text().count("session.opened") == before:
                        await anyio.sleep(0.01)
                rates = [await throughput(it) for _ in range(2)]
                assert attacker.returncode is None
                attacker.kill()
            report(f"{attack.__name__}: {min(rates):,.0f} to {max(rates):,.0f} events/s, alone {alone:,.0f}")


async def test_a_client_that_behaves_is_served_beside_those_that_do_not(tmp_path: Path) -> None:
    """P9: every event of it is accepted while others attack, and its session is whole."""
    await beside(tmp_path, [half_frames, one_long_line, never_reading])


@pytest.mark.soak
async def test_a_client_that_behaves_is_served_beside_every_attack(tmp_path: Path) -> None:
    """The same for every attack, with what is left of its throughput printed."""
    await beside(tmp_path, [attack for attack, _ in ATTACKS if attack not in (header_only, smaller_crowd)])


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("attack", "code"), [(crowd, "limit"), (bad_frames, "bad_frame")])
async def test_the_large_attacks_in_full(attack: Attack, code: str, tmp_path: Path) -> None:
    """A thousand connections too many; fifty thousand bad frames, a thousand before a connection ends."""
    async with target(tmp_path, f"{CONFIG}max_bad_frames = {1000 if attack is bad_frames else 5}\n") as it:
        await attack(it)
        assert it.codes[code] >= (900 if attack is crowd else 50_000)
        await throughput(it, events=200)
        report(f"{attack.__name__}: answered {dict(it.codes)}")
