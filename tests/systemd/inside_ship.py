"""The installed shipping service under a systemd in a box; run by ``test_units.py`` only.

The tests share one installation and go in order: what an operator does from installing to stopping.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.seaweed import Seaweed, seaweed
from tests.systemd.unit import CONFIG, STATE, Unit, documented

pytestmark = pytest.mark.inside

COMMAND = "/opt/ergo-capture/bin/ergo-capture"
CREDENTIALS = Path("/etc/credstore/ergo-capture-ship")
UNIT = "ergo-capture-ship.service"
_unit = Unit(UNIT)
run, log, shown, until = _unit.run, _unit.log, _unit.shown, _unit.until


def capture() -> Path:
    """Capture a session; return its bundle."""
    line = '{"event_id": "a", "kind": "Command", "at": {"secs": 1, "nanos": 0}}\n'
    ran = subprocess.run([COMMAND, "send", "-"], input=line, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return Path(ran.stdout.split()[-1])


def receipt_of(bundle: Path) -> Path:
    """Return the path of a bundle's receipt."""
    return bundle.with_name(bundle.name.partition(".")[0] + ".shipped.archive.json")


def configure(server: Seaweed, prefix: str = "box", more: str = "") -> None:
    """Write the configuration."""
    CONFIG.write_text(
        f"""
        [bundle]
        compress = "zstd"
        [ship]
        interval = "200ms"
        [ship.targets.archive]
        url = "s3://bundles/{prefix}"
        endpoint = "{server.endpoint}"
        region = "us-east-1"
        credentials = "ergo-capture-ship"
        {more}
        """
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Seaweed]:
    """Run a store in the box."""
    with seaweed() as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def installed(server: Seaweed) -> Iterator[None]:
    """Install daemon and shipper as the manual says; the program itself is there already."""
    run(COMMAND, "systemd", "install")
    run("systemd-sysusers")
    configure(server)
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "ergo-capture.service")
    for line in documented("ship", "systemd install --ship"):
        # Without the credentials at first: a unit that names them starts all the same.
        if "pip" not in line and "credstore" not in line:
            run("sh", "-c", line)
    yield
    run("systemctl", "stop", UNIT, "ergo-capture.service", "ergo-capture.socket", fails=True)


def test_without_its_credentials_the_service_runs_and_says_what_is_missing() -> None:
    """It does not fail, and tries again."""
    capture()
    assert shown("ActiveState") == "active"
    until(lambda: "ship.refused" in log() and "read credentials" in log(), "refused")


def test_what_the_daemon_publishes_is_shipped() -> None:
    """The credentials are those that systemd hands over; the receipt belongs to the daemon's user."""
    CREDENTIALS.parent.mkdir(exist_ok=True)
    CREDENTIALS.write_text("AWS_ACCESS_KEY_ID=writer\nAWS_SECRET_ACCESS_KEY=writer-secret\n")
    CREDENTIALS.chmod(0o600)
    run("systemctl", "restart", UNIT)
    bundle = capture()
    until(receipt_of(bundle).exists, "no receipt")
    status = receipt_of(bundle).stat()
    assert pwd.getpwuid(status.st_uid).pw_name == "ergo-capture"
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert json.loads(receipt_of(bundle).read_bytes())["verified"] == "read"
    until(lambda: "archive: 0 to ship" in shown("StatusText"), "status")


def test_the_service_sees_no_journal_and_no_sockets_and_writes_beside_bundles_only() -> None:
    """The view of the service is seen by root from outside."""
    root = Path(f"/proc/{shown('MainPID')}/root")
    assert list((root / "var/lib/ergo-capture/journal").iterdir()) == []
    assert list((root / "run/ergo-capture").iterdir()) == []
    mounts = Path(f"/proc/{shown('MainPID')}/mountinfo").read_text()
    writable = {
        line.split()[4]
        for line in mounts.splitlines()
        if line.split()[4].startswith("/var/lib/") and "rw," in line.split()[5] + ","
    }
    assert writable == {"/var/lib/ergo-capture/bundles"}
    assert (root / "run/credentials" / UNIT / "ergo-capture-ship").exists()


def test_a_reload_takes_another_target_over(server: Seaweed) -> None:
    """Everything is shipped there too, without a restart."""
    pid = shown("MainPID")
    configure(server, "other")
    run("systemctl", "reload", UNIT)
    until(lambda: "config.reloaded" in log(), "reloaded")
    until(lambda: all("other" in path.read_text() for path in STATE.rglob("*.shipped.archive.json")), "shipped again")
    assert shown("MainPID") == pid


def test_a_kill_costs_nothing(server: Seaweed) -> None:
    """Systemd starts it again, and what has no receipt is shipped."""
    del server
    pid = int(shown("MainPID"))
    os.kill(pid, signal.SIGKILL)
    bundle = capture()
    until(lambda: shown("MainPID") not in ("0", str(pid)), "restarted")
    until(receipt_of(bundle).exists, "no receipt")


def test_a_stop_ends_while_the_store_hangs(server: Seaweed) -> None:
    """It ends within the unit's time, as a success."""
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        bundle = capture()
        time.sleep(1)
        run("systemctl", "stop", UNIT)
        assert (shown("ActiveState"), shown("Result")) == ("inactive", "success")
        assert not receipt_of(bundle).exists()
    finally:
        server.process.send_signal(signal.SIGCONT)
    run("systemctl", "start", UNIT)
    until(receipt_of(bundle).exists, "no receipt")


def test_a_configuration_without_targets_does_not_start(server: Seaweed) -> None:
    """Exit code 78: it is not restarted."""
    CONFIG.write_text("")
    run("systemctl", "restart", UNIT, fails=True)
    until(lambda: shown("ActiveState") == "failed", "failed")
    assert shown("ExecMainStatus") == "78"
    assert "no target is configured" in log()
    configure(server)
    run("systemctl", "reset-failed", UNIT)
    run("systemctl", "start", UNIT)
