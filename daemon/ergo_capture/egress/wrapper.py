"""The wrapper of an egress channel: a durable outbox between an unmodified host and the user's channel."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec

from ergo_capture.adapter.egress import EgressFailure, read_ack
from ergo_capture.child_setup import end_with_parent
from ergo_capture.egress.outbox import Outbox
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.effects import IntentRecord

_READ_BYTES: Final = 64 << 10
#: Seconds before a channel that was told to end is killed.
_GRACE_SECONDS: Final = 2.0


class _Message(msgspec.Struct):
    """The fields of the host's lines that the wrapper reads; the others are for the channel."""

    type: str
    intent_id: str = ""


class EgressWrapper:
    """Passes the host's lines to the channel and the channel's to the host, unchanged.

    An intent is durable in the outbox before the channel reads it, and its ack before the host reads it. An intent
    whose ack the outbox holds is answered from there. One thread reads the host; the caller of ``run`` the channel.

    Args:
        command: the user's channel.
        outbox: the intents and acks.
        host: the descriptors that the host is read from and written to.

    Raises:
        ErgoCaptureError: the channel cannot be started.
    """

    def __init__(self, command: Sequence[str], outbox: Outbox, host: tuple[int, int] = (0, 1)) -> None:
        self.outbox = outbox
        #: Intents that were answered from the outbox.
        self.answered = 0
        #: Whether the host reads no more.
        self.host_gone = False
        self._from_host, self._to_host = host
        self._failure: ErgoCaptureError | None = None
        #: Held while the outbox is used, and while a line is written to the host.
        self._lock = threading.RLock()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the user names it
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                preexec_fn=partial(end_with_parent, os.getpid()),  # noqa: PLW1509 - it takes no lock, imports nothing
            )
        except OSError as error:
            raise ErgoCaptureError(
                f"start channel '{command[0]}': {error.strerror or error}",
                op="start channel",
                path=command[0],
                hint="name a program that may be run",
            ) from error

    def run(self) -> int:
        """Work until the channel has ended; return its exit code, or the negative number of the signal that ended it.

        Raises:
            ErgoCaptureError: the outbox cannot be used any more; the channel was ended.
        """
        threading.Thread(target=self._guarded, args=[self._read_host], daemon=True).start()
        self._guarded(self._read_channel)
        if self._failure is not None or self.host_gone:
            self._stop()
        code = self._process.wait()
        if self._failure is not None:
            raise self._failure
        return code

    def send_signal(self, number: int) -> bool:
        """Pass a signal on to the channel; return False if it has ended."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)
        return self._process.returncode is None

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except ErgoCaptureError as error:
            self._fail(error)
        except OSError as error:
            self._fail(ErgoCaptureError(f"pass on a line: {error.strerror or error}", op="pass on a line"))

    def _fail(self, error: ErgoCaptureError) -> None:
        if self._failure is None:
            self._failure = error
        self._stop()

    def _stop(self) -> None:
        self.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGKILL)

    def _read_host(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        for line in _lines(self._from_host):
            ack = None
            if intent_id := _intent_id(line, "intent"):
                with self._lock:
                    ack = self.outbox.ask(intent_id, line.rstrip(b"\r\n"), _now())
            if ack is not None:
                self.answered += 1
                self._say_to_host(ack + b"\n")
            elif not self._say_to_channel(line):
                return
        # The host has ended; an unmodified one sends ``end`` first.
        stdin.close()

    def _read_channel(self) -> None:
        assert self._process.stdout is not None
        for line in _lines(self._process.stdout.fileno()):
            if (intent_id := _acknowledged(line)) and self.outbox.is_waiting(intent_id):
                with self._lock:
                    self.outbox.acknowledge(intent_id, line.rstrip(b"\r\n"), _now())
            if not self._say_to_host(line):
                return

    def _say_to_channel(self, line: bytes) -> bool:
        """Write to the channel; return False if it reads no more: the host then sees the end of its output."""
        assert self._process.stdin is not None
        try:
            _write(self._process.stdin.fileno(), line)
        except BrokenPipeError:
            return False
        return True

    def _say_to_host(self, line: bytes) -> bool:
        """Write to the host; return False if it reads no more."""
        try:
            with self._lock:
                _write(self._to_host, line)
        except BrokenPipeError:
            self.host_gone = True
            self._stop()
            return False
        return True


def _now() -> int:
    return int(time.time())


def _write(descriptor: int, line: bytes) -> None:
    view = memoryview(line)
    while view:
        view = view[os.write(descriptor, view) :]


def _lines(descriptor: int) -> Any:
    """Yield the lines that can be read, newlines included; the last one may have none."""
    begun = bytearray()
    while data := os.read(descriptor, _READ_BYTES):
        *whole, rest = data.split(b"\n")
        for line in whole:
            begun += line
            yield bytes(begun) + b"\n"
            begun.clear()
        begun += rest
    if begun:
        yield bytes(begun)


def _intent_id(line: bytes, what: str) -> str:
    """Return the intent id of a line whose type is ``what``; an empty string for any other line."""
    try:
        # Decode UTF-8 here: msgspec does not check it in values that it skips.
        message = msgspec.json.decode(line.decode(), type=_Message)
    except (ValueError, RecursionError):
        return ""
    return message.intent_id if message.type == what else ""


def _acknowledged(line: bytes) -> str:
    """Return the id of the intent that a line acknowledges as the host requires; empty for any other line."""
    intent_id = _intent_id(line, "intent_ack")
    with suppress(EgressFailure):
        if intent_id:
            read_ack("", line, IntentRecord("", intent_id, ()))
            return intent_id
    return ""
