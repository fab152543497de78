"""Kill the daemon and its engine at random moments: each event is decided once, and runs as often as configured."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from tests.daemons import short_directory
from tests.engine.engines import command_event
from tests.engine.rig import Rig, ended

from ergo_capture import EpisodeInvocationRecord, decode_bundle
from ergo_capture.cli.support.verification import check
from ergo_capture.client import CaptureClient


async def killed_at_random(mode: str, pipeline: int, rounds: int, seed: int) -> None:
    """Stream events, kill the daemon and its engine ``rounds`` times, and check the bundle and the engine's calls."""
    chance = random.Random(seed)
    with short_directory() as place:
        rig = Rig(place, mode, f"pipeline = {pipeline}")
        with rig.daemon:
            await rig.start()
            stop, sent = asyncio.Event(), 0

            async def produce() -> list[EpisodeInvocationRecord]:
                nonlocal sent
                async with CaptureClient(rig.daemon.socket, window=32, give_up_after=120) as client:
                    await client.open("default")
                    while not stop.is_set():
                        await client.send(command_event(f"ok.{sent}", sent))
                        sent += 1
                        await asyncio.sleep(0)
                    published = await client.close()
                assert check(Path(published.bundle))["ok"]
                return list(decode_bundle(Path(published.bundle).read_bytes()).decisions)

            producing = asyncio.create_task(produce())
            for _ in range(rounds):
                await rig.until_more_calls(chance.randint(0, 60))
                await rig.kill()
                await rig.start()
            stop.set()
            records = await producing
        calls, how = rig.calls(), ended(records)
        assert [record.event_id for record in records] == [f"ok.{n}" for n in range(sent)]
        assert set(how) <= ({"Completed", "in doubt"} if mode == "interrupt" else {"Completed"})
        assert how.count("in doubt") <= rounds * pipeline
        assert all(calls[record.event_id] for record, end in zip(records, how, strict=True) if end == "Completed")
        if mode == "interrupt":
            assert set(calls.values()) == {1}


@pytest.mark.parametrize(("mode", "pipeline"), [("interrupt", 4), ("reinvoke", 4)])
async def test_each_event_is_decided_once_however_often_the_daemon_is_killed(mode: str, pipeline: int) -> None:
    """With ``interrupt`` an episode runs at most once, with ``reinvoke`` at least once."""
    await killed_at_random(mode, pipeline, 3, 7)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("pipeline", [1, 8])
@pytest.mark.parametrize("mode", ["reinvoke", "interrupt"])
async def test_each_event_is_decided_once_over_many_kills(mode: str, pipeline: int) -> None:
    """Forty kills."""
    await killed_at_random(mode, pipeline, 40, 8)
