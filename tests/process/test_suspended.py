"""A daemon that did not run for a while: it is suspended with SIGSTOP, as a virtual machine is by its host."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from tests.daemons import PATIENCE, DaemonProcess, event, short_directory
from tests.processes import wait_until

#: Longer than every time-out below, and long enough to count as a pause.
SUSPENDED_SECONDS = 2.5
TIMEOUTS = '[limits]\nhello_timeout = "1s"\nframe_timeout = "1s"\nidle_timeout = "1s"\nwrite_timeout = "1s"\n'
#: Says that it was asked, and answers once it is told to.
ENGINE = """
import json, pathlib, sys, time
print('{"type":"ready","protocol":"ergo-engine.v1","runtime_provenance":"p"}', flush=True)
place = pathlib.Path(sys.argv[1])
for line in sys.stdin:
    (place / "asked").touch()
    while not (place / "answer").exists():
        time.sleep(0.001)
    print(json.dumps({"type": "ran", "id": json.loads(line)["id"], "termination": "Completed"}), flush=True)
    (place / "answered").touch()
"""


class Client:
    """A blocking client."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self.heard = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, *frames: dict[str, Any]) -> None:
        """Send frames."""
        self.socket.sendall(b"".join(json.dumps(frame).encode() + b"\n" for frame in frames))

    def until(self, word: bytes) -> bytes:
        """Read until a word comes; fail if the connection ends or an error comes before it."""
        while word not in self.heard:
            data = self.socket.recv(1 << 16)
            self.heard += data
            assert data, self.heard
            assert b'"type":"error"' not in self.heard, self.heard
        return self.heard

    def open(self, **options: Any) -> None:
        """Say hello and open a session."""
        self.say({"type": "hello", "protocol": "ergo-capture.v1"}, {"type": "open", **options})
        self.until(b'"opened"')


@contextmanager
def suspended(daemon: DaemonProcess) -> Iterator[None]:
    """Suspend the daemon during the block, and for longer than any time-out."""
    assert daemon.process is not None
    # A beat of its clock: what begins before is older than the pause.
    daemon.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: " T " in Path(f"/proc/{daemon.process.pid}/stat").read_text() if daemon.process else False)
    began = time.monotonic()
    yield
    wait_until(lambda: time.monotonic() - began > SUSPENDED_SECONDS)
    daemon.process.send_signal(signal.SIGCONT)


@pytest.fixture
def daemon() -> Iterator[DaemonProcess]:
    """Run a daemon with short time-outs, and an engine that is taken for hanging after a second."""
    with short_directory() as place:
        (place / "engine.py").write_text(ENGINE)
        command = json.dumps([sys.executable, str(place / "engine.py"), str(place)])
        text = TIMEOUTS + '[graphs.default]\n[graphs.slow]\ndeadline = "1s"\n[graphs.slow.engine]\nkind = "process"\n'
        text += f'hang_timeout = "1s"\ncommand = {command}\n[shutdown]\ndrain = "1s"\n'
        with DaemonProcess(place, place / "state", config=text) as process:
            yield process.start()


def test_clients_whose_bytes_came_meanwhile_are_served(daemon: DaemonProcess) -> None:
    """The bytes wait in the socket: before hello, in the middle of a frame, and between frames."""
    with Client(daemon.socket) as fresh, Client(daemon.socket) as begun, Client(daemon.socket) as idle:
        begun.open()
        idle.open()
        frame = json.dumps(event("a")).encode() + b"\n"
        begun.socket.sendall(frame[:10])
        with suspended(daemon):
            fresh.say({"type": "hello", "protocol": "ergo-capture.v1"}, {"type": "open"})
            begun.socket.sendall(frame[10:])
            idle.say(event("b"))
        fresh.until(b'"opened"')
        begun.until(b'"accepted":1')
        idle.until(b'"accepted":1')
        assert daemon.until_logged("daemon.paused")["seconds"] >= SUSPENDED_SECONDS - 1


def test_clients_that_were_suspended_too_have_their_time_again(daemon: DaemonProcess) -> None:
    """They send as soon as they run again."""
    with Client(daemon.socket) as begun, Client(daemon.socket) as idle:
        begun.open()
        idle.open()
        frame = json.dumps(event("a")).encode() + b"\n"
        begun.socket.sendall(frame[:10])
        with suspended(daemon):
            pass
        daemon.until_logged("daemon.paused")
        begun.socket.sendall(frame[10:])
        idle.say(event("b"))
        begun.until(b'"accepted":1')
        idle.until(b'"accepted":1')


def test_an_engine_that_answered_meanwhile_is_neither_late_nor_hanging(daemon: DaemonProcess) -> None:
    """The answer waits in the pipe: the episode completes, and the engine is kept."""
    place = daemon.config.parent
    with Client(daemon.socket) as client:
        client.open(graph="slow", decisions=True)
        client.say(event("a"))
        wait_until((place / "asked").exists)
        with suspended(daemon):
            (place / "answer").touch()
            wait_until((place / "answered").exists)
        assert b'"termination":"Completed"' in client.until(b'"decided":1')
        assert '"engine.away"' not in daemon.log.read_text()


def test_a_client_that_is_silent_while_the_daemon_runs_is_still_ended(daemon: DaemonProcess) -> None:
    """After a pause its time-out begins again, and then passes."""
    with Client(daemon.socket) as client:
        with suspended(daemon):
            pass
        heard = b""
        while data := client.socket.recv(4096):
            heard += data
        assert b"no hello and open within 1 s" in heard


def test_p10_a_stop_in_which_the_daemon_was_suspended_has_its_time_again(daemon: DaemonProcess) -> None:
    """The answer that the drain waits for came meanwhile, so nothing is left for the next start."""
    place, process = daemon.config.parent, daemon.process
    assert process is not None
    with Client(daemon.socket) as client:
        client.open(graph="slow")
        client.say(event("a"))
        wait_until((place / "asked").exists)
        process.send_signal(signal.SIGTERM)
        daemon.until_logged("daemon.stopping")
        with suspended(daemon):
            (place / "answer").touch()
            wait_until((place / "answered").exists)
        assert process.wait(PATIENCE) == 0
    assert '"drain.unfinished"' not in daemon.log.read_text()
