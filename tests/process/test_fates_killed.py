"""Refused and left-over events when the daemon is killed: each accepted event has one fate, which its client hears."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.daemons import COMMAND, PATIENCE, DaemonProcess, command_environment, short_directory
from tests.engine.counting import ADAPTER
from tests.shared import REPOSITORY

from ergo_capture import CaptureBundle, decode_bundle
from ergo_capture.client import CaptureClient, ClientError, Refused

DYING = Path(__file__).with_name("dies_before_close.py")
CONFIG = '[graphs.default]\nadapter = "adapter.yaml"\nengine = { kind = "python", callable = "counting:add" }\n'


@contextmanager
def counting(text: str = "") -> Iterator[DaemonProcess]:
    """Start a daemon whose default graph counts, and keeps context."""
    modules = str(REPOSITORY / "tests" / "engine")
    known = command_environment().get("PYTHONPATH")
    environment = {"PYTHONPATH": modules if known is None else f"{known}:{modules}"}
    with short_directory() as place:
        (place / "adapter.yaml").write_text(ADAPTER)
        with DaemonProcess(place, place / "state", config=text + CONFIG, environment=environment) as daemon:
            yield daemon.start()


def line(event_id: str, n: int = 1, **fields: Any) -> bytes:
    """Return an event line that adds a number."""
    event = {"event_id": event_id, "kind": "Command", "at": {"secs": 0, "nanos": 0}, "semantic_kind": "add"}
    return json.dumps({"type": "event", "event": {**event, "payload": {"n": n, **fields}}}).encode() + b"\n"


def published(daemon: DaemonProcess) -> tuple[CaptureBundle, dict[str, Any], bytes]:
    """Return the one bundle, its manifest, and the left-over events beside it."""
    (path,) = daemon.state.rglob("*.capture.json")
    rest = path.with_name(path.name.replace(".capture.json", ".rest.jsonl"))
    manifest = json.loads(path.with_name(path.name.replace(".capture.", ".manifest.")).read_bytes())
    return decode_bundle(path.read_bytes()), manifest, rest.read_bytes() if rest.exists() else b""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(3))
async def test_refusals_survive_kill_9_and_are_heard_once(seed: int) -> None:
    """P1: every fourth event is refused, because of the one before it; the client hears of each refusal once."""
    chance, refused = random.Random(seed), list[Refused]()
    with counting() as daemon:
        async with CaptureClient(daemon.socket, window=16, give_up_after=60, on_refused=refused.append) as client:
            await client.open("default")
            kills = set(chance.sample(range(10, 200), 3))
            for number in range(200):
                # 101, then a payload with this total, then two that begin again.
                fields = ({"n": 101, "total": 0}, {"n": 1}, {"n": 1, "total": 2}, {"n": 1})[number % 4]
                name = f"e{number}"
                await client.send_line(line(name, **fields), name)
                if number in kills:
                    await asyncio.sleep(chance.uniform(0, 0.02))
                    await asyncio.to_thread(daemon.kill)
                    await asyncio.to_thread(daemon.start)
            closed = await client.close()
        bundle, manifest, _ = published(daemon)
    expected = [number for number in range(200) if number % 4 == 1]
    assert [each.event_id for each in refused] == [f"e{number}" for number in expected]
    assert [each.index for each in refused] == [number + 1 for number in expected]
    assert [event.event_id for event in bundle.events] == [f"e{n}" for n in range(200) if n % 4 != 1]
    assert (closed.events, closed.refused, closed.decisions) == (200, 50, 150)
    assert manifest["refused"]["count"] == 50
    assert [event.payload for event in bundle.events[:3]] == [
        b'{"n":101,"total":0}',
        b'{"n":1,"total":2}',
        b'{"n":1,"total":3.0}',
    ]


async def test_a_run_that_was_interrupted_before_a_kill_stays_interrupted() -> None:
    """The session ends by itself, without waiting for its client; nothing more is decided."""
    with counting('[limits]\ncontext_bytes = "1KiB"\n') as daemon:
        daemon.stop()
        daemon.command = [sys.executable, str(DYING)]
        await asyncio.to_thread(daemon.start)
        async with CaptureClient(daemon.socket, give_up_after=0) as client:
            await client.open("default")
            with suppress(ClientError):
                for name in ("a", "long.b", "c", "d"):
                    await client.send_line(line(name, total=0), name)
                await client.close()
            assert daemon.process is not None
            await asyncio.to_thread(daemon.process.wait, PATIENCE)
        daemon.command = COMMAND
        await asyncio.to_thread(daemon.start)
        await asyncio.to_thread(daemon.until_logged, "bundle.published")
        bundle, manifest, rest = published(daemon)
    assert [event.event_id for event in bundle.events] == ["a", "long.b"]
    assert (manifest["ended"], manifest["interruption"]["reason"]) == ("interrupted", "context_full")
    assert manifest["left_over"] == {"from_index": 2, "event_id": "c", "count": 2}
    assert rest == line("c", total=0) + line("d", total=0)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(2))
async def test_what_is_left_over_survives_kill_9(seed: int) -> None:
    """P1: bundle and rest hold every accepted event, in order, whenever the daemon is killed."""
    chance = random.Random(seed)
    text = '[limits]\ncontext_bytes = "1KiB"\n[session]\nlinger = "500ms"\n'
    with counting(text) as daemon:
        async with CaptureClient(daemon.socket, window=64, give_up_after=0) as client:
            await client.open("default")
            for number in range(60):
                name = "long.e30" if number == 30 else f"e{number}"
                await client.send_line(line(name, total=0), name)
            await asyncio.sleep(chance.uniform(0, 0.08))
            await asyncio.to_thread(daemon.kill)
        for _ in range(2):
            await asyncio.to_thread(daemon.start)
            await asyncio.sleep(chance.uniform(0, 0.1))
            await asyncio.to_thread(daemon.kill)
        await asyncio.to_thread(daemon.start)
        if not list(daemon.state.rglob("*.manifest.json")):
            await asyncio.to_thread(daemon.until_logged, "bundle.published")
        bundle, manifest, rest = published(daemon)
    names = [event.event_id for event in bundle.events]
    names += [json.loads(each)["event"]["event_id"] for each in rest.splitlines()]
    expected = ["long.e30" if number == 30 else f"e{number}" for number in range(60)]
    assert names == expected[: len(names)]
    if len(names) > 30:
        assert len(bundle.events) == 31
        assert manifest["interruption"]["reason"] == "context_full"
        assert manifest["ended"] == "interrupted"
    if rest:
        left = {"from_index": 31, "event_id": "e31", "count": len(names) - 31}
        assert manifest["left_over"] == left


async def test_an_episode_in_doubt_is_recorded_with_its_merged_payload() -> None:
    """The episode must not run twice, so it is recorded as interrupted, and writes nothing to the store."""
    with counting('[session]\nin_doubt = "interrupt"\n') as daemon:
        async with CaptureClient(daemon.socket, give_up_after=60) as client:
            await client.open("default")
            for name in ("a", "hang.b"):
                await client.send_line(line(name, 5), name)
            await client.drain()
            while b"hang.b" not in (await asyncio.to_thread(daemon.log.read_bytes)):
                await asyncio.sleep(0.02)
            await asyncio.to_thread(daemon.kill)
            await asyncio.to_thread(daemon.start)
            await client.send_line(line("c", 5), "c")
            await client.close()
        bundle, _, _ = published(daemon)
    assert [event.payload for event in bundle.events] == [b'{"n":5}', b'{"n":5,"total":5.0}', b'{"n":5,"total":5.0}']
    assert str(bundle.decisions[1].interruption).startswith("in_doubt")
