"""Receive from a Unix socket so that a cancelled wait prints no traceback."""

from __future__ import annotations

import anyio
from anyio import lowlevel
from anyio.abc import ByteReceiveStream, SocketAttribute, UNIXSocketStream


class SocketReceiver(ByteReceiveStream):
    """Receives in place of a stream's own ``receive``.

    If the stream's ``receive`` is cancelled just when bytes come, it sets the result of a cancelled future, and asyncio
    prints a traceback. (The daemon's own reader of clients, ``server/net``, is a faster one.)

    Args:
        stream: the connection; its owner closes it.
    """

    def __init__(self, stream: UNIXSocketStream) -> None:
        self._socket = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return the bytes that have come; wait for the first one.

        Raises:
            anyio.EndOfStream: the other end sends no more.
            anyio.BrokenResourceError: the connection is broken.
        """
        await lowlevel.checkpoint()
        while True:
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
            except OSError as error:
                raise anyio.BrokenResourceError from error
            else:
                if not data:
                    raise anyio.EndOfStream
                return data

    async def aclose(self) -> None:
        """Do nothing: the owner closes the connection."""
