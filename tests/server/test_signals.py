"""Signals, and limits of the process."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
from pathlib import Path

import pytest
from tests.daemons import PATIENCE, DaemonProcess, short_directory
from tests.engine.engines import command_event, process_graph
from tests.shared import REPOSITORY

from ergo_capture.client import CaptureClient


def test_a_signal_that_is_sent_twice_within_a_second_is_the_same_one() -> None:
    """``timeout`` and process groups do that: the daemon stops in order, and leaves no socket behind."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.start()
        assert daemon.process is not None
        # Suspended, it gets both together, whatever the machine does meanwhile.
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            daemon.process.send_signal(number)
        assert daemon.process.wait(PATIENCE) == 0
        assert "daemon.abandoned" not in daemon.log.read_text()
        assert not daemon.socket.exists()


def test_a_signal_a_second_later_stops_at_once() -> None:
    """P10: an engine that hangs holds the shutdown up, and the operator does not wait for it."""
    with short_directory() as place, DaemonProcess(place, place / "state", config=process_graph()) as daemon:
        process = daemon.start().process
        assert process is not None
        asyncio.run(send_one(daemon.socket, "hang"))
        process.send_signal(signal.SIGTERM)
        daemon.until_logged("daemon.stopping")
        code = None
        while code is None:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        assert code == 1
        assert '"event": "daemon.abandoned"' in daemon.log.read_text()


async def send_one(socket: Path, event_id: str) -> None:
    """Have an event accepted, and leave its session open."""
    async with CaptureClient(socket, give_up_after=0) as client:
        await client.open("default")
        await client.send(command_event(event_id))
        await client.drain()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_without_a_meaning_is_logged_and_ignored(number: signal.Signals) -> None:
    """By default it would end the daemon without a word."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.start()
        assert daemon.process is not None
        daemon.process.send_signal(number)
        line = daemon.until_logged("signal.ignored")
        assert (line["level"], line["signal"]) == ("warning", number.name)
        assert "SIGHUP" in line["hint"]
        assert daemon.stop() == 0


def test_too_few_open_files_are_refused_at_the_start() -> None:
    """The message has the number, and how to raise it; a later failure would be a traceback."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.prefix = ["sh", "-c", 'ulimit -n 12; exec "$0" "$@"']
        assert daemon.spawn().wait(PATIENCE) == 78
        said = daemon.log.read_text()
        assert "the process may open 12 files, and needs at least 48" in said
        assert "LimitNOFILE" in said
        assert "Traceback" not in said


def test_nothing_exits_without_writing_its_log() -> None:
    """``os._exit`` is called where lines that wait are written first, and in a process that has none."""
    found = {
        path.name
        for path in (REPOSITORY / "daemon").rglob("*.py")
        if re.search(r"\bos\._exit\(", path.read_text(encoding="utf-8"))
    }
    assert found == {"telemetry.py", "init_process.py"}
