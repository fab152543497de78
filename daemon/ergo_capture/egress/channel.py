"""One egress channel: a child process that speaks ``ergo-egress.v1`` on its standard input and output."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from typing import Final

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from ergo_capture.adapter.egress import END_FRAME, EgressFailure, check_ready, intent_frame, read_ack
from ergo_capture.child_process import ChildProcess, report_lines, shebang_problem
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.effects import IntentRecord
from ergo_capture.kernel.records import CapturedIntentAck
from ergo_capture.pauses import within

_READ_BYTES: Final = 64 << 10
#: Longest line, in bytes; an ack has about 200.
_LONGEST_LINE: Final = 1 << 20
#: Seconds in which a line after the last ack is noticed.
_STRAGGLER_SECONDS: Final = 0.02
#: Seconds to wait for the last lines of its standard error.
_LAST_LINES_SECONDS: Final = 0.1
#: The reference's message for a pipe without a reader.
_BROKEN_PIPE: Final = "Broken pipe (os error 32)"


class EgressLifecycleError(ErgoCaptureError):
    """A channel did not start, sent a line after its last ack, or did not end; the messages are the reference's."""

    def __init__(self, channel: str, detail: str) -> None:
        super().__init__(
            f"egress channel '{channel}' {detail}",
            op="run egress channel",
            hint="read what the channel wrote to its standard error, and `ergo-capture help ergo` for its protocol",
        )
        self.channel = channel


class EgressChannel:
    """A running channel.

    Args:
        name: its name in the configuration.
        command: the program and its arguments; no shell.
        kinds: the kinds of intents that are routed to it.
        grace: seconds that it may take to say ``ready``, and to exit after ``end``.
        report: called with each line of its standard error.

    Raises:
        EgressLifecycleError: it cannot be started.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        kinds: Sequence[str],
        grace: float,
        report: Callable[[str], None],
    ) -> None:
        self.name = name
        self._kinds = kinds
        self._grace = grace
        self._report = report
        try:
            self._child = ChildProcess(command)
        except (OSError, ValueError) as error:
            reason = shebang_problem(command[0]) or (isinstance(error, OSError) and error.strerror) or str(error)
            raise EgressLifecycleError(name, f"startup failed: spawn '{command[0]}': {reason}") from error
        self._begun = bytearray()
        #: Whether it has closed its standard output.
        self._is_over = False
        self._stdin: ByteSendStream
        self._stdout: ByteReceiveStream
        self._errors: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.process.pid

    async def greet(self) -> None:
        """Wait until it is ready.

        Raises:
            EgressLifecycleError: it does not become ready; the message gives the reason.
        """
        child = self._child
        self._stdin = await child.open_stdin()
        self._stdout = await child.open_reader(child.process.stdout)
        stderr = await child.open_reader(child.process.stderr)
        self._errors = asyncio.create_task(report_lines(stderr, self._report))
        try:
            line = await within(self._grace, self._next_line)
            if line is None:
                raise EgressLifecycleError(
                    self.name, "startup failed: channel closed stdout before ready handshake" + self._how_ended()
                )
            check_ready(self.name, line, self._kinds)
        except TimeoutError as error:
            silent = f"channel did not emit ready frame within {round(self._grace * 1000)}ms"
            raise EgressLifecycleError(self.name, f"startup failed: {silent}") from error
        except EgressFailure as failure:
            kind = "I/O failure" if failure.reason == "egress_io" else "protocol violation"
            detail = str(failure).partition(": ")[2]
            raise EgressLifecycleError(self.name, f"{kind}: {detail}") from failure

    async def dispatch(self, intent: IntentRecord, seconds: float) -> CapturedIntentAck:
        """Send an intent to the channel, and return its ack.

        Args:
            intent: an intent of a kind that is routed to the channel.
            seconds: the time to wait for the ack after the intent is written; writing it may take as long.

        Raises:
            EgressFailure: it did not acknowledge the intent; it must not be used any more.
        """
        if self._child.deaf.is_set():
            raise self._io_failure(f"write intent payload: {_BROKEN_PIPE}")
        try:
            with anyio.fail_after(seconds):
                await self._stdin.send(intent_frame(intent) + b"\n")
            line = await within(seconds, self._next_line)
        except TimeoutError as error:
            raise EgressFailure("egress_ack_timeout", self.name, intent.intent_id) from error
        except OSError as error:
            raise self._io_failure(f"write intent payload: {_BROKEN_PIPE}") from error
        if line is None:
            raise self._io_failure("channel closed stdout while waiting for ack")
        return read_ack(self.name, line, intent)

    async def check_silent(self, *, may_have_ended: bool) -> None:
        """Check that it sends no line after its last ack.

        Raises:
            EgressLifecycleError: it does, or it has closed its standard output although ``may_have_ended`` is false.
        """
        with anyio.move_on_after(_STRAGGLER_SECONDS):
            try:
                line = await self._next_line()
            except EgressFailure as failure:
                detail = f"stdout reader observed post-dispatch read error: {str(failure).partition(': ')[2]}"
                raise self._unresolved(detail) from failure
            if line is None and may_have_ended:
                return
            if line is None:
                raise self._unresolved("stdout reached EOF with no explicit shutdown")
            text = line.decode("utf-8", "replace")
            raise self._unresolved(f"unexpected buffered stdout frame after final dispatch: {text}")

    async def end(self) -> None:
        """Send ``end``, wait until it has exited, and kill it if it does not exit in time.

        Raises:
            EgressLifecycleError: it was killed.
        """
        try:
            with anyio.move_on_after(self._grace):
                if not self._child.deaf.is_set():
                    await self._stdin.send(END_FRAME + b"\n")
        except OSError:
            # It has closed its standard input; it may still exit by itself.
            pass
        await self._child.wait(self._grace)
        was_running = not self._child.how_ended()
        await self.kill()
        if was_running:
            limit = round(self._grace * 1000)
            detail = f"I/O failure: channel did not terminate within shutdown timeout ({limit}ms)"
            raise EgressLifecycleError(self.name, detail)

    def signal_kill(self) -> None:
        """Send SIGKILL to it and all processes of its group, without waiting."""
        self._child.signal_group(signal.SIGKILL)

    async def kill(self) -> None:
        """Kill it with all processes of its group, and reap it; do nothing if it has ended."""
        with anyio.CancelScope(shield=True):
            await self._child.kill()
            if self._errors is not None:
                with anyio.move_on_after(_LAST_LINES_SECONDS):
                    await asyncio.wait([self._errors])
                self._errors.cancel()
        self._child.close()

    async def _next_line(self) -> bytes | None:
        """Return its next line, without the newline; None at the end of its output. Cancelling loses no bytes."""
        while (end := self._begun.find(b"\n")) < 0:
            if len(self._begun) > _LONGEST_LINE:
                raise self._io_failure(f"a line is longer than {_LONGEST_LINE} bytes")
            try:
                data = b"" if self._is_over else await self._stdout.receive(_READ_BYTES)
            except anyio.EndOfStream:
                data = b""
            if not data:
                self._is_over = True
                if not self._begun:
                    return None
                end = len(self._begun)
                break
            self._begun += data
        line = bytes(self._begun[:end])
        del self._begun[: end + 1]
        try:
            line.decode()
        except ValueError as error:
            raise self._io_failure("stream did not contain valid UTF-8") from error
        return line

    def _how_ended(self) -> str:
        how = self._child.how_ended()
        return f" ({how})" if how else ""

    def _io_failure(self, detail: str) -> EgressFailure:
        return EgressFailure("egress_io", self.name, detail)

    def _unresolved(self, detail: str) -> EgressLifecycleError:
        return EgressLifecycleError(self.name, f"has unresolved ack state: {detail}")
