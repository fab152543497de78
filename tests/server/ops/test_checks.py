"""The files under a running daemon: what it does when somebody removes or replaces them, or its disk fails."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.daemons import Daemon, Wire, event, running_daemon, short_directory
from tests.server.looks import is_served, until

from ergo_capture.journal.scan import scan
from ergo_capture.repair.doctor import diagnose
from ergo_capture.server.commit.writer import LOOK_SECONDS
from ergo_capture.server.ops import checks
from ergo_capture.storage import RealStorage


def _remove_segments(state: Path) -> None:
    for path in (state / "journal").iterdir():
        path.unlink()


def _replace_segment(state: Path) -> None:
    segment = state / "journal" / "0000000000000001.journal"
    shutil.copy(segment, state / "copy")
    (state / "copy").replace(segment)


def _move_directory(state: Path) -> None:
    (state / "journal").rename(state / "elsewhere")
    (state / "journal").mkdir()


def _remove_lock(state: Path) -> None:
    (state / "lock").unlink()


def _replace_lock(state: Path) -> None:
    (state / "other").touch()
    (state / "other").replace(state / "lock")


LOSSES = [_remove_segments, _replace_segment, _remove_lock, _replace_lock]


@pytest.mark.parametrize("lose", LOSSES)
async def test_nothing_is_acknowledged_once_the_journal_is_lost(lose: Callable[[Path], None]) -> None:
    """The next commit notices; the events that were acknowledged are in a journal that was saved."""
    with short_directory() as place:
        async with running_daemon(state=place / "state") as daemon, daemon.session() as wire:
            await wire.say(event("a"), event("b"))
            await wire.until_ack(2, 2)
            lose(daemon.state)
            # Commits that follow one another do not look each time.
            await asyncio.sleep(2 * LOOK_SECONDS)
            await wire.say(event("c"))
            frames = await wire.rest()
            assert [frame["event_id"] for frame in frames if frame["type"] == "reject"] == ["c"]
            assert frames[-1]["code"] == "storage_failed"
            assert "safe" not in frames[-1]["hint"]
            await _stopped(daemon)
        _check_saved(place / "state", 2)


@pytest.mark.parametrize("lose", [*LOSSES, _move_directory])
async def test_a_lost_journal_is_noticed_while_nothing_is_committed(
    lose: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next check notices it; the log says so, and where the segments are."""
    monkeypatch.setattr(checks, "CHECK_SECONDS", 0.01)
    with short_directory() as place:
        async with running_daemon(state=place / "state") as daemon, daemon.session() as wire:
            await wire.say(event("a"), event("b"))
            await wire.until_ack(2, 2)
            lose(daemon.state)
            assert (await wire.rest())[-1]["code"] == "storage_failed"
            await _stopped(daemon)
        _check_saved(place / "state", 2)
    said = capsys.readouterr().out
    assert "journal.lost" in said
    assert "journal.saved-1" in said
    assert "acknowledged is safe" not in said


async def test_a_lost_journal_is_noticed_with_a_new_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The segment that is missing may be an older one."""
    monkeypatch.setattr(checks, "CHECK_SECONDS", 1000.0)
    with short_directory() as place:
        text = '[journal]\nsegment_bytes = "4KiB"\n'
        async with running_daemon(text, place / "state") as daemon, daemon.session() as wire:
            await wire.say(event("a", payload={"x": "y" * 4000}))
            await wire.until_ack(1, 1)
            await wire.say(event("b", payload={"x": "y" * 4000}))
            await wire.until_ack(2, 2)
            (daemon.state / "journal" / "0000000000000001.journal").unlink()
            await wire.say(event("c", payload={"x": "y" * 4000}))
            assert [frame["event_id"] for frame in await wire.rest() if frame["type"] == "reject"] == ["c"]
            await _stopped(daemon)
        _check_saved(place / "state", 2)


async def test_a_second_daemon_on_a_directory_whose_lock_was_removed_stops_the_first() -> None:
    """P12: the first acknowledges nothing further."""
    with short_directory() as place:
        async with running_daemon(state=place / "state") as first, first.session() as wire:
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
            (first.state / "lock").unlink()
            async with running_daemon(state=place / "state") as second:
                await wire.say(event("b"))
                assert [frame["event_id"] for frame in await wire.rest() if frame["type"] == "reject"] == ["b"]
                await _stopped(first)
                async with second.session(session=wire.opened["session"]) as again:
                    assert again.opened["accepted"] == 1


async def test_segments_that_the_daemon_deletes_itself_are_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check runs all the time meanwhile."""
    monkeypatch.setattr(checks, "CHECK_SECONDS", 0.0)
    async with running_daemon('[journal]\nsegment_bytes = "4KiB"\n') as daemon:
        for number in range(20):
            async with daemon.session() as wire:
                await wire.say(event(f"e{number}", payload={"x": "y" * 4000}), {"type": "close"})
                await wire.until("closed")
        assert daemon.service.writer.failure is None
        descriptors = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
        assert not [name for name in descriptors if name.endswith(".journal (deleted)")]


async def test_a_daemon_whose_disk_fails_is_not_ready_until_it_works_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status, metrics and log say so of an idle daemon; it recovers by itself."""
    monkeypatch.setattr(checks, "CHECK_SECONDS", 0.01)
    async with running_daemon() as daemon:
        writer, probe = daemon.service.writer, daemon.state / "probe"
        await until(probe.is_file)
        probe.unlink()
        probe.mkdir()
        await until(lambda: writer.disk_error is not None)
        status = (await daemon.ask("status"))["status"]
        assert str(probe) in status["running"]["writer"]["disk_error"]
        assert "ready{state_directory" in await _metrics(daemon)
        assert await _ready(daemon) == "0.0"
        probe.rmdir()
        await until(lambda: writer.disk_error is None)
        assert await _ready(daemon) == "1.0"
        # A disk that is full is another matter: commits wait for room.
        monkeypatch.setattr(daemon.service.components.state, "_open_probe", _full)
        for _ in range(3):
            await asyncio.sleep(0.02)
            assert writer.disk_error is None
    said = capsys.readouterr().out
    assert said.count("disk.unwritable") == said.count("disk.writable") == 1


def _full(path: Path) -> Any:
    from ergo_capture.storage import StorageError

    raise StorageError("open", path, OSError(28, "No space left on device"))


async def _metrics(daemon: Daemon) -> str:
    return str((await daemon.ask("metrics"))["text"])


async def _ready(daemon: Daemon) -> str:
    (line,) = [line for line in (await _metrics(daemon)).splitlines() if line.startswith("ergo_capture_ready{")]
    return line.split()[-1]


async def _stopped(daemon: Daemon) -> None:
    with anyio.fail_after(20):
        await daemon.service._stop.wait()
    assert daemon.service.writer.failure is not None


def _check_saved(state: Path, events: int) -> None:
    saved = state / "journal.saved-1"
    found = scan(saved, RealStorage())
    (session,) = found.sessions.values()
    assert (session.next_event or 0) >= events
    assert session.damage is None
    assert diagnose(saved).sound


@pytest.mark.parametrize("which", ["capture.sock", "control.sock", "both"])
async def test_a_socket_whose_file_was_removed_is_bound_again(
    which: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gets its mode again, and connected clients stay."""
    monkeypatch.setattr(checks, "CHECK_SECONDS", 0.01)
    async with running_daemon() as daemon, daemon.session() as connected:
        sockets = [daemon.socket, daemon.service.components.control_path]
        lost = [path for path in sockets if path.name == which] or sockets
        modes = [path.stat().st_mode for path in lost]
        for path in lost:
            path.unlink()
        await until(lambda: all(path.exists() for path in lost))
        await until(lambda: [path.stat().st_mode for path in lost] == modes)
        await is_served(daemon)
        assert (await daemon.ask("status"))["type"] == "status"
        await connected.say(event("a"), {"type": "close"})
        assert (await connected.until("closed"))["events"] == 1
    assert not any(path.exists() for path in sockets)
    assert capsys.readouterr().out.count("socket.rebound") == len(lost)


async def test_a_client_that_waited_on_a_removed_socket_is_served() -> None:
    """It connected before the file was gone."""
    async with running_daemon() as daemon:
        bound = next(bound for bound in daemon.service._bound if bound.path == daemon.socket)
        waiting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        waiting.connect(str(daemon.socket))
        daemon.socket.unlink()
        # Without a turn of the loop in between.
        daemon.service._bound[bound](bound.bind_again())
        waiting.setblocking(False)
        async with await anyio.abc.UNIXSocketStream.from_socket(waiting) as stream:
            assert "session" in await Wire(stream).open()
        await is_served(daemon)


async def test_a_socket_that_another_daemon_took_is_left_to_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss is logged once; when the other one is gone, the socket is bound again."""
    monkeypatch.setattr(checks, "CHECK_SECONDS", 0.01)
    said = ""
    async with running_daemon() as daemon:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.bind(str(daemon.socket) + ".new")
            other.listen()
            Path(str(daemon.socket) + ".new").replace(daemon.socket)
            while "socket.lost" not in said:
                await asyncio.sleep(0.01)
                said += capsys.readouterr().out
            await asyncio.sleep(0.1)
        while "socket.rebound" not in said:
            await asyncio.sleep(0.01)
            said += capsys.readouterr().out
        await is_served(daemon)
    assert said.count("socket.lost") == said.count("socket.rebound") == 1
