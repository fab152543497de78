"""Kill -9 while a bundle is composed beside its session: the journal is the truth, and the temporaries are swept."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tests.daemons import DaemonProcess, short_directory
from tests.processes import is_alive, wait_until

from ergo_capture.cli.support.verification import check
from ergo_capture.client.load import Load

#: Enough for a session to be followed.
EVENTS = 24_000


def temporaries(state: Path) -> list[Path]:
    """Return the temporary files beside the bundles that hold anything."""
    return [path for path in (state / "bundles").rglob("*.tmp") if path.stat().st_size]


def worker_of(daemon: DaemonProcess) -> int:
    """Return the process that composes, which is the daemon's only child."""
    assert daemon.process is not None
    (child,) = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
    return int(child)


@pytest.mark.parametrize("killed", ["daemon", "worker", "both"])
def test_a_kill_in_the_middle_of_composing_loses_nothing(killed: str) -> None:
    """P1: half-written temporaries are worth nothing, and nothing of them is left."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.start()
        with Load(daemon.socket, window=1024) as load:
            load.run(EVENTS)
            wait_until(lambda: bool(temporaries(daemon.state)))
            worker = worker_of(daemon)
            if killed != "daemon":
                os.kill(worker, signal.SIGKILL)
            if killed != "worker":
                daemon.kill()
        if killed == "worker":
            # Its client has gone; the stop publishes what it sent.
            assert daemon.stop() == 0, daemon.log.read_text()
        else:
            wait_until(lambda: not is_alive(worker))
            assert not list((daemon.state / "bundles").rglob("*.capture.json"))
            daemon.start()
            # The new daemon has the session composed, too.
            assert not [path for path in temporaries(daemon.state) if f".{worker}." in path.name]
            assert daemon.stop() == 0, daemon.log.read_text()
        assert not list((daemon.state / "bundles").rglob("*.tmp"))
        (bundle,) = (daemon.state / "bundles").rglob("*.capture.json")
        verdict = check(bundle)
        assert (verdict["ok"], verdict["events"]) == (True, EVENTS)
