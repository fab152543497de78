"""What people name by mistake: nothing at all, a directory, what they may not read, a number beyond all bounds.

Owns: how every command takes such a name.
Not here: bundles that are damaged (``test_cli_verify.py``, ``test_doctor.py``).
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli import runs
from tests.daemons import command_environment

from ergo_capture.cli import app


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A small run."""
    return runs.bundle(tmp_path / "a.capture.json")


@pytest.mark.parametrize("name", ["verify", "replay", "info", "cat", "tail", "extract"])
def test_an_empty_name_is_not_the_current_directory(
    name: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``verify "$UNSET"`` says so, and does not pass by checking whatever lies around."""
    monkeypatch.chdir(bundle.parent)
    assert app.run([name, ""]) == 2
    assert "a name is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["report", "."], ["report", ""], ["extract", "a.capture.json", "-o", "."]], ids=" ".join
)
def test_a_directory_in_place_of_a_file_is_said(
    arguments: list[str], bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, and nothing is left behind."""
    monkeypatch.chdir(bundle.parent)
    assert app.run(arguments) in (1, 2)
    assert "it is a directory" in capsys.readouterr().err
    assert [*bundle.parent.iterdir()] == [bundle]


def test_a_number_beyond_all_bounds_is_all_there_is(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many lines as there are events."""
    assert app.run(["tail", "-n", str(1 << 80), str(bundle)]) == 0
    assert capsys.readouterr().out.count("\n") > 0


@pytest.mark.parametrize("arguments", [["extract"], ["extract", "-o", "-"]], ids=" ".join)
def test_a_dash_is_standard_output(
    arguments: list[str], bundle: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """And no file of that name."""
    monkeypatch.chdir(bundle.parent)
    assert app.run([arguments[0], bundle.name, *arguments[1:]]) == 0
    assert capfdbinary.readouterr().out.startswith(b"{\n")
    assert [*bundle.parent.iterdir()] == [bundle]


def test_recover_writes_no_file_that_is_called_dash(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has more to write than a bundle, so there is no standard output for it."""
    monkeypatch.chdir(bundle.parent)
    assert app.run(["recover", bundle.name, "-o", "-"]) == 2
    assert "nothing to standard output" in capsys.readouterr().err
    assert [*bundle.parent.iterdir()] == [bundle]


def test_what_a_page_could_not_be_written_for_is_not_called_a_bundle(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page is named, and not the temporary that is gone again."""
    blocked = bundle.with_name("file")
    blocked.touch()
    assert app.run(["report", str(bundle), "-o", str(blocked / "page.html")]) == 1
    assert capsys.readouterr().err.startswith(f"Error: write report '{blocked / 'page.html'}': ")


@pytest.mark.parametrize("name", ["verify", "info", "cat", "doctor"])
def test_a_directory_that_may_not_be_read_is_not_an_empty_one(
    name: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was not looked at must not pass for sound: one closed directory among others fails the whole."""
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


def test_an_interruption_before_anything_is_loaded_leaves_no_traceback() -> None:
    """Ctrl-C right after return."""
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
