"""The client, against a daemon that stops and starts."""

from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.daemons import running_daemon, short_directory
from tests.doubles.gated_storage import GatedStorage
from tests.server.looks import sessions_of, until

from ergo_capture import EventTime, ExternalEvent, ExternalEventKind, decode_bundle
from ergo_capture.client import CaptureClient, ClientError, connection, session_of, stream
from ergo_capture.protocol.capture import Code, ProtocolError

EVENT = ExternalEvent.mechanical_at("only", ExternalEventKind.Command, EventTime(0, 0))


async def test_open_is_retried_if_the_daemon_goes_away_before_it_answers() -> None:
    """A restart between ``welcome`` and ``opened`` costs the caller only time."""
    welcomes = 0

    async def welcome_and_go(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal welcomes
        await reader.readline()
        writer.write(b'{"type":"welcome","protocol":"ergo-capture.v1","limits":{}}\n')
        await reader.readline()
        welcomes += 1
        if welcomes > 1:
            answer: dict[str, Any] = {"type": "opened", "session": "s", "accepted": 0, "last_event_id": None}
            writer.write(json.dumps(answer).encode() + b"\n")
            await reader.read()
        writer.close()

    with short_directory() as place:
        path = place / "capture.sock"
        async with await asyncio.start_unix_server(welcome_and_go, str(path)):
            async with CaptureClient(path, give_up_after=20) as client:
                assert await client.open("default") == "s"
            assert welcomes == 2


async def test_a_user_who_may_not_connect_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No daemon is waited for: the socket is there."""

    async def refuse(_path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(connection, "_FIRST_PATIENCE", 600.0)
    monkeypatch.setattr(anyio, "connect_unix", refuse)
    with pytest.raises(ClientError, match="permission denied"):
        await asyncio.wait_for(CaptureClient(Path("/s"), give_up_after=600).__aenter__(), 20)


async def pinging(client: CaptureClient) -> None:
    """Ping until it fails: the daemon may answer a few more while it stops."""
    while True:
        await client.ping()


async def test_a_daemon_that_stays_away_is_given_up_with_a_hint() -> None:
    """It is given up after ``give_up_after`` seconds; the hint says what is safe and how to go on."""
    async with running_daemon() as daemon:
        async with CaptureClient(daemon.socket, give_up_after=0.05) as client:
            await client.open("default")
            daemon.service.stop()
            with pytest.raises(ClientError) as caught:
                await asyncio.wait_for(pinging(client), 20)
        assert caught.value.code == "unreachable"
        assert caught.value.hint


async def test_a_session_is_resumed_where_its_connection_broke() -> None:
    """Every event is in the bundle once, and ``on_reconnect`` is called each time."""
    told: list[int] = []
    async with running_daemon() as daemon:
        async with CaptureClient(daemon.socket, on_reconnect=told.append, give_up_after=20) as client:
            await client.open("default")
            for number in range(100):
                if number in (30, 60):
                    for connection in list(daemon.service.clients.connections):
                        connection.shut_down()
                event = ExternalEvent.mechanical_at(f"e{number}", ExternalEventKind.Command, EventTime(number, 0))
                await client.send(event)
                if number in (29, 59):
                    await client.drain()
            published = await client.close()
        events = decode_bundle(Path(published.bundle).read_bytes()).events
        assert [record.event_id for record in events] == [f"e{number}" for number in range(100)]
        assert told == [1, 2]


async def test_a_first_connection_waits_for_a_starting_daemon() -> None:
    """It tries again until the daemon listens."""
    with short_directory() as place:
        path = place / "capture.sock"

        async def later() -> asyncio.Server:
            await asyncio.sleep(0.3)
            return await asyncio.start_unix_server(welcome, str(path))

        async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(b'{"type":"welcome","protocol":"ergo-capture.v1","limits":{"max_id_bytes":9}}\n')
            await reader.read()
            writer.close()

        starting = asyncio.create_task(later())
        async with CaptureClient(path) as client:
            assert client.limits == {"max_id_bytes": 9}
        (await starting).close()


async def test_calls_without_an_open_session_are_refused_as_misuse() -> None:
    """This holds before ``open`` and after ``close``: an event that goes nowhere must not look sent."""
    async with running_daemon() as daemon, CaptureClient(daemon.socket) as client:
        with pytest.raises(ClientError, match="was not opened"):
            await client.send(EVENT)
        with pytest.raises(ClientError, match="was not opened"):
            await client.ping()
        await client.open("default")
        with pytest.raises(ClientError, match="has one already") as caught:
            await client.open("default")
        assert caught.value.code == "misuse"
        await client.send(EVENT)
        await client.close()
        with pytest.raises(ClientError, match="is closed"):
            await client.send(EVENT)
        await until(lambda: not daemon.service.clients.connections)
        assert daemon.service.clients.totals["clients"] == 1


@pytest.mark.parametrize("patience", [0.0, 60.0])
async def test_an_open_that_was_refused_can_be_tried_again(patience: float) -> None:
    """The same client can then open another graph."""
    async with running_daemon() as daemon, CaptureClient(daemon.socket, give_up_after=patience) as client:
        with pytest.raises(ClientError, match="not configured"):
            await client.open("nope")
        await client.open("default")
        await client.ping()


async def test_a_cancelled_open_can_be_tried_again() -> None:
    """It uses a new connection: the daemon may have opened a session on the first by then."""
    storage = GatedStorage()
    async with running_daemon(storage=storage) as daemon, CaptureClient(daemon.socket, give_up_after=0) as client:
        with storage.gate("write", ".journal"):
            opening = asyncio.create_task(client.open("default"))
            await storage.until_held()
            opening.cancel()
            await asyncio.wait([opening])
        await client.open("default")
        await client.send(EVENT)
        assert (await client.close()).events == 1


async def test_requests_of_several_tasks_are_answered_across_a_reconnect() -> None:
    """Each task gets the answer to its own request, also if the connection breaks before any answer comes."""
    async with running_daemon() as daemon, CaptureClient(daemon.socket) as client:
        await client.open("default")
        await client.send(EVENT)
        await client.drain()
        (connection,) = daemon.service.clients.connections
        tasks = [asyncio.create_task(request()) for request in (client.ping, client.flush, client.ping, client.flush)]
        await asyncio.sleep(0)
        connection.drop(ProtocolError(Code.SHUTTING_DOWN, "cut by the test", ""))
        answers = await asyncio.wait_for(asyncio.gather(*tasks), 20)
        assert [answer is None for answer in answers] == [True, False, True, False]
        assert client.reconnects == 1


async def test_stream_sends_a_whole_session_in_one_call() -> None:
    """It opens, sends, closes, and returns the bundle."""
    events = [ExternalEvent.mechanical_at(f"e{n}", ExternalEventKind.Command, EventTime(n, 0)) for n in range(5)]
    async with running_daemon() as daemon:
        published = await stream(daemon.socket, events, window=2)
        assert (published.events, published.decisions) == (5, 5)
        bundle = decode_bundle(Path(published.bundle).read_bytes())
        assert [record.event_id for record in bundle.events] == [event.event_id for event in events]


async def test_session_of_opens_a_session_for_a_block() -> None:
    """The session lingers if the block does not close it."""
    async with running_daemon() as daemon:
        async with session_of(daemon.socket, name="block") as client:
            await client.send(EVENT)
            await client.drain()
        (session,) = sessions_of(daemon)
        assert (session.accepted, session.ended) == (1, None)
