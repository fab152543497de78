"""Paths and numbers given by mistake: an empty name, a directory, an unreadable directory, a huge number."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli import runs
from tests.cli.readers import READERS
from tests.daemons import command_environment

from ergo_capture.cli import app


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Return a small run's bundle."""
    return runs.bundle(tmp_path / "a.capture.json")


@pytest.mark.parametrize("name", READERS)
def test_an_empty_name_is_an_error(
    name: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``verify "$UNSET"`` must not check the current directory and succeed."""
    monkeypatch.chdir(bundle.parent)
    assert app.run([name, "", *READERS[name]]) == 2
    assert "a name is empty" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["report", "."], ["extract", "a.capture.json", "-o", "."]], ids=" ".join)
def test_a_directory_in_place_of_a_file_is_an_error(
    arguments: list[str], bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message, and no files are left behind."""
    monkeypatch.chdir(bundle.parent)
    assert app.run(arguments) in (1, 2)
    assert "it is a directory" in capsys.readouterr().err
    assert [*bundle.parent.iterdir()] == [bundle]


def test_tail_of_a_huge_number_prints_everything(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints as many lines as there are events."""
    assert app.run(["tail", "-n", str(1 << 80), str(bundle)]) == 0
    assert capsys.readouterr().out.count("\n") > 0


@pytest.mark.parametrize("arguments", [["extract"], ["extract", "-o", "-"]], ids=" ".join)
def test_extract_to_a_dash_writes_standard_output(
    arguments: list[str], bundle: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """No file of that name is written."""
    monkeypatch.chdir(bundle.parent)
    assert app.run([arguments[0], bundle.name, *arguments[1:]]) == 0
    assert capfdbinary.readouterr().out.startswith(b"{\n")
    assert [*bundle.parent.iterdir()] == [bundle]


def test_recover_to_a_dash_is_wrong_usage(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It writes several files, so it cannot write to standard output."""
    monkeypatch.chdir(bundle.parent)
    assert app.run(["recover", bundle.name, "-o", "-"]) == 2
    assert "nothing to standard output" in capsys.readouterr().err
    assert [*bundle.parent.iterdir()] == [bundle]


def test_a_report_that_cannot_be_written_is_named(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the page, and not a temporary file or a bundle."""
    blocked = bundle.with_name("file")
    blocked.touch()
    assert app.run(["report", str(bundle), "-o", str(blocked / "page.html")]) == 1
    assert capsys.readouterr().err.startswith(f"Error: write report '{blocked / 'page.html'}': ")


@pytest.mark.parametrize("name", ["verify", "info", "cat", "doctor"])
def test_an_unreadable_directory_is_an_error(
    name: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It must not pass for an empty one: the files in it were not checked."""
    for directory in ("journal", "bundles/closed"):
        (bundle.parent / directory).mkdir(parents=True)
    listed = os.scandir

    def refuse(path: str | Path) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert app.run([name, str(bundle.parent)]) == 1
    said = capsys.readouterr()
    assert "closed': Permission denied" in said.out + said.err


def test_ctrl_c_during_start_up_prints_no_traceback() -> None:
    """The interruption comes before the command line is imported."""
    code = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'ergo_capture.cli.app': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from ergo_capture.__main__ import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=command_environment(), timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (130, b"")
