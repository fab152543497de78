"""Chaos: clients, disk, operator and daemon act at random, and in the end every event is in its bundle.

The oracle: every event that a client may call safe is in the bundles exactly once; nothing is there that was not sent;
no bundle of a finished session calls it open; no memory is counted or held once all clients are gone.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import anyio
import msgspec
import pytest
from tests.daemons import PATIENCE, configured, short_directory
from tests.doubles.faulty_storage import FaultyStorage
from tests.processes import SOAK_SECONDS
from tests.server.chaos_client import ChaosClient

from ergo_capture import decode_bundle
from ergo_capture.bundle.writer.compose import ComposedBundle, ComposeJob, compose_bundle
from ergo_capture.cli.support.verification import check
from ergo_capture.config import Config
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.server import follower as follower_module
from ergo_capture.server import publisher as publisher_module
from ergo_capture.server import shutdown as shutdown_module
from ergo_capture.server.follower import FollowedPart, Follower
from ergo_capture.server.service import Service
from ergo_capture.server.session import parts as parts_module
from ergo_capture.storage.write_error import CaptureWriteError, WriteStage

CONFIG = """
[rotation]
max_events = {rotation}
[session]
linger = "{linger}"
[snapshot]
interval = "30ms"
[bundle]
compose = "{compose}"
[journal]
segment_bytes = "16KiB"
[shutdown]
drain = "5s"
[graphs.default]
[graphs.deferring]
max_in_flight = 1
max_per_window = 3
rate_window = "1s"
[graphs.slow.engine]
kind = "python"
callable = "tests.engine.scripts:turns"
pipeline = 4
"""
GRAPHS = ("default", "deferring", "slow")


class Disk(FaultyStorage):
    """A disk that is full while ``is_full`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.is_full = False

    def call(self, op: str, path: Path) -> None:
        """Fail whatever needs room."""
        self.calls.clear()
        if self.is_full and op in ("write", "allocate"):
            self.fail_next(op, 28)
        super().call(op, path)

    def compose(self, job: ComposeJob) -> ComposedBundle:
        """Compose a bundle, unless the disk is full."""
        if self.is_full:
            error = OSError(28, os.strerror(28))
            raise CaptureWriteError.step(
                WriteStage.WRITE_TEMP_FILE, Path(job.destination), Path(job.destination), error
            ) from error
        return compose_bundle(job)


class Chaos:
    """A daemon, its disk and its clients, and the actions on them."""

    def __init__(self, place: Path, seed: int, compose: str) -> None:
        self.random = Random(seed)
        self.place = place
        self.disk = Disk()
        self.clients: list[ChaosClient] = []
        self.done: Counter[str] = Counter()
        self._settings = {"rotation": 0, "linger": "1h", "compose": compose}
        self._service: Service
        self._task: asyncio.Task[Any]

    def config(self) -> Config:
        """Return the configuration of the moment."""
        return configured(self.place / "state", self.place / "s", CONFIG.format(**self._settings))

    async def start(self) -> None:
        """Start the daemon; nothing it had is lost."""
        self._service = Service(self.config(), self.disk, reread=self.config)
        self._task = asyncio.create_task(self._service.run())
        ready = asyncio.create_task(self._service.ready.wait())
        await asyncio.wait({self._task, ready}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        assert self._service.ready.is_set(), self._task
        assert self._service.registry.quarantined == {}

    async def stop(self) -> None:
        """Stop it in order."""
        self._service.stop()
        await asyncio.wait_for(self._task, PATIENCE)
        assert self._service.writer.failure is None

    # --- what may happen ---

    async def act(self) -> None:
        """Do one thing at random."""
        if self.disk.is_full and self.random.random() < 0.2:
            self.disk.is_full = False
        name = self.random.choices(
            [
                "open",
                "send",
                "flush",
                "close",
                "drop",
                "resume",
                "turns",
                "disk",
                "reload",
                "ask_flush",
                "restart",
                "worker",
            ],
            [60, 400, 20, 30, 60, 250, 250, 15, 15, 20, 5, 3],
        )[0]
        self.done[name] += 1
        await getattr(self, f"_{name}")()

    def _pick(self, *, connected: bool) -> ChaosClient | None:
        found = [s for s in self.clients if s.end is None and s.is_connected is connected]
        return self.random.choice(found) if found else None

    async def _open(self) -> None:
        if sum(client.end is None for client in self.clients) < 6:
            client = ChaosClient(f"s{len(self.clients)}", self.random.choice(GRAPHS))
            self.clients.append(client)
            # Not awaited: a session is opened only when the disk has room.
            await self._connect(client)

    async def _connect(self, client: ChaosClient) -> None:
        with anyio.move_on_after(0.05 if self.disk.is_full else PATIENCE) as patience:
            await client.connect(self.place / "s")
        assert self.disk.is_full or not patience.cancelled_caught

    async def _send(self) -> None:
        if client := self._pick(connected=True):
            await client.send_again()
            await client.send(self.random.choice([1, 1, 2, 5, 20]))

    async def _flush(self) -> None:
        if client := self._pick(connected=True):
            await client.ask("flush")

    async def _close(self) -> None:
        if (client := self._pick(connected=True)) and not client.open:
            await client.ask("close")

    async def _drop(self) -> None:
        if client := self._pick(connected=True):
            await client.hang_up()

    async def _resume(self) -> None:
        if client := self._pick(connected=False):
            await self._connect(client)

    async def _turns(self) -> None:
        for _ in range(self.random.choice([0, 1, 3, 10, 40])):
            await asyncio.sleep(0)

    async def _disk(self) -> None:
        self.disk.is_full = True

    async def _reload(self) -> None:
        self._settings["rotation"] = self.random.choice([0, 1, 7, 50])
        self._settings["linger"] = self.random.choice(["1h", "1h", "10ms"])
        await self._service.reload()

    async def _ask_flush(self) -> None:
        sessions = list(self._service.registry.sessions.values())
        if sessions and not self.disk.is_full:
            try:
                await self.random.choice(sessions).flush()
            except ErgoCaptureError as error:
                # A disk that was full a moment ago; anything else is a defect.
                assert "No space left" in error.message, error

    async def _restart(self) -> None:
        self.disk.is_full = False
        await self.stop()
        await self.start()

    async def _worker(self) -> None:
        """Kill the process that composes bundles while their sessions run, if there is one."""
        running = self._service.components.running
        worker = None if running is None else running.publisher.follower._worker
        if worker is not None and not worker._has_ended:
            worker._child.signal_group(signal.SIGKILL)

    # --- the end ---

    async def settle(self) -> None:
        """Let every client send what is open, close its session and disconnect."""
        self.disk.is_full = False
        self._settings["linger"] = "1h"
        await self._service.reload()
        with anyio.fail_after(PATIENCE):
            while alive := [client for client in self.clients if client.end is None]:
                for client in alive:
                    if not client.is_connected:
                        await self._connect(client)
                    elif client.open:
                        await client.send_again()
                    else:
                        await client.ask("close")
                await asyncio.sleep(0.01)
        for client in self.clients:
            await client.hang_up()
        registry = self._service.registry
        with anyio.fail_after(PATIENCE):
            # Sessions whose client never learned their id would linger for an hour.
            while registry.sessions or self._service.clients.connections:
                for session in list(registry.sessions.values()):
                    assert session.failure is None, session.failure
                    if session.description.session in registry._lingering:
                        registry._end_lingering(session, "interrupted", 0.0)
                await asyncio.sleep(0.01)
        assert (registry.queue.used, registry.ids.used, self._service.clients.held.used) == (0, 0, 0)
        assert not registry.queue.by_user
        assert not registry._lingering
        assert not registry.pending

    def judge(self) -> None:
        """Check the bundles against what the clients know."""
        found: dict[str, Counter[str]] = {}
        for path in sorted((self.place / "state" / "bundles").rglob("*.capture.json")):
            manifest = json.loads(path.with_name(path.name.replace(".capture.", ".manifest.")).read_text())
            assert manifest["ended"] != "open", path.name
            verdict = check(path)
            assert verdict["ok"], verdict
            ids = found.setdefault(manifest["session"], Counter())
            ids.update(record.event_id for record in decode_bundle(path.read_bytes()).events)
        for client in self.clients:
            if client.session is None:
                continue
            assert client.end in ("closed", "unknown_session"), client
            # A session without events leaves no bundle once its client has gone.
            assert client.session in found or client.end == "unknown_session", client
            ids = found.get(client.session, Counter())
            assert ids.total() == len(ids), f"{client}: {[i for i, n in ids.items() if n > 1]} more than once"
            assert client.safe <= ids.keys(), f"{client}: {sorted(client.safe - ids.keys())} lost"
            assert ids.keys() <= set(client.sent)
            if client.end == "closed":
                assert ids.keys() <= client.safe | client.unknown, client


def follow_everything(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Follow every session from its first event, and compose each bundle a second time, at the end.

    Returns:
        The bundles that were composed both ways; they were equal.
    """
    equal: list[str] = []
    finish = Follower.finish

    async def finish_twice(self: Follower, followed: FollowedPart, job: ComposeJob) -> ComposedBundle | None:
        composed = await finish(self, followed, job)
        if composed is not None:
            with tempfile.TemporaryDirectory() as place:
                whole = compose_bundle(msgspec.structs.replace(job, destination=str(Path(place) / "b.capture.json")))
                assert Path(whole.file).read_bytes() == Path(composed.file).read_bytes(), job
            found, expected = (msgspec.structs.replace(one, job=job, file="") for one in (composed, whole))
            assert found == expected
            equal.append(job.destination)
        return composed

    monkeypatch.setattr(Follower, "finish", finish_twice)
    for name, value in (("_FEWEST_EVENTS", 1), ("_LAG_EVENTS", 1), ("_PAUSE", 0.001), ("_SUSPENSION", 0.05)):
        monkeypatch.setattr(follower_module, name, value)
    return equal


async def chaos(monkeypatch: pytest.MonkeyPatch, seeds: range, seconds: float, compose: str = "at the end") -> None:
    """Run one daemon after the other, each with its seed, until the time is over."""
    equal = follow_everything(monkeypatch) if compose == "while running" else None
    monkeypatch.setattr(parts_module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(shutdown_module, "_LAST_COMMIT_SECONDS", 1.0)
    began = time.monotonic()
    descriptors = None
    for seed in seeds:
        with short_directory() as place:
            world = Chaos(place, seed, compose)
            monkeypatch.setattr(publisher_module, "compose_bundle", world.disk.compose)
            await world.start()
            for _ in range(400):
                await world.act()
            await world.settle()
            await world.stop()
            world.judge()
            done = sum(len(client.safe) for client in world.clients)
            print(f"seed {seed}: {len(world.clients)} sessions, {done} events safe, {dict(world.done)}")  # noqa: T201
        open_now = len(list(Path("/proc/self/fd").iterdir()))
        # Counted after the first round: what a process opens once, it keeps.
        descriptors = open_now if descriptors is None else descriptors
        assert open_now <= descriptors, f"seed {seed}"
        if time.monotonic() - began > seconds:
            break
    if equal is not None:
        print(f"{len(equal)} bundles were composed both ways")  # noqa: T201
        assert equal


WAYS = pytest.mark.parametrize("compose", ["at the end", "while running"])


@WAYS
@pytest.mark.timeout(120)
async def test_chaos_loses_no_event(monkeypatch: pytest.MonkeyPatch, compose: str) -> None:
    """P1, P2, P8, P9, P10 together, in short; P11: both ways of composing give the same bytes."""
    await chaos(monkeypatch, range(1000), 6, compose)


@pytest.mark.soak
@WAYS
@pytest.mark.timeout(SOAK_SECONDS + 600)
async def test_a_soak_of_chaos_loses_no_event(monkeypatch: pytest.MonkeyPatch, compose: str) -> None:
    """The long version, from other seeds."""
    await chaos(monkeypatch, range(1000, 1_000_000), SOAK_SECONDS, compose)
