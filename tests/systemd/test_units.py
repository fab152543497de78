"""The units as ``systemd-analyze`` judges them, and the service under a systemd in a box."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.daemons import command
from tests.shared import REPOSITORY
from tests.systemd.stage import run_inside, staged, why_not

from ergo_capture.config import Config

UNITS = REPOSITORY / "systemd"

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@needs_analyze
def test_the_service_is_hardened() -> None:
    """Its exposure is at most 0.5, by ``systemd-analyze security``."""
    unit = UNITS / "ergo-capture.service"
    ran = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=5", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    exposure = re.search(r"Overall exposure level for ergo-capture.service: ([0-9.]+)", ran.stdout)
    assert exposure is not None
    assert float(exposure[1]) <= 0.5


@needs_analyze
def test_systemd_accepts_every_line_of_the_units(tmp_path: Path) -> None:
    """``systemd-analyze verify`` prints nothing."""
    for name in ("ergo-capture.service", "ergo-capture.socket", "ergo-capture-control.socket"):
        (tmp_path / name).write_text((UNITS / name).read_text().replace("/usr/bin/ergo-capture", "/bin/true"))
    names = [str(path) for path in sorted(tmp_path.iterdir())]
    ran = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=one", *names],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_the_service_has_the_time_that_a_stop_may_take() -> None:
    """P10: the default drain time and 15 seconds for the rest."""
    unit = (UNITS / "ergo-capture.service").read_text()
    given = re.search(r"^TimeoutStopSec=(\d+)s$", unit, re.MULTILINE)
    assert given is not None
    assert int(given[1]) >= Config().shutdown.drain.seconds + 15


def test_install_writes_nothing_in_a_dry_run(tmp_path: Path) -> None:
    """It prints what it would write, and where."""
    ran = command("systemd", "install", "--prefix", str(tmp_path), "--dry-run", "--command", "/bin/true")
    assert ran.returncode == 0, ran.stderr
    assert f"would write {tmp_path}/usr/local/lib/systemd/system/ergo-capture.service" in ran.stdout
    assert list(tmp_path.iterdir()) == []


def test_install_replaces_units_and_keeps_the_configuration(tmp_path: Path) -> None:
    """The service runs the command that was named; an administrator's configuration is not overwritten."""
    arguments = ["systemd", "install", "--prefix", str(tmp_path), "--command", "/bin/true"]
    first = command(*arguments)
    assert first.returncode == 0, first.stderr
    assert "systemctl enable --now ergo-capture.service" in first.stdout
    service = tmp_path / "usr/local/lib/systemd/system/ergo-capture.service"
    assert "ExecStart=/bin/true serve " in service.read_text()
    configuration = tmp_path / "etc/ergo-capture/config.toml"
    assert configuration.read_text() == (REPOSITORY / "config" / "ergo-capture.toml").read_text()
    configuration.write_text("# mine\n")
    service.write_text("spoilt")
    again = command(*arguments)
    assert f"kept {configuration}" in again.stdout
    assert configuration.read_text() == "# mine\n"
    assert "ExecStart=/bin/true serve " in service.read_text()


def test_install_refuses_a_command_that_the_service_could_not_run(tmp_path: Path) -> None:
    """At the installation, rather than as exit code 203 at the first start."""
    ran = command("systemd", "install", "--prefix", str(tmp_path), "--command", "/nowhere/ergo-capture")
    assert (ran.returncode, "there is no command" in ran.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.timeout(300)
def test_the_service_works_under_a_real_systemd() -> None:
    """P4, P9, P10, P12: every test of ``inside.py``."""
    with staged() as stage:
        ran = run_inside(stage, "tests/systemd/inside.py")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout
