"""Inspects a daemon that runs in the test's own loop; a session description for parts that are tested alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from tests.daemons import PATIENCE, Daemon, event

from ergo_capture.journal.payloads import SessionDescription
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.server.session.session import Session

DESCRIPTION = SessionDescription(
    session="s",
    graph="g",
    constraints=Constraints(),
    adapter_provenance="",
    runtime_provenance="",
    engine="fixed",
    labels={},
    peer=None,
    opened_at="",
    program="",
)


async def until(what: Any) -> None:
    """Wait until a condition holds."""
    with anyio.fail_after(PATIENCE):
        while not what():
            await asyncio.sleep(0.001)


@contextmanager
def silent_loop() -> Iterator[None]:
    """Check that nothing is reported to the loop, which would print a traceback."""
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: reported.append(context))
    yield
    loop.set_exception_handler(None)
    assert reported == [], reported


def sessions_of(daemon: Daemon) -> list[Session]:
    """Return the daemon's sessions."""
    return list(daemon.service.registry.sessions.values())


def manifests(daemon: Daemon) -> list[dict[str, Any]]:
    """Return the manifests, in the order of their names."""
    return [json.loads(path.read_bytes()) for path in sorted(daemon.state.rglob("*.manifest.json"))]


async def is_served(daemon: Daemon) -> None:
    """Check that a good client gets a bundle."""
    async with daemon.session() as wire:
        await wire.say(event("well-behaved"), {"type": "close"})
        assert (await wire.until("closed"))["events"] == 1
