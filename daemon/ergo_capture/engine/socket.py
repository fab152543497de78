"""The engine that runs beside the daemon and speaks ``ergo-engine.v1`` on a Unix socket of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from ergo_capture.engine.remote import RemoteEngine, RemoteSettings


class SocketEngine(RemoteEngine):
    """A service that listens; connected to again whenever the connection ends.

    Args:
        path: the Unix socket that it listens on.
    """

    name = "socket"

    def __init__(self, graph: str, configured: str, path: Path, settings: RemoteSettings) -> None:
        super().__init__(graph, configured, settings)
        self.path = path

    @asynccontextmanager
    async def reach(self) -> AsyncIterator[tuple[ByteReceiveStream, ByteSendStream]]:
        """Connect; hang up at the end."""
        async with await anyio.connect_unix(str(self.path)) as stream:
            yield stream, stream

    def __repr__(self) -> str:
        return f"<SocketEngine {self.path}>"
