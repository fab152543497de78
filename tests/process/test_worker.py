"""The worker process that composes a large bundle."""

from __future__ import annotations

import os
from pathlib import Path

from tests.daemons import DaemonProcess, short_directory
from tests.processes import is_alive, wait_until

from ergo_capture.client.load import Load


def test_a_worker_ends_with_a_daemon_that_is_killed() -> None:
    """P3: a worker that lived on could replace the bundle that the next daemon published meanwhile."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.start()
        with Load(daemon.socket, window=1024) as load:
            load.run(60_000)
            # ``finish`` would wait for the bundle.
            os.write(load.fileno(), b'{"type":"close"}\n')
            wait_until(lambda: any(daemon.state.rglob("*.tmp")))
            assert daemon.process is not None
            pid = daemon.process.pid
            workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            assert workers
            daemon.kill()
        wait_until(lambda: not any(is_alive(worker) for worker in workers))
        assert list(daemon.state.rglob("*.capture.json")) == []
