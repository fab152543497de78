"""Bundles that are composed while their sessions are running."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.daemons import Daemon, Wire, event, running_daemon, short_directory
from tests.doubles.faulty_storage import FaultyStorage
from tests.server.looks import manifests, sessions_of, until

from ergo_capture.bundle.writer.compose import ComposeJob
from ergo_capture.cli.support.verification import check
from ergo_capture.config import Config
from ergo_capture.server import follower as follower_module
from ergo_capture.server import publisher as publisher_module
from ergo_capture.server.follower import Follower
from ergo_capture.server.ops.pruner import Pruner
from ergo_capture.storage import RealStorage

RUNNING = '[bundle]\ncompose = "while running"\n'


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Follow a session from its first event, and compose event by event."""
    for name in ("_FEWEST_EVENTS", "_LAG_EVENTS"):
        monkeypatch.setattr(follower_module, name, 1)
    monkeypatch.setattr(follower_module, "_PAUSE", 0.005)


@pytest.fixture
def only_while_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a bundle is composed from its beginning."""

    def refused(job: ComposeJob) -> Any:
        raise AssertionError(f"composed at the end: {job}")

    monkeypatch.setattr(publisher_module, "compose_bundle", refused)


def follower_of(daemon: Daemon) -> Follower:
    """Return the daemon's follower."""
    running = daemon.service.components.running
    assert running is not None
    return running.publisher.follower


async def send(wire: Wire, first: int, count: int) -> None:
    """Send events and wait until they are decided."""
    await wire.say(*(event(f"e{n}", n, payload={"n": n}) for n in range(first, first + count)))
    await wire.until_ack(first + count, first + count)


async def until_composed(daemon: Daemon, events: int) -> None:
    """Wait until so many events of open sessions are composed."""
    await until(lambda: (status := follower_of(daemon).status()) is not None and status.events == events)


@asynccontextmanager
async def followed(text: str = RUNNING, **options: Any) -> AsyncIterator[tuple[Daemon, Wire]]:
    """Run a daemon with a session whose ten events are composed."""
    async with running_daemon(text, **options) as daemon, daemon.session() as wire:
        await send(wire, 0, 10)
        await until_composed(daemon, 10)
        yield daemon, wire


async def bundle_of(text: str, *, events: int = 13) -> bytes:
    """Return the bundle of the same events when it is composed at the end."""
    async with running_daemon(text) as daemon, daemon.session() as wire:
        await send(wire, 0, events)
        await wire.say({"type": "close"})
        return Path((await wire.until("closed"))["bundle"]).read_bytes()


def temporaries(daemon: Daemon) -> list[Path]:
    """Return the temporary files beside the bundles."""
    return list((daemon.state / "bundles").rglob("*.tmp"))


@pytest.mark.usefixtures("only_while_running")
@pytest.mark.parametrize("layout", ["", 'style = "pretty"\n', 'compress = "zstd"\n'])
async def test_a_close_writes_the_rest_behind_what_is_composed(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """P11: the bytes are those of a bundle that is composed at the end."""
    async with followed(RUNNING + layout) as (daemon, wire):
        await send(wire, 10, 3)
        await wire.say({"type": "close"})
        closed = await wire.until("closed")
        assert check(Path(closed["bundle"]))["ok"]
        assert temporaries(daemon) == []
        found = Path(closed["bundle"]).read_bytes()
    monkeypatch.undo()
    assert found == await bundle_of("[bundle]\n" + layout)


@pytest.mark.usefixtures("only_while_running")
async def test_a_flush_hands_the_temporary_over_and_it_is_made_anew() -> None:
    """The snapshot takes the temporary, and the last bundle is written to a new one."""
    async with followed() as (daemon, wire):
        await wire.say({"type": "flush"})
        flushed = await wire.until("flushed")
        assert [m["ended"] for m in manifests(daemon)] == ["open"]
        assert check(Path(flushed["bundle"]))["ok"]
        await send(wire, 10, 3)
        await until_composed(daemon, 13)
        await wire.say({"type": "close"})
        closed = await wire.until("closed")
        assert check(Path(closed["bundle"]))["ok"]
        assert [m["events"] for m in manifests(daemon)] == [13]


@pytest.mark.usefixtures("only_while_running")
async def test_parts_of_a_rotated_session_are_composed_one_after_the_other() -> None:
    """Each bundle replays on its own."""
    async with followed(RUNNING + "[rotation]\nmax_events = 12\n") as (daemon, wire):
        await send(wire, 10, 3)
        await until(lambda: manifests(daemon))
        await send(wire, 13, 6)
        await until_composed(daemon, 19 - manifests(daemon)[0]["events"])
        await send(wire, 19, 1)
        await wire.say({"type": "close"})
        await wire.until("closed")
        assert sum(m["events"] for m in manifests(daemon)) == 20
        assert all(check(path)["ok"] for path in daemon.bundles())


async def test_the_stop_publishes_what_is_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    """P10: no temporary is left, and the next start follows the session again."""
    with short_directory() as place:
        async with running_daemon(RUNNING, place / "state") as daemon, daemon.session() as wire:
            await send(wire, 0, 10)
            await until_composed(daemon, 10)
        (bundle,) = daemon.bundles()
        assert check(bundle)["ok"]
        assert temporaries(daemon) == []
        async with running_daemon(RUNNING, place / "state") as daemon:
            await until_composed(daemon, 10)
            async with daemon.session(session=wire.opened["session"]) as again:
                await again.say(event("last"), {"type": "close"})
                closed = await again.until("closed")
        assert check(Path(closed["bundle"]))["ok"]


async def test_a_worker_that_is_killed_costs_no_event(capsys: pytest.CaptureFixture[str]) -> None:
    """The bundle is composed from the journal, and no temporary is left."""
    async with followed() as (daemon, wire):
        worker = follower_of(daemon)._worker
        assert worker is not None
        os.kill(worker._child.process.pid, signal.SIGKILL)
        await wire.say(event("e10"), {"type": "close"})
        closed = await wire.until("closed")
        assert check(Path(closed["bundle"]))["ok"]
        assert [m["events"] for m in manifests(daemon)] == [11]
    assert temporaries(daemon) == []
    said = capsys.readouterr().out
    assert "compose.repeated" in said or "compose.suspended" in said


async def test_a_worker_that_is_killed_in_an_idle_session_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """The next step notices it."""
    async with followed() as (daemon, wire):
        worker = follower_of(daemon)._worker
        assert worker is not None
        assert len(temporaries(daemon)) == 2
        os.kill(worker._child.process.pid, signal.SIGKILL)
        await send(wire, 10, 3)
        await until(lambda: not temporaries(daemon))
        status = await daemon.ask("status")
        assert status["status"]["running"]["composing"]["suspended_seconds"] > 0
    assert "compose.suspended" in capsys.readouterr().out


class FullUntilSwept(FaultyStorage):
    """A disk on which the journal finds room only when there are no temporaries of bundles."""

    def __init__(self) -> None:
        super().__init__()
        self.bundles: Path | None = None

    def call(self, op: str, path: Path) -> None:
        """Fail every call that needs room while there is a temporary."""
        if self.bundles is not None and op == "write" and list(self.bundles.rglob("*.tmp")):
            self.fail_next(op, 28)
        super().call(op, path)


async def test_temporaries_go_before_an_event_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """P8: the append is tried again, and the bundle is composed at the end."""
    disk = FullUntilSwept()
    async with followed(storage=disk) as (daemon, wire):
        disk.bundles = daemon.state / "bundles"
        await send(wire, 10, 3)
        assert temporaries(daemon) == []
        assert daemon.service.writer.snapshot().refused_batches == 0
        disk.bundles = None
        await wire.say({"type": "close"})
        closed = await wire.until("closed")
        assert check(Path(closed["bundle"]))["ok"]
    assert "compose.suspended" in capsys.readouterr().out


async def test_a_full_disk_in_composing_ends_it_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """No event waits for it, and the bundle is composed at the end."""
    async with followed() as (daemon, wire):
        worker = follower_of(daemon)._worker
        assert worker is not None
        import resource

        # The worker finds no room after 100 bytes of a file.
        resource.prlimit(worker._child.process.pid, resource.RLIMIT_FSIZE, (100, 100))
        await send(wire, 10, 3)
        await until(lambda: follower_of(daemon).suspended_seconds > 0 and not temporaries(daemon))
        await wire.say({"type": "close"})
        assert check(Path((await wire.until("closed"))["bundle"]))["ok"]


async def test_the_bytes_of_temporaries_are_bounded_and_shown() -> None:
    """Events beyond the bound are composed at the end."""
    async with running_daemon(RUNNING + 'running_bytes = "2KiB"\n') as daemon, daemon.session() as wire:
        await send(wire, 0, 10)
        await until(lambda: (status := follower_of(daemon).status()) is not None and status.bytes > 2048)
        composing = (await daemon.ask("status"))["status"]["running"]["composing"]
        assert composing["limit"] == 2048
        assert composing["bundles"] == 1
        at = composing["events"]
        await send(wire, 10, 40)
        await asyncio.sleep(0.05)
        assert (await daemon.ask("status"))["status"]["running"]["composing"]["events"] == at
        await wire.say({"type": "close"})
        assert check(Path((await wire.until("closed"))["bundle"]))["ok"]
        assert [m["events"] for m in manifests(daemon)] == [50]


async def test_temporaries_count_as_free_space() -> None:
    """No bundle is deleted for the room that they take."""
    async with followed() as (daemon, _):
        pruner = Pruner(daemon.state, RealStorage())
        pruner.spare_bytes = lambda: {daemon.state / "bundles": 1 << 50}
        (free,) = pruner.free_bytes().values()
        assert free > 1 << 50
        assert sum(follower_of(daemon).spare_bytes().values()) == sum(p.stat().st_size for p in temporaries(daemon))


async def test_a_reload_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundles begun so far are dropped."""
    async with followed() as (daemon, _):
        daemon.service.reloader._reread = lambda: reloaded(daemon)
        await daemon.service.reload()
        await until(lambda: not temporaries(daemon))
        assert follower_of(daemon).status() is None


def reloaded(daemon: Daemon) -> Config:
    """Return the configuration with bundles composed at the end."""
    import msgspec

    config = daemon.service.components.config
    return msgspec.structs.replace(config, bundle=msgspec.structs.replace(config.bundle, compose="at the end"))


async def test_sessions_of_few_events_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Composing them at the end takes a moment."""
    monkeypatch.setattr(follower_module, "_FEWEST_EVENTS", 11)
    async with running_daemon(RUNNING) as daemon, daemon.session() as wire:
        await send(wire, 0, 10)
        await asyncio.sleep(0.05)
        assert temporaries(daemon) == []
        await send(wire, 10, 1)
        await until_composed(daemon, 11)
        assert sessions_of(daemon)[0].decided == 11


async def test_the_temporaries_of_the_daemon_itself_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon may be composing a bundle in a thread, and the file will become that bundle."""
    async with followed() as (daemon, _):
        own = daemon.state / "bundles" / "default" / f"s.capture.json.{os.getpid()}.99.tmp"
        own.write_bytes(b"")
        worker = follower_of(daemon)._worker
        assert worker is not None
        os.kill(worker.pid, signal.SIGKILL)
        await until(lambda: worker._has_ended)
        await follower_of(daemon)._end_worker()
        assert temporaries(daemon) == [own]
        own.unlink()


async def test_a_finished_bundle_gets_its_name_though_its_worker_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing sweeps the file between its completion and its renaming."""
    finish = Follower.finish

    async def finish_and_kill(self: Follower, *arguments: Any) -> Any:
        composed = await finish(self, *arguments)
        await self._end_worker()
        assert composed is not None
        assert Path(composed.file).exists()
        return composed

    monkeypatch.setattr(Follower, "finish", finish_and_kill)
    async with followed() as (daemon, wire):
        await wire.say({"type": "close"})
        assert check(Path((await wire.until("closed"))["bundle"]))["ok"]
        assert temporaries(daemon) == []
        assert not follower_of(daemon)._finished
