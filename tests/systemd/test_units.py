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

from ergo_capture.cli.commands.systemd import interpreters, quoted
from ergo_capture.config import Config

UNITS = REPOSITORY / "systemd"

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@needs_analyze
@pytest.mark.parametrize(("name", "most"), [("ergo-capture.service", 0.5), ("ergo-capture-ship.service", 1.1)])
def test_the_services_are_hardened(name: str, most: float) -> None:
    """The exposure of each by ``systemd-analyze security``; the one that ships has a network."""
    unit = UNITS / name
    ran = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={most * 10:.0f}", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    exposure = re.search(rf"Overall exposure level for {name}: ([0-9.]+)", ran.stdout)
    assert exposure is not None
    assert float(exposure[1]) <= most


@needs_analyze
def test_systemd_accepts_every_line_of_the_units(tmp_path: Path) -> None:
    """``systemd-analyze verify`` prints nothing."""
    for name in ("ergo-capture.service", "ergo-capture.socket", "ergo-capture-ship.service"):
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
    drop_in = service.with_name("ergo-capture.service.d") / "10-notify-reload.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nType=notify-reload\nExecReload=\n")
    again = command(*arguments)
    assert "systemctl restart ergo-capture.service" in again.stdout
    assert not drop_in.exists()
    assert f"kept {configuration}" in again.stdout
    assert configuration.read_text() == "# mine\n"
    assert "ExecStart=/bin/true serve " in service.read_text()


def test_install_adds_the_unit_that_ships_and_replaces_it_from_then_on(tmp_path: Path) -> None:
    """The first time, it must be asked for; the unit runs the same command."""
    arguments = ["systemd", "install", "--prefix", str(tmp_path), "--command", "/bin/true"]
    unit = tmp_path / "usr/local/lib/systemd/system/ergo-capture-ship.service"
    command(*arguments)
    assert not unit.exists()
    ran = command(*arguments, "--ship")
    assert "systemctl enable --now ergo-capture-ship.service" in ran.stdout
    assert "ExecStart=/bin/true ship run " in unit.read_text()
    unit.write_text("spoilt")
    command(*arguments)
    assert "ExecStart=/bin/true ship run " in unit.read_text()


def test_install_refuses_a_command_that_the_service_could_not_run(tmp_path: Path) -> None:
    """The error comes at the installation, rather than as exit code 203 at the first start."""
    ran = command("systemd", "install", "--prefix", str(tmp_path), "--command", "/nowhere/ergo-capture")
    assert (ran.returncode, "there is no command" in ran.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["it's", 'say "hi"', "back\\slash", "new\nline"])
def test_install_refuses_a_path_that_systemd_refuses(tmp_path: Path, word: str) -> None:
    """Quoted or not: it would call the whole unit bad."""
    place = tmp_path / word
    place.mkdir()
    runs = place / "ergo-capture"
    runs.touch()
    ran = command("systemd", "install", "--prefix", str(tmp_path / "root"), "--command", str(runs))
    assert (ran.returncode, "systemd cannot run a command with the path" in ran.stderr) == (1, True)
    assert not (tmp_path / "root").exists()


def test_install_refuses_a_command_in_a_directory_that_is_hidden_from_the_service(tmp_path: Path) -> None:
    """Temporary directories are private; the hint says which Python to take."""
    runs = tmp_path / "ergo-capture"
    runs.touch()
    ran = command("systemd", "install", "--prefix", str(tmp_path / "root"), "--command", str(runs))
    assert ran.returncode == 1
    assert "hidden from it" in ran.stderr
    assert "/usr/bin/python3 -m venv /opt/ergo-capture" in " ".join(ran.stderr.split())


SCRIPTS = ["#!{python}\n", "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_interpreters_of_a_command_are_found(tmp_path: Path, script: str) -> None:
    """It looks in the first line, in the shell script that pip writes, and in the settings of the environment."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "pyvenv.cfg").write_text("home = /root/python 3/bin\ninclude-system-site-packages = false\n")
    python, runs = tmp_path / "bin" / "python3", tmp_path / "bin" / "ergo-capture"
    runs.write_text(script.format(python=python))
    assert interpreters(runs) == [python, Path("/root/python 3/bin")]
    runs.write_bytes(b"\x7fELF")
    assert interpreters(runs) == []


@needs_analyze
def test_a_path_with_spaces_and_signs_is_quoted(tmp_path: Path) -> None:
    """The quoting is systemd's; a plain path stays as it is."""
    assert quoted("/opt/ergo-capture/bin/ergo-capture") == "/opt/ergo-capture/bin/ergo-capture"
    place = tmp_path / "100% of $HOME ; #1 ergo"
    place.mkdir()
    runs = place / "ergo-capture"
    runs.write_text("#!/bin/sh\n")
    runs.chmod(0o755)
    unit = tmp_path / "one.service"
    unit.write_text(f"[Service]\nExecStart={quoted(str(runs))} serve\nExecPaths=/usr {quoted(str(place))}\n")
    ran = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=one", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_units_point_to_documentation_that_exists() -> None:
    """Manual pages of systemd; the manual is in the program."""
    for path in UNITS.rglob("*.*"):
        if path.is_file():
            for line in re.findall(r"^Documentation=(.*)$", path.read_text(), re.MULTILINE):
                assert re.fullmatch(r"man:systemd\.\w+\(\d\)", line)


@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.timeout(300)
def test_the_service_works_under_a_real_systemd() -> None:
    """P4, P9, P10, P12: every test of ``inside.py``."""
    with staged() as stage:
        ran = run_inside(stage, "tests/systemd/inside.py")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout


@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.timeout(300)
def test_the_shipping_service_works_under_a_real_systemd() -> None:
    """Every test of ``inside_ship.py``, with a real S3 server."""
    with staged() as stage:
        ran = run_inside(stage, "tests/systemd/inside_ship.py")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout
