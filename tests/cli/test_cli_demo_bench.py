"""``ergo-capture demo`` and ``bench``, with their temporary daemons."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.daemons import command, command_environment

from ergo_capture.cli.support.temporary_daemon import temporary_daemon
from ergo_capture.cli.support.verification import check
from ergo_capture.errors import ErgoCaptureError


def test_demo_captures_real_flights(tmp_path: Path) -> None:
    """The bundle has Invoke and Defer decisions and verifies, and its path is printed."""
    (tmp_path / "config.toml").write_text("# the user's own\n")
    ran = command("demo", "--directory", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    assert f"MiB in {tmp_path}; nothing deletes it" in ran.stdout
    assert (tmp_path / "config.toml").read_text() == "# the user's own\n"
    (bundle,) = tmp_path.rglob("*.capture.json")
    assert str(bundle) in ran.stdout
    assert check(bundle)["ok"]
    text = bundle.read_text()
    assert '"decision":"Defer"' in text
    assert '"decision":"Invoke"' in text


def test_commands_that_demo_suggests_work(tmp_path: Path) -> None:
    """The shell can run each of them as printed."""
    ran = command("demo", "--directory", str(tmp_path))
    tries = [line.split(maxsplit=1)[1] for line in ran.stdout.splitlines() if line.startswith(("look ", "try "))]
    assert len(tries) == 2
    for line in tries:
        again = subprocess.run(
            shlex.split(line), capture_output=True, env=command_environment(), timeout=60, check=False
        )
        assert again.returncode == 0, (line, again.stderr)


def test_a_full_disk_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon itself would wait for space."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: SimpleNamespace(free=1 << 20))
    with pytest.raises(ErgoCaptureError, match="it needs 64 MiB, and 1 MiB are free"), temporary_daemon(tmp_path):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []


def test_bench_prints_a_row_for_each_window(tmp_path: Path) -> None:
    """The floor of the same disk is printed too, and nothing is left in the directory."""
    ran = command("bench", "--directory", str(tmp_path), "--scale", "0.005", "--json")
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [row["window"] for row in rows] == [1, 64, 1024]
    assert all(row["events_per_second"] > 0 and row["floor_p50_ms"] > 0 for row in rows)
    assert list(tmp_path.iterdir()) == []


def test_bench_of_a_missing_directory_is_wrong_usage(tmp_path: Path) -> None:
    """Exit code 2, and the path is named."""
    ran = command("bench", "--directory", str(tmp_path / "nope"))
    assert ran.returncode == 2
    assert "nope" in ran.stderr


def test_bench_without_the_named_daemon_is_an_error(tmp_path: Path) -> None:
    """Exit code 1, a message and a hint."""
    ran = command("bench", "--socket", str(tmp_path / "no.sock"))
    assert ran.returncode == 1
    assert ran.stderr.startswith("Error: connect to ")
    assert "Try: " in ran.stderr
