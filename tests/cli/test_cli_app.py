"""The command line as a whole: help, errors, exit codes, start-up, completion."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from tests.bundles import small_bundle
from tests.cli.readers import READERS
from tests.cli.test_progress import COMMANDS as BARS
from tests.contract.documents import assert_same
from tests.daemons import COMMAND, command, command_environment, plain

from ergo_capture.bundle.format import encode_bundle
from ergo_capture.cli import app, commands
from ergo_capture.cli.commands import COMMANDS, GROUPS
from ergo_capture.cli.support.command import Argument, Command
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.version import PROGRAM


def every_command() -> Iterator[tuple[str, Command]]:
    """Yield each command and subcommand by the words that call it."""
    for name in COMMANDS:
        found = app.load_command(name)
        for words, one in (
            [(f"{name} {sub}", one) for sub, one in found.commands.items()]
            if isinstance(found, click.Group)
            else [(name, found)]
        ):
            assert isinstance(one, Command), words
            yield words, one


EVERY = dict(every_command())


def has_argument(one: Command) -> bool:
    """Return whether a command takes a positional argument."""
    return any(isinstance(parameter, Argument) for parameter in one.params)


def python(code: str, **environment: str) -> None:
    """Run code in a new interpreter; fail if it raises."""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env=command_environment() | environment,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` names the commands in their groups, in the order of the table."""
    assert app.run(["--help"]) == 0
    listing = plain(capsys.readouterr().out).partition(f"{next(iter(GROUPS))}:")[2].rpartition("\n\n")[0]
    assert (
        tuple(line.split()[0] for line in listing.splitlines() if line.startswith("  ") and line[2] != " ") == COMMANDS
    )


@pytest.mark.parametrize("words", [(), *(tuple(path.split()) for path in EVERY)], ids=" ".join)
def test_help_fits_eighty_columns(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The help of every command, examples aside, is readable on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    assert app.run([*words, "--help"]) == 0
    lines = capsys.readouterr().out.partition("  Examples:")[0].splitlines()
    assert lines[0].startswith(" ".join(["Usage: ergo-capture", *words]))
    assert all(len(line) < 80 for line in lines)


def test_every_module_with_a_command_is_in_the_table() -> None:
    """A file in ``commands/`` that no entry of the table leads to could not be called."""
    modules = {path.stem for path in Path(commands.__file__).parent.glob("*.py")} - {"__init__"}
    listed = {commands.module_of(name).rpartition(".")[2] for name in COMMANDS}
    assert_same(listed, modules, "GROUPS in cli/commands/__init__.py")


def test_every_command_that_reads_runs_keeps_the_rules_of_those() -> None:
    """The rules are tested with ``READERS``: a command that is not there would keep none of them unnoticed."""
    reading = {
        path
        for path, one in EVERY.items()
        if " " not in path and {"state_dir"} < {parameter.name for parameter in one.params} and has_argument(one)
    }
    assert reading == set(READERS), "tests/cli/readers.py lists the commands with an argument and --state-dir"
    quiet = {path for path in reading if "quiet" in {parameter.name for parameter in EVERY[path].params}}
    assert quiet <= {call[0] for call in BARS.values()}, "tests/cli/test_progress.py lists the commands with --quiet"


@pytest.mark.parametrize("path", EVERY)
def test_every_command_has_examples_that_parse(path: str) -> None:
    """The parser accepts each example; the commands are not run."""
    assert EVERY[path].examples
    for example in EVERY[path].examples:
        for part in example.replace("&&", "|").split("|"):
            words = shlex.split(part.partition(">")[0])
            if words[0] != "ergo-capture":
                continue
            found: click.Command = app.root
            rest = words[1:]
            while isinstance(found, click.Group):
                child = found.get_command(click.Context(found), rest.pop(0))
                assert child is not None
                found = child
            assert found.make_context("x", rest)


def test_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """``--version`` prints program and version as journals and greetings have them."""
    for arguments in (["--version"], ["version"], ["-V"]):
        assert app.run(arguments) == 0
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
        ["send", "--window", "0"],
        ["simulate", "x", "--style", "nonesuch"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A command line that cannot be parsed prints the usage to standard error and exits 2."""
    assert app.run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Usage:" in plain(printed.err)


@pytest.mark.parametrize(
    ("arguments", "closest"),
    [(["verif"], "verify"), (["config", "chec"], "check"), (["send", "--lable", "x"], "--label")],
)
def test_a_mistyped_name_gets_a_suggestion(
    arguments: list[str], closest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The closest command or option is named."""
    assert app.run(arguments) == 2
    assert closest in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["send", "--give-up-after", "nan"], ["bench", "--scale", "nan"]])
def test_nan_is_not_in_any_range(arguments: list[str]) -> None:
    """NaN is neither below nor above a bound, and would wait for ever."""
    assert app.run(arguments) == 2


def test_an_error_says_what_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """An error is one ``Error:`` line and one ``Try:`` line on standard error; standard output holds results only."""
    assert app.run(["simulate", "/nonesuch.json"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "Error: read scenario '/nonesuch.json': No such file or directory",
        "Try: name a scenario file, or - for standard input",
    ]


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the import of every command raise an error."""

    def fail(_name: str) -> None:
        raise error

    monkeypatch.setattr(app, "load_command", fail)


@pytest.mark.parametrize("code", list(ExitCode))
def test_an_error_sets_the_exit_code(code: ExitCode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process exits with the error's code."""
    raising(ErgoCaptureError("no", exit_code=code), monkeypatch)
    assert app.run(["verify"]) == code


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception is not turned into an error message."""
    raising(ZeroDivisionError(), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        app.run(["verify"])


def test_an_interrupted_command_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends a command without a traceback, with the shell's exit code for it."""
    raising(KeyboardInterrupt(), monkeypatch)
    assert app.run(["verify"]) == 130


@pytest.mark.parametrize("arguments", [["config", "default"], ["--help"], ["help"], ["help", "library"]], ids=" ".join)
def test_a_closed_pipe_ends_a_command_quietly(arguments: list[str]) -> None:
    """``ergo-capture config default | head -0`` prints no error, but does not exit 0 either."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [*COMMAND, *arguments],
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
    """``python -m ergo_capture`` is the same program."""
    ended = command("--version")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{PROGRAM}\n", "")


def test_help_of_send_imports_neither_daemon_nor_client() -> None:
    """The help of a command imports its arguments only."""
    python(
        "import sys; from ergo_capture.cli import app\n"
        "assert app.run(['send', '--help']) == 0\n"
        "heavy = [m for m in sys.modules if m.startswith(('ergo_capture.server', 'ergo_capture.journal',"
        " 'ergo_capture.client', 'ergo_capture.kernel', 'asyncio', 'rich', 'structlog', 'msgspec'))]\n"
        "assert not heavy, heavy"
    )


def test_send_imports_only_the_client(tmp_path: Path) -> None:
    """It imports neither the daemon, the journal and bundles nor, in a pipe, the progress bars."""
    python(
        "import sys; from ergo_capture.cli import app\n"
        f"assert app.run(['send', '-', '--socket', {str(tmp_path / 'no.sock')!r}, '--give-up-after', '0']) == 1\n"
        "assert 'ergo_capture.client' in sys.modules\n"
        "heavy = [m for m in sys.modules if m.startswith(('ergo_capture.server', 'ergo_capture.journal',"
        " 'ergo_capture.capture', 'ergo_capture.bundle', 'ergo_capture.config', 'rich', 'structlog', 'zstandard',"
        " 'prometheus_client', 'uvloop'))]\n"
        "assert not heavy, heavy"
    )


@pytest.mark.parametrize("arguments", [["verify"], ["info", "--json"], ["tail"], ["cat"]], ids=" ".join)
def test_looking_at_a_bundle_imports_no_journal(arguments: list[str], tmp_path: Path) -> None:
    """Half of the time that a small bundle takes is the start."""
    bundle = tmp_path / "b.capture.json"
    bundle.write_bytes(encode_bundle(small_bundle()))
    python(
        "import sys; before = set(sys.modules)  # a measurement of coverage imports some of them\n"
        f"from ergo_capture.cli import app; assert app.run({[*arguments, str(bundle)]!r}) == 0\n"
        "imported = set(sys.modules) - before\n"
        "heavy = [m for m in imported if m.startswith(('ergo_capture.server', 'ergo_capture.storage',"
        " 'ergo_capture.config', 'ergo_capture.client', 'crc32c', 'rich', 'asyncio', 'multiprocessing', 'structlog'))]\n"
        "heavy += {m for m in imported if m.startswith('ergo_capture.journal.')} - {'ergo_capture.journal.payloads'}\n"
        "assert not heavy, heavy"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nonesuch"]], ids=" ".join)
def test_the_list_of_commands_imports_none_of_them(arguments: list[str]) -> None:
    """The table is enough to list the commands and to reject an unknown one."""
    python(
        f"import sys; from ergo_capture.cli import app; app.run({arguments!r})\n"
        "heavy = [m for m in sys.modules if m.startswith(('ergo_capture.cli.commands.', 'ergo_capture.kernel', 'rich',"
        " 'asyncio', 'msgspec'))]\n"
        "assert not heavy, heavy"
    )


def test_importing_main_imports_no_library() -> None:
    """``ergo_capture.__main__`` imports the command line only when it is run."""
    python("import sys, ergo_capture.__main__; assert not {'click', 'anyio', 'structlog', 'asyncio'} & {*sys.modules}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ergo-capture ver", "plain,verify"),
        ("ergo-capture --ver", "plain,--version"),
        ("ergo-capture bundles pr", "plain,prune"),
        ("ergo-capture send --lab", "plain,--label"),
        ("ergo-capture simulate x --style p", "plain,pretty"),
        ("ergo-capture help ver", "plain,verify"),
        ("ergo-capture cat --kind D", "plain,DataAvailable"),
        ("ergo-capture tail --decision D", "plain,Defer"),
        ("ergo-capture verify ru", "file,ru"),
    ],
)
def test_completion_offers_what_fits(words: str, expected: str) -> None:
    """Requests are bash's: for commands, subcommands, options, choices, topics and file names."""
    asked = {"_ERGO_CAPTURE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    ended = subprocess.run(
        COMMAND, capture_output=True, text=True, env=command_environment() | asked, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert expected in ended.stdout.split()


def test_completing_a_command_imports_none() -> None:
    """The Tab key after ``ergo-capture`` needs the table only."""
    python(
        "import sys; from ergo_capture.cli import app\n"
        "assert app.run([]) == 0\n"
        "assert not [m for m in sys.modules if m.startswith('ergo_capture.cli.commands.')]",
        _ERGO_CAPTURE_COMPLETE="bash_complete",
        COMP_WORDS="ergo-capture ",
        COMP_CWORD="1",
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_show_completion_prints_a_script(shell: str) -> None:
    """The script asks this program for the words."""
    shown = command("--show-completion", shell)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"_ERGO_CAPTURE_COMPLETE={shell}_complete" in shown.stdout


def test_show_completion_finds_the_shell_that_runs_it() -> None:
    """The closest ancestor that is a known shell, whatever the login shell is."""
    shown = subprocess.run(
        ["bash", "-c", f"{shlex.join(COMMAND)} --show-completion; true"],
        capture_output=True,
        text=True,
        env=command_environment() | {"SHELL": "/usr/bin/fish"},
        timeout=60,
        check=True,
    )
    assert "_ERGO_CAPTURE_COMPLETE=bash_complete" in shown.stdout


def test_completion_for_an_unknown_shell_is_wrong_usage() -> None:
    """The known ones are named."""
    shown = command("--show-completion", "tcsh")
    assert shown.returncode == 2
    assert "bash, zsh, fish" in shown.stderr


@pytest.mark.parametrize(
    ("shell", "script", "startup"),
    [
        ("bash", ".bash_completions/ergo-capture.sh", ".bashrc"),
        ("zsh", ".zfunc/_ergo-capture", ".zshrc"),
        ("fish", ".config/fish/completions/ergo-capture.fish", None),
    ],
)
def test_install_completion_is_idempotent(
    shell: str, script: str, startup: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script is written, and the shell's start-up file loads it once and keeps what it had."""
    monkeypatch.setenv("HOME", str(tmp_path))
    if startup is not None:
        (tmp_path / startup).write_text("alias x=y")
    for _ in range(2):
        installed = command("--install-completion", shell)
        assert (installed.returncode, installed.stderr) == (0, "")
        assert str(tmp_path / script) in installed.stdout
    assert "_ERGO_CAPTURE_COMPLETE" in (tmp_path / script).read_text()
    if startup is not None:
        first, second = (tmp_path / startup).read_text().splitlines()
        assert first == "alias x=y"
        assert re.search(r"source '.*ergo-capture.sh'|fpath\+=~/.zfunc", second)


def test_installed_completion_works_in_bash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bash loads the script and fills in the word."""
    shim = tmp_path / "bin" / "ergo-capture"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command("--install-completion", "bash").returncode == 0
    asking = (
        "source ~/.bashrc; COMP_WORDS=(ergo-capture bundles pr); COMP_CWORD=2; "
        "_ergo_capture_completion ergo-capture; echo ${COMPREPLY[@]}"
    )
    ended = subprocess.run(
        ["bash", "-c", asking],
        capture_output=True,
        text=True,
        env=command_environment() | {"PATH": f"{shim.parent}:{os.environ['PATH']}"},
        timeout=60,
        check=False,
    )
    assert (ended.stdout, ended.stderr) == ("prune\n", "")


def test_a_path_that_is_not_utf_8_can_be_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It breaks neither the message nor the JSON."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json")
    assert app.run(["verify", name]) == ExitCode.FAILED
    assert app.run(["verify", "--json", name]) == ExitCode.FAILED
    assert "No such file" in capsys.readouterr().out
