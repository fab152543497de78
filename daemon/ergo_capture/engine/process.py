"""Engines that are child processes of the daemon and speak ``ergo-engine.v1`` on standard input and output."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import structlog

from ergo_capture import telemetry
from ergo_capture.child_process import ChildProcess, report_lines, shebang_problem
from ergo_capture.config.graphs import RemoteEngineConfig
from ergo_capture.engine.compilers import compiler_problem
from ergo_capture.engine.connection import LOST
from ergo_capture.engine.remote import Channel, RemoteEngine

log = structlog.get_logger()

#: Seconds to wait for the exit of a child that has closed a stream, so that its exit status can be reported.
_EXIT_SECONDS: Final = 0.2
#: Seconds to wait for the last lines of its standard error.
_LAST_LINES_SECONDS: Final = 0.1
#: Lines of its standard error that are kept.
_LAST_LINES: Final = 10


class ProcessEngine(RemoteEngine):
    """A child process. It is started again when it ends, and killed when the daemon ends.

    Args:
        command: the program and its arguments; no shell.
    """

    name = "process"

    def __init__(
        self, graph: str, configured: str, command: Sequence[str], settings: RemoteEngineConfig, *, raises: bool = False
    ) -> None:
        super().__init__(graph, configured, settings, raises=raises)
        self.command = list(command)
        #: The child's process id, while there is a child.
        self.pid: int | None = None
        #: The last lines of the child's standard error.
        self.said: deque[str] = deque(maxlen=_LAST_LINES)
        #: The end of the last child, in words; empty while there is a child, and before the first.
        self._ended = ""

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Channel]:
        """Start the child; end it and its process group afterwards."""
        self._ended = ""
        self.said.clear()
        child = ChildProcess(self.command)
        self.pid = child.process.pid
        errors: asyncio.Task[None] | None = None
        try:
            stdin = await child.open_stdin()
            stdout = await child.open_reader(child.process.stdout)
            errors = asyncio.create_task(report_lines(await child.open_reader(child.process.stderr), self._log_error))
            try:
                yield stdout, stdin, child.deaf
            except LOST:
                await child.wait(_EXIT_SECONDS)
                raise
            else:
                await child.wait(_EXIT_SECONDS)
        finally:
            self.pid, self._ended = None, child.how_ended()
            with anyio.CancelScope(shield=True):
                await child.end()
                if errors is not None:
                    with anyio.move_on_after(_LAST_LINES_SECONDS):
                        await asyncio.wait([errors])
                    errors.cancel()
            child.close()

    def _log_error(self, said: str) -> None:
        self.said.append(said)
        log.info(telemetry.ENGINE_SAID, graph=self.graph, said=said)

    @property
    def description(self) -> str:
        """The kind and the program."""
        return f"process {self.command[0]}"

    def log_fields(self) -> dict[str, Any]:
        """Return what identifies the engine in a log line."""
        return {**super().log_fields(), **({} if self.pid is None else {"pid": self.pid})}

    def reason(self, error: BaseException | None, *, was_up: bool) -> str:
        """Return the reason why the engine is away: the end of the child, or why it could not be started."""
        if self._ended and (error is None or isinstance(error, LOST)):
            problem = compiler_problem(self.command) or ("" if was_up else shebang_problem(self.command[0]))
            return f"{self._ended}: {problem}" if problem else self._ended
        if isinstance(error, OSError) and not was_up:
            problem = shebang_problem(self.command[0]) if error.errno in (errno.ENOENT, errno.ENOEXEC) else ""
            return f"cannot start '{self.command[0]}': {problem or error.strerror or error}"
        return super().reason(error, was_up=was_up)
