"""The engine that is a child of the daemon and speaks ``ergo-engine.v1`` on its standard input and output."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio
import structlog
from anyio.abc import ByteReceiveStream, ByteSendStream, Process

from ergo_capture import telemetry
from ergo_capture.engine.connection import LAST_WORDS_SECONDS
from ergo_capture.engine.remote import RemoteEngine, RemoteSettings

log = structlog.get_logger()

#: Bytes of a line of its standard error that are logged, and lines in a second; the rest is read and let go.
_SAID_BYTES: Final = 500
_SAID_LINES: Final = 100
#: Seconds from being asked to end, by its standard input closing and SIGTERM, to being killed.
_FAREWELL_SECONDS: Final = 2.0


class ProcessEngine(RemoteEngine):
    """A child process; started anew whenever it ends.

    Args:
        command: the program and its arguments; no shell.
    """

    name = "process"

    def __init__(self, graph: str, configured: str, command: Sequence[str], settings: RemoteSettings) -> None:
        super().__init__(graph, configured, settings)
        self.command = list(command)
        #: The child's process id, while there is one.
        self.pid: int | None = None

    @asynccontextmanager
    async def reach(self) -> AsyncIterator[tuple[ByteReceiveStream, ByteSendStream]]:
        """Start the child; end it at the end."""
        # Why its own session: a Ctrl-C at the daemon's terminal must not end the engine before the last run is back.
        process = await anyio.open_process(self.command, start_new_session=True)
        self.pid = process.pid
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        errors = asyncio.create_task(self._log_errors(process.stderr))
        watching = asyncio.create_task(_until_over(process))
        try:
            # Why no task group: what is raised while the connection is used would come out wrapped in a group of its own.
            yield process.stdout, process.stdin
        finally:
            self.pid = None
            errors.cancel()
            watching.cancel()
            with anyio.CancelScope(shield=True):
                # Why the group: what stands behind a shell or a wrapper would go on running beside its successor.
                _signal_group(process.pid, signal.SIGTERM)
                with anyio.move_on_after(_FAREWELL_SECONDS):
                    await process.stdin.aclose()
                    await process.wait()
                _signal_group(process.pid, signal.SIGKILL)
                await process.aclose()

    async def _log_errors(self, stream: ByteReceiveStream) -> None:
        """What the engine says on its standard error, line by line, in the daemon's log."""
        begun, left, window = b"", _SAID_LINES, 0.0
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            while True:
                data = begun + await stream.receive(1 << 16)
                if (now := anyio.current_time()) >= window:
                    left, window = _SAID_LINES, now + 1.0
                # Why only so many: an engine that is beside itself must not keep the loop from everybody else.
                *lines, rest = data.split(b"\n", left)
                left -= len(lines)
                begun = rest[rest.rfind(b"\n") + 1 :][:_SAID_BYTES]
                for line in lines:
                    said = line[:_SAID_BYTES].decode("utf-8", "replace")
                    log.info(telemetry.ENGINE_SAID, graph=self.graph, said=said)

    def __repr__(self) -> str:
        return f"<ProcessEngine {self.command[0]}, {'process ' + str(self.pid) if self.pid else 'not running'}>"


async def _until_over(process: Process) -> None:
    """Have the connection end when the child has, though a process that it left behind may hold it open."""
    await process.wait()
    await asyncio.sleep(LAST_WORDS_SECONDS)
    assert process.stdout is not None
    await process.stdout.aclose()


def _signal_group(leader: int, number: int) -> None:
    """Send a signal to a child and all that it started, as far as they are still in its group."""
    with suppress(ProcessLookupError):
        os.killpg(leader, number)
