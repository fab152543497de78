"""A client for the chaos test: one session over any number of connections, and what is known of each event.

It draws only the conclusions that the protocol allows. An event is *safe* once an acknowledgement covers it and it was
not rejected, except as a duplicate, or once ``opened`` counts it. Until then it is *open*, and is sent again on the next
connection.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import anyio
from tests.daemons import Wire, event

#: Answers to ``open`` after which it is tried again.
_LATER = {"session_busy", "shutting_down", "limit"}


class ChaosClient:
    """One session, from the client's side."""

    def __init__(self, name: str, graph: str) -> None:
        self.name = name
        self.graph = graph
        self.session: str | None = None
        #: Ids in the order they were first sent.
        self.sent: list[str] = []
        self.open: list[str] = []
        self.safe: set[str] = set()
        #: Events that may be in a bundle or not: nothing told the client.
        self.unknown: set[str] = set()
        #: ``closed``, or the code of the error that ended the session; None while it goes on.
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
        """Open or resume the session; do nothing where the daemon is away or refuses for now."""
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
        """Conclude from ``opened`` which events are safe."""
        news = accepted - len(self.safe)
        assert news >= 0, f"{self.session}: {accepted} accepted, and {len(self.safe)} are known to be"
        if last in self.open and self.open.index(last) + 1 == news:
            self.safe.update(self.open[:news])
            del self.open[:news]
        elif news:
            # Some were accepted and some rejected; the connection broke before the client was told which.
            self.unknown.update(self.open)
            self.open.clear()

    async def send(self, count: int) -> None:
        """Send ``count`` new events."""
        ids = [f"{self.name}-{len(self.sent) + number}" for number in range(count)]
        self.sent += ids
        self.open += ids
        await self._say(ids)

    async def send_again(self) -> None:
        """Send again what was refused because the disk was full."""
        ids, self._refused = self._refused, []
        if ids:
            await self._say(ids)

    async def ask(self, kind: str) -> None:
        """Send flush, close or ping, without waiting for the answer."""
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
        """Close the connection without closing the session."""
        wire, self._wire = self._wire, None
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
        if wire is not None:
            await wire.stream.aclose()

    def __repr__(self) -> str:
        return f"<ChaosClient {self.name} of {self.session}: {len(self.sent)} sent, {len(self.safe)} safe, {self.end}>"
