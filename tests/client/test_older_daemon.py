"""The client of today and a daemon of 0.1.0, which knows neither ``acknowledged`` nor ``events`` in ``ack``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.daemons import short_directory

from ergo_capture import ExternalEvent, ExternalEventKind
from ergo_capture.client import CaptureClient, ClientError

#: All that a daemon of 0.1.0 understands in ``open``.
KNOWN = {"type", "graph", "session", "labels", "decisions"}


@asynccontextmanager
async def older_daemon(*held: tuple[int, str | None]) -> AsyncIterator[Path]:
    """Run a daemon that holds so many events, up to that id, when a client connects for the first time, the second..."""
    states = list(held)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(frame: dict[str, Any]) -> None:
            writer.write(json.dumps(frame).encode() + b"\n")

        accepted, last = states.pop(0)
        sent = 0
        while line := await reader.readline():
            frame = json.loads(line)
            if frame["type"] == "hello":
                say({"type": "welcome", "protocol": "ergo-capture.v1", "server": "ergo-capture 0.1.0", "limits": {}})
            elif frame["type"] == "open":
                if not frame.keys() <= KNOWN:
                    say({"type": "error", "code": "bad_frame", "message": "unknown field", "hint": ""})
                    break
                say({"type": "opened", "session": "s", "accepted": accepted, "last_event_id": last})
            elif frame["type"] == "event":
                sent += 1
                say({"type": "ack", "accepted": sent, "decided": 0})
                if frame["event"]["event_id"] == "last":
                    break
        writer.close()

    with short_directory() as place:
        path = place / "capture.sock"
        async with await asyncio.start_unix_server(converse, str(path)):
            yield path


async def three_events(client: CaptureClient) -> None:
    """Send a, b, and the last, after which the daemon hangs up."""
    await client.open("default")
    for event_id in ("a", "b", "last"):
        await client.send(ExternalEvent.mechanical(event_id, ExternalEventKind.Command))
    await client.drain()
    while not client.reconnects:
        await client.send(ExternalEvent.mechanical("more", ExternalEventKind.Command))
        await client.drain()


async def test_a_session_is_resumed_without_the_words_that_it_does_not_know() -> None:
    """It would refuse ``open``."""
    async with older_daemon((0, None), (3, "last")) as path, CaptureClient(path, give_up_after=20) as client:
        await three_events(client)
        assert client.lost is None


@pytest.mark.parametrize(("held", "last"), [(1, "a"), (0, None), (3, "another")])
async def test_the_client_itself_notices_what_is_gone(held: int, last: str | None) -> None:
    """The answer to ``open`` says how many events there are, and the last one's id."""
    async with older_daemon((0, None), (held, last)) as path, CaptureClient(path, give_up_after=20) as client:
        with pytest.raises(ClientError, match="acknowledged events") as caught:
            await three_events(client)
        assert caught.value.code == "acknowledged_lost"
        assert caught.value.lost is not None
        assert (caught.value.lost.acknowledged, caught.value.lost.held) == (3, held)


async def test_the_client_goes_on_after_a_loss_if_it_may() -> None:
    """It then knows what was lost."""
    async with (
        older_daemon((0, None), (1, "a")) as path,
        CaptureClient(path, give_up_after=20, resume_after_loss=True) as client,
    ):
        await three_events(client)
        assert client.lost is not None
        assert (client.lost.acknowledged, client.lost.held) == (3, 1)
