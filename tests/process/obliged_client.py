"""A client with obligations: it knows which events it was told are durable, and which it was told are lost.

It draws only the conclusions that the protocol allows. An event is *owed* to it once an acknowledgement covers it. What
it says on each resume, how many events and the last id, is what it was told. After ``acknowledged_lost`` the daemon owes
only what it still holds; the client goes on with ``resume_after_loss`` and sends the rest again.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
from tests.daemons import Wire, event

#: Answers to ``open``, and ends of a connection, after which the client tries again.
_LATER = {"session_busy", "shutting_down", "limit", "storage_full", "storage_failed", "unknown_graph", "no_engine"}
#: Longest wait for an answer to ``open``, in seconds; a stopped daemon does not answer.
_ANSWER_SECONDS = 5.0


class ObligedClient:
    """One stream of events, in one session after the other if the daemon loses the first."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sessions: list[str] = []
        self.sent = 0
        #: Ids that were sent and of which nothing is known, in order.
        self.open: list[str] = []
        #: Ids that are owed, in the order in which they were acknowledged.
        self.owed: list[str] = []
        #: The number of losses that the daemon has reported.
        self.losses = 0
        self.closed = False
        #: The daemon's last word on the session: accepted events and the last id; the next resume repeats it.
        self._told: tuple[int, str | None] = (0, None)
        self._wire: Wire | None = None
        self._reading: asyncio.Task[None] | None = None
        self._said: list[str] = []
        self._rejected: dict[int, str] = {}
        self._acked = 0
        #: The place among the owed ids of an event that turns out to be accepted already.
        self._before = 0
        self._closing = False

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection with the session open."""
        return self._wire is not None

    async def connect(self, path: Path) -> None:
        """Open or resume the session; do nothing where the daemon is away, silent, or refuses for now."""
        with anyio.move_on_after(_ANSWER_SECONDS), suppress(OSError, anyio.EndOfStream, anyio.BrokenResourceError):
            await self._connect(path, after_loss=False)

    async def _connect(self, path: Path, *, after_loss: bool) -> None:
        stream = await anyio.connect_unix(str(path))
        wire = Wire(stream)
        keep = False
        try:
            await wire.say({"type": "hello", "protocol": "ergo-capture.v1", "client": self.name})
            await wire.say(self._request(after_loss))
            while (frame := await wire.read())["type"] == "welcome":
                pass
            keep = frame["type"] == "opened"
        finally:
            if not keep:
                await anyio.aclose_forcefully(stream)
        if keep:
            self._opened(frame, wire)
        elif frame["code"] == "acknowledged_lost":
            self._lose(frame)
            await self._connect(path, after_loss=True)
        elif frame["code"] == "unknown_session":
            # It has ended, and a final bundle holds all that was acknowledged: the rest goes to a new session.
            self._start_anew()
        else:
            assert frame["code"] in _LATER, frame

    def _request(self, after_loss: bool) -> dict[str, Any]:
        if not self.sessions or not self.sessions[-1]:
            return {"type": "open"}
        if self._told == (0, None):
            return {"type": "open", "session": self.sessions[-1]}
        events, last = self._told
        acknowledged = {"events": events, "last_event_id": last}
        request = {"type": "open", "session": self.sessions[-1], "acknowledged": acknowledged}
        return request | ({"resume_after_loss": True} if after_loss else {})

    def _lose(self, frame: dict[str, Any]) -> None:
        """Take note of a loss: send again whatever is not certain to be held."""
        held = frame["lost"]["held"]
        self.losses += 1
        self.open = self.owed[held:] + self.open
        del self.owed[held:]

    def _start_anew(self) -> None:
        self.sessions.append("")
        self._told = (0, None)

    def _opened(self, frame: dict[str, Any], wire: Wire) -> None:
        session = frame["session"]
        if not self.sessions or self.sessions[-1] != session:
            if self.sessions and self.sessions[-1] == "":
                self.sessions.pop()
            elif self.sessions:
                # The whole session was lost: a new one takes its place, and nothing of the old one is owed.
                self.open = self.owed + self.open
                self.owed = []
            self.sessions.append(session)
        self._told = (frame["accepted"], frame["last_event_id"])
        self._wire, self._said, self._rejected, self._acked, self._closing = wire, [], {}, 0, False
        self._before = len(self.owed)
        self._reading = asyncio.create_task(self._read(wire))

    async def send(self, count: int) -> None:
        """Send what is open again, and ``count`` new events."""
        new = [f"{self.name}-{self.sent + number}" for number in range(count)]
        self.sent += count
        self.open += new
        ids = [each for each in self.open if each not in set(self._said)]
        if self._closing or self._wire is None or not ids:
            return
        self._said += ids
        await self._write(*(event(each, payload={"of": self.name}) for each in ids))

    async def send_refused(self) -> None:
        """Send again on this connection what was refused because the disk was full."""
        refused = [each for each in self.open if each in set(self._said[: self._acked])]
        if refused and not self._closing:
            self._said += refused
            await self._write(*(event(each, payload={"of": self.name}) for each in refused))

    async def close(self) -> None:
        """Ask for the session's end."""
        self._closing = True
        await self._write({"type": "close"})

    async def _write(self, *frames: dict[str, Any]) -> None:
        if self._wire is not None:
            with (
                anyio.move_on_after(_ANSWER_SECONDS),
                suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError),
            ):
                await self._wire.say(*frames)

    async def _read(self, wire: Wire) -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError, TimeoutError):
            while True:
                self._take(await wire.read())
        if self._wire is wire:
            self._wire = None
            await anyio.aclose_forcefully(wire.stream)

    def _take(self, frame: dict[str, Any]) -> None:
        kind = frame["type"]
        if kind == "reject":
            self._rejected[frame["index"]] = frame["code"]
        elif kind == "ack":
            last = self._told[1]
            for index in range(self._acked + 1, frame["accepted"] + 1):
                last = self._settle(self._said[index - 1], self._rejected.pop(index, None)) or last
            self._acked = max(self._acked, frame["accepted"])
            self._told = (frame["events"], last)
        elif kind == "closed":
            self.closed = True

    def _settle(self, event_id: str, code: str | None) -> str | None:
        """Take note of an event's fate; return its id if it was accepted now."""
        assert code in (None, "duplicate_event_id", "storage_full", "storage_failed"), code
        if code in (None, "duplicate_event_id") and event_id in self.open:
            self.open.remove(event_id)
            if code is None:
                self.owed.append(event_id)
            else:
                # It was accepted on an earlier connection, before everything that was accepted on this one.
                self.owed.insert(self._before, event_id)
                self._before += 1
        return event_id if code is None else None

    async def hang_up(self) -> None:
        """Close the connection without closing the session."""
        wire, self._wire = self._wire, None
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
        if wire is not None:
            await anyio.aclose_forcefully(wire.stream)

    def __repr__(self) -> str:
        return f"<{self.name}: {self.sent} sent, {len(self.owed)} owed, {len(self.open)} open, {self.losses} losses>"
