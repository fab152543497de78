"""The client, against a daemon that comes and goes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.daemons import running_daemon, short_directory
from tests.doubles.gated_storage import GatedStorage
from tests.server.looks import sessions_of, until

from ergo_capture import EventTime, ExternalEvent, ExternalEventKind, decode_bundle
from ergo_capture.client import CaptureClient, ClientError, session_of, stream
from ergo_capture.protocol.capture import Code, ProtocolError

EVENT = ExternalEvent.mechanical_at("only", ExternalEventKind.Command, EventTime(0, 0))


async def test_a_daemon_that_goes_between_welcome_and_opened_is_asked_again() -> None:
    """A restart at that moment costs the caller of ``open`` nothing but time."""
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


async def pinging(client: CaptureClient) -> None:
    """Ping until it fails: the daemon may answer some more while it stops."""
    while True:
        await client.ping()


async def test_a_daemon_that_stays_away_is_given_up_with_a_hint() -> None:
    """After ``give_up_after``: what was acknowledged is safe, and how to go on."""
    async with running_daemon() as daemon:
        async with CaptureClient(daemon.socket, give_up_after=0.05) as client:
            await client.open("default")
            daemon.service.stop()
            with pytest.raises(ClientError) as caught:
                await asyncio.wait_for(pinging(client), 20)
        assert caught.value.code == "unreachable"
        assert caught.value.hint


async def test_a_connection_that_is_cut_is_taken_up_again_where_it_stood() -> None:
    """Everything is in the bundle once, and the caller is told how often it happened."""
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


async def test_a_daemon_that_is_just_starting_is_waited_for() -> None:
    """A first connection finds nobody, tries again, and is served."""
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


async def test_a_client_without_an_open_session_says_so() -> None:
    """Before ``open`` and after ``close``: an event that goes nowhere must not look sent."""
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
    """With another graph, on the same client."""
    async with running_daemon() as daemon, CaptureClient(daemon.socket, give_up_after=patience) as client:
        with pytest.raises(ClientError, match="not configured"):
            await client.open("nope")
        await client.open("default")
        await client.ping()


async def test_an_open_that_was_given_up_can_be_tried_again() -> None:
    """On another connection: the daemon may have opened a session by then, or wait for its disk."""
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


async def test_requests_of_several_tasks_are_each_answered_over_a_reconnect() -> None:
    """Each task gets the answer to what it asked, also where the connection breaks before any of them comes."""
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


async def test_a_whole_session_is_one_call() -> None:
    """Opened, sent, closed; the bundle is named."""
    events = [ExternalEvent.mechanical_at(f"e{n}", ExternalEventKind.Command, EventTime(n, 0)) for n in range(5)]
    async with running_daemon() as daemon:
        published = await stream(daemon.socket, events, window=2)
        assert (published.events, published.decisions) == (5, 5)
        bundle = decode_bundle(Path(published.bundle).read_bytes())
        assert [record.event_id for record in bundle.events] == [event.event_id for event in events]


async def test_a_session_may_be_a_block() -> None:
    """It is open within, and lingers where the block does not close it."""
    async with running_daemon() as daemon:
        async with session_of(daemon.socket, name="block") as client:
            await client.send(EVENT)
            await client.drain()
        (session,) = sessions_of(daemon)
        assert (session.accepted, session.ended) == (1, None)
