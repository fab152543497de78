"""The command line as a whole: what is listed, how errors look, which exit codes there are.

Owns: ``cli/app.py`` and ``__main__.py``.
Not here: single commands (``test_cli_*.py`` beside this file).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.daemons import COMMAND, command, command_environment, plain
from typer.main import get_command

from ergo_capture.cli import app
from ergo_capture.cli.commands import COMMANDS, EXAMPLES, GROUPS
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.version import PROGRAM


def test_the_help_lists_every_command_under_its_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` names the commands as they are called, groups included."""
    assert app.run(["--help"]) == 0
    listing = plain(capsys.readouterr().out).partition(f"{next(iter(GROUPS))}:")[2].rpartition("\n\n")[0]
    assert (
        tuple(line.split()[0] for line in listing.splitlines() if line.startswith("  ") and line[2] != " ") == COMMANDS
    )


def test_the_list_of_commands_fits_into_eighty_columns_and_is_what_there_is() -> None:
    """One line each; every module of a command is listed, and no other."""
    for group in GROUPS.values():
        width = max(map(len, group))
        assert all(2 + width + 2 + len(about) <= 78 for about in group.values())
    modules = {path.stem for path in Path(app.__file__).parent.glob("*.py") if "typer.Typer(" in path.read_text()}
    assert modules - {"app"} == {*COMMANDS}


@pytest.mark.parametrize("path", EXAMPLES)
def test_every_example_can_be_understood(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each names a command and options that it has: they are read by the command itself, which is not run."""
    for example in EXAMPLES[path]:
        for part in example.replace("&&", "|").split("|"):
            words = shlex.split(part.partition(">")[0])
            if words[0] != "ergo-capture":
                continue
            context = get_command(app.whole_app()).make_context("ergo-capture", words[1:])
            command = get_command(app.whole_app())
            rest = words[1:]
            while hasattr(command, "commands"):
                command = command.commands[rest.pop(0)]
            assert command.make_context("x", rest, parent=context)


def test_every_command_has_an_example() -> None:
    """And every example a command."""
    commands = get_command(app.whole_app()).commands  # type: ignore[attr-defined]  # of a group
    paths = {
        path
        for name in COMMANDS
        for path in [f"{name} {sub}" for sub in getattr(commands[name], "commands", ())] or [name]
    }
    assert paths == {*EXAMPLES}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``ergo-capture COMMAND --help`` prints its usage and exits 0."""
    assert app.run([name, "--help"]) == 0
    assert f"ergo-capture {name}" in plain(capsys.readouterr().out)


def test_the_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """``--version`` prints program and version, as journals and greetings bear it."""
    assert app.run(["--version"]) == 0
    assert capsys.readouterr().out == f"{PROGRAM}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonesuch"],
        ["--nonesuch"],
        ["verify"],
        ["simulate"],
        ["config"],
        ["config", "nonesuch"],
        ["serve", "--nonesuch"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A command line that cannot be understood is told so, with exit code 2."""
    assert app.run(arguments) == 2
    said = capsys.readouterr()
    assert "Usage:" in plain(said.out + said.err)


def test_an_error_says_what_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """An error is one ``Error:`` line and one ``Try:`` line on stderr; stdout holds results only."""
    assert app.run(["simulate", "/nonesuch.json"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "Error: read scenario '/nonesuch.json': No such file or directory",
        "Try: name a scenario file, or - for standard input",
    ]


@pytest.mark.parametrize("code", list(ExitCode))
def test_an_error_carries_its_exit_code(code: ExitCode, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command raises decides what the process says to its caller."""

    def refuse(_name: str) -> None:
        raise ErgoCaptureError("no", exit_code=code)

    monkeypatch.setattr(app, "_part", refuse)
    assert app.run(["verify"]) == code


def test_a_bug_is_not_dressed_up_as_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that nobody foresaw keeps its traceback."""

    def fail(_name: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(app, "_part", fail)
    with pytest.raises(ZeroDivisionError):
        app.run(["verify"])


def test_an_interrupted_command_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control-C ends a command without a traceback, with the shell's code for it."""

    def interrupt(_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "_part", interrupt)
    assert app.run(["verify"]) == 130


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a POSIX shell's pipes")
def test_a_reader_that_has_seen_enough_is_not_an_error() -> None:
    """``ergo-capture config default | head -0`` ends quietly, but not as if everything had been said."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [*COMMAND, "config", "default"],
            stdout=writing,
            stderr=subprocess.PIPE,
            env=command_environment(),
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_the_module_runs_as_the_command() -> None:
    """The command and ``python -m ergo_capture`` are the same program."""
    ended = command("--version")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{PROGRAM}\n", "")


def test_a_command_starts_without_what_it_does_not_need() -> None:
    """Sending, asking for help of one command, or reading the version loads neither the daemon nor the journal."""
    code = (
        "import sys; from ergo_capture.cli import app\n"
        "assert app.run(['send', '--help']) == 0\n"
        "heavy = [m for m in sys.modules if m.startswith(('ergo_capture.server.service', 'ergo_capture.journal', 'structlog'))]\n"
        "assert not heavy, heavy"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=command_environment(), timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nonesuch"]], ids=" ".join)
def test_the_list_of_commands_is_there_before_any_of_them(arguments: list[str]) -> None:
    """Neither a command nor the library of any is imported to say which there are."""
    code = (
        f"import sys; from ergo_capture.cli import app; app.run({arguments!r})\n"
        "heavy = [m for m in sys.modules if m.startswith(('ergo_capture.cli.', 'rich', 'asyncio'))]\n"
        "assert set(heavy) <= {'ergo_capture.cli.app', 'ergo_capture.cli.commands'}, heavy"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=command_environment(), timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode()


def test_a_shell_is_told_what_words_there_are() -> None:
    """Completion, as bash asks for it: of a command, of one in a group, and of an option."""
    for words, expected in (
        ("ergo-capture ver", "verify"),
        ("ergo-capture bundles pr", "prune"),
        ("ergo-capture send --lab", "--label"),
    ):
        asked = {"_ERGO_CAPTURE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        ended = subprocess.run(
            COMMAND, capture_output=True, text=True, env=command_environment() | asked, timeout=60, check=False
        )
        assert expected in ended.stdout.split(), (ended.stdout, ended.stderr)


def test_importing_the_way_in_costs_nothing() -> None:
    """``ergo_capture.__main__`` imports the command line only when it is run."""
    code = "import sys, ergo_capture.__main__; assert not {'typer', 'anyio', 'structlog', 'asyncio'} & {*sys.modules}"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=command_environment(), timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode()


def test_a_path_of_arbitrary_bytes_can_be_complained_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file's name that is not UTF-8 neither breaks the message nor the JSON."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json")
    assert app.run(["verify", name]) == ExitCode.FAILED
    assert app.run(["verify", "--json", name]) == ExitCode.FAILED
    assert "No such file" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["help"], ["help", "verify"], ["help", "config", "check"]])
def test_help_is_a_word_too(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """``ergo-capture help verify`` is ``ergo-capture verify --help``."""
    assert app.run(arguments) == 0
    said = capsys.readouterr().out
    assert app.run([*arguments[1:], "--help"]) == 0
    assert capsys.readouterr().out == said
