"""Shadow verification: finished bundles are verified after they were published, and what is found is told."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.daemons import Daemon, event, running_daemon
from tests.server.looks import until

from ergo_capture.bundle.names import verified_path
from ergo_capture.server import shadow as shadow_module
from ergo_capture.server.shadow import ShadowVerifier
from ergo_capture.server.verify_worker import examine

ALWAYS = '[verify]\nafter_publish = "always"\n'


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Have a byte of each bundle changed before it is verified, as a disk or a bad memory might."""
    bundles: list[Path] = []
    verify = ShadowVerifier._verify

    async def change(self: ShadowVerifier, waiting: Any) -> None:
        waiting.bundle.write_bytes(waiting.bundle.read_bytes().replace(b'"e0"', b'"e7"'))
        bundles.append(waiting.bundle)
        await verify(self, waiting)

    monkeypatch.setattr(ShadowVerifier, "_verify", change)
    return bundles


@asynccontextmanager
async def published(text: str = ALWAYS, sessions: int = 1) -> AsyncIterator[tuple[Daemon, ShadowVerifier]]:
    """Run a daemon with finished bundles."""
    async with running_daemon(text) as daemon:
        for _ in range(sessions):
            async with daemon.session() as wire:
                await wire.say(event("e0"), {"type": "close"})
                await wire.until("closed")
        running = daemon.service.components.running
        assert running is not None
        yield daemon, running.shadow


def found_beside(daemon: Daemon) -> list[dict[str, Any]]:
    """Return what was written beside the bundles."""
    return [json.loads(verified_path(bundle).read_bytes()) for bundle in daemon.bundles()]


async def test_a_sound_bundle_passes(capsys: pytest.CaptureFixture[str]) -> None:
    """A line, a file beside it, the status and the metrics say so; its segments are needed no more."""
    async with published(sessions=2) as (daemon, shadow):
        await until(lambda: shadow._passed == 2 and all(verified_path(b).exists() for b in daemon.bundles()))
        for found in found_beside(daemon):
            manifest = json.loads(
                (daemon.bundles()[0].parent / found["bundle"].replace("capture", "manifest")).read_bytes()
            )
            assert (found["ok"], found["sha256"]) == (True, manifest["sha256"])
        assert list(shadow.needed()) == []
        status = (await daemon.ask("status"))["status"]["running"]["shadow"]
        assert (status["passed"], status["failed"], status["waiting"]) == (2, 0, 0)
        metrics = json.dumps(await daemon.ask("metrics"))
        assert "shadow_verifications" in metrics
    assert "bundle.verified" in capsys.readouterr().out


async def test_a_bad_bundle_is_reported_and_its_segments_are_kept(
    held: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle can then be composed again."""
    async with published() as (daemon, shadow):
        await until(lambda: shadow._failed == 1 and verified_path(daemon.bundles()[0]).exists())
        (found,) = found_beside(daemon)
        assert found["ok"] is False
        assert "SHA-256" in found["problem"]
        assert [session for _, session in shadow.needed()] == [daemon.bundles()[0].name.partition(".")[0]]
        status = (await daemon.ask("status"))["status"]["running"]["shadow"]
        assert status["last_failed"] == str(held[0])
    assert "bundle.refuted" in capsys.readouterr().out


@pytest.mark.parametrize("keep_bytes", ["32KiB", "0B"])
async def test_the_journal_that_is_kept_is_bounded(held: list[Path], keep_bytes: str) -> None:
    """A disk that spoils every bundle must not fill up."""
    text = ALWAYS + f'keep_bytes = "{keep_bytes}"\n[journal]\nsegment_bytes = "16KiB"\n'
    async with published(text) as (daemon, shadow):
        await until(lambda: shadow._failed == 1)
        assert len(list(shadow.needed())) == 1
        async with daemon.session() as wire:
            await wire.say(*(event(f"x{n}", payload={"pad": "x" * 1000}) for n in range(80)), {"type": "close"})
            await wire.until("closed")
        await until(lambda: len(held) == 2)
        first = held[0].name.partition(".")[0]
        assert first not in [session for _, session in shadow.needed()]


async def test_nothing_is_verified_while_no_processor_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default; it waits, and goes on when one is."""
    monkeypatch.setattr(shadow_module, "_LOOK_SECONDS", 0.01)
    looks = itertools.count()
    monkeypatch.setattr(shadow_module, "_idle_ticks", lambda: 0 * next(looks))
    async with published("[verify]\n") as (_, shadow):
        await until(lambda: next(looks) > 200)
        assert (shadow._passed, len(shadow._waiting)) == (0, 1)
        monkeypatch.setattr(shadow_module, "_idle_ticks", lambda: 1_000 * next(looks))
        await until(lambda: shadow._passed == 1)


async def test_a_worker_that_is_killed_costs_one_verification() -> None:
    """The next bundle is verified by another one."""
    async with published() as (daemon, shadow):
        await until(lambda: shadow._passed == 1)
        assert shadow._worker is not None
        os.kill(shadow._worker._child.process.pid, signal.SIGKILL)
        for _ in range(2):
            async with daemon.session() as wire:
                await wire.say(event("e0"), {"type": "close"})
                await wire.until("closed")
        await until(lambda: (shadow._passed, shadow._skipped) == (2, 1))


async def test_it_can_be_turned_off() -> None:
    """No process, no file."""
    async with published('[verify]\nafter_publish = "never"\n') as (daemon, shadow):
        assert shadow.status() is None
        assert list(shadow.needed()) == []
        assert (await daemon.ask("status"))["status"]["running"]["shadow"] is None


async def test_a_bundle_that_retention_deleted_is_skipped(tmp_path: Path) -> None:
    """It is no failure."""
    assert examine(tmp_path / "gone.capture.json").ok is None
