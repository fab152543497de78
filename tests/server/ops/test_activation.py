"""Inherited sockets: which one serves what, and which are refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.daemons import COMMAND, PATIENCE, DaemonProcess, command_environment, short_directory

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.server.ops.systemd import SystemdNotifier

#: Stands for the service manager: hands the listening socket over as the first of so many descriptors.
MANAGER = """
import os, socket, sys
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[2])
os.execv(sys.argv[3], sys.argv[3:])
"""


@contextmanager
def handed(*names: str) -> Iterator[list[tuple[str, int]]]:
    """Yield listening sockets of these names, as descriptors; whoever takes them closes them."""
    with short_directory() as place:
        found = []
        for number, name in enumerate(names):
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(place / str(number)))
            listening.listen()
            found.append((name, listening.detach()))
        yield found
        for _, fd in found:
            try:
                os.close(fd)
            except OSError:
                continue


@pytest.mark.parametrize(
    ("names", "purposes"),
    [
        (["capture", "control"], ["capture", "control"]),
        (["control", "capture"], ["control", "capture"]),
        (["capture"], ["capture"]),
        (["control"], ["control"]),
        (["unknown"], ["capture"]),
        (["ergo-capture.socket"], ["capture"]),
        (["control", "mine.socket"], ["control", "capture"]),
        ([], []),
    ],
)
def test_an_inherited_socket_serves_what_its_name_says(names: list[str], purposes: list[str]) -> None:
    """Without FileDescriptorName= a socket is named after its unit; without any names it is ``unknown``."""
    with handed(*names) as sockets, ExitStack() as stack:
        taken = SystemdNotifier(sockets=sockets).take_sockets()
        for found in taken.values():
            stack.enter_context(found)
        assert {purpose: found.fileno() for purpose, found in taken.items()} == {
            purpose: fd for purpose, (_, fd) in zip(purposes, sockets, strict=True)
        }
        assert not any(os.get_inheritable(found.fileno()) for found in taken.values())


@pytest.mark.parametrize(
    "names", [["capture", "capture"], ["control", "control"], ["one", "other"], ["capture", "more"]]
)
def test_an_inherited_socket_without_a_purpose_is_an_error(names: list[str]) -> None:
    """P4: its clients would connect, and wait for ever."""
    with handed(*names) as sockets, pytest.raises(ErgoCaptureError, match="or another socket has it") as caught:
        SystemdNotifier(sockets=sockets).take_sockets()
    assert "FileDescriptorName" in (caught.value.hint or "")


def test_an_inherited_descriptor_that_is_no_listening_socket_is_an_error(tmp_path: Path) -> None:
    """P4: a file, a datagram socket, one that does not listen, a network socket, a closed descriptor."""
    with ExitStack() as stack:
        network = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        datagram = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        idle = stack.enter_context(socket.socket(socket.AF_UNIX))
        file = stack.enter_context((tmp_path / "file").open("w"))
        closed = os.dup(file.fileno())
        os.close(closed)
        for fd in (network.fileno(), datagram.fileno(), idle.fileno(), file.fileno(), closed):
            with pytest.raises(ErgoCaptureError, match="take socket 'capture'"):
                SystemdNotifier(sockets=[("capture", fd)]).take_sockets()


def test_a_daemon_serves_a_single_inherited_socket() -> None:
    """Its clients are served; a descriptor that is missing ends the start with an error and exit code 1."""
    import subprocess
    import sys

    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        manager = [sys.executable, "-c", MANAGER, str(place / "handed.sock")]
        daemon.prefix = [*manager, "1", *([] if COMMAND[0].startswith("/") else ["/usr/bin/env"])]
        daemon.start()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(place / "handed.sock"))
            client.sendall(b'{"type":"hello","protocol":"ergo-capture.v1"}\n')
            assert b'"welcome"' in client.recv(4096)
        assert daemon.stop() == 0
        (place / "handed.sock").unlink()
        ran = subprocess.run(
            [*manager, "2", *COMMAND, "serve", "--socket", str(daemon.socket), "--state-dir", str(place / "other")],
            env=command_environment(), capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert ran.returncode == 1
        assert "take socket" in ran.stderr
        assert "Traceback" not in ran.stderr
