"""The service for well-behaved clients: throughput beside attackers, and memory while the disk is stuck.

Throughput is printed and not asserted: it is the machine's.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from tests.daemons import PATIENCE, Wire, command_environment, event
from tests.server.net.attacks import ATTACKS, MIB, Attack, header_only, never_reading, smaller_crowd
from tests.server.net.target import CONFIG, QUEUE, Target, report, target, throughput
from tests.shared import REPOSITORY, traceable

from ergo_capture.server.session.budget import ID_BYTES


async def beside(tmp_path: Path, attacks: list[Attack]) -> None:
    """Measure a well-behaved client: alone, beside a process that only computes, and beside a process of attackers.

    An attacker takes a processor's time whomever it attacks, so what the daemon answers for is the difference to the
    process that computes.
    """
    async with target(tmp_path) as it:
        await throughput(it, events=1_000)
        alone = await throughput(it)
        async with await anyio.open_process([sys.executable, "-c", "while True: pass"], stdout=None) as neighbour:
            crowded = statistics.median([await throughput(it) for _ in range(3)])
            neighbour.kill()
        for attack in attacks:
            command = [sys.executable, "-m", "tests.server.net.attacks", str(it.socket), attack.__name__]
            environment = {**command_environment(), "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'daemon'}"}
            before = it.process.log.read_text().count("session.opened")
            async with await anyio.open_process(command, stdout=None, stderr=None, env=environment) as attacker:
                with anyio.fail_after(PATIENCE):
                    while it.process.log.read_text().count("session.opened") == before:
                        await anyio.sleep(0.01)
                rates = [await throughput(it) for _ in range(3)]
                assert attacker.returncode is None
                attacker.kill()
            rate = statistics.median(rates)
            report(
                f"{attack.__name__}: {rate:,.0f} events/s, {rate / alone:.2f} of alone, {rate / crowded:.2f} of crowded"
            )


async def test_a_good_client_is_served_beside_attackers(tmp_path: Path) -> None:
    """P9: each of its events is accepted while others attack, and its session is complete."""
    await beside(tmp_path, [never_reading])


@pytest.mark.soak
async def test_a_good_client_is_served_beside_every_attack(tmp_path: Path) -> None:
    """The remaining throughput under each attack is printed."""
    await beside(tmp_path, [attack for attack, _ in ATTACKS if attack not in (header_only, smaller_crowd)])


@asynccontextmanager
async def stuck_disk(it: Target) -> AsyncIterator[None]:
    """Hold every write of the journal by strace; all return at the end."""
    assert it.process.process is not None
    writes = "pwritev2,pwritev,fdatasync"
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={writes}", "-e", f"inject={writes}:delay_enter=60s"]
    async with await anyio.open_process([*command, "-p", str(it.process.process.pid)], stdout=None) as strace:
        assert strace.stderr is not None
        assert b"attached" in await strace.stderr.receive()
        try:
            yield
        finally:
            strace.send_signal(signal.SIGINT)


@pytest.mark.skipif(not traceable(), reason="needs strace, and permission to trace")
async def test_events_wait_outside_the_daemon_while_the_disk_is_stuck(tmp_path: Path) -> None:
    """Thirty sessions send 210,000 small events, which would take 98 MiB: the daemon reads what queue_bytes allows."""
    sessions, each = 30, 7_000
    sent: Counter[int] = Counter()

    async def flood(wire: Wire, number: int) -> None:
        for first in range(0, each, 500):
            # Spaces that send the lines through the slow reader, whose objects take most memory.
            lines = (json.dumps(event(f"{number}-{n}"), separators=(" ,", " :")) for n in range(first, first + 500))
            await wire.say(*(line.encode() for line in lines))
            sent[number] += 500
        await wire.say({"type": "close"})
        assert (await wire.until("closed"))["events"] == each

    # Long time-outs: thirty clients in one process are slow by themselves.
    config = CONFIG.replace(f'"{QUEUE}MiB"', '"4MiB"').replace('"500ms"', '"30s"')
    config += f"session_queue_bytes = {QUEUE * MIB}\n"
    async with target(tmp_path, config, ids=sessions * each * (ID_BYTES + 8)) as it, AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(it.session()) for _ in range(sessions)]
        async with anyio.create_task_group() as tasks, stuck_disk(it):
            for number, wire in enumerate(wires):
                tasks.start_soon(flood, wire, number)
            before = -1
            while sent.total() != before:
                before = sent.total()
                await anyio.sleep(1)
            report(f"{before} of {sessions * each} events were taken while the disk was stuck")
            assert before < sessions * each
