"""``top`` on a terminal: the screen, the keys, and a daemon that goes away and comes back."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import Self

from tests.daemons import COMMAND, PATIENCE, DaemonProcess, command, command_environment, plain, short_directory


class Terminal:
    """A command on a terminal of its own.

    Args:
        arguments: of ``ergo-capture``.
        rows: its height.
        columns: its width.
        name: what TERM says.
    """

    def __init__(self, *arguments: str, rows: int = 40, columns: int = 120, name: str = "xterm-256color") -> None:
        self.leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(follower)
        environment = {**command_environment(), "TERM": name}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=environment,
            start_new_session=True,
        )
        self.follower = follower
        self.seen = ""
        os.set_blocking(self.leader, False)

    def until(self, text: str) -> None:
        """Wait until a text has been shown since the last call."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            self._read()
        self.seen = ""

    def _read(self) -> None:
        try:
            self.seen += plain(os.read(self.leader, 1 << 16).decode(errors="replace"))
        except BlockingIOError:
            time.sleep(0.01)

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.leader, keys)

    def wait(self) -> int:
        """Return the exit code; read the screen meanwhile, so that the command does not block."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            self._read()
        return self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.leader)
        os.close(self.follower)


def test_top_shows_the_daemon_with_rates_and_q_ends_it() -> None:
    """It restores the terminal."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.start()
        with Terminal("top", "--socket", str(daemon.socket), "--interval", "0.1") as terminal:
            terminal.until("serving for")
            terminal.until("/s accepted")
            terminal.type(b"xq")
            assert terminal.wait() == 0
            assert termios.tcgetattr(terminal.follower) == terminal.before


def test_ctrl_c_ends_top_quietly() -> None:
    """No traceback, and the terminal is restored."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.start()
        with Terminal("top", "--socket", str(daemon.socket), "--interval", "60") as terminal:
            terminal.until("serving for")
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.wait() == 0
            terminal._read()
            assert "Traceback" not in terminal.seen
            assert termios.tcgetattr(terminal.follower) == terminal.before


def test_top_waits_for_a_missing_daemon() -> None:
    """It can be started before the daemon, and continues after a restart."""
    with (
        short_directory() as place,
        DaemonProcess(place, place / "state") as daemon,
        Terminal("top", "--socket", str(daemon.socket), "--interval", "0.1") as terminal,
    ):
        terminal.until("no daemon is there")
        daemon.start()
        terminal.until("serving for")
        daemon.kill()
        terminal.until("no daemon listens there any more")
        daemon.start()
        assert daemon.process is not None
        terminal.until(f"pid {daemon.process.pid}")
        terminal.type(b"q")
        assert terminal.wait() == 0


def test_top_without_a_terminal_is_wrong_usage() -> None:
    """The message names the alternative; it does not wait for a daemon first."""
    done = command("top", "--socket", str(Path("/nowhere/capture.sock")))
    assert (done.returncode, done.stdout) == (2, "")
    assert "Try: use `ergo-capture status`" in done.stderr


def test_top_on_a_terminal_that_cannot_be_drawn_on_is_wrong_usage() -> None:
    """It would show nothing at all."""
    with Terminal("top", "--socket", "/nowhere/capture.sock", name="dumb") as terminal:
        terminal.until("show top: the terminal cannot be drawn on, as TERM says")
        assert terminal.wait() == 2
