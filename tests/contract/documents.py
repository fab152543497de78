"""Run what the README and the manual show: commands, snippets, configurations, JSON.

A fenced block has a kind, and may have a name: a second word after the kind. A name with a dot is that of a file: the
block is written there before the document's commands run. Any other name says who sends the JSON of the block.

Commands run as written, one after the other in one shell, with three differences: ``/tmp`` stands for a directory of
the test, ``ergo-capture`` for the command under test, and a daemon that was put in the background gets the moment
that a person takes to write the next line. A line after a command is what it has to print, but for session ids and
how long it took. ``# exit N`` after a command is the exit code that it has to have. Commands for a host (``sudo``,
``systemctl``, ...) are left to the reader.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.daemons import COMMAND, PATIENCE, command_environment, short_directory
from tests.shared import REPOSITORY

README = REPOSITORY / "README.md"
MANUAL = REPOSITORY / "daemon" / "ergo_capture" / "manual"
#: First words of commands that change a host, or that never end.
FOR_A_HOST = (
    "sudo",
    "systemctl",
    "journalctl",
    "apt",
    "ergo-capture top",
    "ergo-capture tap",
    "ergo-capture systemd install",
    "python -m pytest",
    "python -m tests.mutants",
    "ruff",
    "mypy",
    ".ci/run",
    "pip install",
)
MARK = "--- end of command"
_EXIT = re.compile(r"\s+# exit (\d+)$")


@dataclass(frozen=True)
class Command:
    """A command, the lines that it is shown to print, and its exit code."""

    line: str
    shown: tuple[str, ...]
    exit_code: int


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: Path
    kind: str
    name: str
    text: str
    line: int

    @property
    def commands(self) -> list[Command]:
        """The commands of a console block that leave the host as it is."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found:
                found[-1][1].append(line)
        commands = []
        for line, shown in found:
            code = _EXIT.search(line)
            commands.append(Command(_EXIT.sub("", line), tuple(shown), int(code[1]) if code else 0))
        return [command for command in commands if not command.line.startswith(FOR_A_HOST)]

    @property
    def is_setup(self) -> bool:
        """Whether the block holds commands without a prompt, which run in a checkout."""
        return self.kind == "console" and not re.search(r"^\$ ", self.text, re.MULTILINE)

    @property
    def values(self) -> list[str]:
        """The JSON texts of the block: one value in a ``.json`` file, elsewhere one a line."""
        return [self.text] if self.name.endswith(".json") else self.text.splitlines()


def blocks(document: Path) -> list[Block]:
    """Return the fenced blocks of a document."""
    text = document.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*) ?(\S*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(document, match[1], match[2], match[3], text.count("\n", 0, match.start()) + 1) for match in found]


def documents() -> list[Path]:
    """Return the README and every topic of the manual."""
    return [README, *sorted(MANUAL.glob("*.md"))]


def of_kind(kind: str, name: str | None = None) -> list[Block]:
    """Return the blocks of one kind, and of one name if it is given, of all documents."""
    found = [block for document in documents() for block in blocks(document) if block.kind == kind]
    return [block for block in found if name is None or block.name == name]


def at_line(value: object) -> str:
    """Return what a block or a document is called in reports."""
    if isinstance(value, Block):
        return f"{value.document.stem}-{value.line}"
    return value.stem if isinstance(value, Path) else str(value)


def table_below(document: Path, heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading; each cell without surrounding space, backticks kept."""
    text = document.read_text(encoding="utf-8")
    start = re.search(rf"^#+ {re.escape(heading)}$", text, re.MULTILINE)
    assert start, f"{document.name} has no heading {heading!r}"
    section = re.split(r"^#+ ", text[start.end() :], maxsplit=1, flags=re.MULTILINE)[0]
    table = re.search(r"(^\|.*\n)+", section, re.MULTILINE)
    assert table, f"{document.name} has no table below {heading!r}"
    rows = table[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))] for row in rows]


def rows_below(document: Path, heading: str) -> list[list[str]]:
    """Return the rows of the tables below the headings of level 3 in a section of level 2."""
    section = document.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    headings = re.findall(r"^### (.+)$", section, re.MULTILINE)
    assert headings, f"{document.name} has no parts below {heading!r}"
    return [row for part in headings for row in table_below(document, part)]


def quoted(cell: str) -> list[str]:
    """Return what stands in backticks in a cell of a table."""
    return re.findall(r"`([^`]+)`", cell)


def names_below(document: Path, heading: str) -> set[str]:
    """Return what stands in backticks in the first column of the first table below a heading."""
    return {name for row in table_below(document, heading) for name in re.findall(r"`([^`]+)`", row[0])}


def assert_same(found: Iterable[str], wanted: Iterable[str], where: str) -> None:
    """Fail with what ``where`` lacks, and with what it has and should not: a comparison of sets does not say which is which."""
    found, wanted = set(found), set(wanted)
    assert wanted <= found, f"{where} lacks: {', '.join(sorted(wanted - found))}"
    assert found <= wanted, f"{where} has what is not there any more: {', '.join(sorted(found - wanted))}"


def assert_rows(document: Path, heading: str, wanted: Iterable[str]) -> None:
    """Fail unless the table below a heading has a row for each of these names, and for no other."""
    assert_same(names_below(document, heading), wanted, f"the table below '{heading}' in {document.name}")


@contextmanager
def place(document: Path) -> Iterator[Path]:
    """Yield a directory with the files of a document, the quick start's events, and the command by its own name."""
    with short_directory() as directory:
        for block in [*blocks(README), *blocks(document)]:
            if "." in block.name:
                file = directory / block.name
                file.write_text(placed(block.text, directory), encoding="utf-8")
                file.chmod(0o755 if block.text.startswith("#!") else 0o644)
        shim = directory / "bin" / "ergo-capture"
        shim.parent.mkdir()
        shim.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
        shim.chmod(0o755)
        yield directory


def environment(directory: Path) -> dict[str, str]:
    """Return an environment in which ``ergo-capture`` is the command under test and the user has no configuration."""
    python = f"{directory / 'bin'}:{Path(sys.executable).parent}"
    own = {"PATH": f"{python}:{os.environ['PATH']}", "HOME": str(directory)}
    return command_environment() | own | {"XDG_CONFIG_HOME": str(directory), "COLUMNS": "200"}


def placed(text: str, directory: Path) -> str:
    """Return the text with the test's directory for ``/tmp``."""
    return text.replace("/tmp/", f"{directory}/")


def normal(text: str, directory: Path) -> list[str]:
    """Return the lines without what differs from run to run."""
    text = text.replace(str(directory), "/tmp")
    text = re.sub(r"\d{8}T\d{6}Z-\d+-[0-9a-f]{8}", "SESSION", text)
    text = re.sub(r"\bin \d+\.\d+ s\b", "in N s", text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def run_commands(document: Path, directory: Path) -> None:
    """Run the commands of a document in one shell; compare what they print and how they exit."""
    found = [command for block in blocks(document) if block.kind == "console" for command in block.commands]
    script = ["set -m"]
    for command in found:
        script += [placed(command.line, directory), f'echo "{MARK} $?"']
        if command.line.endswith("&"):
            socket = re.search(r"--socket (\S+)", command.line)
            assert socket, f"{command.line}: name the socket"
            wait = f"for _ in $(seq 300); do [ -S {placed(socket[1], directory)} ] && break; sleep 0.1; done"
            script.append(wait)
    done = _shell("\n".join([*script, "kill $(jobs -p) 2>/dev/null", "wait", "true"]), directory)
    # Standard error is kept apart: a daemon's log goes there at any time.
    *parts, _ = re.split(rf"^{MARK} (\d+)\n", done.stdout, flags=re.MULTILINE)
    assert len(parts) == 2 * len(found), done.stdout + done.stderr
    for command, printed, code in zip(found, parts[::2], parts[1::2], strict=True):
        assert int(code) == command.exit_code, f"{command.line}: exit {code}\n{printed}{done.stderr}"
        if command.shown:
            assert normal(printed, directory) == normal("\n".join(command.shown), directory), command.line


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
        out, err = process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return subprocess.CompletedProcess(script, process.returncode, out, err)


@contextmanager
def quick_start_daemon(directory: Path) -> Iterator[None]:
    """Run the daemon of the quick start."""
    commands = [command for block in blocks(README) for command in block.commands]
    serve = next(command.line for command in commands if " serve --socket" in command.line)
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


def run_snippet(block: Block, interpreter: str) -> None:
    """Run a program as written, beside the daemon of the quick start; it may say nothing on standard error."""
    with place(block.document) as directory, quick_start_daemon(directory):
        (directory / "snippet").write_text(placed(block.text, directory), encoding="utf-8")
        done = subprocess.run(
            [interpreter, "snippet"],
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
            verified = subprocess.run([*COMMAND, "verify", bundle], env=environment(directory), check=False)
            assert verified.returncode == 0


def parses(text: str) -> bool:
    """Whether a text is JSON."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
