"""The daemon as process 1 of a container."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.daemons import PATIENCE, DaemonProcess, short_directory
from tests.engine.engines import command_event
from tests.processes import wait_until

from ergo_capture.client import CaptureClient

EVENTS = 5
#: Leaves an orphan behind at each run, which ends once process 1 is its parent.
ENGINE = """
import json, os, sys, time
print('{"type":"ready","protocol":"ergo-engine.v1","runtime_provenance":"p"}', flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        if not os.fork():
            while os.getppid() != 1:
                time.sleep(0.001)
            with open(sys.argv[1], "a") as orphans:
                orphans.write("x")
        os._exit(0)
    os.waitpid(child, 0)
    print(json.dumps({"type": "ran", "id": json.loads(line)["id"], "termination": "Completed"}), flush=True)
"""
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child"]

pytestmark = pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode != 0,
    reason="needs the right to make a PID namespace",
)


def children(pid: int) -> list[int]:
    """Return the child processes of a process, zombies included."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_zombie(pid: int) -> bool:
    """Return whether a process has ended and nobody has waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def test_as_process_1_it_reaps_what_engines_leave_behind() -> None:
    """One orphan for each event, and none stays a zombie; SIGTERM is passed on, and the exit code comes back."""
    with short_directory() as place:
        (place / "engine.py").write_text(ENGINE)
        orphans = place / "orphans"
        engine = f'["{sys.executable}", "{place / "engine.py"}", "{orphans}"]'
        text = f'[graphs.default]\nengine = {{ kind = "process", command = {engine} }}\n'
        with DaemonProcess(place, place / "state", config=text) as daemon:
            daemon.prefix = UNSHARE
            daemon.start()
            assert daemon.process is not None
            (init,) = children(daemon.process.pid)
            asyncio.run(capture_events(daemon.socket))
            wait_until(lambda: orphans.exists() and len(orphans.read_text()) == EVENTS)
            wait_until(lambda: not any(map(is_zombie, children(init))))
            os.kill(init, signal.SIGTERM)
            assert daemon.process.wait(PATIENCE) == 0


async def capture_events(socket: Path) -> None:
    """Have each event run an episode."""
    async with CaptureClient(socket) as client:
        await client.open("default")
        for number in range(EVENTS):
            await client.send(command_event(f"e{number}"))
        assert (await client.close()).decisions == EVENTS


def test_process_1_ends_as_a_shell_would_when_the_daemon_is_killed() -> None:
    """Its exit code is 128 and the number of the signal."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.prefix = UNSHARE
        daemon.start()
        assert daemon.process is not None
        (init,) = children(daemon.process.pid)
        (served,) = children(init)
        os.kill(served, signal.SIGKILL)
        assert daemon.process.wait(PATIENCE) == 128 + signal.SIGKILL
