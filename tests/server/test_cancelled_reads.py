"""Reads from a socket that are cancelled in the very turn of the loop in which bytes come."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
from tests.daemons import running_daemon, short_directory
from tests.server.looks import silent_loop

from ergo_capture.config.graphs import SocketEngineConfig
from ergo_capture.engine.remote import SocketEngine
from ergo_capture.server.ops.control import ControlSocket


async def cancel_as_bytes_come(read: Callable[[], Coroutine[Any, Any, Any]], other_end: socket.socket) -> None:
    """Cancel a read when bytes have been sent and the loop has not noticed them yet."""
    with silent_loop():
        async with anyio.create_task_group() as reading:
            reading.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            other_end.send(b"x")
            asyncio.get_running_loop().call_soon(reading.cancel_scope.cancel)


async def test_a_cancelled_read_from_an_engine_reports_nothing_to_the_loop() -> None:
    """It would print a traceback when an engine is stopped as it answers."""
    with short_directory() as place, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place / "engine.sock"))
        listening.listen()
        engine = SocketEngine("g", "", str(place / "engine.sock"), SocketEngineConfig(path=str(place / "engine.sock")))
        async with engine.connect() as (receive, _send, _deaf):
            other_end = listening.accept()[0]
            with other_end:
                await cancel_as_bytes_come(receive.receive, other_end)


@pytest.mark.parametrize("request_line", [b"", b'{"command": "tap", "of": "default", "rate": 1}\n'])
async def test_a_cancelled_read_from_an_operator_reports_nothing_to_the_loop(request_line: bytes) -> None:
    """It would print a traceback when the daemon stops as an operator asks, or ends a tap."""
    async with running_daemon() as daemon:
        path = daemon.socket.with_name("other.sock")
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as operator:
            listening.bind(str(path))
            listening.listen()
            listening.setblocking(False)
            service = daemon.service
            control = ControlSocket(service.components, listening, reload=service.reload, stop=service.stop)
            operator.connect(str(path))
            operator.send(request_line)
            await cancel_as_bytes_come(control.run, operator)
