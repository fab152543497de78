"""A client for the chaos: one session, whatever happens to its connections, and what is known of each event.

It draws the conclusions that the README allows a client to draw, and no others: an event is *safe* once an
acknowledgement covers it, it was not rejected or only as a duplicate, or ``opened`` says so. It is *open* until then,
and is sent again on the next connection.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import anyio
from tests.daemons import Wire, event

#: Answers to ``open`` after which it is tried again.
_LATER = {"session_busy", "shutting_down", "limit"}


class Story:
    """One session from its client's side."""

    def __init__(self, name: str, graph: str) -> None:
        self.name = name
        self.graph = graph
        self.session: str | None = None
        #: Ids in the order they were first sent.
        self.sent: list[str] = []
        self.open: list[str] = []
        self.safe: set[str] = set()
        #: May be in a bundle or not: nobody could tell the client.
        self.unknown: set[str] = set()
        #: ``closed``, once the daemon said so; or why the session is no more.
        self.end: str | None = None
        self.codes: list[str] = []
        self._wire: Wire | None = None
        self._reading: asyncio.Task[None] | None = None
        #: On this connection: ids by index, codes of rejections by index, the last acknowledgement.
        self._said: list[str] = []
        self._rejected: dict[int, str] = {}
        self._acked = 0
        #: Refused on this connection because the disk was full, and not sent again.
        self._refused: list[str] = []
        self._closing = False

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection with the session open."""
        return self._wire is not None

    async def connect(self, path: Any) -> None:
        """Open the session, or take it up again, unless the daemon is not there or says later."""
        try:
            stream = await anyio.connect_unix(str(path))
        except OSError:
            return
        wire = Wire(stream)
        try:
            await wire.say({"type": "hello", "protocol": "ergo-capture.v1", "client": self.name})
            await wire.say({"type": "open", "graph": self.graph, **({"session": self.session} if self.session else {})})
            while (frame := await wire.read())["type"] == "welcome":
                pass
        except (anyio.EndOfStream, anyio.BrokenResourceError, OSError):
            await stream.aclose()
            return
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise
        if frame["type"] == "error":
            await stream.aclose()
            self.codes.append(frame["code"])
            if frame["code"] not in _LATER:
                self.end = frame["code"]
            return
        self.session = frame["session"]
        self._learn(frame["accepted"], frame["last_event_id"])
        self._wire, self._said, self._rejected, self._acked, self._closing = wire, [], {}, 0, False
        self._refused = []
        self._reading = asyncio.create_task(self._read(wire))
        if self.open:
            await self._say(list(self.open))

    def _learn(self, accepted: int, last: str | None) -> None:
        """What the daemon says of the session where it is taken up."""
        news = accepted - len(self.safe)
        assert news >= 0, f"{self.session}: {accepted} accepted, and {len(self.safe)} are known to be"
        if last in self.open and self.open.index(last) + 1 == news:
            self.safe.update(self.open[:news])
            del self.open[:news]
        elif news:
            # Some of them are in and some were rejected, and which could not be told before the connection broke.
            self.unknown.update(self.open)
            self.open.clear()

    async def send(self, count: int) -> None:
        """Send so many new events."""
        ids = [f"{self.name}-{len(self.sent) + number}" for number in range(count)]
        self.sent += ids
        self.open += ids
        await self._say(ids)

    async def send_again(self) -> None:
        """Send what was refused because the disk was full."""
        ids, self._refused = self._refused, []
        if ids:
            await self._say(ids)

    async def ask(self, kind: str) -> None:
        """Flush, close or ping, without waiting."""
        self._closing = self._closing or kind == "close"
        await self._write({"type": kind})

    async def _say(self, ids: list[str]) -> None:
        if not self._closing:
            self._said += ids
            await self._write(*(event(event_id, payload={"of": self.name}) for event_id in ids))

    async def _write(self, *frames: dict[str, Any]) -> None:
        if self._wire is not None:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                await self._wire.say(*frames)

    async def _read(self, wire: Wire) -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            while True:
                self._take(await wire.read())
        if self._wire is wire:
            self._wire = None
            await wire.stream.aclose()

    def _take(self, frame: dict[str, Any]) -> None:
        kind = frame["type"]
        if kind == "reject":
            self._rejected[frame["index"]] = frame["code"]
        elif kind == "ack":
            for index in range(self._acked + 1, frame["accepted"] + 1):
                self._settle(self._said[index - 1], self._rejected.pop(index, None))
            self._acked = max(self._acked, frame["accepted"])
        elif kind == "closed":
            self.end = "closed"
            assert frame["events"] >= len(self.safe)
        elif kind == "error":
            self.codes.append(frame["code"])

    def _settle(self, event_id: str, code: str | None) -> None:
        assert code in (None, "duplicate_event_id", "storage_full"), code
        if code == "storage_full":
            self._refused.append(event_id)
        elif event_id in self.open:
            self.open.remove(event_id)
            self.safe.add(event_id)

    async def hang_up(self) -> None:
        """Go without a word."""
        wire, self._wire = self._wire, None
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
        if wire is not None:
            await wire.stream.aclose()

    def __repr__(self) -> str:
        return f"<Story {self.name} of {self.session}: {len(self.sent)} sent, {len(self.safe)} safe, {self.end}>"
