"""The client between a broken connection and the next one, against a daemon that does as the test says."""

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
from tests.server.looks import until

from ergo_capture.client import CaptureClient, ClientError, Reject

OPENED = {
    "type": "opened",
    "session": "s",
    "resumed": False,
    "accepted": 0,
    "decided": 0,
    "last_event_id": None,
}


class Line:
    """One connection, as the daemon has it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def hears(self) -> dict[str, Any]:
        """The next frame."""
        with anyio.fail_after(20):
            frame: dict[str, Any] = json.loads(await self._reader.readline())
        return frame

    def says(self, *frames: dict[str, Any]) -> None:
        """Send frames."""
        for frame in frames:
            self._writer.write(json.dumps(frame).encode() + b"\n")

    async def opens(self, **fields: Any) -> None:
        """Greet, and open what is asked for."""
        assert (await self.hears())["type"] == "hello"
        self.says({"type": "welcome"})
        assert (await self.hears())["type"] == "open"
        self.says({**OPENED, **fields})

    def hangs_up(self) -> None:
        """End the connection."""
        self._writer.close()

    async def over(self) -> None:
        """Let go of the connection."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


class Scripted:
    """A daemon whose connections the test takes one by one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: asyncio.Queue[Line] = asyncio.Queue()
        self._taken: list[Line] = []

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A client has connected."""
        line = Line(reader, writer)
        self._taken.append(line)
        self._lines.put_nowait(line)

    async def over(self) -> None:
        """Let go of every connection."""
        for line in self._taken:
            await line.over()

    async def line(self) -> Line:
        """The next connection."""
        with anyio.fail_after(20):
            return await self._lines.get()


@asynccontextmanager
async def scripted() -> AsyncIterator[Scripted]:
    """A daemon that does as the test says."""
    with short_directory() as place:
        daemon = Scripted(place / "s")
        server = await asyncio.start_unix_server(daemon.take, daemon.path)
        try:
            yield daemon
        finally:
            server.close()
            await daemon.over()
            await server.wait_closed()


@asynccontextmanager
async def opened(daemon: Scripted, **options: Any) -> AsyncIterator[tuple[CaptureClient, Line]]:
    """A client with an open session, and its connection's other end."""
    entering = CaptureClient(daemon.path, **options)
    greeting = asyncio.create_task(daemon.line())

    async def greet() -> Line:
        line = await greeting
        await line.opens()
        return line

    greeted = asyncio.create_task(greet())
    async with entering as client:
        await client.open()
        yield client, await greeted


async def test_nothing_is_sent_between_hello_and_opened() -> None:
    """A sender that goes on while the client connects again must not speak before the session is open."""
    async with scripted() as daemon, opened(daemon) as (client, first):
        first.hangs_up()
        second = await daemon.line()
        assert (await second.hears())["type"] == "hello"
        await client.send(command_event("a"))
        await anyio.wait_all_tasks_blocked()
        second.says({"type": "welcome"})
        assert (await second.hears())["type"] == "open"
        await client.send(command_event("b"))
        await anyio.wait_all_tasks_blocked()
        second.says(OPENED)
        heard = [(await second.hears())["event"]["event_id"] for _ in range(2)]
        assert heard == ["a", "b"]


async def test_an_event_that_was_rejected_is_not_sent_again() -> None:
    """Its sender was told that it is not taken; it may be on its way again already, by another name or the same."""
    rejects: list[Reject] = []
    async with scripted() as daemon, opened(daemon, on_reject=rejects.append) as (client, first):
        await client.send(command_event("a"))
        await client.send(command_event("b"))
        await first.hears()
        await first.hears()
        first.says({"type": "reject", "index": 1, "event_id": "a", "code": "storage_full", "message": "m", "hint": ""})
        with anyio.fail_after(20):
            while not rejects:
                await asyncio.sleep(0.001)
        first.hangs_up()
        second = await daemon.line()
        await second.opens(resumed=True)
        assert (await second.hears())["event"]["event_id"] == "b"
        second.says({"type": "ack", "accepted": 1, "decided": 1})
        await client.drain()
        assert (client.accepted, client.rejected) == (1, 1)


async def test_the_answer_to_a_request_that_was_given_up_is_nobody_elses() -> None:
    """Whoever stops waiting for a flush and closes gets the answer to the close."""
    async with scripted() as daemon, opened(daemon) as (client, line):
        with pytest.raises(TimeoutError), anyio.fail_after(0.01):
            await client.flush()
        assert (await line.hears())["type"] == "flush"
        closing = asyncio.create_task(client.close())
        published = {"bundle": "b", "manifest": "m", "sha256": "0"}
        assert (await line.hears())["type"] == "close"
        line.says({"type": "flushed", **published})
        line.says({"type": "closed", "events": 7, "decisions": 7, "session": "s", **published})
        assert (await closing).events == 7


async def test_an_id_that_was_sent_twice_makes_nothing_between_look_safe() -> None:
    """P1: the daemon's last event may be the first of the two; what was sent between them is sent again."""
    async with scripted() as daemon, opened(daemon) as (client, first):
        await client.send(command_event("a"))
        await first.hears()
        first.says({"type": "ack", "accepted": 1, "decided": 1})
        await client.drain()
        for event_id in ("b", "a"):
            await client.send(command_event(event_id))
            await first.hears()
        first.hangs_up()
        second = await daemon.line()
        await second.opens(resumed=True, accepted=1, last_event_id="a")
        assert [(await second.hears())["event"]["event_id"] for _ in range(2)] == ["b", "a"]


async def test_a_send_that_is_given_up_leaves_no_half_line_behind() -> None:
    """P1: what follows would be read as the rest of it, and every count after it be wrong."""
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
            given_up = False
            while not given_up:
                name = f"e{len(sent)}"
                with anyio.move_on_after(0.2) as scope:
                    await client.send(command_event(name, payload={"pad": "x" * 9000}))
                    sent.append(name)
                given_up = scope.cancelled_caught
            reading.set()
            await client.send(command_event("last"))
            sent.append("last")
            await until(lambda: heard.endswith(b"\n") and b'"last"' in heard[-200:])
        assert [json.loads(line)["event"]["event_id"] for line in heard.splitlines()] == sent


async def test_a_close_that_was_given_up_may_be_asked_for_again() -> None:
    """The one answer that comes is that to both, before the second is asked or after it."""
    published = {"bundle": "b", "manifest": "m", "sha256": "0"}
    closed = {"type": "closed", "events": 7, "decisions": 7, "session": "s", **published}
    for is_late in (False, True):
        async with scripted() as daemon, opened(daemon) as (client, line):
            with pytest.raises(TimeoutError), anyio.fail_after(0.01):
                await client.close()
            assert (await line.hears())["type"] == "close"
            again = asyncio.create_task(client.close())
            await anyio.wait_all_tasks_blocked()
            if is_late:
                again.cancel()
            line.says(closed)
            line.hangs_up()
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
async def test_a_daemon_that_talks_nonsense_is_an_error_of_the_client(nonsense: bytes) -> None:
    """A sentence, and no traceback from within."""
    async with scripted() as daemon, opened(daemon, give_up_after=0) as (client, line):
        line._writer.write(nonsense)
        with pytest.raises(ClientError, match="no frame") as caught, anyio.fail_after(20):
            await client.ping()
        assert caught.value.code == "bad_frame"


async def test_what_a_daemon_cannot_do_is_not_asked_for_for_ever() -> None:
    """Once more on a new connection, because its disk may be well again; then it is an error."""
    failed = {"type": "error", "code": "storage_failed", "message": "no permission", "hint": ""}
    async with scripted() as daemon, opened(daemon) as (client, first):
        flushing = asyncio.create_task(client.flush())
        assert (await first.hears())["type"] == "flush"
        first.says(failed)
        second = await daemon.line()
        await second.opens(resumed=True)
        assert (await second.hears())["type"] == "flush"
        second.says(failed)
        with pytest.raises(ClientError, match="no permission"), anyio.fail_after(20):
            await flushing
        assert client.reconnects == 1
