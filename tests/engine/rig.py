"""A daemon that tests kill, and the record of what its engine was asked to run."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import anyio
from tests.daemons import DaemonProcess
from tests.engine.engines import command_event, puppet_command

from ergo_capture import EpisodeInvocationRecord, decode_bundle
from ergo_capture.cli.support.verification import check
from ergo_capture.client import CaptureClient


class Rig:
    """A daemon as a process with the puppet as its engine, which records what it is asked to run."""

    def __init__(self, place: Path, in_doubt: str, engine: str = "") -> None:
        self.calls_file = place / "calls"
        self.in_doubt = in_doubt
        self.engine = engine
        self.daemon = DaemonProcess(place, place / "state")

    async def start(self, *options: str, more: str = "") -> None:
        """Start the daemon with the puppet as its child."""
        command = json.dumps(puppet_command("--log", str(self.calls_file), *options))
        await self.start_with(f'kind = "process"\ncommand = {command}', more)

    async def start_with(self, engine: str, more: str = "") -> None:
        """Start the daemon with another engine."""
        text = (
            f'[session]\nin_doubt = "{self.in_doubt}"\n{more}\n[graphs.default]\nruntime_provenance = "rpv1:puppet"\n'
        )
        self.daemon.config.write_text(text + f'[graphs.default.engine]\nback_off = "10ms"\n{self.engine}\n{engine}\n')
        await asyncio.to_thread(self.daemon.start)

    async def kill(self) -> None:
        """Kill -9 the daemon; its engine ends with it."""
        await asyncio.to_thread(self.daemon.kill)

    def calls(self) -> Counter[str]:
        """Return how often each event was run."""
        return Counter(self.calls_file.read_text().split() if self.calls_file.exists() else [])

    async def until_called(self, ids: Iterable[str]) -> None:
        """Wait until each was run at least once."""
        with anyio.fail_after(20):
            while not set(ids) <= set(self.calls()):
                await anyio.sleep(0.005)

    async def until_more_calls(self, count: int) -> None:
        """Wait until that many more runs have begun."""
        with anyio.fail_after(20):
            enough = self.calls().total() + count
            while self.calls().total() < enough:
                await anyio.sleep(0.001)

    async def begin(self, ids: list[str], decided: int | None = None) -> str:
        """Open a session, send those events and wait until ``decided`` are; return its id."""
        async with CaptureClient(self.daemon.socket, give_up_after=0) as client:
            session = await client.open("default")
            for at, event_id in enumerate(ids):
                await client.send(command_event(event_id, at))
            await client.drain()
            if decided is not None:
                await client.flush()
        return session

    async def finish(self, session: str, ids: list[str]) -> list[EpisodeInvocationRecord]:
        """Resume, send more, close; return the decisions of the bundle, verified."""
        async with CaptureClient(self.daemon.socket) as client:
            await client.open("default", session=session)
            for at, event_id in enumerate(ids):
                await client.send(command_event(event_id, 100 + at))
            published = await client.close()
        assert check(Path(published.bundle))["ok"]
        return list(decode_bundle(Path(published.bundle).read_bytes()).decisions)


def ended(records: list[EpisodeInvocationRecord]) -> list[str]:
    """Return how each ended; ``in doubt`` for those that were recorded as such."""
    return [
        "in doubt" if (record.interruption or "").startswith("in_doubt") else str(record.termination).split(".")[-1]
        for record in records
    ]
