"""Nobody reads the daemon's standard error: a full pipe, Ctrl-S at a terminal, a pager."""

from __future__ import annotations

import fcntl
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.daemons import COMMAND, PATIENCE, command, command_environment, short_directory
from tests.processes import is_alive, wait_until

from ergo_capture.log_output import Dropped, LogOutput

#: Each of these clients is one line in the log; together they are more than a pipe holds.
CLIENTS = 1000
END = b"end\n"


def serve_command(place: Path) -> list[str]:
    """Return the command of a daemon that suppresses no lines."""
    (place / "config.toml").write_text("[log]\nburst = 0\n")
    options = [
        "--config",
        str(place / "config.toml"),
        "--socket",
        str(place / "s"),
        "--state-dir",
        str(place / "state"),
    ]
    return [*COMMAND, "serve", *options]


def is_listening(path: Path) -> bool:
    """Return whether a socket takes connections: its file is there a moment earlier."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@contextmanager
def serving(place: Path, descriptor: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon whose standard error is that descriptor."""
    with subprocess.Popen(
        serve_command(place), stdout=subprocess.DEVNULL, stderr=descriptor, env=command_environment()
    ) as daemon:
        try:
            wait_until(lambda: is_listening(place / "s"))
            yield daemon
        finally:
            daemon.kill()


def make_lines(place: Path) -> None:
    """Have the daemon log a warning for each of many clients."""
    for _ in range(CLIENTS):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(place / "s"))
            client.sendall(b"garbage\n")
            while client.recv(4096):
                pass


def check_status(place: Path) -> None:
    """Check that the control socket answers."""
    ran = command("status", "--socket", str(place / "s"), "--json")
    assert ran.returncode == 0, ran.stderr


@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """Yield both ends of a pipe that holds 4096 bytes and is full."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writing, b"x" * 4096)
    try:
        yield reading, writing
    finally:
        os.close(writing)
        os.close(reading)


def test_a_full_pipe_that_nobody_reads_stalls_nothing() -> None:
    """It is full from the daemon's first line on; clients and operators are answered, and SIGTERM stops it."""
    with short_directory() as place, full_pipe() as (_, writing), serving(place, writing) as daemon:
        make_lines(place)
        check_status(place)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(PATIENCE) == 0


def test_ctrl_s_at_the_terminal_stalls_nothing() -> None:
    """A terminal whose output is stopped takes no byte."""
    master, terminal = os.openpty()
    try:
        os.write(master, b"\x13")
        wait_until(lambda: not select.select([], [terminal], [], 0)[1])
        with short_directory() as place, serving(place, terminal) as daemon:
            make_lines(place)
            check_status(place)
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(PATIENCE) == 0
    finally:
        os.close(terminal)
        os.close(master)


@pytest.mark.skipif(not (shutil.which("tmux") and shutil.which("less")), reason="needs tmux and less")
def test_a_pager_that_waits_for_a_key_stalls_nothing() -> None:
    """``ergo-capture serve 2>&1 | less``, in a terminal where nobody scrolls."""
    with short_directory() as place:
        tmux = ["tmux", "-S", str(place / "tmux")]
        line = f"sh -c {shlex.quote(f'echo $$ > {place}/pid; exec {shlex.join(serve_command(place))}')} 2>&1 | less"
        environment = {**command_environment(), "TERM": "xterm"}
        subprocess.run([*tmux, "new-session", "-d", "-x", "80", "-y", "24", line], env=environment, check=True)
        try:
            wait_until((place / "s").exists)
            make_lines(place)
            check_status(place)
            pid = int((place / "pid").read_text())
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not is_alive(pid))
        finally:
            subprocess.run([*tmux, "kill-server"], check=False)


def limited_output(descriptor: int, max_bytes: int) -> tuple[LogOutput, list[Dropped]]:
    """Return an output that writes ``END`` after it has told how many lines were dropped, and what it told."""
    told: list[Dropped] = []

    def on_dropped(dropped: Dropped) -> None:
        told.append(dropped)
        output.write(END, is_error=True)

    output = LogOutput(descriptor, on_dropped, max_bytes)
    return output, told


def test_the_log_goes_on_when_it_is_read_again_and_says_what_is_missing() -> None:
    """Lines of level info go before others; the rest is whole, in order, and followed by the count."""
    with full_pipe() as (reading, writing):
        output, dropped = limited_output(writing, 4000)
        for number in range(10):
            output.write(b"info %d".ljust(400) % number + b"\n", is_error=False)
        for number in range(8):
            output.write(b"error %d".ljust(400) % number + b"\n", is_error=True)
        read = b""
        while not read.endswith(END):
            read += os.read(reading, 4096)
    lines = [line.strip() for line in read.lstrip(b"x").splitlines()]
    assert [line for line in lines if line.startswith(b"error")] == [b"error %d" % number for number in range(8)]
    kept = [line for line in lines if line.startswith(b"info")]
    assert kept == sorted(kept)
    assert dropped == [Dropped(info=10 - len(kept), errors=0)]
    assert kept


def test_errors_are_dropped_only_when_no_line_of_a_lower_level_is_left() -> None:
    """Both are counted; a line that alone is longer than the limit is written."""
    with full_pipe() as (reading, writing):
        output, dropped = limited_output(writing, 1000)
        output.write(b"long" * 1000 + b"\n", is_error=False)
        wait_until(lambda: output.waiting_bytes == 0)
        for _ in range(4):
            output.write(b"info".ljust(400) + b"\n", is_error=False)
        for _ in range(4):
            output.write(b"error".ljust(400) + b"\n", is_error=True)
        read = b""
        while not read.endswith(END):
            read += os.read(reading, 4096)
    assert dropped == [Dropped(info=4, errors=2)]
    assert output.total_dropped == 6
    assert read.count(b"error") == 2
    assert read.count(b"info") == 0
    assert read.count(b"long") == 1000
