"""Races while bundles are composed and while journal segments are deleted."""

from __future__ import annotations

import asyncio
import errno
import json
import re
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.daemons import event, running_daemon, short_directory
from tests.doubles.composers import RoomlessComposer, SlowComposer
from tests.doubles.gated_storage import GatedStorage
from tests.server.looks import manifests, sessions_of, until

from ergo_capture import decode_bundle
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.server import publisher as publisher_module
from ergo_capture.server.commit import segment_gc
from ergo_capture.server.session import parts
from ergo_capture.storage.write_error import CaptureWriteError, WriteStage


async def test_a_late_flush_does_not_replace_the_last_bundle() -> None:
    """The manifest of a closed session says complete, though the flush chose the session while it was open."""
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("a"), {"type": "close"})
        (session,) = sessions_of(daemon)
        await wire.until("closed")
        flushed = await session.flush()
        assert flushed == session.publication
        assert [m["ended"] for m in manifests(daemon)] == ["complete"]


async def test_a_bundle_is_composed_in_a_thread_without_a_worker_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host has no process left; no client is disconnected."""

    async def refused(*_: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("anyio.to_process.run_sync", refused)
    monkeypatch.setattr(publisher_module, "_MAX_EVENTS_IN_THREAD", 0)
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("a"), {"type": "flush"}, {"type": "close"})
        await wire.until("flushed")
        closed = await wire.until("closed")
        assert decode_bundle(Path(closed["bundle"]).read_bytes()).events


@pytest.mark.parametrize("last", ["flush", "close"])
async def test_a_small_bundle_does_not_wait_for_a_large_one(monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    """Closing or flushing a small session does not take the seconds that a large bundle takes."""
    composer = SlowComposer(monkeypatch, large=1)
    async with running_daemon() as daemon, daemon.session() as large, daemon.session() as small:
        await large.say(event("a"), event("b"), {"type": "close"})
        await composer.begun.wait()
        await small.say(event("a"), {"type": last})
        await small.until("flushed" if last == "flush" else "closed")
        composer.over.set()
        await large.until("closed")


async def test_bundles_of_a_session_are_composed_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last bundle waits for a large snapshot before it, which would replace it otherwise."""
    composer = SlowComposer(monkeypatch, large=1)
    async with running_daemon() as daemon, daemon.session() as wire:
        (session,) = sessions_of(daemon)
        await wire.say(event("a"), event("b"))
        await wire.until_ack(2, 2)
        flushing = asyncio.create_task(session.flush())
        await composer.begun.wait()
        composer.call_large(10)
        await wire.say({"type": "close"})
        await until(lambda: session.parts.is_closed)
        async with daemon.session() as another:
            # Its bundle would come behind the last one of the session, if that one did not wait.
            await another.say(event("a"), {"type": "close"})
            await another.until("closed")
        assert not session.over.is_set()
        composer.over.set()
        await flushing
        await wire.until("closed")
        assert [m["events"] for m in manifests(daemon) if m["session"] == wire.opened["session"]] == [2]
        assert {m["ended"] for m in manifests(daemon)} == {"complete"}


async def test_an_os_error_in_composing_is_reported_to_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code is storage_failed."""

    def broken(_: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(publisher_module, "compose_bundle", broken)
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("a"), {"type": "flush"})
        frames = await wire.rest()
        assert [f["code"] for f in frames if f["type"] == "error"] == ["storage_failed"]
        monkeypatch.undo()


async def test_a_defect_in_composing_ends_neither_the_daemon_nor_its_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A snapshot fails, and the session is unfinished after the stop."""

    def broken(_: Any) -> Any:
        raise LookupError("nothing there")

    monkeypatch.setattr(publisher_module, "compose_bundle", broken)
    said = ""
    async with running_daemon('[snapshot]\ninterval = "10ms"\n') as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        await wire.until_ack(1, 1)
        while "snapshot.failed" not in said:
            await asyncio.sleep(0.001)
            said += capsys.readouterr().out
        await wire.say(event("b"))
        await wire.until_ack(2, 2)
    said += capsys.readouterr().out
    assert "LookupError: nothing there" in said
    assert "daemon.stopped" in said
    assert daemon.service.unfinished


async def test_a_bundle_waits_while_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """P8: the session goes on, and its bundles are written once there is space."""
    monkeypatch.setattr(parts, "FULL_SECONDS", 0.01)
    composer = RoomlessComposer(monkeypatch)
    async with running_daemon("[rotation]\nmax_events = 1\n") as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        await until(lambda: composer.attempts > 2)
        (session,) = sessions_of(daemon)
        assert "No space left on device" in session.snapshot().delayed_by
        metrics = (await daemon.ask("metrics"))["text"]
        assert re.search(r"^ergo_capture_sessions_delayed\S* 1\.0$", metrics, re.MULTILINE)
        await wire.say(event("b"))
        await wire.until_ack(2)
        composer.is_full = False
        await wire.until_ack(2, 2)
        assert session.snapshot().delayed_by == ""
        await wire.say({"type": "close"})
        await wire.until("closed")
        ids = [e.event_id for path in daemon.bundles() for e in decode_bundle(path.read_bytes()).events]
        assert ids == ["a", "b"]


async def test_an_error_in_a_worker_process_keeps_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is told why a large bundle could not be written, and the session goes on."""
    monkeypatch.setattr(publisher_module, "_MAX_EVENTS_IN_THREAD", 0)
    async with running_daemon() as daemon, daemon.session() as wire:
        (daemon.state / "bundles" / "default").write_text("not a directory")
        await wire.say(event("a"), {"type": "flush"})
        assert "create capture output directory" in (await wire.rest())[-1]["message"]
        (session,) = sessions_of(daemon)
        assert session.failure is None
        with pytest.raises(CaptureWriteError) as caught:
            await session.flush()
        assert caught.value.stage is WriteStage.CREATE_OUTPUT_DIRECTORY
        assert isinstance(caught.value.cause, OSError)
        (daemon.state / "bundles" / "default").unlink()


async def test_segments_of_published_parts_are_deleted_while_the_session_runs() -> None:
    """A session that never ends, with rotation, does not fill the disk."""
    text = '[verify]\nafter_publish = "never"\n[rotation]\nmax_events = 10\n[journal]\nsegment_bytes = "64KiB"\n'
    async with running_daemon(text) as daemon, daemon.session() as wire:
        for start in range(0, 200, 10):
            await wire.say(*(event(f"e{n}", payload={"x": "y" * 2000}) for n in range(start, start + 10)))
            await wire.until_ack(start + 10, start + 10)
        await until(lambda: len(list((daemon.state / "journal").glob("*.journal"))) <= 3)


async def test_segments_are_deleted_by_one_thread_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two sessions that end at once would delete the same segment, and the second one fail."""
    storage = GatedStorage()
    under_way: list[int] = [0, 0]

    class Counted:
        @staticmethod
        async def run_sync(call: Any, *arguments: Any) -> Any:
            counts = call.__name__ == "delete_segments"
            under_way[0] += counts
            under_way[1] = max(under_way)
            try:
                return await anyio.to_thread.run_sync(call, *arguments)
            finally:
                under_way[0] -= counts

    monkeypatch.setattr(segment_gc, "to_thread", Counted)
    with short_directory() as place:
        async with running_daemon(state=place / "state") as daemon, daemon.session() as wire:
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
        async with (
            running_daemon(storage=storage, state=place / "state") as daemon,
            daemon.session(session=wire.opened["session"]) as one,
            daemon.session() as two,
        ):
            with storage.gate("remove", ".journal"):
                for ending in (one, two):
                    await ending.say({"type": "close"})
                    await ending.until("closed")
                await until(lambda: not sessions_of(daemon))
                await storage.until_held()
            async with daemon.session() as wire:
                await wire.say(event("b"))
                await wire.until_ack(1, 1)
        assert under_way == [0, 1]


async def test_a_segment_that_cannot_be_deleted_affects_no_session(capsys: pytest.CaptureFixture[str]) -> None:
    """It is logged once, and deleted at the next start."""
    storage = GatedStorage()
    with short_directory() as place:
        async with running_daemon(state=place / "state") as daemon, daemon.session() as wire:
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
        async with running_daemon(storage=storage, state=place / "state") as daemon:
            storage.fail_next("remove", errno.EIO)
            for name in (wire.opened["session"], None):
                async with daemon.session(session=name) as wire:
                    await wire.say(event("b"), {"type": "close"})
                    await wire.until("closed")
                await until(lambda: any(call.startswith("-remove") for call in storage.calls))
            assert len(list((place / "state" / "journal").glob("*.journal"))) == 2
        assert capsys.readouterr().out.count("segment.kept") == 1
        async with running_daemon(state=place / "state"):
            assert len(list((place / "state" / "journal").glob("*.journal"))) == 1


async def test_a_flush_during_a_rotation_returns_the_bundle_of_the_part_that_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bundle of the next part would hold nothing."""
    monkeypatch.setattr(parts, "FULL_SECONDS", 0.01)
    storage = GatedStorage()
    text = "[rotation]\nmax_events = 1\n"
    async with running_daemon(text, storage=storage) as daemon, daemon.session() as wire:
        (session,) = sessions_of(daemon)
        with storage.gate("write", ".journal", after=2):
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
            await until(lambda: session.parts.current.number == 2)
            await wire.say({"type": "flush"})
            await storage.until_held()
            await anyio.wait_all_tasks_blocked()
            assert daemon.bundles() == []
        flushed = await wire.until("flushed")
        (bundle,) = daemon.bundles()
        assert Path(flushed["bundle"]) == bundle
        assert [e.event_id for e in decode_bundle(bundle.read_bytes()).events] == ["a"]
        await wire.say({"type": "flush"})
        assert (await wire.until("flushed"))["bundle"] == str(bundle)


async def test_a_flush_during_a_failed_rotation_raises_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part that ends cannot be published."""
    monkeypatch.setattr(parts, "FULL_SECONDS", 0.01)
    storage = GatedStorage()
    text = "[rotation]\nmax_events = 1\n"
    async with running_daemon(text, storage=storage) as daemon, daemon.session() as wire:
        (session,) = sessions_of(daemon)
        (daemon.state / "bundles" / "default").write_text("not a directory")
        with storage.gate("write", ".journal", after=2):
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
            await until(lambda: session.parts.current.number == 2)
            flushing = asyncio.create_task(session.flush())
            await storage.until_held()
            await anyio.wait_all_tasks_blocked()
        with pytest.raises(ErgoCaptureError) as caught:
            await flushing
        assert caught.value is session.failure
        assert "create capture output directory" in (await wire.rest())[-1]["message"]
        (daemon.state / "bundles" / "default").unlink()


async def test_a_flush_during_a_rotation_with_a_defect_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not wait for a bundle that is never composed."""
    monkeypatch.setattr(parts, "FULL_SECONDS", 0.01)

    async def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a defect")

    storage = GatedStorage()
    async with running_daemon("[rotation]\nmax_events = 1\n", storage=storage) as daemon, daemon.session() as wire:
        (session,) = sessions_of(daemon)
        monkeypatch.setattr(session.parts, "_publish", broken)
        with storage.gate("write", ".journal", after=2):
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
            await until(lambda: session.parts.current.number == 2)
            flushing = asyncio.create_task(session.flush())
            await storage.until_held()
            await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(20), pytest.raises(ErgoCaptureError, match=r"^publish part: RuntimeError: a defect$"):
            await flushing
        monkeypatch.undo()


@pytest.mark.parametrize("count", [3, 6])
async def test_a_session_that_ends_where_a_part_is_full_has_no_empty_last_bundle(count: int) -> None:
    """The full part is the last one, and says how the session ended; so does a close that comes with the last event."""
    async with running_daemon("[rotation]\nmax_events = 3\n") as daemon:
        for waits in (True, False):
            async with daemon.session() as wire:
                for number in range(count):
                    await wire.say(event(f"e{number}"))
                    if waits or number + 1 < count:
                        await wire.until_ack(number + 1, number + 1)
                await wire.say({"type": "close"})
                closed = await wire.until("closed")
            assert [len(decode_bundle(Path(b).read_bytes()).events) for b in closed["bundles"]] == [3] * (count // 3)
            assert closed["bundles"][-1] == closed["bundle"]
            assert json.loads(Path(closed["manifest"]).read_bytes())["ended"] == "complete"


async def test_a_full_part_ends_though_no_further_event_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bundle is there for whoever waits for it."""
    monkeypatch.setattr(parts, "FULL_SECONDS", 0.01)
    async with running_daemon("[rotation]\nmax_events = 3\n") as daemon, daemon.session() as wire:
        await wire.say(*(event(f"e{number}") for number in range(3)))
        await until(lambda: [m["ended"] for m in manifests(daemon)] == ["rotated"])
        await wire.say(event("next"), {"type": "close"})
        assert len((await wire.until("closed"))["bundles"]) == 2
