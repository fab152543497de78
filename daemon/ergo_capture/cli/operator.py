"""A line to the running daemon's control socket, for the commands that ask it something.

Owns: finding the socket, asking, what is said where no daemon answers.
Not here: what can be asked (``protocol/control.py``), the commands (``status.py``, ``top.py``, ...).
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Final, Self, TypeVar

import typer

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.protocol.control import Answer, Error, Request, encode, read_answer

#: Seconds to wait for an answer. Why so long: a loop that is busy composing or recovering answers late, not never.
PATIENCE: Final = 10.0

SocketOption = Annotated[
    str,
    typer.Option(
        "--socket", metavar="PATH", help="The daemon's capture socket; the control socket is the one beside it."
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The daemon's configuration file; by default the usual one."),
]


class DaemonAway(ErgoCaptureError):
    """No daemon answers on the control socket."""


class DaemonRefused(ErgoCaptureError):
    """The daemon answered that it would not, or could not."""


_Answer = TypeVar("_Answer", bound=Answer)


def control_path(capture_socket: str, config: Path | None) -> Path:
    """Where the daemon's control socket is, as the options and the configuration say.

    Raises:
        ConfigError: the configuration cannot be read.
    """
    from ergo_capture.config import control_beside, load  # noqa: PLC0415 - only where it is asked for

    if capture_socket and config is None:
        return control_beside(Path(capture_socket))
    return Path(load(config, socket=capture_socket).control.path)


class OperatorLine:
    """A connection to the control socket; ask, and ask again.

    Args:
        path: of the control socket.
        patience: seconds to wait for each answer.

    Raises:
        DaemonAway: nobody listens there.
    """

    def __init__(self, path: Path, patience: float | None = PATIENCE) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(patience)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise self._away(error) from error
        self._held = b""

    def ask(self, request: Request, kind: type[_Answer]) -> _Answer:
        """Send a request and return its answer.

        Raises:
            DaemonAway: the daemon went away, or did not answer in time.
            DaemonRefused: it refused; with its message and hint.
            ErgoCaptureError: the answer is not of that kind.
        """
        try:
            self._socket.sendall(encode(request))
        except BrokenPipeError:
            # A client that is refused is told why before the daemon hangs up, and that can still be read.
            pass
        except OSError as error:
            raise self._away(error) from error
        answer = self.answer_in(self.read())
        if not isinstance(answer, kind):
            raise _unknown(f"it is no {kind.__name__}")
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
        while b"\n" not in self._held:
            wait()
            try:
                data = self._socket.recv(1 << 16)
            except OSError as error:
                raise self._away(error) from error
            if not data:
                raise self._away(None)
            self._held += data
        line, newline, self._held = self._held.partition(b"\n")
        return line + newline

    def lines(self, reader: int | None = None) -> Iterator[bytes]:
        """Every further line, however long each takes to come.

        Args:
            reader: a descriptor whose other end may be closed meanwhile, as that of a pipe.

        Raises:
            BrokenPipeError: the reader's other end was closed.
        """
        self._socket.settimeout(None)
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if reader is not None:
            # Why no events are asked for: a broken pipe is told of in any case.
            poll.register(reader, 0)

        def wait() -> None:
            if any(fd == reader for fd, _ in poll.poll()):
                raise BrokenPipeError

        while True:
            yield self.read(wait)

    def _away(self, error: OSError | None) -> DaemonAway:
        reason, hint = why_away(error)
        return DaemonAway(f"ask the daemon at '{self.path}': {reason}", op="ask the daemon", path=self.path, hint=hint)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<OperatorLine to {self.path}>"


def _unknown(reason: str) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"read the daemon's answer: {reason}",
        op="ask the daemon",
        hint="the daemon is of another version than this command: restart it",
    )


def why_away(error: OSError | None) -> tuple[str, str]:
    """Why there is no answer, and what to do; no error stands for a connection that ended."""
    start = "start it with `ergo-capture serve`, or name its socket with --socket or its configuration with --config"
    match error:
        case None | ConnectionResetError():
            return "it has hung up", "ask again; if that goes on, look at the daemon's log"
        case FileNotFoundError():
            return "no daemon is there", start
        case ConnectionRefusedError():
            return "no daemon listens there any more", start
        case PermissionError():
            return "this user may not", "ask as the daemon's user or as root"
        case TimeoutError():
            return "it does not answer", "it may be very busy or stopped; look at its log"
    return error.strerror or str(error), start
