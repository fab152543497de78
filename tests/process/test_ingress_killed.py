"""``ergo-capture ingress`` between a stand-in for ``ergo run`` and a daemon that are killed at random."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.daemons import COMMAND, PATIENCE, DaemonProcess, command, command_environment, short_directory

from ergo_capture.journal.session_stream import parts_in
from ergo_capture.storage import RealStorage

STAND_IN = Path(__file__).resolve().parent.parent / "stand_in.py"
#: A channel that prints events without end, in bursts, until it is told to end.
CHANNEL = """
import itertools, signal, sys, time
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
print('{"type":"hello","protocol":"ergo-driver.v0"}', flush=True)
for n in itertools.count():
    print('{"type":"event","event":{"event_id":"e%d","kind":"Command","at":{"secs":%d,"nanos":0},'
          '"semantic_kind":"k","payload":{"n":%d}}}' % (n, n, n), flush=n % 50 == 0)
    if n % 50 == 0:
        time.sleep(0.002)
    if ended:
        break
print('{"type":"end"}', flush=True)
"""


def host_over(socket: Path, seen: Path, channel: Path) -> subprocess.Popen[bytes]:
    """Start the stand-in with the channel behind ``ingress``."""
    driver = [*COMMAND, "ingress", "--socket", str(socket), "--", sys.executable, str(channel)]
    return subprocess.Popen(
        [sys.executable, str(STAND_IN), str(seen), *driver],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=command_environment(),
        start_new_session=True,
    )


def until_seen(seen: Path, count: int) -> None:
    """Wait until the host has seen that many events."""
    deadline = time.monotonic() + PATIENCE
    while not seen.exists() or seen.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline, f"{count} events not seen"
        time.sleep(0.01)


def fed(daemon: DaemonProcess, session: str) -> list[str]:
    """Return the ids that ``feed`` prints of a session."""
    ran = command("feed", session, "--state-dir", str(daemon.state))
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line)["event"]["event_id"] for line in ran.stdout.splitlines()[1:-1]]


def journalled(daemon: DaemonProcess) -> list[str]:
    """Return the ids of the only session in the journal of a daemon that does not run."""
    (part,) = parts_in(daemon.state / "journal", RealStorage())
    return [event.event_id for event in part.events()]


def session_of(text: bytes) -> str:
    """Return the session that standard error names."""
    return next(line.split()[-1].decode() for line in text.splitlines() if b": session " in line)


def check(seen: Path, captured: list[str]) -> None:
    """Hold that what the host saw is the beginning of the capture, each event once."""
    # The last line of a host that was killed may be torn.
    ids = seen.read_text().split("\n")[:-1]
    assert len(set(captured)) == len(captured)
    assert captured[: len(ids)] == ids
    assert ids


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(3, 30))])
def test_what_a_host_saw_before_it_was_killed_is_captured(seed: int, tmp_path: Path) -> None:
    """SIGKILL at random: the events that it had taken are in the session, none twice."""
    chance = random.Random(seed)
    (tmp_path / "channel.py").write_text(CHANNEL)
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.start()
        seen = tmp_path / "seen"
        host = host_over(daemon.socket, seen, tmp_path / "channel.py")
        try:
            until_seen(seen, chance.randrange(1, 3000))
            host.kill()
            # The driver is in a process group of its own, and lives on until it cannot print any more.
            _, err = host.communicate(timeout=PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                host.kill()
        session = session_of(err)
        check(seen, fed(daemon, session))
        daemon.kill()
        check(seen, fed(daemon, session))


@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 20))])
def test_a_host_sees_everything_though_the_daemon_is_killed(seed: int, tmp_path: Path) -> None:
    """SIGKILL and restarts at random: the run is completed, and host and capture hold the same, none twice."""
    chance = random.Random(seed)
    (tmp_path / "channel.py").write_text(CHANNEL)
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.start()
        seen = tmp_path / "seen"
        host = host_over(daemon.socket, seen, tmp_path / "channel.py")
        try:
            count = 0
            for _ in range(3):
                count += chance.randrange(1, 2000)
                until_seen(seen, count)
                daemon.kill()
                # The host goes on with what was handed on by then, and with no more.
                time.sleep(chance.random() / 5)
                check(seen, journalled(daemon))
                count = seen.read_bytes().count(b"\n")
                daemon.start()
            until_seen(seen, count + 100)
            driver = int(Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split()[0])
            os.kill(driver, signal.SIGTERM)
            out, err = host.communicate(timeout=PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                host.kill()
        assert out.decode().strip() == "status=completed", err.decode()
        captured = fed(daemon, session_of(err))
        check(seen, captured)
        assert captured == seen.read_text().splitlines()
