"""``ergo-capture help``: topics, commands, the pager."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest
from tests.daemons import COMMAND, command, command_environment

from ergo_capture import manual
from ergo_capture.cli import app
from ergo_capture.cli.commands import COMMANDS

TOPIC = next(iter(manual.topics()))


def test_help_lists_the_topics(capsys: pytest.CaptureFixture[str]) -> None:
    """Each topic with its title, in reading order."""
    assert app.run(["help"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert dict(lines) == manual.topics()


@pytest.mark.parametrize("topic", manual.topics())
def test_help_prints_a_topic_as_markdown_into_a_pipe(topic: str) -> None:
    """Nothing is rendered, so that it can be read by a program or saved."""
    shown = command("help", topic)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == manual.read(topic)


@pytest.mark.parametrize("words", [("verify",), ("config", "check"), ("bundles",), ("help",)], ids=" ".join)
def test_help_of_a_command_is_that_of_its_option(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """``ergo-capture help verify`` prints what ``ergo-capture verify --help`` does."""
    assert app.run(["help", *words]) == 0
    printed = capsys.readouterr().out
    assert app.run([*words, "--help"]) == 0
    assert capsys.readouterr().out == printed


def test_help_shows_the_topic_where_a_command_has_the_same_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The topic says more; the command has ``--help``."""
    monkeypatch.setattr(manual, "topics", lambda: {"systemd": "Running under systemd"})
    monkeypatch.setattr(manual, "read", lambda name: f"# {name}\n")
    assert app.run(["help", "systemd"]) == 0
    assert capsys.readouterr().out == "# systemd\n"
    assert app.run(["help", "systemd", "install"]) == 0
    assert "systemd install" in capsys.readouterr().out


@pytest.mark.parametrize(("wrong", "closest"), [(TOPIC[:-1], TOPIC), ("verfy", "verify"), ("qqq", "")])
def test_an_unknown_topic_is_wrong_usage(wrong: str, closest: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, the closest name, and the list of topics."""
    assert app.run(["help", wrong]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert (f"Did you mean {closest!r}?" in printed.err) == bool(closest)
    assert f"  {TOPIC}" in printed.err


@pytest.mark.parametrize("words", [("verify", "nonesuch"), ("config", "nonesuch")], ids=" ".join)
def test_help_of_a_subcommand_that_does_not_exist_is_wrong_usage(words: tuple[str, ...]) -> None:
    """Exit code 2."""
    assert words[0] in COMMANDS
    assert app.run(["help", *words]) == 2


def on_terminal(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run a command with standard output on a terminal; return the exit code and what the terminal got."""
    ours, its = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=its,
        env=command_environment() | {"TERM": "xterm-256color", "COLUMNS": "80"} | environment,
    ) as process:
        os.close(its)
        output = b""
        while True:
            try:
                data = os.read(ours, 1 << 16)
            except OSError:
                break
            if not data:
                break
            output += data
    os.close(ours)
    return process.returncode, output.decode()


def test_on_a_terminal_a_topic_is_rendered_through_the_pager(tmp_path: Path) -> None:
    """$PAGER gets the rendered text on its standard input."""
    pager = tmp_path / "a pager"
    pager.write_text(f"#!/bin/sh\nset -e\ntest \"$1\" = -x\ncat >'{tmp_path}/shown'\necho paged\n")
    pager.chmod(0o755)
    assert on_terminal("help", TOPIC, PAGER=f"'{pager}' -x") == (0, "paged\r\n")
    shown = (tmp_path / "shown").read_text()
    assert manual.topics()[TOPIC] in shown
    assert "\x1b[" in shown
    assert not shown.lstrip().startswith("#")


@pytest.mark.parametrize("pager", ["/nonesuch/pager", "'unbalanced"])
def test_without_a_pager_a_topic_is_printed(pager: str) -> None:
    """A $PAGER that cannot be run costs nothing but the paging."""
    code, output = on_terminal("help", TOPIC, PAGER=pager)
    assert code == 0
    assert manual.topics()[TOPIC] in output
    assert "Traceback" not in output


def test_a_pager_that_ends_early_is_no_error() -> None:
    """The reader has seen enough."""
    assert on_terminal("help", TOPIC, PAGER="true") == (0, "")
