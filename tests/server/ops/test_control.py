"""The control socket: who may ask, answers to invalid requests, and their effect on the daemon."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from tests.daemons import PATIENCE, Daemon, configured, event, running_daemon, short_directory
from tests.doubles.gated_storage import GatedStorage
from tests.server.users import NOBODY, needs_root, talk_as

from ergo_capture.protocol.capture import ProtocolError
from ergo_capture.protocol.control import MAX_REQUEST_BYTES, read_request
from ergo_capture.server.ops.control import MAX_BAD_REQUESTS, MAX_CONNECTIONS
from ergo_capture.server.ops.state_directory import StateDirectory
from ergo_capture.server.service import Service


async def test_the_control_socket_has_mode_0600() -> None:
    """It is beside the capture socket, and gone when the daemon is."""
    async with running_daemon() as daemon:
        path = daemon.service.components.control_path
        assert path == daemon.socket.with_name("control.sock")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_two_daemons_in_one_directory_do_not_share_a_control_socket() -> None:
    """Its name follows the capture socket's, unless that has the default name."""
    from ergo_capture.config import control_socket_beside

    assert control_socket_beside(Path("/run/a/capture.sock")) == Path("/run/a/control.sock")
    assert control_socket_beside(Path("/tmp/one.sock")) != control_socket_beside(Path("/tmp/two.sock"))


@needs_root
async def test_another_user_is_refused_even_if_the_mode_admits_it() -> None:
    """The peer's credentials decide, and the refusal is counted."""
    async with running_daemon() as daemon:
        path = daemon.service.components.control_path
        path.parent.chmod(0o755)
        path.chmod(0o666)
        request = {"command": "shutdown"}
        answers = await anyio.to_thread.run_sync(lambda: talk_as(path, request, uid=NOBODY))
        assert [answer.get("code") for answer in answers] == ["forbidden"]
        assert daemon.service.clients.refusals["forbidden"] == 1
        assert daemon.service.components.phase == "serving"


@pytest.mark.parametrize(
    "line",
    [b"nonsense", b'{"command": "fly"}', b'{"command": "status", "x": 1}', b"[" * 2000, b'{"command": "tap"}', b"\xff"],
)
async def test_a_bad_request_is_answered_with_a_hint_and_the_next_one_is_served(line: bytes) -> None:
    """Bad requests affect nobody else."""
    async with running_daemon() as daemon, daemon.control() as wire:
        await wire.say(line)
        answer = await wire.read()
        assert answer["type"] == "error"
        assert answer["code"] == "bad_frame"
        assert "status" in answer["hint"]
        await wire.say({"command": "status"})
        status = await wire.read()
        assert status["type"] == "status"
        assert status["status"]["refusals"]["bad_frame"] == 1


def test_an_invalid_request_is_a_protocol_error() -> None:
    """The JSON reader itself may fail."""
    for line in (b"", b"null", b"[" * 100_000, b'{"command": 1}', b'{"command": "tap", "of": "g", "rate": 0}'):
        with pytest.raises(ProtocolError):
            read_request(line)


async def test_too_many_bad_requests_end_the_connection() -> None:
    """After MAX_BAD_REQUESTS nothing more is read."""
    async with running_daemon() as daemon, daemon.control() as wire:
        await wire.say(*[b"?"] * (MAX_BAD_REQUESTS + 3))
        answers = await wire.rest()
        assert len(answers) == MAX_BAD_REQUESTS


async def test_an_endless_request_is_not_buffered() -> None:
    """It is refused at MAX_REQUEST_BYTES, and the connection ends."""
    async with running_daemon() as daemon, daemon.control() as wire:
        await wire.stream.send(b"x" * (MAX_REQUEST_BYTES + 1))
        answers = await wire.rest()
        assert [answer["code"] for answer in answers] == ["too_large"]


async def test_the_number_of_operators_is_bounded() -> None:
    """The next one is told why, and is served when another one has gone."""
    async with running_daemon() as daemon:
        held = [socket.socket(socket.AF_UNIX) for _ in range(MAX_CONNECTIONS)]
        for one in held:
            one.connect(str(daemon.service.components.control_path))
        async with daemon.control() as wire:
            assert [answer["code"] for answer in await wire.rest()] == ["limit"]
        for one in held:
            one.close()
        while (await daemon.ask("status"))["type"] != "status":
            await anyio.sleep(0.01)


async def test_flush_publishes_a_snapshot_of_every_open_session() -> None:
    """If a session is named, only that one is published; the sessions go on."""
    async with running_daemon() as daemon, daemon.session() as one, daemon.session() as two:
        for wire in (one, two):
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
        assert len((await daemon.ask("flush"))["bundles"]) == 2
        flushed = await daemon.ask("flush", session=two.opened["session"])
        assert [two.opened["session"] in bundle for bundle in flushed["bundles"]] == [True]
        await two.say(event("b"))
        await two.until_ack(2, 2)
        assert (await daemon.ask("flush", session="nobody's"))["code"] == "unknown_session"


async def test_a_shutdown_request_is_answered_and_its_connection_closes_last() -> None:
    """The end of the connection is the end of the shutdown; the bundle exists by then."""
    async with running_daemon() as daemon, daemon.session() as client, daemon.control() as wire:
        await client.say(event("a"))
        await client.until_ack(1, 1)
        await wire.say({"command": "shutdown"})
        answer = await wire.read()
        assert answer["type"] == "stopping"
        assert client.opened["session"] in answer["waits_for"][0]
        assert await wire.rest() == []
        (bundle,) = daemon.bundles()
        assert len(json.loads(bundle.read_bytes())["events"]) == 1


async def test_a_defect_in_an_answer_does_not_end_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """That operator's connection closes; clients and the next operator are served."""
    from ergo_capture.server.ops import control

    async def broken(_service: Service) -> None:
        raise RuntimeError("a defect")

    async with running_daemon() as daemon, daemon.session() as client:
        with monkeypatch.context() as patched:
            patched.setattr(control, "take_status", broken)
            with pytest.raises(anyio.EndOfStream):
                await daemon.ask("status")
        await client.say(event("a"))
        await client.until_ack(1, 1)
        assert (await daemon.ask("status"))["type"] == "status"


@contextmanager
def held_sweep(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the sweep of temporary files take as long as the block."""
    gate = threading.Event()
    monkeypatch.setattr(StateDirectory, "sweep", lambda _state: gate.wait(PATIENCE))
    try:
        yield
    finally:
        gate.set()


@pytest.mark.parametrize("step", ["sweep", "recovery"])
async def test_a_starting_daemon_answers_operators(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket exists before bundles are listed and the journal is read: other requests are refused as too early."""
    with short_directory() as place:
        storage = GatedStorage()
        service = Service(configured(place / "state", place / "capture.sock"), storage)
        daemon = Daemon(service, place / "capture.sock", place / "state")
        with storage.gate("list") if step == "recovery" else held_sweep(monkeypatch):
            running = asyncio.create_task(service.run())
            with anyio.fail_after(PATIENCE):
                while not service.components.control_path.exists():
                    await anyio.sleep(0.01)
            status = (await daemon.ask("status"))["status"]
            assert (status["phase"], status["running"]) == ("starting", None)
            assert (await daemon.ask("flush"))["code"] == "shutting_down"
            assert (await daemon.ask("reload"))["code"] == "shutting_down"
            assert (await daemon.ask("metrics"))["type"] == "metrics"
        with anyio.fail_after(PATIENCE):
            await service.ready.wait()
        assert (await daemon.ask("status"))["status"]["phase"] == "serving"
        service.stop()
        await running
