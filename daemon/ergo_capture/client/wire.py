"""One connection to the daemon: frames out, frames in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
from anyio.abc import ByteStream

from ergo_capture.client.frames import ClientError, encode, error_in, no_frame

_READ_BYTES: Final = 64 * 1024
_decoder: Final = msgspec.json.Decoder(dict[str, Any])
#: What a connection that breaks looks like.
LOST: Final = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class Wire:
    """A connection; made by ``connect``."""

    def __init__(self, stream: ByteStream) -> None:
        #: What the daemon takes: bytes and numbers, by name.
        self.limits: dict[str, int] = {}
        self._stream = stream
        self._held = b""

    @classmethod
    async def connect(cls, path: str, name: str) -> Wire:
        """Connect, and greet the daemon as ``name``.

        Raises:
            ClientError: ``unreachable``, or what the daemon says against it.
        """
        stream: ByteStream | None = None
        try:
            stream = await anyio.connect_unix(path)
            wire = cls(stream)
            await wire.say({"type": "hello", "protocol": "ergo-capture.v1", "client": name})
            wire.limits = (await wire.read_frame()).get("limits", {})
        except BaseException as error:
            if stream is not None:
                await anyio.aclose_forcefully(stream)
            if not isinstance(error, LOST):
                raise
            reason, hint = _why_unreachable(path, error)
            raise ClientError("unreachable", f"connect to the daemon at '{path}': {reason}", hint) from error
        return wire

    async def say(self, frame: dict[str, Any]) -> None:
        """Send one frame."""
        await self.send(encode(frame) + b"\n")

    async def send(self, lines: bytes) -> None:
        """Send lines."""
        await self._stream.send(lines)

    async def read_frame(self) -> dict[str, Any]:
        """The next frame.

        Raises:
            ClientError: it is an error, or no frame.
        """
        while b"\n" not in self._held:
            self._held += await self._stream.receive(_READ_BYTES)
        line, _, self._held = self._held.partition(b"\n")
        (frame,) = _decoded(line)
        if frame.get("type") == "error":
            raise error_in(frame)
        return frame

    async def read_frames(self) -> list[dict[str, Any]]:
        """The frames that are there, errors too; waits for more where none is whole.

        Raises:
            ClientError: one is no frame.
        """
        if b"\n" not in self._held:
            self._held += await self._stream.receive(_READ_BYTES)
        end = self._held.rfind(b"\n") + 1
        lines, self._held = self._held[:end], self._held[end:]
        return _decoded(lines)

    async def hang_up(self) -> None:
        """Close it, at once."""
        await anyio.aclose_forcefully(self._stream)

    def __repr__(self) -> str:
        return f"<Wire, {len(self._held)} bytes of a begun frame>"


def _why_unreachable(path: str, error: BaseException) -> tuple[str, str]:
    """Why there is no connection, and what to do."""
    start = "start it with `ergo-capture serve`, or name its socket with --socket"
    match error:
        case PermissionError():
            return "this user may not", "connect as a user of the socket's group, or as root"
        case ConnectionRefusedError() if not Path(path).is_socket():
            # Why asked: the kernel says the same of a file that is no socket, and starting a daemon mends nothing.
            return "it is no socket", "name the daemon's socket with --socket"
        case OSError():
            return error.strerror or str(error), start
    return "connection lost", start


def _decoded(lines: bytes) -> list[dict[str, Any]]:
    try:
        return _decoder.decode_lines(lines)
    except (ValueError, RecursionError) as error:
        raise no_frame(str(error)) from error
