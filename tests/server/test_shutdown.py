"""The shutdown reports what it waits for, and its time is bounded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from tests.daemons import DaemonProcess, event, running_daemon, short_directory
from tests.engine.engines import command_event, process_graph

from ergo_capture.client import CaptureClient
from ergo_capture.errors import ExitCode
from ergo_capture.server import shutdown


async def test_a_shutdown_names_what_it_waits_for_and_gives_up_in_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """P10: an engine that hangs delays the drain for shutdown.drain and no longer; the event is in the journal."""
    monkeypatch.setattr(shutdown, "REPORT_SECONDS", 0.05)
    text = '[shutdown]\ndrain = "500ms"\n' + process_graph()
    async with running_daemon(text) as daemon, CaptureClient(daemon.socket, give_up_after=0) as client:
        session = await client.open("default")
        await client.send(command_event("hang"))
        await client.drain()
        daemon.service.stop()
        with anyio.fail_after(20):
            while daemon.service.components.phase != "stopping":
                await asyncio.sleep(0.01)
    said = capsys.readouterr().out
    assert "drain.waiting" in said
    assert session in said.partition("drain.waiting")[2]
    assert "drain.unfinished" in said
    assert daemon.service.unfinished


async def test_a_shutdown_with_nothing_to_wait_for_is_immediate(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is logged of waiting, and the exit code is 0."""
    async with running_daemon() as daemon:
        assert not daemon.service.unfinished
    assert "drain." not in capsys.readouterr().out
    assert ExitCode.OK == 0


def test_a_daemon_with_closed_standard_descriptors_serves_and_stops() -> None:
    """Its files must not get the number of standard error."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.prefix = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-']
        process = daemon.spawn()
        asyncio.run(_closed_session(daemon))
        assert {str(Path(f"/proc/{process.pid}/fd/{fd}").readlink()) for fd in range(3)} == {"/dev/null"}
        assert daemon.stop() == 0


async def _closed_session(daemon: DaemonProcess) -> None:
    async with CaptureClient(daemon.socket) as client:
        await client.open("default")
        await client.send(command_event("a"))
        assert (await client.close()).events == 1


@pytest.mark.parametrize("turns", range(6))
async def test_an_event_that_arrives_as_reading_stops_is_in_the_bundle_or_not_acknowledged(turns: int) -> None:
    """P10: however the loop orders the client's bytes and the stop, nothing is accepted after the drain began."""
    loop = asyncio.get_running_loop()

    def after(turns: int, call: Callable[[], None]) -> None:
        loop.call_soon(after, turns - 1, call) if turns else call()

    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("first"))
        await wire.until_ack(1, 1)
        (connection,) = daemon.service.clients.connections
        session = connection.conversation.session
        assert session is not None
        taken: list[int] = []

        def stop() -> None:
            connection.stop_reading()
            taken.append(session.admission.admitted)

        raw = wire.stream.extra(anyio.abc.SocketAttribute.raw_socket)
        raw.send(json.dumps(event("second")).encode() + b"\n")
        after(turns, stop)
        with anyio.fail_after(20):
            while not (taken and session.decided == session.admission.admitted):
                await asyncio.sleep(0.001)
        await anyio.wait_all_tasks_blocked()
        assert [session.admission.admitted] == taken
