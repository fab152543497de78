"""The two protocols of systemd: notifications (sd_notify(3)) and inherited sockets (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import Final

from ergo_capture.errors import ErgoCaptureError

_FIRST_FD: Final = 3
#: Seconds by which the service manager is asked to extend its time-out.
_EXTEND_SECONDS: Final = 30


class SystemdNotifier:
    """Notifies the service manager, and takes its sockets; does nothing if there is no service manager.

    Args:
        address: value of NOTIFY_SOCKET; empty for none.
        sockets: names and file descriptors, from socket activation.
        watchdog_seconds: the longest time between two calls of ``watchdog``; zero for no watchdog.
    """

    def __init__(
        self, address: str = "", sockets: Sequence[tuple[str, int]] = (), watchdog_seconds: float = 0.0
    ) -> None:
        self.watchdog_seconds = watchdog_seconds
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._sockets = list(sockets)

    @classmethod
    def from_environment(cls) -> SystemdNotifier:
        """Read the environment, and remove the variables, so that no child takes them for its own."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        return cls(address, _listen_fds(), _watchdog_seconds())

    def take_sockets(self) -> dict[str, socket.socket]:
        """Return the inherited listening sockets by purpose: ``capture``, ``control``, both or none.

        A single socket with any name but ``control`` is for clients: without a name in the unit, a
        socket is named after the unit.

        Raises:
            ErgoCaptureError: one is not a listening Unix socket, or has no known purpose.
        """
        inherited, self._sockets = self._sockets, []
        others = [name for name, _ in inherited if name != "control"]
        found: dict[str, tuple[str, int]] = {}
        for name, fd in inherited:
            purpose = "capture" if len(others) == 1 and name != "control" else name
            if purpose not in ("capture", "control") or purpose in found:
                # An ignored socket would accept clients that wait for ever.
                raise _unusable(name, fd, "its name is not capture or control, or another socket has it")
            found[purpose] = (name, fd)
        return {purpose: _listening_socket(name, fd) for purpose, (name, fd) in found.items()}

    def ready(self, status: str) -> None:
        """Report that start-up or a reload is complete."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, text: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """Report that the shutdown has begun."""
        self._send("STOPPING=1")

    def extend_timeout(self) -> None:
        """Ask for more time: start-up or shutdown makes progress."""
        self._send(f"EXTEND_TIMEOUT_USEC={_EXTEND_SECONDS * 1_000_000}")

    def reloading(self) -> None:
        """Report that a reload has begun; ``ready`` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def watchdog(self) -> None:
        """Reset the watchdog's timer."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            try:
                notify.connect(self._address)
                notify.send(message.encode(), socket.MSG_DONTWAIT)
            except OSError:
                # A service manager that is gone or does not read must not end the daemon or delay its clients.
                return


def _listening_socket(name: str, fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        inherited = socket.socket(fileno=fd)
        listens = inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise _unusable(name, fd, error.strerror or str(error)) from error
    if (inherited.family, inherited.type, listens) != (socket.AF_UNIX, socket.SOCK_STREAM, 1):
        inherited.detach()
        raise _unusable(name, fd, "it is not a listening Unix stream socket")
    inherited.setblocking(False)
    return inherited


def _unusable(name: str, fd: int, reason: str) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"take socket {name!r} (descriptor {fd}) from the service manager: {reason}",
        op="take socket",
        hint="have one ListenStream= in each socket unit, a path, with FileDescriptorName=capture or control",
    )


def _watchdog_seconds() -> float:
    pid = os.environ.pop("WATCHDOG_PID", str(os.getpid()))
    microseconds = os.environ.pop("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if pid == str(os.getpid()) and microseconds.isdigit() else 0.0


def _listen_fds() -> list[tuple[str, int]]:
    pid = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "")
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    labels = names.split(":") if names else []
    return [(labels[offset] if offset < len(labels) else "unknown", _FIRST_FD + offset) for offset in range(int(count))]
