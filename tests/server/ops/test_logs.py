"""The daemon's log: priorities, levels at run time, suppressed repetitions, hostile text, no reader."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from tests.daemons import DaemonProcess, Wire, command_environment, event, running_daemon, short_directory
from tests.doubles.faulty_storage import FaultyStorage
from tests.shared import REPOSITORY

from ergo_capture import telemetry
from ergo_capture.server.session.session import Session
from ergo_capture.telemetry import StormFilter


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Log:
    """Return everything that this process logs, as records."""
    telemetry.configure("info", "json")
    return Log(capsys)


class Log:
    """The records that this process has logged."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._said = ""

    def records(self, name: str = "") -> list[dict[str, Any]]:
        """Return the records, or those of one name."""
        self._said += self._capsys.readouterr().err
        lines = [json.loads(line) for line in self._said.splitlines()]
        return [record for record in lines if not name or record["event"] == name]


# --- the constants ---


def test_every_event_name_is_used_and_every_log_line_has_one() -> None:
    """No constant is unused, and nothing is logged under another name."""
    sources = {path: path.read_text() for path in (REPOSITORY / "daemon" / "ergo_capture").rglob("*.py")}
    others = "\n".join(text for path, text in sources.items() if path.name != "telemetry.py")
    names = {key for key, value in vars(telemetry).items() if key.isupper() and isinstance(value, str)}
    unused = {
        name for name in names - {"LOG_SUPPRESSED", "LOG_DROPPED"} if not re.search(rf"\btelemetry\.{name}\b", others)
    }
    assert unused == set()
    assert re.findall(r"""\blog\.(?:debug|info|warning|error|critical|exception)\(\s*f?["']""", others) == []


# --- priorities ---


def test_a_line_for_the_systemd_journal_begins_with_its_priority(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``<6>`` for info, ``<4>``, ``<3>``, ``<2>``; the rest of the line is the usual JSON object."""
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    telemetry.configure("debug", "auto")
    logger = structlog.get_logger()
    for say in (logger.debug, logger.info, logger.warning, logger.error, logger.critical):
        say(telemetry.DAEMON_READY, socket="/x")
    lines = capsys.readouterr().err.splitlines()
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>", "<2>"]
    assert {json.loads(line[3:])["socket"] for line in lines} == {"/x"}


@pytest.mark.parametrize("stream", ["", "0:0", "garbage", "1:2:3"])
def test_journal_stream_of_another_file_is_ignored(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """JOURNAL_STREAM is inherited by children whose standard error goes elsewhere."""
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    assert not telemetry.journald_listens()


def test_the_daemon_detects_the_systemd_journal(tmp_path: Path) -> None:
    """The daemon is a process whose standard error is the file that JOURNAL_STREAM names."""
    with short_directory() as place, DaemonProcess(place, tmp_path / "state") as daemon:
        daemon.log.write_bytes(b"")
        status = daemon.log.stat()
        daemon.environment["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
        daemon.spawn()
        assert daemon.process is not None
        with daemon.log.open() as lines:
            wait_for(lambda: "daemon.ready" in daemon.log.read_text(), daemon)
            assert all(line.startswith("<6>{") for line in lines)
        assert daemon.stop() == 0


def wait_for(condition: Any, daemon: DaemonProcess) -> None:
    """Wait until the condition holds; fail if the daemon ends before that."""
    assert daemon.process is not None
    for _ in range(3000):
        if condition():
            return
        if daemon.process.poll() is not None:
            break
        try:
            daemon.process.wait(0.01)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(daemon.log.read_text())


# --- the level at run time ---


def test_the_level_can_be_changed_at_run_time(log: Log) -> None:
    """Existing loggers follow up and down."""
    logger = structlog.get_logger()
    logger.info(telemetry.SESSION_OPENED)
    telemetry.set_level("error")
    logger.info(telemetry.SESSION_RESUMED)
    logger.error(telemetry.JOURNAL_FULL)
    telemetry.set_level("debug")
    logger.debug(telemetry.CLIENT_GONE)
    assert [record["event"] for record in log.records()] == ["session.opened", "journal.full", "client.gone"]


# --- storms ---


def test_repeated_lines_are_logged_up_to_a_number_and_then_counted() -> None:
    """Two of five lines in the window; the first line after it says how many were left out."""
    now = 0.0
    storms = StormFilter(2, 10, lambda: now)
    assert [line(storms) for _ in range(5)] == [{}, {}, None, None, None]
    now = 10.0
    assert line(storms) == {"suppressed": 3}
    assert line(storms) == {}
    assert line(storms, telemetry.SESSION_OPENED) == {}, "other names have windows of their own"


def line(storms: StormFilter, name: str = telemetry.CLIENT_REFUSED) -> dict[str, Any] | None:
    """Return a line after the filter, without its name; None if it is suppressed."""
    try:
        event = dict(storms(None, "info", {"event": name}))
    except structlog.DropEvent:
        return None
    del event["event"]
    return event


def test_suppressed_lines_are_counted_even_if_no_line_follows() -> None:
    """They are counted once, after the window is over, or at once when the daemon ends."""
    now = 0.0
    storms = StormFilter(1, 10, lambda: now)
    assert [line(storms) for _ in range(4)] == [{}, None, None, None]
    assert storms.take_suppressed(final=False) == {}
    now = 11.0
    assert storms.take_suppressed(final=False) == {"client.refused": 3}
    assert storms.take_suppressed(final=True) == {}
    assert [line(storms) for _ in range(2)] == [{}, None]
    assert storms.take_suppressed(final=True) == {"client.refused": 1}


def test_evidence_is_never_suppressed() -> None:
    """P6: every quarantined session and every bundle has its line."""
    storms = StormFilter(1, 10, lambda: 0.0)
    for name in (telemetry.SESSION_QUARANTINED, telemetry.BUNDLE_PUBLISHED):
        assert [line(storms, name) for _ in range(3)] == [{}, {}, {}]


async def test_damage_that_concerns_no_session_is_logged(log: Log) -> None:
    """P6: such as in the head of a segment: nothing is quarantined, and nothing is passed over in silence."""
    with short_directory() as place:
        state = place / "state"
        async with running_daemon(state=state) as daemon, daemon.session() as wire:
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
        segment = state / "journal" / "0000000000000001.journal"
        with segment.open("r+b") as file:
            file.seek(3)
            file.write(b"X")
        async with running_daemon(state=state) as daemon, daemon.session(session=wire.opened["session"]):
            (line,) = log.records("journal.damaged")
            assert (line["path"], line["offset"], line["reason"]) == (str(segment), 0, "there is no frame")


async def test_a_session_whose_graph_is_gone_is_logged_as_quarantined(log: Log) -> None:
    """P6: the line has the reason and what to do."""
    with short_directory() as place:
        async with (
            running_daemon("[graphs.gone]\n", state=place / "state") as daemon,
            daemon.session(graph="gone") as wire,
        ):
            await wire.say(event("a"))
            await wire.until_ack(1)
        async with running_daemon(state=place / "state"):
            pass
    (said,) = log.records("session.quarantined")
    assert said["session"] == wire.opened["session"]
    assert "graph 'gone' is not configured any more" in said["reason"]
    assert said["hint"]


async def test_many_refused_clients_give_few_lines_and_a_count(log: Log) -> None:
    """Fifty clients too many: three lines, and at the end of the daemon the number of the others."""
    telemetry.configure("info", "json", burst=3, window=3600)
    async with running_daemon("[limits]\nmax_clients = 1\n") as daemon, daemon.session():
        for _ in range(50):
            async with daemon.wire() as wire:
                await wire.rest()
    refused = log.records("client.refused")
    assert [record["code"] for record in refused] == ["limit"] * 3
    assert {record["uid"] for record in refused} == {os.geteuid()}
    (said,) = [record for record in log.records("log.suppressed") if record["of"] == "client.refused"]
    assert said["suppressed"] == 47


# --- what lines there are ---


async def test_the_life_of_a_session_is_in_the_log(log: Log) -> None:
    """Opened with its client, published with its hash, finished with its counts, and the client gone."""
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("a"), {"type": "close"})
        await wire.until("closed")
        await wire.rest()
    (opened,), (published,) = log.records("session.opened"), log.records("bundle.published")
    (finished,), (gone,) = log.records("session.finished"), log.records("client.gone")
    assert (opened["client"], opened["uid"], opened["graph"]) == ("test", os.geteuid(), "default")
    assert published["session"] == finished["session"] == opened["session"]
    assert (finished["ended"], finished["events"], finished["decisions"]) == ("complete", 1, 1)
    assert (gone["events"], gone["code"], gone["level"]) == (1, None, "info")


async def test_a_misbehaving_client_is_logged_as_a_warning_with_its_code(log: Log) -> None:
    """The line names the process and the reason of the disconnection."""
    async with running_daemon() as daemon, daemon.wire() as wire:
        await wire.say(b"garbage")
        await wire.rest()
    (gone,) = log.records("client.gone")
    assert (gone["level"], gone["code"], gone["uid"]) == ("warning", "bad_frame", os.geteuid())
    assert gone["pid"] == os.getpid()
    assert gone["reason"].startswith("not a frame")


async def test_a_full_disk_is_logged_once_and_its_end_once(log: Log) -> None:
    """P8: an error when it begins, a warning with its duration when service resumes; not one line an attempt."""
    storage = FaultyStorage()
    async with running_daemon(storage=storage) as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        await wire.until_ack(1, 1)
        storage.fail_next("write", errno.ENOSPC, errno.ENOSPC)
        number = 1
        with anyio.fail_after(20):
            while not log.records("journal.resumed"):
                number += 1
                await wire.say(event(f"e{number}"))
                await wire.until_ack(number)
    (full,), (resumed,) = log.records("journal.full"), log.records("journal.resumed")
    assert full["level"] == "error"
    assert full["hint"]
    assert full["path"].endswith(".journal")
    assert (resumed["level"], resumed["refused_batches"] >= 1) == ("warning", True)
    assert resumed["seconds"] >= 0


async def test_a_session_that_fails_is_logged_once_with_its_reason(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect in one session is logged with its traceback and session; the others are served."""

    async def broken(_session: Session, _batch: Any) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Session, "_decide", broken)
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        assert (await wire.rest())[-1]["code"] == "storage_failed"
        monkeypatch.undo()
        async with daemon.session() as other:
            await other.say(event("a"), {"type": "close"})
            await other.until("closed")
    (failed,) = log.records("session.failed")
    assert failed["session"] == wire.opened["session"]
    assert "ZeroDivisionError: a defect" in failed["exception"]


# --- hostile text, and nobody who reads ---


@pytest.mark.parametrize("style", ["json", "console", "journald"])
async def test_a_client_cannot_write_lines_or_colours_into_the_log(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a newline and an escape sequence stays one line without control characters."""
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    telemetry.configure("info", style)
    hostile = 'x\n{"event": "daemon.ready"}\x1b[2J\u2028\x9b2J\r'
    async with running_daemon() as daemon, daemon.wire() as wire:
        await wire.say({"type": "hello", "protocol": "ergo-capture.v1", "client": hostile}, {"type": "open"})
        await wire.until("opened")
        await wire.say({"type": "close"})
        await wire.rest()
    lines = said.getvalue().split("\n")
    assert not [entry for entry in lines if entry.startswith('{"event": "daemon.ready"}')]
    assert all(entry.isprintable() for entry in lines)
    assert any("session.opened" in entry for entry in lines)


async def test_the_daemon_serves_on_when_its_log_has_no_reader(tmp_path: Path) -> None:
    """``serve 2>&1 | head -1``: the pipe closes, clients are served, and the exit code is still 0."""
    with short_directory() as place:
        socket = place / "s"
        arguments = [sys.executable, "-m", "ergo_capture", "serve", "--socket", str(socket)]
        reading, writing = os.pipe()
        async with await anyio.open_process(
            [*arguments, "--state-dir", str(tmp_path / "state")],
            stdout=subprocess.DEVNULL,
            stderr=writing,
            env={**command_environment(), "XDG_CONFIG_HOME": str(place)},
        ) as process:
            os.close(writing)
            with os.fdopen(reading, "rb") as log_end:
                while b"daemon.ready" not in await anyio.to_thread.run_sync(log_end.readline):
                    pass
            for _ in range(2):
                async with await anyio.connect_unix(str(socket)) as stream:
                    wire = Wire(stream)
                    await wire.open()
                    await wire.say(event("a"), {"type": "close"})
                    assert (await wire.until("closed"))["events"] == 1
            process.terminate()
            assert await process.wait() == 0
