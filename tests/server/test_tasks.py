"""The daemon starts tasks only from within tasks."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
from tests.daemons import event, running_daemon
from tests.engine.engines import process_graph


async def test_tasks_are_started_from_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """If sniffio is installed, anyio refuses to start a task from a callback, and the daemon would end."""
    kind: Any = type(anyio.create_task_group())
    start_soon = kind.start_soon
    outside: list[str] = []

    def checked(self: Any, function: Any, *arguments: Any, name: object = None) -> None:
        if asyncio.current_task() is None:
            outside.append(str(function))
        start_soon(self, function, *arguments, name=name)

    monkeypatch.setattr(kind, "start_soon", checked)
    async with running_daemon("[rotation]\nmax_events = 2\n" + process_graph()) as daemon:
        async with daemon.session() as wire:
            session = wire.opened["session"]
            await wire.say(*(event(f"e{number}") for number in range(4)))
            await wire.until_ack(4, 4)
        async with daemon.session(session=session) as wire:
            await wire.say({"type": "flush"}, {"type": "close"})
            await wire.until("closed")
        await daemon.ask("reload")
    assert outside == []
