"""A connection to the running daemon's control socket, for commands."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Self, TypeVar

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.protocol.address import socket_path
from ergo_capture.protocol.control import Answer, Error, Request, encode, read_answer

#: Seconds to wait for an answer; while it composes a bundle or recovers, the daemon answers late.
TIMEOUT: Final = 10.0
#: The kernel's table of Unix sockets, and the flag of those that listen (__SO_ACCEPTCON).
_SOCKETS: Final = Path("/proc/net/unix")
_LISTENING: Final = 1 << 16


class DaemonAway(ErgoCaptureError):
    """No daemon answers on the control socket."""


class DaemonRefused(ErgoCaptureError):
    """The daemon answered with an error."""


_Answer = TypeVar("_Answer", bound=Answer)


def control_path(capture_socket: str, config: Path | None) -> Path:
    """Return the path of the daemon's control socket, from ``--socket`` and ``--config``.

    Raises:
        ConfigError: the configuration cannot be read.
    """
    from ergo_capture.config import control_socket_beside, load  # noqa: PLC0415 - slow to import

    if capture_socket and config is None:
        return control_socket_beside(Path(socket_path(capture_socket)))
    return Path(load(config, socket=capture_socket, client=True).control.path)


class ControlConnection:
    """A connection to the control socket, for one request after the other.

    Args:
        path: the path of the control socket.
        timeout: seconds to wait for each answer; None for no limit.

    Raises:
        DaemonAway: no process listens there.
    """

    def __init__(self, path: Path, timeout: float | None = TIMEOUT) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise self._away(error) from error
        self._buffer = b""

    def ask(self, request: Request, kind: type[_Answer]) -> _Answer:
        """Send a request and return its answer.

        Raises:
            DaemonAway: the daemon went away, or did not answer in time.
            DaemonRefused: it answered with an error.
            ErgoCaptureError: the answer is not of that kind.
        """
        try:
            self._socket.sendall(encode(request))
        except BrokenPipeError:
            # A daemon that refuses the connection sends the reason before it hangs up, which can still be read.
            pass
        except OSError as error:
            raise self._away(error) from error
        answer = self.answer_in(self.read())
        if not isinstance(answer, kind):
            raise _unknown(f"it is not {kind.__name__}")
        return answer

    def answer_in(self, line: bytes) -> Answer | None:
        """Return the answer in a line, None if its type is unknown; raise as ``ask`` does."""
        try:
            answer = read_answer(line)
        except ValueError as error:
            raise _unknown(str(error)) from error
        if isinstance(answer, Error):
            raise DaemonRefused(answer.message, op="ask the daemon", hint=answer.hint, exit_code=answer.exit_code)
        return answer

    def read(self, wait: Callable[[], None] = lambda: None) -> bytes:
        """Return the next line; call ``wait`` before each wait for the daemon.

        Raises:
            DaemonAway: the daemon went away, or did not answer in time.
        """
        while b"\n" not in self._buffer:
            wait()
            try:
                data = self._socket.recv(1 << 16)
            except OSError as error:
                raise self._away(error) from error
            if not data:
                raise self._away(None)
            self._buffer += data
        line, newline, self._buffer = self._buffer.partition(b"\n")
        return line + newline

    def lines(self, reader: int | None = None) -> Iterator[bytes]:
        """Yield every further line, without a time limit.

        Args:
            reader: a descriptor that this process writes to, such as standard output; its other end may be closed.

        Raises:
            BrokenPipeError: the other end of ``reader`` was closed.
        """
        self._socket.settimeout(None)
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if reader is not None:
            # poll reports a broken pipe without asking for any event.
            poll.register(reader, 0)

        def wait() -> None:
            if any(fd == reader for fd, _ in poll.poll()):
                raise BrokenPipeError

        while True:
            yield self.read(wait)

    def _away(self, error: OSError | None) -> DaemonAway:
        reason, hint = why_away(error)
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            held = _held_socket(self.path)
            if held is not None:
                reason = f"the daemon is stopped; systemd listens on '{held}' and starts it for the next client"
                hint = "start it with `systemctl start ergo-capture`; asking it does not"
        return DaemonAway(f"ask the daemon at '{self.path}': {reason}", op="ask the daemon", path=self.path, hint=hint)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _held_socket(control: Path) -> Path | None:
    """Return the capture socket that belongs to a control socket, if a process listens on it; connect to neither.

    A connection would start the daemon whose socket systemd holds.
    """
    from ergo_capture.config import control_socket_beside  # noqa: PLC0415 - slow to import

    with suppress(OSError), _SOCKETS.open(encoding="utf-8", errors="surrogateescape") as table:
        next(table)
        for line in table:
            fields = line.rstrip("\n").split(None, 7)
            if len(fields) == 8 and int(fields[3], 16) & _LISTENING:
                path = Path(fields[7])
                if path.parent == control.absolute().parent and control_socket_beside(path).name == control.name:
                    return path
    return None


def _unknown(reason: str) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"read the daemon's answer: {reason}",
        op="ask the daemon",
        hint="the daemon is of another version than this command: restart it",
    )


def why_away(error: OSError | None) -> tuple[str, str]:
    """Return the reason why there is no answer, and a hint; None stands for a connection that the daemon ended."""
    start = "start it with `ergo-capture serve`, or name its socket with --socket or its configuration with --config"
    match error:
        case None | ConnectionResetError():
            return "it has hung up", "try again; if it happens again, see the daemon's log"
        case FileNotFoundError():
            return "no daemon is there", start
        case ConnectionRefusedError():
            return "no daemon listens there any more", start
        case PermissionError():
            return "permission denied", "ask as the daemon's user or as root"
        case TimeoutError():
            return "it does not answer", "it may be very busy or suspended; see its log"
    return error.strerror or str(error), start
