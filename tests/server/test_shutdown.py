"""Stopping: what is waited for is said, and the time for it is bounded."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from tests.daemons import running_daemon
from tests.engine.engines import command_event, process_graph

from ergo_capture.client import CaptureClient
from ergo_capture.errors import ExitCode
from ergo_capture.server import service as service_module


async def test_a_shutdown_names_what_it_waits_for_and_gives_up_in_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """P10: an engine that hangs holds the drain up for shutdown.drain and no longer; the event is in the journal."""
    monkeypatch.setattr(service_module, "TELL_SECONDS", 0.05)
    text = '[shutdown]\ndrain = "500ms"\n' + process_graph()
    async with running_daemon(text) as daemon, CaptureClient(daemon.socket, give_up_after=0) as client:
        session = await client.open("default")
        await client.send(command_event("hang"))
        await client.drain()
        daemon.service.stop()
        with anyio.fail_after(20):
            while daemon.service.phase != "stopping":
                await asyncio.sleep(0.01)
    said = capsys.readouterr().out
    assert "drain.waiting" in said
    assert session in said.partition("drain.waiting")[2]
    assert "drain.unfinished" in said
    assert daemon.service._unfinished


async def test_a_shutdown_with_nothing_to_wait_for_is_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is said of waiting, and the exit code is 0."""
    async with running_daemon() as daemon:
        assert not daemon.service._unfinished
    assert "drain." not in capsys.readouterr().out
    assert ExitCode.OK == 0
