"""The daemon's log: searchable names, one JSON object per line, nothing on standard output."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest
import structlog

from ergo_capture import telemetry


class Terminal(io.StringIO):
    """A terminal as standard error."""

    def isatty(self) -> bool:
        """Return true."""
        return True


def test_event_names_are_unique_pairs_of_subject_and_verb() -> None:
    """Every event of the log is a constant ``SUBJECT_VERB = "subject.verb"``."""
    names = {key: value for key, value in vars(telemetry).items() if key.isupper() and isinstance(value, str)}
    assert names
    for key, value in names.items():
        assert re.fullmatch(r"[a-z]+\.[a-z_]+", value), key
        assert key == value.replace(".", "_").upper()


@pytest.mark.parametrize("style", ["auto", "json"])
def test_lines_are_json_unless_on_a_terminal(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The line has the event, its keys, the level and the time in UTC; standard output stays empty."""
    telemetry.configure("info", style)
    structlog.get_logger().info(telemetry.SESSION_OPENED, session="s\n1", events=3)
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    record = json.loads(line)
    assert record.pop("timestamp").endswith("Z")
    assert record == {"event": "session.opened", "session": "s\n1", "events": 3, "level": "info"}


def test_a_traceback_stays_within_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """One object per line, also with an exception."""
    telemetry.configure("info", "json")
    try:
        raise ValueError("torn")
    except ValueError:
        structlog.get_logger().exception(telemetry.SESSION_FAILED)
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: torn" in json.loads(line)["exception"]


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_lines_below_the_level_are_dropped(level: str, shown: int, capsys: pytest.CaptureFixture[str]) -> None:
    """``log.level`` is the lowest level that is shown."""
    telemetry.configure(level, "json")
    log = structlog.get_logger()
    for say in (log.debug, log.info, log.warning, log.error):
        say(telemetry.DAEMON_READY)
    assert len(capsys.readouterr().err.splitlines()) == shown


def test_lines_on_a_terminal_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` on a terminal prints no JSON."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    telemetry.configure("info", "auto")
    structlog.get_logger().info(telemetry.DAEMON_READY, socket="/x.sock")
    assert "daemon.ready" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


@pytest.mark.parametrize(("asked", "coloured"), [("", True), ("1", False)])
def test_no_color_is_respected(asked: str, coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty ``NO_COLOR`` counts as unset."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("NO_COLOR", asked)
    telemetry.configure("info", "auto")
    structlog.get_logger().info(telemetry.DAEMON_READY, socket="/x.sock")
    assert ("\x1b[" in terminal.getvalue()) is coloured
