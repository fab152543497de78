"""2,000 real flights through a daemon whose graph keeps context: its bundle is the reference's capture, byte for byte."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.adapter.cases import flight
from tests.daemons import DaemonProcess, command, short_directory
from tests.shared import REPOSITORY, shared

from ergo_capture import decode_bundle
from ergo_capture.client import CaptureClient

ENGINE = REPOSITORY / "tests" / "engine" / "recorded.py"
NAMES = ["flights-acc-2000", "flights-late-2000"]


@contextmanager
def flight_daemon(name: str, text: str = "") -> Iterator[tuple[DaemonProcess, bytes]]:
    """Start a daemon whose engine answers as recorded; yield it, and the reference's capture."""
    about, _, capture = flight(name)
    recorded = shared("conformance") / "ergo" / f"{name}.capture.json.gz"
    with short_directory() as place:
        (place / "adapter.yaml").write_text(about["adapter_yaml"])
        engine = json.dumps([sys.executable, str(ENGINE), str(recorded)])
        graph = json.dumps(json.loads(capture)["graph_id"])
        config = f'{text}\n[graphs.{graph}]\nadapter = "adapter.yaml"\n'
        config += f'[graphs.{graph}.engine]\nkind = "process"\ncommand = {engine}\nback_off = "10ms"\n'
        with DaemonProcess(place, place / "state", config=config) as daemon:
            yield daemon.start(), capture


async def send(daemon: DaemonProcess, name: str, *, kills: int = 0, seed: int = 0) -> list[bytes]:
    """Send the flights while the daemon is killed now and then; return the bundles of all parts."""
    _, lines, capture = flight(name)
    events = [json.loads(line)["event"]["event_id"] for line in lines[1:-1]]
    chance, sent = random.Random(seed), 0
    when = sorted(chance.sample(range(1, len(events)), kills))
    async with CaptureClient(daemon.socket, window=64, give_up_after=60) as client:
        await client.open(json.loads(capture)["graph_id"])
        for line, event_id in zip(lines[1:-1], events, strict=True):
            await client.send_line(line.encode() + b"\n", event_id)
            sent += 1
            if when and sent >= when[0]:
                when.pop(0)
                await asyncio.sleep(chance.uniform(0, 0.05))
                await asyncio.to_thread(daemon.kill)
                await asyncio.to_thread(daemon.start)
        published = await client.close()
        assert client.rejected == 0
        assert published.events == len(events)
    return [Path(path).read_bytes() for path in published.bundles]


@pytest.mark.parametrize("name", NAMES)
async def test_the_bundle_is_the_references_capture(name: str) -> None:
    """An external engine answers with the outcomes of the reference's episodes."""
    with flight_daemon(name) as (daemon, capture):
        assert await send(daemon, name) == [capture]


@pytest.mark.timeout(300)
async def test_the_bundle_is_the_references_capture_though_the_daemon_is_killed() -> None:
    """P1, P11: three times at random moments; the context store is built again from the journal."""
    with flight_daemon(NAMES[0]) as (daemon, capture):
        assert await send(daemon, NAMES[0], kills=3, seed=5) == [capture]


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
async def test_the_bundle_is_the_references_capture_though_the_daemon_is_killed_often(name: str, seed: int) -> None:
    """P1, P11: twenty times."""
    with flight_daemon(name, '[journal]\nsegment_bytes = "64KiB"\n') as (daemon, capture):
        assert await send(daemon, name, kills=20, seed=seed) == [capture]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
async def test_the_parts_of_a_rotated_session_hold_the_references_events(name: str) -> None:
    """Killed once; each part carries the context store at its beginning and verifies on its own."""
    with flight_daemon(name, "[rotation]\nmax_events = 300\n") as (daemon, capture):
        parts = await send(daemon, name, kills=1, seed=7)
        assert len(parts) >= 4
        whole = decode_bundle(capture)
        found = [decode_bundle(part) for part in parts]
        assert [event for part in found for event in part.events] == whole.events
        effects = [[decision.effects for decision in bundle.decisions] for bundle in (*found, whole)]
        assert [effect for part in effects[:-1] for effect in part] == effects[-1]
        paths = sorted(daemon.state.rglob("*.capture.json"))
        assert len(paths) == len(parts)
        adapter = str(daemon.config.parent / "adapter.yaml")
        for path in paths:
            verified: Any = command("verify", str(path), "--adapter", adapter)
            assert verified.returncode == 0, verified.stdout + verified.stderr
