"""Any text on any terminal: names that are not UTF-8, terminals that are not, users without a home directory."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.cli.readers import OTHER, READERS
from tests.cli.runs import bundle
from tests.daemons import COMMAND, PATIENCE, DaemonProcess, Terminal, command_environment, short_directory

from ergo_capture.bundle.names import manifest_path
from ergo_capture.cli import app
from ergo_capture.errors import ExitCode

#: An argument that is the byte 0xff, which is no UTF-8.
BYTE = os.fsdecode(b"\xff")
#: A text with a character that Latin-1 has, one that it has not, and a sequence that a terminal would obey.
STRANGE = "é→\x9b31m"


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """Return a bundle with this text in ids, payloads and provenance, in a file whose name is not UTF-8."""

    def change(data: dict[str, list[dict[str, object]] | str]) -> None:
        assert isinstance(data["events"], list)
        assert isinstance(data["decisions"], list)
        data["events"][9]["event_id"] = data["decisions"][9]["event_id"] = STRANGE
        data["events"][9]["event_time"] = {"secs": 1000, "nanos": 0}
        data["decisions"][9]["interruption"] = STRANGE
        data["runtime_provenance"] = STRANGE

    return bundle(tmp_path / f"b{BYTE}.capture.json", change)


def ran(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command with other environment variables; fail if it prints a traceback."""
    ended = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        env=command_environment() | environment,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert b"Traceback" not in ended.stderr, ended.stderr.decode(errors="replace")
    return ended


def prints_json(name: str) -> bool:
    """Return whether a command has ``--json``."""
    return any("--json" in parameter.opts for parameter in app.load_command(name).params)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
# The output of `feed` is for a program.
@pytest.mark.parametrize("name", [*(name for name in READERS if name != "feed"), "doctor", "simulate"])
def test_every_text_can_be_printed_on_every_terminal(
    name: str, encoding: str, strange: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Characters outside the encoding are escaped, and so are those that a terminal would obey."""
    monkeypatch.chdir(tmp_path)
    bundle(Path(OTHER))
    ended = ran(name, str(strange), *READERS.get(name, ()), PYTHONIOENCODING=encoding)
    assert ended.returncode in (ExitCode.OK, ExitCode.FAILED, ExitCode.DIVERGED)
    assert "\x9b" not in (ended.stdout + ended.stderr).decode("utf-8" if encoding == "ascii" else encoding, "replace")
    if name == "cat":
        shown = r"é→\x9b31m" if encoding == "utf-8" else r"\u2192\x9b31m"
        assert shown in ended.stdout.decode("utf-8" if encoding == "ascii" else encoding) or encoding == "ascii"


@pytest.mark.parametrize("name", [name for name in (*READERS, "doctor") if prints_json(name)])
def test_json_is_utf_8_on_every_terminal(
    name: str, strange: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program reads it; an escape for a terminal would not be JSON."""
    monkeypatch.chdir(tmp_path)
    bundle(Path(OTHER))
    ended = ran(name, "--json", str(strange), *READERS.get(name, ()), PYTHONIOENCODING="latin-1")
    assert ended.stdout
    for line in ended.stdout.splitlines():
        json.loads(line.decode("utf-8"))
    if name in ("cat", "tail"):
        assert json.loads(ended.stdout.splitlines()[9])["event_id"] == STRANGE


@pytest.mark.parametrize(
    "arguments",
    [
        ["send", "--label", f"k={BYTE}"],
        ["send", "--graph", BYTE],
        ["send", "--session", BYTE],
        ["tap", BYTE],
        ["cat", "x", "--event-id", BYTE],
        ["cat", "x", "--kind", BYTE],
        ["replay", "x", "--engine", BYTE],
        ["replay", "x", "--strict", "--runtime-provenance", BYTE],
        ["bundles", "list", "--graph", BYTE],
    ],
    ids=lambda words: " ".join(words[:-1]),
)
def test_an_argument_that_is_not_utf_8_and_no_path_is_wrong_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the protocol nor the journal nor bundles could hold it; the error names the option."""
    assert app.run(arguments) == ExitCode.USAGE
    assert "is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cat", "tail", "info", "extract", "cat --follow"])
def test_no_session_has_a_name_that_is_not_utf_8(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such a name is only looked for as a file."""
    (tmp_path / "journal").mkdir()
    (tmp_path / "bundles").mkdir()
    assert app.run([*name.split(), BYTE, "--state-dir", str(tmp_path)]) == ExitCode.FAILED
    assert r"Error: find '\xff': there is neither a file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "config check"])
def test_a_state_directory_that_is_not_utf_8_is_refused_at_the_start(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before, the daemon started and every session in it failed when its bundle was to be named."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / BYTE))
    assert app.run(command.split()) == ExitCode.CONFIG
    assert "is not UTF-8" in capsys.readouterr().err


def test_control_characters_in_a_path_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """They are also escaped in a hint."""
    assert app.run(["simulate", "/no\x1b[2J\x9bsuch"]) == ExitCode.FAILED
    assert r"'/no\x1b[2J\x9bsuch'" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    "arguments",
    [
        "status",
        "metrics",
        "tap x",
        "config show",
        "config check",
        "send --give-up-after 0",
        "cat x",
        "bundles list",
        "serve",
    ],
)
def test_a_user_without_a_home_directory_uses_the_systems_paths(arguments: str, tmp_path: Path) -> None:
    """A container's user id has often neither HOME nor an entry in the password database."""
    code = (
        # Import all of it as root: the other user may not be able to read this checkout.
        "import grp, importlib, os, pkgutil, sys, uvloop, anyio._backends._asyncio, platformdirs.unix, ergo_capture\n"
        "for module in pkgutil.walk_packages(ergo_capture.__path__, 'ergo_capture.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "from ergo_capture.cli import app\n"
        "os.setgroups([]); os.setuid(12345); sys.exit(app.run(sys.argv[1:]))"
    )
    # Without measuring: the other user may not write the data of the coverage.
    environment = {
        name: value
        for name, value in command_environment().items()
        if not name.startswith(("XDG_", "HOME", "COVERAGE"))
    }
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()],
        capture_output=True, env=environment, timeout=60, check=False, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert "Traceback" not in ended.stderr
    if arguments in ("cat x", "config show", "serve"):
        assert "/var/lib/ergo-capture" in ended.stdout + ended.stderr


def test_completion_without_a_home_directory_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script can still be printed."""

    def home() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", home)
    assert app.run(["--install-completion", "bash"]) == ExitCode.FAILED
    assert "--show-completion" in capsys.readouterr().err


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    """Run one daemon for the tests below."""
    with short_directory() as place, DaemonProcess(place, place / "state") as running:
        yield running.start()


@pytest.mark.parametrize("command", ["status", "metrics", "tap nothing", "send --quiet"])
def test_sockets_may_be_named_by_url(command: str, daemon: DaemonProcess) -> None:
    """``unix:///path``, as other programs write it."""
    ended = ran(*command.split(), "--socket", f"unix://{daemon.socket}")
    assert ended.returncode == (1 if command.startswith("tap") else 0)
    assert b"no daemon" not in ended.stderr


@pytest.mark.parametrize("command", ["status", "send", "serve"])
def test_an_abstract_socket_is_refused(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no owner and no mode; before, a file of that name was looked for or made."""
    monkeypatch.chdir(tmp_path)
    ended = ran(command, "--socket", "@capture")
    assert ended.returncode in (ExitCode.USAGE, ExitCode.CONFIG)
    assert b"abstract sockets are not supported" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_names_of_a_session_reach_a_latin_1_terminal(daemon: DaemonProcess, tmp_path: Path) -> None:
    """``info`` and ``bundles list`` print them; labels are data that must not be lost."""
    events = tmp_path / "events.jsonl"
    events.write_text('{"event_id":"e1","kind":"Command","at":{"secs":1,"nanos":0}}\n', encoding="utf-8")
    label, socket = f"ort={STRANGE}", str(daemon.socket)
    sent = ran("send", str(events), "--json", "--label", label, "--socket", socket, PYTHONIOENCODING="latin-1")
    published = Path(json.loads(sent.stdout)["bundle"])
    assert json.loads(manifest_path(published).read_text(encoding="utf-8"))["labels"] == {"ort": STRANGE}
    for command in (["info", str(published)], ["bundles", "list", "--state-dir", str(daemon.state)]):
        assert ran(*command, PYTHONIOENCODING="latin-1").returncode == 0
    assert rb"\u2192" in ran("info", str(published), PYTHONIOENCODING="latin-1").stdout


def test_a_terminal_that_is_latin_1_shows_tables_and_topics(strange: Path) -> None:
    """This holds for the table of ``info``, and for a topic of the manual in a pager."""
    for arguments, shown in ((["info", str(strange)], "10"), (["help", "damage"], "recover")):
        with Terminal() as terminal:
            environment = command_environment() | {"PYTHONIOENCODING": "latin-1", "TERM": "xterm", "PAGER": "cat"}
            with subprocess.Popen(
                [*COMMAND, *arguments], stdout=terminal.end, stderr=terminal.end, env=environment
            ) as process:
                assert "Traceback" not in terminal.until(shown)
                terminal.read_until_end_of(process)
            assert process.returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [*([name, *words] for name, words in READERS.items()), ["replay"], ["simulate"], ["send"]],
    ids=" ".join,
)
def test_waiting_for_a_named_pipe_ends_with_ctrl_c(
    arguments: list[str], tmp_path: Path, daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command that reads a file exits with 130."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    bundle(Path(OTHER))
    name, *options = arguments
    words = ["--socket", str(daemon.socket)] if name == "send" else options
    with subprocess.Popen(
        [*COMMAND, name, "pipe", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=command_environment()
    ) as waiting:
        try:
            writer = write_when_read(Path("pipe"))
            waiting.send_signal(signal.SIGINT)
            said = waiting.communicate(timeout=PATIENCE)[1]
            os.close(writer)
        finally:
            waiting.kill()
    assert waiting.returncode == 130, said
    assert b"Traceback" not in said


def write_when_read(pipe: Path) -> int:
    """Open a named pipe as soon as somebody reads it, and wait until a byte in it was read; return its descriptor."""
    deadline = time.monotonic() + PATIENCE
    writer = None
    while time.monotonic() < deadline:
        if writer is None:
            # Nobody may read it yet.
            with suppress(OSError):
                writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
                os.write(writer, b"{")
        elif not struct.unpack("i", fcntl.ioctl(writer, termios.FIONREAD, bytes(4)))[0]:
            return writer
        time.sleep(0.01)
    raise AssertionError("nobody read the pipe")
