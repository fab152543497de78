"""The outbox over a real socket: the order of frames, a client that reads slowly, and the end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from ergo_capture.protocol.capture import ProtocolError
from ergo_capture.server.net.outbox import Outbox


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield the daemon's and the client's end of a connection, both non-blocking."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


def outbox_on(raw: socket.socket, due: list[bytes]) -> Outbox:
    """Return an outbox for which the frames in ``due`` are due once."""

    def compose_due() -> list[bytes]:
        frames = due.copy()
        due.clear()
        return frames

    def on_stuck(error: ProtocolError) -> None:
        raise error

    return Outbox(raw, compose_due=compose_due, due_bytes=lambda: 0, on_stuck=on_stuck, limit=1000, timeout=0)


async def test_rejections_come_before_the_acknowledgement_and_answers_after_it(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """The order in which they are added does not matter; everything of one turn of the loop is one write."""
    ours, theirs = ends
    outbox = outbox_on(ours, [b"ack "])
    outbox.add_after_ack(b"pong ")
    outbox.add_before_ack(b"reject ")
    await outbox.until_sent()
    assert theirs.recv(100) == b"reject ack pong "


async def test_a_slow_reader_gets_everything_in_order(ends: tuple[socket.socket, socket.socket]) -> None:
    """The task sends the bytes that the socket does not take at once, and then those that were added meanwhile."""
    ours, theirs = ends
    outbox = outbox_on(ours, [])
    task = asyncio.create_task(outbox.run())
    outbox.add_after_ack(b"a" * 3_000_000)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert outbox.pending_bytes > 0
    outbox.add_after_ack(b"b" * 10)
    received = bytearray()
    while len(received) < 3_000_010:
        try:
            received += theirs.recv(1 << 20)
        except BlockingIOError:
            await asyncio.sleep(0.001)
    assert received == b"a" * 3_000_000 + b"b" * 10
    await outbox.until_sent()
    task.cancel()


async def test_nothing_follows_the_last_frame(ends: tuple[socket.socket, socket.socket]) -> None:
    """A session that goes on when its connection was dropped must not send after the error that ended it."""
    ours, theirs = ends
    outbox = outbox_on(ours, [b"ack "])
    outbox.add_after_ack(b"pong ")
    outbox.release(b"error ")
    outbox.wake()
    outbox.add_after_ack(b"pong ")
    for _ in range(3):
        await asyncio.sleep(0)
    assert theirs.recv(100) == b"error "
    with pytest.raises(BlockingIOError):
        theirs.recv(100)
