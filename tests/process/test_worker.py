"""The process that composes a large bundle, when its daemon is killed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.daemons import PATIENCE, DaemonProcess, short_directory

from ergo_capture.client.load import Load


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
def test_a_worker_does_not_outlive_its_daemon() -> None:
    """P3: one that does might put its bundle in the place of the one that the next daemon published meanwhile."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.start()
        with Load(daemon.socket, window=1024) as load:
            load.run(60_000)
            # Not ``finish``: that waits for the bundle.
            os.write(load.fileno(), b'{"type":"close"}\n')
            until(lambda: any(daemon.state.rglob("*.tmp")))
            assert daemon.process is not None
            pid = daemon.process.pid
            workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            assert workers
            daemon.kill()
        until(lambda: not any(is_alive(worker) for worker in workers))
        assert list(daemon.state.rglob("*.capture.json")) == []


def is_alive(pid: str) -> bool:
    """Whether the process is there, and not only its remains."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(what: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.001)
