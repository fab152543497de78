"""Long commands show a bar on a terminal: bytes, rate, time left; not in a pipe, and not with --quiet."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tests.bundle.test_stream import rich_bundle
from tests.daemons import Terminal

from ergo_capture import encode_bundle
from ergo_capture.bundle.proving import checking
from ergo_capture.bundle.reader import meter
from ergo_capture.cli import app, progress

COMMANDS = {
    "verify": ("verify",),
    "verify in processes": ("verify", "--jobs", "2"),
    "doctor": ("doctor",),
    "info": ("info",),
    "report": ("report", "-o", "{out}.html"),
    "extract": ("extract", "-o", "{out}.scenario.json"),
    "recover": ("recover", "-o", "{out}.capture.json"),
    "diff": ("diff", "{run}"),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a bundle."""
    path = tmp_path / "run.capture.json"
    path.write_bytes(encode_bundle(rich_bundle(600)))
    return path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have bars appear at once."""
    monkeypatch.setattr(progress, "_PATIENCE", 0)
    monkeypatch.setattr(progress, "_UPDATE_SECONDS", 0)


def written_by(
    run: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *more: str
) -> tuple[str, str]:
    """Run a command with standard error on a terminal; return the text on the terminal, and standard output."""
    arguments = [part.format(out=run.with_name("out"), run=run) for part in COMMANDS[name]]
    with Terminal() as terminal:
        with os.fdopen(os.dup(terminal.end), "w") as end, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", end)
            assert app.run([*arguments, str(run), *more]) == 0
            end.write("THE END")
        return terminal.until("THE END").removesuffix("THE END"), capfd.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bar_shows_bytes_and_rate(
    name: str, run: Path, impatient: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is on standard error; standard output is the same as without a terminal."""
    monkeypatch.setattr(checking, "WORTH_A_PROCESS", 0)
    shown, printed = written_by(run, name, monkeypatch, capfd)
    assert "/s" in shown
    assert "iB" in shown or "kB" in shown
    for path in run.parent.glob("out*"):
        path.unlink()
    quiet, same = written_by(run, name, monkeypatch, capfd, "--quiet")
    assert "/s" not in quiet
    assert same == printed


def test_what_is_over_within_a_second_shows_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Most commands on most bundles take less."""
    assert written_by(run, "verify", monkeypatch, capfd)[0] == ""


def test_a_pipe_gets_no_bar_of_worker_processes_either(
    run: Path, impatient: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor do empty lines come out of it."""
    monkeypatch.setattr(checking, "WORTH_A_PROCESS", 0)
    other = run.with_name("other.capture.json")
    other.write_bytes(run.read_bytes())
    assert app.run(["verify", "--jobs", "2", str(run), str(other)]) == 0
    assert capfd.readouterr().err == ""


def test_a_pipe_gets_no_bar(run: Path, impatient: None, capfd: pytest.CaptureFixture[str]) -> None:
    """A file gets none either."""
    assert app.run(["verify", str(run)]) == 0
    assert capfd.readouterr().err == ""


def test_nobody_listens_behind_the_block() -> None:
    """Reading outside the block, as a daemon does, notifies nobody."""

    class Deaf:
        """A listener that must not be notified."""

        def begin(self, what: str, total: int) -> None:
            """Fail."""
            raise AssertionError

        def advance(self, count: int) -> None:
            """Fail."""
            raise AssertionError

    with meter.listening(Deaf()):
        pass
    meter.begin("reading", 1)
    meter.advance(1)
