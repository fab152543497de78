"""A session from its beginning to its end in one call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from os import PathLike
from typing import Any

from ergo_capture.client.frames import Published
from ergo_capture.client.session import CaptureClient
from ergo_capture.kernel.events import ExternalEvent


async def stream(
    path: str | PathLike[str], events: Iterable[ExternalEvent], *, graph: str = "default", window: int = 1024
) -> Published:
    """Send events in a session of their own, close it, and return what was published.

    Raises:
        ClientError: as ``CaptureClient``.
    """
    async with session_of(path, graph=graph, window=window) as client:
        for event in events:
            await client.send(event)
        return await client.close()


@asynccontextmanager
async def session_of(
    path: str | PathLike[str], *, graph: str = "default", window: int = 1024, **options: Any
) -> AsyncIterator[CaptureClient]:
    """A connected client with an open session."""
    async with CaptureClient(path, window=window, **options) as client:
        await client.open(graph)
        yield client
