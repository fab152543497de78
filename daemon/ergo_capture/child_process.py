"""Child processes of the daemon that speak JSON Lines on their standard input and output."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from ergo_capture.child_setup import end_with_parent, inherited_environment

#: Longest reported line of a child's standard error, in bytes, and lines reported in a second; the rest is discarded.
_MAX_SAID_BYTES: Final = 500
_MAX_SAID_LINES: Final = 100
#: Seconds from SIGTERM and the end of its standard input to SIGKILL.
_TERM_SECONDS: Final = 2.0


class ChildProcess:
    """A child process with three pipes, in a session of its own; killed when this process ends.

    It is started with ``subprocess.Popen`` rather than by the event loop: uvloop leaves every inheritable descriptor
    open in the child, and neither loop sets the parent-death signal. It is started in the loop's thread, which lives as
    long as the process (see ``end_with_parent``). In a session of its own it does not get a Ctrl-C at the daemon's
    terminal, and can answer the last requests.

    Args:
        command: the program and its arguments; no shell.

    Raises:
        OSError: it cannot be started.
        ValueError: an argument holds a zero byte.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - the operator's configuration names it
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=inherited_environment(),
            preexec_fn=partial(end_with_parent, os.getpid()),  # noqa: PLW1509 - it takes no lock and imports nothing
        )
        #: Set when the child reads no more: it has closed its standard input, or has ended.
        self.deaf = asyncio.Event()
        self._exited = asyncio.Event()
        self._status: os.waitid_result | None = None
        self._stdin: asyncio.WriteTransport | None = None
        self._outputs: list[asyncio.ReadTransport] = []
        #: Pipes that no transport owns yet.
        self._pipes = [self.process.stdin, self.process.stdout, self.process.stderr]
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._await_exit, args=[loop], name=f"wait-{self.process.pid}", daemon=True).start()

    def _await_exit(self, loop: asyncio.AbstractEventLoop) -> None:
        # WNOWAIT leaves the process to be reaped in ``end``: until then no other process can get its number, and the
        # process group can be signalled safely.
        with suppress(ChildProcessError):
            self._status = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        # The loop may be closed by now.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._on_exit)

    def _on_exit(self) -> None:
        self._exited.set()
        self.deaf.set()

    async def open_stdin(self) -> ByteSendStream:
        """Return the stream to the child's standard input."""
        self._pipes.remove(self.process.stdin)
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_write_pipe(lambda: _StdinProtocol(self.deaf.set), self.process.stdin)
        self._stdin = transport
        return _PipeWriter(asyncio.StreamWriter(transport, protocol, None, loop))

    async def open_reader(self, pipe: Any) -> ByteReceiveStream:
        """Return the stream from one of the child's output pipes."""
        self._pipes.remove(pipe)
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        self._outputs.append(transport)
        return _PipeReader(reader)

    async def wait(self, seconds: float) -> None:
        """Wait for the child to exit, for at most ``seconds``."""
        with anyio.move_on_after(seconds):
            await self._exited.wait()

    async def end(self) -> None:
        """End the child and all processes of its group, and reap it."""
        # Signal the whole group: the program behind a shell or a wrapper would otherwise run beside its successor.
        self.signal_group(signal.SIGTERM)
        self._close_stdin()
        await self.wait(_TERM_SECONDS)
        await self.kill()

    async def kill(self) -> None:
        """Kill the child and all processes of its group, and reap it."""
        self.signal_group(signal.SIGKILL)
        await self.wait(_TERM_SECONDS)
        self.process.poll()

    def close(self) -> None:
        """Close the pipes."""
        self._close_stdin()
        for transport in self._outputs:
            transport.close()
        for pipe in self._pipes:
            if pipe is not None:
                pipe.close()

    def _close_stdin(self) -> None:
        if self._stdin is not None and not self._stdin.is_closing():
            self._stdin.abort()

    def signal_group(self, number: int) -> None:
        """Send a signal to the child and all processes of its group; does nothing once the child is reaped."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def how_ended(self) -> str:
        """Return the end of the child in words; empty if it has not ended by itself."""
        if not self._exited.is_set():
            return ""
        if self._status is None:
            return "it ended"
        if self._status.si_code == os.CLD_EXITED:
            return f"it exited with code {self._status.si_status}"
        return f"it was killed by {signal.Signals(self._status.si_status).name}"


class _StdinProtocol(asyncio.StreamReaderProtocol):
    """Notices when the other end of the pipe is closed, which both event loops do without a write."""

    def __init__(self, on_lost: Callable[[], None]) -> None:
        super().__init__(asyncio.StreamReader())
        self._on_lost = on_lost

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._on_lost()


class _PipeReader(ByteReceiveStream):
    """The reading end of a pipe, with anyio's interface."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await self._reader.read(max_bytes)
        if not data:
            raise anyio.EndOfStream
        return data

    async def aclose(self) -> None:
        """Do nothing: the child closes its pipes."""


class _PipeWriter(ByteSendStream):
    """The writing end of a pipe, with anyio's interface."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def send(self, item: bytes) -> None:
        self._writer.write(item)
        await self._writer.drain()

    async def aclose(self) -> None:
        """Do nothing: the child closes its pipes."""


async def report_lines(stream: ByteReceiveStream, report: Callable[[str], None]) -> None:
    """Report the lines of a child's standard error, until its end."""
    begun, left, window = b"", _MAX_SAID_LINES, 0.0
    with suppress(anyio.EndOfStream, OSError):
        while True:
            data = begun + await stream.receive(1 << 16)
            if (now := anyio.current_time()) >= window:
                left, window = _MAX_SAID_LINES, now + 1.0
            # Discard the rest: a child that floods its standard error must not occupy the loop.
            *lines, rest = data.split(b"\n", left)
            left -= len(lines)
            begun = rest[rest.rfind(b"\n") + 1 :][:_MAX_SAID_BYTES]
            for line in lines:
                report(line[:_MAX_SAID_BYTES].decode("utf-8", "replace"))


def shebang_problem(program: str) -> str:
    """Return the reason why a script cannot run because of its first line; empty for none."""
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        with Path(path).open("rb") as file:
            first = file.readline(256)
    except OSError:
        return ""
    if not first.startswith(b"#!"):
        return ""
    if first.endswith(b"\r\n"):
        return (
            f"the first line of '{path}' ends in CR LF, and the CR becomes a part of the interpreter's name or argument; "
            "save the file with LF line ends"
        )
    interpreter = first[2:].decode("utf-8", "replace").split()
    if interpreter and not Path(interpreter[0]).exists():
        return f"there is no '{interpreter[0]}', which the first line of '{path}' names as its interpreter"
    return ""
