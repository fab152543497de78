"""Attacks of hostile clients; each is a coroutine that a test runs, or a process beside it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
from tests.daemons import Wire, event

MIB = 1 << 20
HELLO = b'{"type":"hello","protocol":"ergo-capture.v1"}\n'
OPEN = b'{"type":"open"}\n'
GONE = (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError)


class Attacker:
    """Connections to one socket."""

    def __init__(self, path: Path) -> None:
        self.socket = path
        #: Codes of what was answered.
        self.codes: Counter[str] = Counter()

    @asynccontextmanager
    async def wire(self) -> AsyncIterator[Wire]:
        """Open a raw connection."""
        async with await anyio.connect_unix(str(self.socket)) as stream:
            yield Wire(stream)

    @asynccontextmanager
    async def session(self, **options: Any) -> AsyncIterator[Wire]:
        """Open a connection with a session."""
        async with self.wire() as wire:
            await wire.open(**options)
            yield wire

    async def note_answers(self, wire: Wire) -> None:
        """Read to the end, and count the codes."""
        for frame in await wire.rest():
            if "code" in frame:
                self.codes[frame["code"]] += 1


Attack = Callable[[Attacker], Awaitable[None]]


async def slow_loris(it: Attacker) -> None:
    """Send twenty hellos and twenty frames, a byte at a time."""

    async def trickle(*, opened: bool) -> None:
        async with it.wire() as wire:
            if opened:
                await wire.open()
            with suppress(*GONE):
                for byte in (b'{"type":"event","event":{"event_id":"' if opened else HELLO[:-1]) + b"x" * 10_000:
                    await wire.stream.send(bytes([byte]))
                    await anyio.sleep(0.05)
            await it.note_answers(wire)

    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(lambda opened: trickle(opened=opened), bool(number % 2))


async def header_only(it: Attacker) -> None:
    """Send hello, and nothing more."""

    async def say_hello() -> None:
        async with it.wire() as wire:
            await wire.stream.send(HELLO)
            await it.note_answers(wire)

    async with anyio.create_task_group() as tasks:
        for _ in range(30):
            tasks.start_soon(say_hello)


async def half_frames(it: Attacker) -> None:
    """Begin a frame, and close the sending side."""
    for _ in range(30):
        async with it.session() as wire:
            await wire.stream.send(b'{"type":"event","event":{"event_id":"')
            await wire.stream.send_eof()
            await it.note_answers(wire)


async def resets(it: Attacker) -> None:
    """Begin a frame, leave answers unread, and close the connection: the daemon reads a reset."""
    for _ in range(30):
        client = socket.socket(socket.AF_UNIX)
        await anyio.to_thread.run_sync(client.connect, str(it.socket))
        client.sendall(HELLO + OPEN)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        while b"opened" not in await anyio.to_thread.run_sync(client.recv, 4096, socket.MSG_PEEK):
            pass
        client.sendall(b'{"type":"event","event":{"event_id":"')
        client.close()


async def one_long_line(it: Attacker) -> None:
    """Send a line of 100 MB, or as much of it as the time-out of a frame allows."""
    async with it.session() as wire:
        with suppress(*GONE):
            await wire.stream.send(b'{"type":"event","event":{"event_id":"')
            for _ in range(100):
                await wire.stream.send(b"x" * MIB)
            await wire.stream.send(b'"}}\n')
            await wire.stream.send_eof()
        await it.note_answers(wire)


async def many_long_lines(it: Attacker) -> None:
    """Begin fifty lines of almost a frame each, together more than limits.held_bytes."""

    async def begin() -> None:
        async with it.session() as wire:
            with suppress(*GONE):
                await wire.stream.send(b'{"type":"event",' + b" " * (MIB - 100))
            await it.note_answers(wire)

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(begin)


async def deep_nesting(it: Attacker) -> None:
    """Send 200,000 levels: as a frame, as an event, as a payload; closed and not closed."""
    head = b'{"type":"event","event":{"event_id":"a","kind":"Command","at":{"secs":0,"nanos":0},"payload":'
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        deep = opening * 200_000 + b"1" + closing * 200_000
        for line in (deep, head + deep + b"}}", b'{"type":"event","event":' + deep + b"}", opening * 200_000):
            async with it.session() as wire:
                with suppress(*GONE):
                    await wire.stream.send(line + b"\n")
                    await wire.stream.send_eof()
                await it.note_answers(wire)


async def invalid_utf8(it: Attacker) -> None:
    """Send invalid UTF-8 in ids and in payloads."""
    head = b'{"type":"event","event":{"event_id":"%b","kind":"Command","at":{"secs":0,"nanos":0},"payload":{"x":"%b"}}}'
    async with it.session() as wire:
        for bad in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"):
            await wire.say(head % (b"ok" + bad, b"y"), head % (b"id" + bad.hex().encode(), bad))
        await wire.stream.send_eof()
        await it.note_answers(wire)


async def never_reading(it: Attacker) -> None:
    """Send duplicates by the thousand, each worth an answer of 250 bytes, and read none of the answers."""

    async def provoke() -> None:
        lines = b"".join(json.dumps(event("same")).encode() + b"\n" for _ in range(1_000))
        async with it.session() as wire:
            with suppress(*GONE):
                for _ in range(1_000):
                    await wire.stream.send(lines)

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(provoke)


async def asking_and_never_reading(it: Attacker) -> None:
    """Send events, and read none of the decisions that were asked for."""

    async def ask(number: int) -> None:
        async with it.session(decisions=True) as wire:
            with suppress(*GONE):
                for first in range(0, 100_000, 500):
                    await wire.say(*(event(f"{number}-{n}") for n in range(first, first + 500)))

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(ask, number)


async def crowd(it: Attacker, count: int = 1_000) -> None:
    """Hold sixty connections, and open a thousand more."""
    held: list[socket.socket] = []
    turned_away = 0
    try:
        for _ in range(count + 60):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(10)
            await anyio.to_thread.run_sync(client.connect, str(it.socket))
            held.append(client)
            if len(held) > 60:
                answer = await anyio.to_thread.run_sync(client.recv, 4096)
                turned_away += b'"limit"' in answer
                held.pop().close()
    finally:
        for client in held:
            client.close()
    it.codes["limit"] += turned_away
    # Places become free while the crowd comes: the first ones send no hello in time.
    assert turned_away > 0


async def bad_frames(it: Attacker, count: int = 50_000, each: int = 1_000) -> None:
    """Send garbage on ten connections at a time, on each as many lines as end it."""
    line = b'{"type":"nope"}\n'

    async def pester(connections: int) -> None:
        for _ in range(connections):
            async with it.wire() as wire:
                await wire.stream.send(HELLO + OPEN + line * 4 * each)
                await it.note_answers(wire)

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(pester, count // each // 10)


async def fewer_bad_frames(it: Attacker) -> None:
    """Send fewer bad frames, for the short version."""
    await bad_frames(it, 1_500, 5)


async def smaller_crowd(it: Attacker) -> None:
    """Open fewer connections, for the short version."""
    await crowd(it, 300)


#: Each short enough for every run, with a code that it is counted under.
ATTACKS: list[tuple[Attack, str]] = [
    (slow_loris, "limit"),
    (header_only, "limit"),
    (half_frames, "bad_frame"),
    (resets, "bad_frame"),
    (one_long_line, "too_large"),
    (many_long_lines, "limit"),
    (deep_nesting, "bad_frame"),
    (invalid_utf8, "bad_frame"),
    (never_reading, "limit"),
    (asking_and_never_reading, "limit"),
    (smaller_crowd, "limit"),
    (fewer_bad_frames, "bad_frame"),
]


def main(path: str, attack: str) -> None:
    """Attack again and again until killed: ``python -m tests.server.net.attacks SOCKET ATTACK``."""

    async def again_and_again() -> None:
        attacker = Attacker(Path(path))
        while True:
            # An attacker that is disconnected comes back.
            with suppress(*GONE, AssertionError, ExceptionGroup, OSError):
                await globals()[attack](attacker)

    asyncio.run(again_and_again())


if __name__ == "__main__":
    main(*sys.argv[1:])
