"""What systemd is told, and what it hands over.

Both protocols are a few lines and documented as such (sd_notify(3), sd_listen_fds(3)).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import Final

from ergo_capture.errors import ErgoCaptureError

_FIRST_FD: Final = 3


class Notifier:
    """Tells the service manager how it goes; silent where there is none.

    Args:
        address: the value of NOTIFY_SOCKET; empty for nobody listening.
        sockets: names and file descriptors, from socket activation.
        watchdog_seconds: time within which ``watchdog`` must be called again and again; zero for no watchdog.
    """

    def __init__(
        self, address: str = "", sockets: Sequence[tuple[str, int]] = (), watchdog_seconds: float = 0.0
    ) -> None:
        self.watchdog_seconds = watchdog_seconds
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._sockets = list(sockets)

    @classmethod
    def from_environment(cls) -> Notifier:
        """As the environment says; the variables are removed, so that no child takes them for its own."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        return cls(address, _listen_fds(), _watchdog_seconds())

    def take_sockets(self) -> dict[str, socket.socket]:
        """The listening sockets that systemd holds, by what they are for: ``capture``, ``control``, both or none.

        Where one alone is not named ``control`` it is for clients, whatever its name: where none is given in the unit,
        it has that of the unit.

        Raises:
            ErgoCaptureError: one is no listening Unix socket, or nobody would serve it.
        """
        handed, self._sockets = self._sockets, []
        others = [name for name, _ in handed if name != "control"]
        found: dict[str, tuple[str, int]] = {}
        for name, fd in handed:
            purpose = "capture" if len(others) == 1 and name != "control" else name
            if purpose not in ("capture", "control") or purpose in found:
                # Why not passed over: its clients would be let in by the system, and wait for ever.
                raise _unusable(name, fd, "nobody would serve it")
            found[purpose] = (name, fd)
        return {purpose: _listening(name, fd) for purpose, (name, fd) in found.items()}

    def ready(self, status: str) -> None:
        """Start-up is over: the socket is bound, the journal recovered."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """The shutdown has begun."""
        self._send("STOPPING=1")

    def extend_timeout(self, seconds: float = 30.0) -> None:
        """Start-up or shutdown makes progress and needs at most that much longer for its next step."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def reloading(self) -> None:
        """A reload has begun; ``ready`` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def watchdog(self) -> None:
        """The writer makes progress."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            try:
                notify.connect(self._address)
                notify.send(message.encode(), socket.MSG_DONTWAIT)
            except OSError:
                # Why nothing more: a service manager that has gone, or that reads nothing just now, must not take the
                # daemon with it, or hold its clients up.
                return

    def __repr__(self) -> str:
        return f"<Notifier {self._address or 'nobody'}, sockets {[name for name, _ in self._sockets]}>"


def _listening(name: str, fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        taken = socket.socket(fileno=fd)
        listens = taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise _unusable(name, fd, error.strerror or str(error)) from error
    if (taken.family, taken.type, listens) != (socket.AF_UNIX, socket.SOCK_STREAM, 1):
        taken.detach()
        raise _unusable(name, fd, "it is no Unix stream socket that listens")
    taken.setblocking(False)
    return taken


def _unusable(name: str, fd: int, why: str) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"take socket {name!r} (descriptor {fd}) from the service manager: {why}",
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
