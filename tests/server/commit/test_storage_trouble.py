"""A daemon whose disk is full or fails, and when its bundles are published; seen by clients."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from tests.daemons import DaemonProcess, Wire, event, running_daemon, short_directory
from tests.doubles.faulty_storage import FaultyStorage
from tests.doubles.gated_storage import GatedStorage

from ergo_capture import decode_bundle
from ergo_capture.errors import ErgoCaptureError


async def test_a_failed_sync_is_reported_to_the_client_and_stops_the_daemon() -> None:
    """P7: nothing unsynced is acknowledged, and nothing is written after the failure."""
    storage = FaultyStorage()
    async with running_daemon(storage=storage) as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        await wire.until_ack(1)
        storage.fail_next("sync", errno.EIO)
        await wire.say(event("b"))
        frames = await wire.rest()
        assert [f["code"] for f in frames if f["type"] == "error"] == ["storage_failed"]
        # An event that is not durable is either not acknowledged, or acknowledged as rejected.
        rejected = [f["index"] for f in frames if f["type"] == "reject" and f["code"] == "storage_failed"]
        assert rejected == [2] or all(f["accepted"] <= 1 for f in frames if f["type"] == "ack")
        failed = next(i for i, call in enumerate(storage.calls) if call.startswith("-sync"))
        after = [call.split()[0] for call in storage.calls[failed + 1 :]]
        assert not {"write", "sync"} & set(after)


async def test_a_full_disk_refuses_events_and_service_resumes_by_itself() -> None:
    """P8: refused events may be sent again, decisions are kept, and the bundle holds each event once."""
    storage = FaultyStorage()
    async with running_daemon(storage=storage) as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        await wire.until_ack(1)
        storage.fail_next("write", errno.ENOSPC, errno.ENOSPC)
        codes: list[str] = []
        number = 1
        while "storage_full" not in codes:
            number += 1
            await wire.say(event("b"))
            frames = await wire.until_ack(number)
            codes = [f["code"] for f in frames if f["type"] == "reject"]
            if not codes:
                await wire.say({"type": "close"})
                pytest.fail("the full disk went unnoticed")
        while True:
            number += 1
            await wire.say(event("b"))
            frames = await wire.until_ack(number)
            if not [f for f in frames if f["type"] == "reject"]:
                break
        await wire.say(event("c"), {"type": "close"})
        closed = await wire.until("closed")
        bundle = decode_bundle(Path(closed["bundle"]).read_bytes())
        assert [record.event_id for record in bundle.events] == ["a", "b", "c"]


async def frames_until_pong(wire: Wire) -> list[dict[str, Any]]:
    """Return what the daemon has to say now."""
    await wire.say({"type": "ping"})
    frames = []
    while (frame := await wire.read())["type"] != "pong":
        frames.append(frame)
    return frames


async def test_ack_is_sent_only_after_the_sync() -> None:
    """P1: while the sync of an event's batch is held, no ack comes; once it is done, it does."""
    storage = GatedStorage()
    async with running_daemon(storage=storage) as daemon, daemon.session() as wire:
        for number in range(1, 4):
            with storage.gate("sync", ".journal"):
                await wire.say(event(f"e{number}"))
                await storage.until_held()
                assert await frames_until_pong(wire) == []
            await wire.until_ack(number, number)


async def test_a_decision_is_acknowledged_only_after_its_own_sync() -> None:
    """P1: the event is acknowledged while the sync of its decision is held, and the decision is not."""
    storage = GatedStorage()
    async with running_daemon(storage=storage) as daemon, daemon.session(decisions=True) as wire:
        for number in range(1, 4):
            with storage.gate("sync", ".journal", after=1):
                await wire.say(event(f"e{number}"))
                await storage.until_held()
                frames = [*await wire.until_ack(number), *await frames_until_pong(wire)]
                assert [frame["decided"] for frame in frames if frame["type"] == "ack"] == [number - 1]
                assert [frame for frame in frames if frame["type"] == "decision"] == []
            await wire.until_ack(number, number)


async def test_snapshots_are_published_at_the_interval() -> None:
    """snapshot.interval: the bundle is complete, and its manifest says that the session is open."""
    async with running_daemon('[snapshot]\ninterval = "20ms"\n') as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        with anyio.fail_after(20):
            while not (manifests := list(daemon.state.rglob("*.manifest.json"))):
                await anyio.sleep(0.01)
        assert json.loads(manifests[0].read_bytes())["ended"] == "open"
        assert len(decode_bundle(daemon.bundles()[0].read_bytes()).events) == 1


async def test_a_part_ends_after_max_events_and_each_bundle_replays_on_its_own() -> None:
    """Rotation: the bundles are numbered, and together hold every event once."""
    from ergo_capture.cli.support.verification import check

    async with running_daemon("[rotation]\nmax_events = 10\n") as daemon, daemon.session() as wire:
        for start in range(0, 30, 5):
            await wire.say(*(event(f"e{n}", n) for n in range(start, start + 5)))
            await wire.until_ack(start + 5, start + 5)
        await wire.say({"type": "close"})
        await wire.until("closed")
        names = [path.name for path in daemon.bundles()]
        assert len([name for name in names if "~" in name]) >= 2
        assert all(check(path)["ok"] for path in daemon.bundles())
        ids = [e.event_id for path in daemon.bundles() for e in decode_bundle(path.read_bytes()).events]
        assert sorted(ids) == sorted(f"e{n}" for n in range(30))


async def test_a_part_does_not_end_while_episodes_are_deferred_until_force_after() -> None:
    """It ends after rotation.force_after nevertheless, and its manifest says so."""
    text = '[rotation]\nmax_events = 2\nforce_after = "{}"\n[graphs.default]\nmax_in_flight = 0\n'
    async with running_daemon(text.format("1h")) as daemon, daemon.session() as wire:
        await wire.say(*(event(f"e{n}") for n in range(6)))
        await wire.until_ack(6, 6)
        assert daemon.bundles() == []
    async with running_daemon(text.format("0s")) as daemon, daemon.session() as wire:
        await wire.say(*(event(f"e{n}") for n in range(6)))
        with anyio.fail_after(20):
            while not (manifests := list(daemon.state.rglob("*.manifest.json"))):
                await anyio.sleep(0.01)
        assert json.loads(manifests[0].read_bytes())["forced"] is True


async def test_segments_are_deleted_when_their_sessions_are_published() -> None:
    """Only the current segment, and at most one more, is left."""
    text = '[verify]\nafter_publish = "never"\n[journal]\nsegment_bytes = "64KiB"\n'
    async with running_daemon(text) as daemon:
        for _ in range(3):
            async with daemon.session() as wire:
                await wire.say(*(event(f"e{n}", payload={"x": "y" * 900}) for n in range(200)), {"type": "close"})
                await wire.until("closed")
        with anyio.fail_after(20):
            while len(list((daemon.state / "journal").glob("*.journal"))) > 2:
                await anyio.sleep(0.01)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda state: state.write_text("a file"), "state"),
        (lambda state: (state / "journal" / "0000000000000001.journal").mkdir(parents=True), "journal"),
        (lambda state: linked(state / "journal" / "0000000000000001.journal"), "journal"),
    ],
    ids=["the state directory is a file", "a segment is a directory", "a segment is a symbolic link"],
)
async def test_an_invalid_state_directory_stops_the_start_with_an_error(spoil: Any, says: str) -> None:
    """P4: the error has a path, a reason and a hint."""
    with short_directory() as place:
        spoil(place / "state")
        with pytest.raises(ErgoCaptureError) as caught:
            async with running_daemon(state=place / "state"):
                pass
        assert says in str(caught.value)
        assert caught.value.hint


def linked(path: Path) -> None:
    """Create a symbolic link in place of a segment."""
    path.parent.mkdir(parents=True)
    path.symlink_to("/etc/hostname")


def test_foreign_files_in_the_journal_directory_are_left_alone(tmp_path: Path) -> None:
    """The daemon starts, and does not touch them."""
    with short_directory() as place, DaemonProcess(place, tmp_path / "state") as daemon:
        (tmp_path / "state" / "journal").mkdir(parents=True)
        foreign = tmp_path / "state" / "journal" / "notes.txt"
        foreign.write_text("mine")
        daemon.start()
        assert daemon.stop() == 0
        assert foreign.read_text() == "mine"


def mountable() -> bool:
    """Return whether a small tmpfs can be mounted."""
    return os.geteuid() == 0 and os.access("/usr/bin/unshare", os.X_OK) and subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=1m", "none", "/mnt"], capture_output=True, check=False
    ).returncode == 0  # fmt: skip


@pytest.mark.skipif(not mountable(), reason="needs root and mount")
async def test_a_real_disk_that_is_full_refuses_events_until_there_is_room() -> None:
    """P8: a tmpfs of 6 MiB is filled by another file, which is deleted later."""
    with short_directory() as place:
        disk = place / "disk"
        disk.mkdir()
        await anyio.run_process(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(disk)])
        try:
            await _fill_and_empty(place, disk)
        finally:
            await anyio.run_process(["umount", "-l", str(disk)])


async def _fill_and_empty(place: Path, disk: Path) -> None:
    config = '[journal]\nsegment_bytes = "1MiB"\n'
    with DaemonProcess(place, disk / "state", config=config) as daemon:
        await anyio.to_thread.run_sync(daemon.start)
        async with await anyio.connect_unix(str(daemon.socket)) as stream:
            wire = Wire(stream)
            await wire.open()
            fill(disk / "ballast")
            number, full, accepted = 0, False, []
            while not full:
                number += 1
                await wire.say(event(f"e{number}", payload={"x": "y" * 20_000}))
                rejects = [f for f in await wire.until_ack(number) if f["type"] == "reject"]
                full = any(reject["code"] == "storage_full" for reject in rejects)
                if not rejects:
                    accepted.append(f"e{number}")
            (disk / "ballast").unlink()
            while True:
                number += 1
                await wire.say(event(f"e{number}"))
                if not [f for f in await wire.until_ack(number) if f["type"] == "reject"]:
                    accepted.append(f"e{number}")
                    break
            await wire.say({"type": "close"})
            closed = await wire.until("closed")
        bundle = decode_bundle(Path(closed["bundle"]).read_bytes())
        assert [record.event_id for record in bundle.events] == accepted
        assert await anyio.to_thread.run_sync(daemon.stop) == 0


def fill(path: Path) -> None:
    """Write a file that fills the disk."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64 * 1024))
        except OSError as error:
            assert error.errno == errno.ENOSPC


@pytest.mark.parametrize("op", ["listdir", "unlink"])
async def test_p4_the_daemon_starts_beside_a_directory_that_it_cannot_sweep(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4: such as lost+found, where the bundles have a disk of their own; the log names it."""
    temporary = tmp_path / "bundles" / "lost+found" / "b.json.4194305.0.tmp"
    temporary.parent.mkdir(parents=True)
    temporary.write_bytes(b"")
    real = getattr(os, op)

    def refuse(path: Any, *arguments: Any, **options: Any) -> Any:
        if "lost+found" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, op, refuse)
    with structlog.testing.capture_logs() as logged:
        async with running_daemon(state=tmp_path) as daemon, daemon.session() as wire:
            await wire.say(event("a"), {"type": "close"})
            await wire.until("closed")
    (kept,) = [entry for entry in logged if entry["event"] == "temporaries.kept"]
    assert (Path(kept["path"]).name, bool(kept["hint"])) == ("lost+found", True)
    assert temporary.exists()
