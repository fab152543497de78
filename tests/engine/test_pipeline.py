"""engine.pipeline: several episodes of a session run at once, and the bundle is the same."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import anyio
import pytest
from tests.daemons import event, running_daemon
from tests.engine import scripts
from tests.engine.engines import captured, command_event, engine_of, process_graph, python_graph, terminations
from tests.engine.scripts import go, hold
from tests.server.looks import sessions_of, until

from ergo_capture import decode_bundle
from ergo_capture.bundle.reader.stream import open_bundle
from ergo_capture.cli.support.verification import check
from ergo_capture.client import CaptureClient
from ergo_capture.engine.process import ProcessEngine
from ergo_capture.server.session import episodes

IDS = [f"{random.Random(n).choice(['ok', 'ok', 'fail', 'effect', 'wait'])}.{n}" for n in range(120)]
LIMITS = 'max_retries = 1\nmax_per_window = 4\nrate_window = "10s"\n'


@pytest.mark.parametrize("limits", ["", LIMITS], ids=["no limits", "a rate limit"])
async def test_the_bundle_is_the_same_byte_for_byte_for_every_pipeline(limits: str) -> None:
    """P11: also with retries, effects, and deferrals between the runs."""
    texts = []
    for pipeline in (1, 2, 64):
        async with running_daemon(process_graph(graph=limits, engine=f"pipeline = {pipeline}")) as daemon:
            await captured(daemon, IDS)
            texts.append(daemon.bundles()[0].read_bytes())
    assert texts[0] == texts[1] == texts[2]


async def test_as_many_runs_as_configured_are_under_way_at_once() -> None:
    """The engine answers four of them only when it has received the fifth; with a pipeline of one it never would."""
    async with running_daemon(process_graph(engine="pipeline = 5")) as daemon:
        bundle = await captured(daemon, ["hold.1", "hold.2", "hold.3", "hold.4", "release"])
    assert len(bundle.decisions) == 5


@pytest.mark.parametrize("limit", [1, 3])
async def test_no_more_runs_are_under_way_than_max_in_flight(limit: int) -> None:
    """A pipeline of 8 waits at the graph's limit, and defers nothing: the decisions are those of one run after the other."""
    bundles = []
    for pipeline in (8, 1):
        scripts.counted.most = 0
        text = python_graph("counted", graph=f"max_in_flight = {limit}", engine=f"pipeline = {pipeline}")
        async with running_daemon(text) as daemon:
            await captured(daemon, [f"e.{number}" for number in range(40)])
            bundles.append(daemon.bundles()[0].read_bytes())
        assert scripts.counted.most == min(limit, pipeline)
    assert bundles[0] == bundles[1]


async def test_a_part_ends_only_when_every_run_is_logged() -> None:
    """Rotation with a pipeline: each bundle replays on its own, and together they hold every event once."""
    text = "[rotation]\nmax_events = 10\n" + process_graph(engine="pipeline = 8")
    async with running_daemon(text) as daemon:
        async with CaptureClient(daemon.socket, window=7) as client:
            await client.open("default")
            for number in range(60):
                await client.send(command_event(f"wait.{number}", number))
            await client.close()
        paths = [Path(path) for path in daemon.bundles()]
        assert len(paths) > 2
        assert all(check(path)["ok"] for path in paths)
        ids = [record.event_id for path in paths for record in decode_bundle(path.read_bytes()).decisions]
        assert sorted(ids) == sorted(f"wait.{number}" for number in range(60))


async def test_a_part_that_is_due_ends_when_its_last_run_ends() -> None:
    """It ends by its events or by its age, without a further event."""
    for rule in ("max_events = 1", 'max_age = "10ms"'):
        text = f"[rotation]\n{rule}\n" + process_graph(engine="pipeline = 8")
        async with running_daemon(text) as daemon, daemon.session() as wire:
            await wire.say(event("wait.1"))
            await until(daemon.bundles)


async def test_decisions_that_wait_for_a_run_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """P9: a run may take for ever, and deferrals after it wait in memory; further events wait to be decided."""
    monkeypatch.setattr(episodes, "_MAX_WAITING", 50)
    limits = 'max_per_window = 1\nrate_window = "1h"'
    text = process_graph(graph=limits, engine="pipeline = 2")
    async with running_daemon(text) as daemon, daemon.session() as wire:
        await wire.say(event("hang"))
        await wire.until_ack(1)
        for number in range(100):
            await wire.say(event(f"e{number}"))
            await wire.until_ack(2 + number)
        (session,) = sessions_of(daemon)
        await until(lambda: session.deferred >= 49)
        await anyio.wait_all_tasks_blocked()
        assert session.deferred <= 50
        assert session.admission.queued_bytes > 0
        engine = engine_of(daemon.service)
        assert isinstance(engine, ProcessEngine)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        await wire.say({"type": "close"})
        assert (await wire.until("closed"))["decisions"] == 101


async def test_p2_effects_of_many_runs_are_divided_into_frames() -> None:
    """P2: sixty-six runs end together with 1 MiB of effects each; every decision is in the journal once, in its place."""
    hold()
    async with running_daemon(python_graph("say_much", engine="pipeline = 66")) as daemon:
        async with CaptureClient(daemon.socket) as client:
            await client.open("default")
            for number in range(66):
                await client.send(command_event(f"e{number}", number))
            while len(asyncio.all_tasks()) < 66:
                await asyncio.sleep(0.01)
            go()
            closed = await client.close()
        with open_bundle(closed.bundle) as bundle:
            decided = [record.event_id for record in bundle.decisions()]
        assert decided == [f"e{number}" for number in range(66)]


async def test_a_run_with_more_effects_than_a_decision_can_hold_ends_as_runtime_error() -> None:
    """The other runs are not affected."""
    async with running_daemon(python_graph("say_too_much")) as daemon:
        assert await terminations(daemon, ["ok.1", "much", "ok.2"]) == ["Completed", "RuntimeError", "Completed"]
