"""Connections that speak the reference's ``ergo-driver.v0``: how they end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.daemons import Daemon, event, running_daemon
from tests.journal.journals import write_batches

from ergo_capture.cli import app
from ergo_capture.journal.frame import FrameKind, PendingFrame
from ergo_capture.journal.payloads import Closing, SessionDescription, encode_body
from ergo_capture.kernel.constraints import NO_CONSTRAINTS

HELLO = {"type": "hello", "protocol": "ergo-driver.v0"}
END = {"type": "end"}


async def spoken(daemon: Daemon, *frames: Any) -> list[dict[str, Any]]:
    """Send a whole stream, close the writing side, and return what the daemon says."""
    async with daemon.wire() as wire:
        await wire.say(*frames)
        await wire.stream.send_eof()
        return await wire.rest()


async def ends(daemon: Daemon, sessions: int = 1) -> list[str]:
    """Wait until that many sessions have finished; return how the bundles' manifests say they ended."""
    with anyio.fail_after(30):
        while (
            daemon.service.components.running is None or daemon.service.components.running.registry.finished < sessions
        ):
            await anyio.sleep(0.01)
    return [json.loads(path.read_text())["ended"] for path in (daemon.state / "bundles").rglob("*.manifest.json")]


async def test_a_stream_with_an_end_is_complete() -> None:
    """As before."""
    async with running_daemon() as daemon:
        assert [frame["type"] for frame in await spoken(daemon, HELLO, event("a"), END)] == ["closed"]
        assert await ends(daemon) == ["complete"]


async def test_a_stream_without_an_end_is_interrupted_at_once() -> None:
    """A driver cannot resume its session, so nothing is waited for."""
    async with running_daemon('[session]\nlinger = "1h"\n') as daemon:
        assert await spoken(daemon, HELLO, event("a")) == []
        assert await ends(daemon) == ["interrupted"]


@pytest.mark.parametrize("behind", [event("b"), END, b"nonsense", HELLO], ids=["event", "end", "nonsense", "hello"])
async def test_a_frame_after_the_end_is_refused(behind: Any) -> None:
    """The session is interrupted, with the events before it."""
    async with running_daemon() as daemon:
        (error,) = await spoken(daemon, HELLO, event("a"), END, behind)
        assert (error["type"], error["code"], error["message"]) == ("error", "bad_frame", "a frame came after `end`")
        assert await ends(daemon) == ["interrupted"]


async def test_a_half_line_after_the_end_is_refused() -> None:
    """It is seen before the session is closed."""
    async with running_daemon() as daemon, daemon.wire() as wire:
        await wire.stream.send(b'{"type":"hello","protocol":"ergo-driver.v0"}\n{"type":"end"}\n{"type"')
        assert (await wire.rest())[0]["code"] == "bad_frame"


async def test_another_version_of_the_protocol_is_refused() -> None:
    """No session is opened."""
    async with running_daemon() as daemon:
        (error,) = await spoken(daemon, {"type": "hello", "protocol": "ergo-driver.v1"}, event("a"), END)
        assert error["code"] == "unsupported_protocol"
        assert daemon.bundles() == []


@pytest.mark.parametrize("frames", [[], [END], [{"type": "event", "event": {"event_id": ""}}, END]])
async def test_a_stream_without_an_accepted_event_leaves_no_bundle(frames: list[Any]) -> None:
    """Whether it ends or breaks off; ``closed`` names none."""
    async with running_daemon() as daemon:
        for frame in await spoken(daemon, HELLO, *frames):
            assert (frame["type"], frame["events"], frame["bundle"]) == ("closed", 0, "")
        assert await ends(daemon) == []
        assert daemon.bundles() == []


async def test_a_client_may_say_that_its_events_ended_early() -> None:
    """``end`` with ``interrupted``, in a session of ``ergo-capture.v1``."""
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("a"), {"type": "end", "interrupted": True, "keep_empty": False})
        assert (await wire.until("closed"))["events"] == 1
        assert await ends(daemon) == ["interrupted"]


async def test_a_client_may_want_no_empty_bundle(tmp_path: Path) -> None:
    """``close`` leaves one as ever, ``end`` with ``keep_empty`` does not; nor does the next start."""
    async with running_daemon(state=tmp_path) as daemon:
        async with daemon.session() as wire:
            await wire.say({"type": "close"})
            assert (await wire.until("closed"))["bundle"] == str(daemon.bundles()[0])
        async with daemon.session() as wire:
            await wire.say({"type": "end", "keep_empty": False})
            assert (await wire.until("closed"))["bundle"] == ""
    async with running_daemon(state=tmp_path) as daemon:
        assert len(daemon.bundles()) == 1


async def test_a_kill_before_the_end_is_recorded_leaves_no_empty_bundle(tmp_path: Path) -> None:
    """The CLOSE frame says that none is wanted."""
    description = SessionDescription(
        session="s", graph="default", constraints=NO_CONSTRAINTS, adapter_provenance="none",
        runtime_provenance="rpv1:none", engine="fixed", labels={}, peer=None, opened_at="", program="test",
    )  # fmt: skip
    opening = PendingFrame(FrameKind.OPEN, 1, 0, 0, encode_body(description))
    closing = PendingFrame(FrameKind.CLOSE, 1, 0, 0, encode_body(Closing("complete", "", keep_empty=False)))
    (tmp_path / "journal").mkdir()
    write_batches(tmp_path / "journal", [[opening], [closing]])
    async with running_daemon(state=tmp_path) as daemon:
        assert await ends(daemon) == []


def test_the_doctor_finds_nothing_wrong_with_a_session_that_left_no_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no part that could be salvaged."""

    async def run() -> None:
        async with running_daemon(state=tmp_path) as daemon:
            assert await spoken(daemon, HELLO, END)
            assert daemon.bundles() == []

    asyncio.run(run())
    assert app.run(["doctor", str(tmp_path)]) == 0, capsys.readouterr().out
