"""A client's connection: it is used for one session, and made again with the same session when it breaks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from stat import S_ISSOCK
from typing import Final, TypeVar

import anyio
import msgspec
from anyio.abc import UNIXSocketStream

from ergo_capture import pauses
from ergo_capture.backoff import Backoff
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.protocol.address import socket_path
from ergo_capture.protocol.capture import (
    ACKNOWLEDGED,
    NOTICES,
    PROTOCOL,
    Acknowledged,
    Answer,
    Code,
    Error,
    Hello,
    Lost,
    Open,
    Opened,
    Welcome,
    describe_loss,
    encode,
    read_answers,
)
from ergo_capture.socket_receiver import SocketReceiver

#: Codes of a ``ClientError`` that the daemon does not send.
UNREACHABLE: Final = "unreachable"
MISUSE: Final = "misuse"

#: The exceptions that mean a broken connection.
LOST: Final = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)

_READ_BYTES: Final = 64 * 1024
#: Seconds until the second attempt to connect, and the largest pause between two attempts.
_FIRST_DELAY: Final = 0.05
_LONGEST_DELAY: Final = 2.0
#: The most seconds that a first connection waits for the daemon: a daemon that is not there at first was probably not
#: started, and the user should learn that soon.
_FIRST_PATIENCE: Final = 5.0
#: The same where the socket is there and this user may not connect; a daemon that has just bound it sets its mode.
_DENIED_PATIENCE: Final = 0.5
#: Temporary refusals of a resume.
_PASSING: Final = frozenset({UNREACHABLE, Code.SESSION_BUSY, Code.SHUTTING_DOWN})

_Answer = TypeVar("_Answer", bound=Answer)


class ClientError(ErgoCaptureError):
    """The daemon refused, or cannot be reached; ``code`` is the protocol's, ``unreachable`` or ``misuse``.

    With ``acknowledged_lost``, ``lost`` says how many events were acknowledged and how many the daemon holds.
    """

    def __init__(self, code: str, message: str, hint: str = "", lost: Lost | None = None) -> None:
        super().__init__(message, op="talk to the daemon", hint=hint or None)
        self.code = code
        self.lost = lost
        if code == Code.ACKNOWLEDGED_LOST:
            self.exit_code = ExitCode.DATA_LOSS


class Connection:
    """A connection to the daemon, which can be made again with the same session on it.

    Args:
        path: the daemon's socket.
        name: the client's name in the daemon's log.
        patience: seconds to keep trying to reach the daemon again; zero for no second attempt.
        resume_after_loss: whether to continue if the daemon holds less than was acknowledged.
    """

    def __init__(self, path: str, name: str, patience: float, *, resume_after_loss: bool = False) -> None:
        self.path = socket_path(path)
        self.patience = patience
        self.resume_after_loss = resume_after_loss
        #: The events that were acknowledged to the client; sent whenever the session is resumed.
        self.told: Acknowledged | None = None
        #: The session's id, once it was opened.
        self.session: str | None = None
        #: Id of the last event that was durable when the session was opened or resumed.
        self.last_event_id: str | None = None
        #: The daemon's limits: bytes and counts, by name.
        self.limits: dict[str, int] = {}
        self.features: tuple[str, ...] = ()
        self._hello = encode(Hello(PROTOCOL, name))
        self._request = Open()
        self._stream: UNIXSocketStream | None = None
        #: Bytes of a frame that has not come to its end.
        self._held = b""

    async def connect(self) -> None:
        """Connect; wait a few seconds for a daemon that is not there, because it may be starting.

        Raises:
            ClientError: ``unreachable``, or the daemon's refusal.
        """
        began, backoff = anyio.current_time(), Backoff(_FIRST_DELAY, _LONGEST_DELAY)
        while True:
            try:
                return await self._connect()
            except ClientError as error:
                waited = anyio.current_time() - began
                denied = isinstance(error.__cause__, PermissionError)
                is_over = waited >= min(self.patience, _DENIED_PATIENCE if denied else _FIRST_PATIENCE)
                if is_over or error.code != UNREACHABLE or _is_another_file(self.path):
                    raise
            await anyio.sleep(backoff.next_delay())

    async def open(self, request: Open) -> Opened:
        """Open or resume the session; after a refusal, this may be called again.

        Raises:
            ClientError: the daemon refused, or cannot be reached any more.
        """
        self._request = request
        try:
            if self._stream is None:
                await self._connect()
            try:
                return await self._open()
            except LOST:
                # The daemon went away between its welcome and its answer. If it opened a session, that lingers.
                return await self.reopen()
        except BaseException:
            # Hang up: the daemon takes one ``open`` on a connection, and an answer may still be on its way.
            with anyio.CancelScope(shield=True):
                await self.hang_up()
            raise

    async def reopen(self) -> Opened:
        """Connect and resume the session, as often as it takes within ``patience``.

        Raises:
            ClientError: the daemon refused for good, or did not come back in time.
        """
        await self.hang_up()
        backoff = Backoff(_FIRST_DELAY, _LONGEST_DELAY)
        # The clock is the process's, which may have no other beat.
        beat = asyncio.create_task(pauses.clock.beat(lambda _seconds: None))
        try:
            with pauses.move_on_after(self.patience):
                while True:
                    await anyio.sleep(backoff.next_delay())
                    try:
                        await self._connect()
                        return await self._open()
                    except ClientError as error:
                        if error.code not in _PASSING:
                            raise
                    except LOST:
                        pass
                    await self.hang_up()
        finally:
            beat.cancel()
        raise ClientError(
            UNREACHABLE,
            f"the daemon at '{self.path}' did not come back within {self.patience:g} s",
            "acknowledged events are safe; start the daemon and resume the session with --session",
        )

    async def send(self, lines: bytes) -> None:
        """Send whole lines.

        Raises:
            LOST: the connection is broken.
        """
        await self._connected().send(lines)

    async def read(self) -> list[Answer]:
        """Return the answers that have come, including errors; wait for more if none is complete.

        Raises:
            ClientError: ``bad_frame``: a line is not a frame of the protocol.
            LOST: the connection is broken.
        """
        stream = self._connected()
        if b"\n" not in self._held:
            self._held += await SocketReceiver(stream).receive(_READ_BYTES)
        end = self._held.rfind(b"\n") + 1
        lines, self._held = self._held[:end], self._held[end:]
        return _decode(lines)

    async def hang_up(self) -> None:
        """Close the connection at once."""
        stream, self._stream, self._held = self._stream, None, b""
        if stream is not None:
            await anyio.aclose_forcefully(stream)

    async def _connect(self) -> None:
        try:
            self._stream = await anyio.connect_unix(self.path)
            welcome = await self._ask(self._hello, Welcome)
            self.limits, self.features = welcome.limits, welcome.features
        except BaseException as error:
            await self.hang_up()
            if not isinstance(error, LOST):
                raise
            reason, hint = _why_unreachable(self.path, error)
            raise ClientError(UNREACHABLE, f"connect to the daemon at '{self.path}': {reason}", hint) from error

    async def _open(self) -> Opened:
        request = msgspec.structs.replace(self._request, notices=NOTICES in self.features)
        if request.session is not None and ACKNOWLEDGED in self.features:
            request = msgspec.structs.replace(request, acknowledged=self.told, resume_after_loss=self.resume_after_loss)
        opened = self._checked(await self._ask(encode(request), Opened))
        self.session = opened.session
        self.last_event_id = opened.last_event_id
        self._request = msgspec.structs.replace(self._request, session=opened.session)
        return opened

    def _checked(self, opened: Opened) -> Opened:
        """Return the answer after comparing it with what was acknowledged, which a daemon of 0.1.0 does not do.

        Raises:
            ClientError: ``acknowledged_lost``.
        """
        told = self.told
        if told is None or ACKNOWLEDGED in self.features:
            return opened
        if opened.accepted > told.events or (
            opened.accepted == told.events and told.last_event_id in (None, opened.last_event_id)
        ):
            return opened
        lost = Lost(told.events, opened.accepted, opened.last_event_id)
        if not self.resume_after_loss:
            message = describe_loss(opened.session, lost, told.last_event_id)
            raise ClientError(Code.ACKNOWLEDGED_LOST, message, "send the missing events again", lost)
        return msgspec.structs.replace(opened, lost=lost)

    async def _ask(self, request: bytes, kind: type[_Answer]) -> _Answer:
        """Send a request and return the answer; the lines after it are left to ``read``."""
        stream = self._connected()
        await stream.send(request)
        while True:
            while b"\n" not in self._held:
                self._held += await SocketReceiver(stream).receive(_READ_BYTES)
            line, _, self._held = self._held.partition(b"\n")
            for answer in _decode(line):
                if isinstance(answer, Error):
                    raise error_of(answer)
                if not isinstance(answer, kind):
                    raise invalid_frame(f"a {type(answer).__name__} came for a {kind.__name__}")
                return answer

    def _connected(self) -> UNIXSocketStream:
        if self._stream is None:
            raise anyio.ClosedResourceError
        return self._stream


def error_of(error: Error) -> ClientError:
    """Return the exception for an ``error`` frame."""
    return ClientError(error.code, error.message, error.hint, None if error.lost is msgspec.UNSET else error.lost)


def invalid_frame(reason: str) -> ClientError:
    """Return the error for an answer that the protocol does not allow there."""
    message = f"the daemon sent a line that is not a frame of {PROTOCOL}: {reason}"
    return ClientError(Code.BAD_FRAME, message, "check that it is ergo-capture that listens on this socket")


def _decode(lines: bytes) -> list[Answer]:
    try:
        return read_answers(lines)
    except ValueError as error:
        raise invalid_frame(str(error)) from error


def _is_another_file(path: str) -> bool:
    """Return whether a file that is not a socket is at ``path``; a daemon that starts would not replace it."""
    try:
        return not S_ISSOCK(Path(path).stat().st_mode)
    except OSError:
        return False


def _why_unreachable(path: str, error: BaseException) -> tuple[str, str]:
    """Return the reason why a connection failed, and a hint."""
    start = "start it with `ergo-capture serve`, or name its socket with --socket"
    match error:
        case PermissionError():
            return "permission denied", "connect as a user of the socket's group, or as root"
        case ConnectionRefusedError() if _is_another_file(path):
            # The kernel refuses a connection to any other file in the same way, and starting a daemon would not help.
            return "it is not a socket", "name the daemon's socket with --socket"
        case OSError():
            return error.strerror or str(error), start
    return "connection lost", start
