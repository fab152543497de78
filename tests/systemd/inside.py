"""The installed service under a systemd in a box; run by ``test_units.py`` only.

The tests share one installation and go in order: what an operator does from installing to stopping.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ergo_capture import EventTime, ExternalEvent, ExternalEventKind, RunTermination, decode_bundle
from ergo_capture.cli.support.verification import check
from ergo_capture.client import CaptureClient

pytestmark = pytest.mark.inside

COMMAND = "/opt/ergo/bin/ergo-capture"
SOCKET = Path("/run/ergo-capture/capture.sock")
CONFIG = Path("/etc/ergo-capture/config.toml")
STATE = Path("/var/lib/ergo-capture")
UNIT = "ergo-capture.service"


def run(*words: str, fails: bool = False) -> str:
    """Run a command and return its output; fail if it fails."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert fails or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}{log()}"
    return done.stdout


def log() -> str:
    """Return what the service has logged lately."""
    return subprocess.run(
        ["journalctl", "--no-pager", "-n", "40", "-o", "cat", "-u", UNIT], capture_output=True, text=True, check=False
    ).stdout


def shown(name: str) -> str:
    """Return a property of the unit."""
    return run("systemctl", "show", "--value", "-p", name, UNIT).strip()


def until(true: Callable[[], Any], what: str) -> None:
    """Wait until a condition holds; fail if it does not in time."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, f"{what}\n{run('systemctl', 'status', UNIT, fails=True)}\n{log()}"
        time.sleep(0.05)


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    """Install the service as the manual says."""
    said = run(COMMAND, "systemd", "install")
    assert "systemctl enable --now" in said
    run("systemd-sysusers")
    run("systemctl", "daemon-reload")
    yield
    run("systemctl", "stop", UNIT, "ergo-capture.socket", "ergo-capture-control.socket", fails=True)


def test_a_client_that_connects_first_starts_the_service() -> None:
    """Only the sockets are started."""
    run("systemctl", "start", "ergo-capture.socket", "ergo-capture-control.socket")
    assert shown("ActiveState") == "inactive"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(SOCKET))
        client.settimeout(30)
        client.sendall(b'{"type":"hello","protocol":"ergo-capture.v1"}\n')
        assert b'"welcome"' in client.recv(4096), log()
    until(lambda: shown("ActiveState") == "active", "ready was never said")
    assert "sessions" in shown("StatusText")


def test_files_and_sockets_have_the_modes_they_should() -> None:
    """State 0750 of the daemon's user, the socket 0660 of the group, the control socket 0600."""
    user = pwd.getpwnam("ergo-capture")
    found = STATE.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o750, user.pw_uid)
    assert (stat.S_IMODE(SOCKET.stat().st_mode), SOCKET.stat().st_gid) == (0o660, user.pw_gid)
    assert stat.S_IMODE(SOCKET.with_name("control.sock").stat().st_mode) == 0o600


def test_log_lines_have_their_priority_in_the_journal() -> None:
    """As JSON, with systemd's PRIORITY from the ``<N>`` prefix."""
    run("journalctl", "--sync")
    lines = [json.loads(line) for line in run("journalctl", "-o", "json", "--all", "-u", UNIT).splitlines()]
    ready = [line for line in lines if "daemon.ready" in str(line["MESSAGE"])]
    assert ready
    assert ready[-1]["PRIORITY"] == "6"
    assert json.loads(ready[-1]["MESSAGE"])["event"] == "daemon.ready"


def test_the_operator_is_answered_through_the_socket_that_systemd_holds() -> None:
    """Status, metrics, and a reload by the unit, which waits for its end, and by the command."""
    assert "serving" in run(COMMAND, "status", "--config", str(CONFIG))
    assert 'ergo_capture_ready{state_directory="/var/lib/ergo-capture"} 1.0' in run(
        COMMAND, "metrics", "--config", str(CONFIG)
    )
    before = CONFIG.read_text()
    CONFIG.write_text(before.replace("max_clients = 256", "max_clients = 255"))
    run("systemctl", "reload", UNIT)
    until(lambda: "config.reloaded" in log(), "the reload was not done")
    until(lambda: shown("ActiveState") == "active", "the reload did not end")
    CONFIG.write_text(before)
    assert run(COMMAND, "reload", "--config", str(CONFIG)) == "applied limits.max_clients\n"


async def stream(trouble: list[Callable[[], None]]) -> None:
    """Send while ``trouble`` runs; afterwards every event is in the bundle once."""
    sent = 0

    async def send(client: CaptureClient, count: int) -> None:
        nonlocal sent
        for _ in range(count):
            at = EventTime(sent, 0)
            await client.send(ExternalEvent.with_payload(f"e{sent}", ExternalEventKind.DataAvailable, at, b'{"a":1}'))
            sent += 1

    async with CaptureClient(SOCKET, window=64, give_up_after=60) as client:
        await client.open("default")
        for make_trouble in trouble:
            await send(client, 300)
            troubled = asyncio.create_task(asyncio.to_thread(make_trouble))
            while not troubled.done():
                await send(client, 20)
                await asyncio.sleep(0.005)
            await troubled
        await send(client, 300)
        published = await client.close()
    bundle = decode_bundle(Path(published.bundle).read_bytes())
    assert [record.event_id for record in bundle.events] == [f"e{n}" for n in range(sent)]
    assert check(Path(published.bundle))["ok"]


def main_pid() -> int:
    """Return the daemon's process id."""
    return int(shown("MainPID"))


def restart() -> None:
    """Restart the unit, as an upgrade does."""
    run("systemctl", "restart", UNIT)


def kill_and_wait(number: int = signal.SIGKILL) -> None:
    """Kill the daemon and wait until systemd has started another one."""
    before = main_pid()
    os.kill(before, number)
    until(lambda: main_pid() not in (0, before) and shown("ActiveState") == "active", "it did not come back")


def test_nothing_is_refused_or_lost_across_restart_and_kill_9() -> None:
    """P1, P10: a client streams while the service is restarted and killed; connecting is never refused."""
    refused: list[OSError] = []
    over = False

    def knock() -> None:
        while not over:
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(SOCKET))
            except OSError as error:
                refused.append(error)
            time.sleep(0.02)

    async def troubled() -> None:
        nonlocal over
        knocking = asyncio.create_task(asyncio.to_thread(knock))
        try:
            await stream([restart, kill_and_wait, kill_and_wait])
        finally:
            over = True
            await knocking

    asyncio.run(troubled())
    assert refused == []


def test_a_daemon_that_hangs_is_restarted_by_the_watchdog() -> None:
    """After WatchdogSec a stopped process is killed, and the next one continues its sessions."""
    drop_in = Path(f"/etc/systemd/system/{UNIT}.d")
    drop_in.mkdir(parents=True, exist_ok=True)
    (drop_in / "90-test.conf").write_text("[Service]\nWatchdogSec=2s\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", UNIT)
    asyncio.run(stream([lambda: kill_and_wait(signal.SIGSTOP)]))
    (drop_in / "90-test.conf").unlink()
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", UNIT)


def test_a_process_engine_runs_under_the_same_rules() -> None:
    """The README's engine; the bundle has its provenance."""
    engine = Path("/opt/ergo/engine.py")
    engine.write_text(Path("tests/engine/example_engine.py").read_text())
    configuration = Path("/etc/ergo-capture/config.toml")
    kept = configuration.read_text()
    command = '["/opt/ergo/bin/python3", "/opt/ergo/engine.py"]'
    configuration.write_text(f'[graphs.default]\nengine = {{ kind = "process", command = {command} }}\n')
    run("systemctl", "restart", UNIT)

    async def one() -> str:
        async with CaptureClient(SOCKET, give_up_after=30) as client:
            await client.open("default")
            payload = b'{"price": 10.5}'
            await client.send(ExternalEvent.with_payload("a", ExternalEventKind.Command, EventTime(0, 0), payload))
            return (await client.close()).bundle

    bundle = decode_bundle(Path(asyncio.run(one())).read_bytes())
    assert bundle.runtime_provenance == "rpv1:example-1"
    assert len(bundle.decisions[0].effects) == 1
    configuration.write_text(kept)
    run("systemctl", "restart", UNIT)


def test_a_stop_leaves_the_engine_until_the_last_run_is_back() -> None:
    """P10: the signal is for the daemon only; a pending run completes."""
    engine = Path("/opt/ergo/slow.py")
    example = Path("tests/engine/example_engine.py").read_text()
    engine.write_text(example.replace("    run = ", "    __import__('time').sleep(2)\n    run = ", 1))
    configuration = Path("/etc/ergo-capture/config.toml")
    kept = configuration.read_text()
    command = '["/opt/ergo/bin/python3", "/opt/ergo/slow.py"]'
    configuration.write_text(f'[graphs.default]\nengine = {{ kind = "process", command = {command} }}\n')
    run("systemctl", "restart", UNIT)

    async def hold() -> None:
        async with CaptureClient(SOCKET, give_up_after=30) as client:
            await client.open("default")
            await client.send(ExternalEvent.mechanical_at("a", ExternalEventKind.Command, EventTime(0, 0)))
            await client.drain()
            await asyncio.to_thread(run, "systemctl", "stop", UNIT)

    before = set((STATE / "bundles").rglob("*.capture.json"))
    asyncio.run(hold())
    (bundle,) = set((STATE / "bundles").rglob("*.capture.json")) - before
    (decision,) = decode_bundle(bundle.read_bytes()).decisions
    assert decision.termination is RunTermination.Completed
    configuration.write_text(kept)
    run("systemctl", "start", "ergo-capture.socket", "ergo-capture-control.socket", UNIT)


def test_a_wrong_configuration_does_not_start_and_says_why() -> None:
    """Exit code 78: it is not restarted, and the reason is in the journal."""
    configuration = Path("/etc/ergo-capture/config.toml")
    kept = configuration.read_text()
    configuration.write_text("[jurnal]\n")
    run("systemctl", "restart", UNIT, fails=True)
    assert shown("ActiveState") == "failed"
    assert "jurnal" in log()
    configuration.write_text(kept)
    run("systemctl", "reset-failed", UNIT)
    run("systemctl", "start", "ergo-capture.socket", "ergo-capture-control.socket", UNIT)


def test_stop_publishes_and_ends_with_zero_within_the_drain_time() -> None:
    """P10: an open session is in a bundle when ``systemctl stop`` returns."""

    async def hold() -> None:
        async with CaptureClient(SOCKET, give_up_after=0) as client:
            await client.open("default")
            event = ExternalEvent.mechanical_at("only", ExternalEventKind.Command, EventTime(0, 0))
            await client.send(event)
            await client.drain()
            await asyncio.to_thread(run, "systemctl", "stop", UNIT)

    before = set((STATE / "bundles").rglob("*.capture.json"))
    asyncio.run(hold())
    assert (shown("ActiveState"), shown("ExecMainStatus"), shown("Result")) == ("inactive", "0", "success")
    (bundle,) = set((STATE / "bundles").rglob("*.capture.json")) - before
    assert {stat.S_IMODE(path.stat().st_mode) for path in (STATE / "journal").iterdir()} == {0o640}
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o640
    assert json.loads(bundle.with_name(bundle.name.replace(".capture.", ".manifest.")).read_text())["events"] == 1
