"""Measure durable ingest as other people's clients drive it, and as users get it, against Redis.

    python -m pytest -m bench -s tests/bench/test_plain_clients.py

On every disk there is: the one of the temporary directory, and memory (``/dev/shm``), where a sync costs nothing. The
faster a disk syncs, the less there is to gain over Redis, which syncs in its loop.

Measured on two idle cores (medians of 5 rounds; an ext4 file system on a virtual disk), times Redis, and the daemon's
microseconds of processor time an event:

| window | payload | memory | disk |
|---|---|---|---|
| 64 | 100 B | 0.49, 5.8 us | 0.75, 5.3 us |
| 64 | 256 B | 0.43, 5.4 us | 1.3, 6.3 us |
| 64 | 4 KB | 0.73, 12 us | 5, 17 us |
| 256 | 100 B | 1.1, 1.7 us | 2.5, 2.1 us |
| 256 | 256 B | 0.99, 2.1 us | 2.6, 2.9 us |
| 256 | 4 KB | 0.94, 9.2 us | 9.2, 12 us |
| 1024 | 100 B | 1.3, 1.4 us | 3, 1.8 us |
| 1024 | 256 B | 1.2, 1.5 us | 3.5, 2.3 us |
| 1024 | 4 KB | 1.3, 10 us | 9.2, 11 us |
| ``CaptureClient`` | 256 B | 0.44, 2 us | 1.9, 2.5 us |
| ``send`` | 256 B | 0.21, 2.3 us | 0.74, 2.5 us |

A batch costs 100 us whatever is in it, half of it in the system: two wake-ups of the commit thread and the loop, one of the
client. With 64 events in flight that is half of the time, which is why there Redis, with no thread to wake, stays ahead in
memory. An event costs 1.4 us: decoding 0.3, screening what the decoder lets pass 0.35, the ids 0.2, receiving 0.15,
deciding 0.1. ``CaptureClient`` takes 5 us an event itself; in memory that is what its row shows.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.bench.opponents import AVAILABLE, Redis, redis
from tests.bench.plain_client import lines_of, send_all
from tests.bench.ratios import in_turns, processor_seconds, report
from tests.daemons import COMMAND, DaemonProcess, command_environment, short_directory

from ergo_capture import EventTime, ExternalEvent, ExternalEventKind
from ergo_capture.client import CaptureClient

pytestmark = [
    pytest.mark.bench,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not AVAILABLE, reason="needs redis-server and redis-benchmark"),
]

MEMORY = Path("/dev/shm")
DISKS = [Path(tempfile.gettempdir()), *([MEMORY] if MEMORY.is_dir() else [])]
ROUNDS = 5


@contextmanager
def both(disk: Path) -> Iterator[tuple[DaemonProcess, Redis]]:
    """Run a daemon and a Redis on a disk; the state directory is there, the sockets are not."""
    with (
        tempfile.TemporaryDirectory(dir=disk, prefix="ec-") as on_disk,
        short_directory() as place,
        DaemonProcess(place, Path(on_disk) / "state") as daemon,
    ):
        daemon.start()
        (Path(on_disk) / "redis").mkdir()
        with redis(Path(on_disk) / "redis", place / "redis.sock") as opponent:
            yield daemon, opponent


def compare(disk: Path, title: str, window: int, payload: int, count: int, ours: Callable[[Path], None]) -> None:
    """Report one row."""
    size = len(lines_of(1, payload)[0])
    used: list[float] = []
    with both(disk) as (daemon, opponent):
        assert daemon.process is not None
        pid = daemon.process.pid

        def rate() -> float:
            began, processor = time.perf_counter(), processor_seconds(pid)
            ours(daemon.socket)
            seconds = time.perf_counter() - began
            used.append(processor_seconds(pid) - processor)
            return count / seconds

        def theirs() -> float:
            return opponent.throughput(clients=1, pipeline=window, events=count, size=size)

        rate()
        used.clear()
        pairs = in_turns(rate, theirs, ROUNDS)
        name = "memory" if disk == MEMORY else "disk"
        report(f"{title}, {name}, window {window}, {payload} bytes, against Redis", "events/s", pairs, "see the table")
        each = sorted(used)[len(used) // 2] / count * 1e6
        print(f"the daemon's processor time: {each:.2f} us an event")  # noqa: T201 - a report


@pytest.mark.parametrize("disk", DISKS, ids=str)
@pytest.mark.parametrize("payload", [100, 256, 4096])
@pytest.mark.parametrize("window", [64, 256, 1024])
def test_a_plain_client(disk: Path, payload: int, window: int) -> None:
    """Goals with 256 bytes: 2.5 times Redis at window 1024, 1.5 times at 256, as much at 64."""
    count = min(window * 100, 20_000_000 // payload)
    lines = lines_of(count, payload)
    compare(disk, "a plain client", window, payload, count, lambda path: send_all(path, window, lines))


@pytest.mark.parametrize("disk", DISKS, ids=str)
def test_the_client_library(disk: Path) -> None:
    """``CaptureClient`` with its default window, one ``send`` an event; Redis with as many commands in its pipeline."""
    payload = b'{"pad":"%b"}' % (b"x" * 246)
    kind = ExternalEventKind.DataAvailable
    events = [ExternalEvent.with_payload(f"ev-{n}", kind, EventTime(n, 0), payload) for n in range(50_000)]

    async def send(path: Path) -> None:
        async with CaptureClient(path) as client:
            await client.open()
            for event in events:
                await client.send(event)
            await client.drain()

    compare(disk, "CaptureClient", 1024, 256, len(events), lambda path: asyncio.run(send(path)))


@pytest.mark.parametrize("disk", DISKS, ids=str)
def test_the_send_command(disk: Path, tmp_path: Path) -> None:
    """``send`` of a file, from its start to the bundle's path: start-up and composing included."""
    count = 100_000
    (tmp_path / "events.jsonl").write_bytes(b"".join(lines_of(count, 256)))

    def send(path: Path) -> None:
        command = [*COMMAND, "send", "--socket", str(path), str(tmp_path / "events.jsonl")]
        subprocess.run(command, check=True, capture_output=True, env=command_environment())

    compare(disk, "send", 1024, 256, count, send)
