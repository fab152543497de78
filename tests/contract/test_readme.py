"""What the README shows is what happens: its commands, its Python, its configuration, its names.

Owns: the tie between README.md and the program.
Not here: what commands do in general (``tests/cli``).

Commands run as written, one after the other in one shell, with three differences: ``/tmp`` stands for a directory of
the test, ``ergo-capture`` for the command under test, and a daemon that was put in the background gets the moment
that a person takes to write the next line. A line after a command is what it has to print, but for
session ids, times and sizes. Commands for a host (``sudo``, ``systemctl``, ...) are left to the reader.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.daemons import COMMAND, PATIENCE, command_environment, short_directory
from tests.shared import REPOSITORY

from ergo_capture import config as configuration
from ergo_capture.cli.app import run
from ergo_capture.cli.commands import COMMANDS

README = REPOSITORY / "README.md"
#: First words of commands that change a host, or that watch for ever.
FOR_A_HOST = ("sudo", "systemctl", "journalctl", "apt", "ergo-capture top", "ergo-capture tap")
MARK = "--- end of command"
#: Waits for a daemon's socket, at most half a minute.
MOMENT = "for _ in $(seq 300); do ls *.sock >/dev/null 2>&1 && break; sleep 0.1; done"


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    kind: str
    text: str
    line: int

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """Commands and what each is shown to print."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found:
                found[-1][1].append(line)
        return found

    @property
    def is_setup(self) -> bool:
        """Whether it is commands only, to be run from a checkout."""
        return self.kind == "console" and not self.commands


def blocks() -> list[Block]:
    """The fenced blocks of the README."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    text = README.read_text(encoding="utf-8")
    return [Block(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in found]


def of_kind(kind: str) -> list[Block]:
    """The blocks of one kind."""
    return [block for block in blocks() if block.kind == kind]


def at_line(block: Block) -> str:
    """How a block is called in reports."""
    return f"line {block.line}"


@contextmanager
def place() -> Iterator[Path]:
    """A directory with the README's events and a command of the README's name; processes started in it are ended."""
    with short_directory() as directory:
        events = next(b for b in of_kind("json") if all("event_id" in json.loads(x) for x in b.text.splitlines()))
        (directory / "events.jsonl").write_text(events.text, encoding="utf-8")
        shim = directory / "bin" / "ergo-capture"
        shim.parent.mkdir()
        shim.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
        shim.chmod(0o755)
        yield directory


def environment(directory: Path) -> dict[str, str]:
    """Where ``ergo-capture`` is the command under test, and the user has no configuration."""
    own = {"PATH": f"{directory / 'bin'}:{os.environ['PATH']}", "HOME": str(directory)}
    return command_environment() | own | {"XDG_CONFIG_HOME": str(directory), "COLUMNS": "200"}


def placed(text: str, directory: Path) -> str:
    """A text with the test's directory for ``/tmp``."""
    return text.replace("/tmp/", f"{directory}/")


def normal(text: str, directory: Path) -> list[str]:
    """Lines without what differs from run to run."""
    text = text.replace(str(directory), "/tmp")
    text = re.sub(r"\d{8}T\d{6}Z-\d+-[0-9a-f]{8}", "SESSION", text)
    text = re.sub(r"\d+(\.\d+)? (s|ms|us|B|kB|MB|GB|TB)\b", r"N \2", text)
    text = re.sub(r"\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}:\d{2}\S*", "TIME", text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def runnable(block: Block) -> list[tuple[str, list[str]]]:
    """The commands of a block that leave the host as it is."""
    return [(line, shown) for line, shown in block.commands if not line.startswith(FOR_A_HOST)]


def test_every_block_is_of_a_kind_that_is_looked_at() -> None:
    """A block of another kind would be shown and never tried."""
    assert {block.kind for block in blocks()} <= {"", "console", "json", "python", "toml", "text"}
    assert of_kind("console")
    assert of_kind("python")


def test_the_commands_do_what_is_shown() -> None:
    """All of them in one shell, in order, each with exit code 0 and the output that stands below it."""
    commands = [command for block in of_kind("console") for command in runnable(block)]
    assert commands
    with place() as directory:
        script = ["set -m"]
        for line, _ in commands:
            script += [placed(line, directory), f'echo "{MARK} $?"']
            if line.endswith("&"):
                script.append(MOMENT)
        # Why told apart: a daemon's log goes to standard error, and at any time.
        done = _shell("\n".join([*script, "kill $(jobs -p) 2>/dev/null", "wait", "true"]), directory)
        *parts, _ = re.split(rf"^{MARK} (\d+)\n", done.stdout, flags=re.MULTILINE)
    assert len(parts) == 2 * len(commands), done.stdout + done.stderr
    for (line, shown), printed, code in zip(commands, parts[::2], parts[1::2], strict=True):
        assert code == "0", f"{line}: exit {code}\n{done.stderr}"
        if shown:
            assert normal(printed, directory) == normal("\n".join(shown), directory), line


def _shell(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=directory,
        env=environment(directory),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return subprocess.CompletedProcess(script, process.returncode, out, err)


@pytest.mark.parametrize("block", of_kind("python"), ids=at_line)
def test_a_python_snippet_runs(block: Block) -> None:
    """As written, beside a daemon such as the quick start begins."""
    compile(block.text, "README.md", "exec")
    with place() as directory, _daemon(directory):
        (directory / "snippet.py").write_text(placed(block.text, directory), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "snippet.py"],
            cwd=directory,
            env=environment(directory),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert '"error"' not in done.stdout
        for bundle in directory.glob("*.capture.json"):
            assert run(["verify", str(bundle)]) == 0


@contextmanager
def _daemon(directory: Path) -> Iterator[None]:
    """The daemon of the quick start."""
    serve = next(line for block in of_kind("console") for line, _ in block.commands if " serve " in line)
    arguments = shlex.split(placed(serve.rstrip("& "), directory))
    with subprocess.Popen(
        arguments, cwd=directory, env=environment(directory), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while not list(directory.glob("*.sock")):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield
        finally:
            process.terminate()


@pytest.mark.parametrize("block", of_kind("toml"), ids=at_line)
def test_a_configuration_is_one_that_the_daemon_takes(block: Block) -> None:
    """Every setting shown is there and may be what it is shown as."""
    configuration.parse(block.text, "README.md")


@pytest.mark.parametrize("block", of_kind("json"), ids=at_line)
def test_json_is_json(block: Block) -> None:
    """One value a line."""
    for line in block.text.splitlines():
        json.loads(line)


def test_settings_and_commands_that_are_named_are_there() -> None:
    """A name of ours in the text, such as `session.linger`, is that of a setting; a row of the commands, of one."""
    text = README.read_text(encoding="utf-8")
    known = set(configuration.known_keys())
    sections = {key.partition(".")[0] for key in known} - {"graphs"}
    named = {name for name in re.findall(r"`([a-z]+\.[a-z_]+)`", text) if name.partition(".")[0] in sections}
    events = set(_log_events())
    assert named
    assert named - known - events == set()
    rows = re.findall(r"^\| `([a-z]+)[^`]*` \|", text.partition("| command |")[2].partition("\n\n")[0], re.MULTILINE)
    assert rows
    assert set(rows) <= set(COMMANDS)


def _log_events() -> Iterator[str]:
    from ergo_capture import telemetry

    return (value for value in vars(telemetry).values() if isinstance(value, str))


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_the_setup_commands_work_from_a_fresh_clone() -> None:
    """Both of them, as written, in a clone without anything that is not committed; the tests included."""
    setups = [block for block in of_kind("console") if block.is_setup]
    assert len(setups) >= 2
    with short_directory() as directory:
        clone = directory / "ergo-capture"
        subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
        plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        for block in setups:
            done = subprocess.run(
                ["bash", "-ec", block.text], cwd=clone, env=plain, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
            shutil.rmtree(clone / ".venv")
