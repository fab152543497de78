"""Measure what a pipeline gains with an engine that takes 1 ms.

python -m pytest -m bench -s tests/bench
"""

from __future__ import annotations

import time

import pytest
from tests.bench.ratios import in_turns, report
from tests.daemons import running_daemon

from ergo_capture.client import CaptureClient

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]


async def rate(pipeline: int, events: int) -> float:
    """Return the decided events a second of one session whose engine takes 1 ms for each."""
    text = '[graphs.default.engine]\nkind = "python"\ncallable = "tests.bench.test_engines:one_millisecond"\n'
    async with running_daemon(text + f"pipeline = {pipeline}\n") as daemon, CaptureClient(daemon.socket) as client:
        from tests.engine.engines import command_event

        session = daemon.service.registry.sessions[await client.open("default")]
        began = time.perf_counter()
        for number in range(events):
            await client.send(command_event(f"ok.{number}", number))
        await client.drain()
        await session.until_decided(events)
        # Stop before the close: composing a bundle is another row.
        return events / (time.perf_counter() - began)


async def one_millisecond(*_: object) -> None:
    """Complete after 1 ms without using the processor."""
    import asyncio

    await asyncio.sleep(0.001)


def test_a_pipeline_of_64_against_one_run_at_a_time() -> None:
    """Goal: at least 20 times the events a second."""
    import asyncio

    def ours() -> float:
        return asyncio.run(rate(64, 20_000))

    def theirs() -> float:
        return asyncio.run(rate(1, 400))

    report("a pipeline of 64 against 1, engine of 1 ms", "events/s", in_turns(ours, theirs, 5), "at least 20")
