"""The client between a broken connection and the next, against a daemon that the test plays."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.daemons import short_directory
from tests.engine.engines import command_event
from tests.server.looks import silent_loop, until

from ergo_capture.client import CaptureClient, ClientError, Reject
from ergo_capture.client.connection import Connection

OPENED = {
    "type": "opened",
    "session": "s",
    "resumed": False,
    "accepted": 0,
    "decided": 0,
    "last_event_id": None,
}


class Peer:
    """The daemon's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> dict[str, Any]:
        """Return the next frame."""
        with anyio.fail_after(20):
            frame: dict[str, Any] = json.loads(await self._reader.readline())
        return frame

    def send(self, *frames: dict[str, Any]) -> None:
        """Send frames."""
        for frame in frames:
            self._writer.write(json.dumps(frame).encode() + b"\n")

    async def accept_session(self, **fields: Any) -> None:
        """Answer ``hello`` and ``open``."""
        assert (await self.receive())["type"] == "hello"
        self.send({"type": "welcome"})
        assert (await self.receive())["type"] == "open"
        self.send({**OPENED, **fields})

    def hang_up(self) -> None:
        """End the connection."""
        self._writer.close()

    async def release(self) -> None:
        """End the connection and wait until it has ended."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


class PlayedDaemon:
    """A daemon whose connections the test handles one by one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: asyncio.Queue[Peer] = asyncio.Queue()
        self._taken: list[Peer] = []

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Keep a new connection for ``line``."""
        line = Peer(reader, writer)
        self._taken.append(line)
        self._lines.put_nowait(line)

    async def release(self) -> None:
        """End every connection."""
        for line in self._taken:
            await line.release()

    async def line(self) -> Peer:
        """Return the next connection."""
        with anyio.fail_after(20):
            return await self._lines.get()


@asynccontextmanager
async def played_daemon() -> AsyncIterator[PlayedDaemon]:
    """Yield a listening daemon that the test plays."""
    with short_directory() as place:
        daemon = PlayedDaemon(place / "s")
        server = await asyncio.start_unix_server(daemon.take, daemon.path)
        try:
            yield daemon
        finally:
            server.close()
            await daemon.release()
            await server.wait_closed()


@asynccontextmanager
async def opened(daemon: PlayedDaemon, **options: Any) -> AsyncIterator[tuple[CaptureClient, Peer]]:
    """Yield a client with an open session, and the daemon's end of its connection."""
    entering = CaptureClient(daemon.path, **options)
    greeting = asyncio.create_task(daemon.line())

    async def greet() -> Peer:
        line = await greeting
        await line.accept_session()
        return line

    greeted = asyncio.create_task(greet())
    async with entering as client:
        await client.open()
        yield client, await greeted


async def test_nothing_is_sent_between_hello_and_opened() -> None:
    """A sender that goes on while the client reconnects must not send before the session is open."""
    async with played_daemon() as daemon, opened(daemon) as (client, first):
        first.hang_up()
        second = await daemon.line()
        assert (await second.receive())["type"] == "hello"
        await client.send(command_event("a"))
        await anyio.wait_all_tasks_blocked()
        second.send({"type": "welcome"})
        assert (await second.receive())["type"] == "open"
        await client.send(command_event("b"))
        await anyio.wait_all_tasks_blocked()
        second.send(OPENED)
        heard = [(await second.receive())["event"]["event_id"] for _ in range(2)]
        assert heard == ["a", "b"]


async def test_a_rejected_event_is_not_sent_again_after_a_reconnect() -> None:
    """Its sender was told, and may have sent it again."""
    rejects: list[Reject] = []
    async with played_daemon() as daemon, opened(daemon, on_reject=rejects.append) as (client, first):
        await client.send(command_event("a"))
        await client.send(command_event("b"))
        await first.receive()
        await first.receive()
        first.send({"type": "reject", "index": 1, "event_id": "a", "code": "storage_full", "message": "m", "hint": ""})
        with anyio.fail_after(20):
            while not rejects:
                await asyncio.sleep(0.001)
        first.hang_up()
        second = await daemon.line()
        await second.accept_session(resumed=True)
        assert (await second.receive())["event"]["event_id"] == "b"
        second.send({"type": "ack", "accepted": 1, "decided": 1})
        await client.drain()
        assert (client.accepted, client.rejected) == (1, 1)


async def test_the_answer_to_a_cancelled_request_is_not_taken_for_another() -> None:
    """A caller that cancels a flush and then closes gets the answer to the close."""
    async with played_daemon() as daemon, opened(daemon) as (client, line):
        with pytest.raises(TimeoutError), anyio.fail_after(0.01):
            await client.flush()
        assert (await line.receive())["type"] == "flush"
        closing = asyncio.create_task(client.close())
        published = {"bundle": "b", "manifest": "m", "sha256": "0"}
        assert (await line.receive())["type"] == "close"
        line.send({"type": "flushed", **published})
        line.send({"type": "closed", "events": 7, "decisions": 7, "session": "s", **published})
        assert (await closing).events == 7


async def test_an_id_sent_twice_does_not_make_events_between_look_durable() -> None:
    """P1: the daemon's last event may be the first of the two; the events between them are sent again."""
    async with played_daemon() as daemon, opened(daemon) as (client, first):
        await client.send(command_event("a"))
        await first.receive()
        first.send({"type": "ack", "accepted": 1, "decided": 1})
        await client.drain()
        for event_id in ("b", "a"):
            await client.send(command_event(event_id))
            await first.receive()
        first.hang_up()
        second = await daemon.line()
        await second.accept_session(resumed=True, accepted=1, last_event_id="a")
        assert [(await second.receive())["event"]["event_id"] for _ in range(2)] == ["b", "a"]


async def test_a_cancelled_send_leaves_no_partial_line() -> None:
    """P1: the next event would be read as the rest of it, and every later count would be wrong."""
    with short_directory() as place:
        reading, heard = asyncio.Event(), bytearray()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(b'{"type":"welcome"}\n')
            await reader.readline()
            writer.write(json.dumps(OPENED).encode() + b"\n")
            await reading.wait()
            while data := await reader.read(1 << 16):
                heard.extend(data)
            writer.close()

        async with (
            await asyncio.start_unix_server(serve, place / "s"),
            CaptureClient(place / "s", window=1 << 20, give_up_after=0) as client,
        ):
            await client.open()
            sent: list[str] = []
            was_cancelled = False
            while not was_cancelled:
                name = f"e{len(sent)}"
                with anyio.move_on_after(0.2) as scope:
                    await client.send(command_event(name, payload={"pad": "x" * 9000}))
                    sent.append(name)
                was_cancelled = scope.cancelled_caught
            reading.set()
            await client.send(command_event("last"))
            sent.append("last")
            await until(lambda: heard.endswith(b"\n") and b'"last"' in heard[-200:])
        assert [json.loads(line)["event"]["event_id"] for line in heard.splitlines()] == sent


async def test_a_cancelled_close_can_be_called_again() -> None:
    """The one answer is the answer to both, before the second call or after it."""
    published = {"bundle": "b", "manifest": "m", "sha256": "0"}
    closed = {"type": "closed", "events": 7, "decisions": 7, "session": "s", **published}
    for is_late in (False, True):
        async with played_daemon() as daemon, opened(daemon) as (client, line):
            with pytest.raises(TimeoutError), anyio.fail_after(0.01):
                await client.close()
            assert (await line.receive())["type"] == "close"
            again = asyncio.create_task(client.close())
            await anyio.wait_all_tasks_blocked()
            if is_late:
                again.cancel()
            line.send(closed)
            line.hang_up()
            if is_late:
                await until(lambda: client._closed)
                again = asyncio.create_task(client.close())
            with anyio.fail_after(20):
                assert (await again).events == 7


@pytest.mark.parametrize(
    "nonsense",
    [
        b"not a frame\n",
        b"[]\n",
        b"{}\n",
        b'{"type":"ack"}\n',
        b'{"type":"ack","accepted":"x"}\n',
        b'{"type":"reject"}\n',
        b'{"type":7}\n',
    ],
)
async def test_an_invalid_frame_is_a_client_error(nonsense: bytes) -> None:
    """A message, and no traceback from within."""
    async with played_daemon() as daemon, opened(daemon, give_up_after=0) as (client, line):
        line._writer.write(nonsense)
        with pytest.raises(ClientError, match="not a frame") as caught, anyio.fail_after(20):
            await client.ping()
        assert caught.value.code == "bad_frame"


async def test_a_request_that_fails_for_storage_is_retried_once() -> None:
    """The retry uses a new connection, since the disk may be well again; a second failure is an error."""
    failed = {"type": "error", "code": "storage_failed", "message": "no permission", "hint": ""}
    async with played_daemon() as daemon, opened(daemon) as (client, first):
        flushing = asyncio.create_task(client.flush())
        assert (await first.receive())["type"] == "flush"
        first.send(failed)
        second = await daemon.line()
        await second.accept_session(resumed=True)
        assert (await second.receive())["type"] == "flush"
        second.send(failed)
        with pytest.raises(ClientError, match="no permission"), anyio.fail_after(20):
            await flushing
        assert client.reconnects == 1


async def test_an_answer_of_an_unknown_type_is_skipped() -> None:
    """A newer daemon may send more: it is not taken for the answer to a request, on its own or beside others."""
    async with played_daemon() as daemon, opened(daemon) as (client, line):
        line.send({"type": "novelty", "x": 1})
        flushing = asyncio.create_task(client.flush())
        assert (await line.receive())["type"] == "flush"
        flushed = {"type": "flushed", "bundle": "b", "manifest": "m", "sha256": "0"}
        line.send({"type": "novelty", "x": [2]}, {"type": "ack", "accepted": 0, "more": True}, flushed)
        with anyio.fail_after(20):
            assert (await flushing).bundle == "b"


async def test_decisions_that_come_with_the_answer_to_open_are_reported() -> None:
    """A resumed session may have some to report at once; they arrive in the same read."""
    decisions: list[dict[str, Any]] = []
    async with played_daemon() as daemon:
        greeting = asyncio.create_task(daemon.line())

        async def greet() -> Peer:
            line = await greeting
            await line.receive()
            line.send({"type": "welcome"})
            await line.receive()
            line.send(OPENED, {"type": "decision", "index": 1, "decision": {"event_id": "a"}})
            return line

        greeted = asyncio.create_task(greet())
        async with CaptureClient(daemon.path, on_decision=decisions.append) as client:
            await client.open(session="s", decisions=True)
            await until(lambda: decisions)
            await greeted
    assert decisions == [{"event_id": "a"}]


async def test_a_read_that_is_cancelled_as_bytes_come_reports_nothing_to_the_loop() -> None:
    """The loop would print a traceback, at the end of a command that did everything right."""
    async with played_daemon() as daemon:
        greeting = asyncio.create_task(daemon.line())
        connection = Connection(str(daemon.path), "reader", 0)
        connecting = asyncio.create_task(connection.connect())
        line = await greeting
        await line.receive()
        line.send({"type": "welcome"})
        await connecting
        with silent_loop():
            reading = asyncio.create_task(connection.read())
            await asyncio.sleep(0.05)
            # The socket is readable in the very turn of the loop in which the reader is cancelled.
            line.send({"type": "novelty"})
            asyncio.get_running_loop().call_soon(reading.cancel)
            with suppress(asyncio.CancelledError):
                await reading
        await connection.hang_up()
