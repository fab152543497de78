"""Signals and exit codes of commands."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

#: The signals that end a program unless it says otherwise, and that a program in order cleans up after.
_TERMINATING: Final = (signal.SIGTERM, signal.SIGHUP)

#: The signals that a command in front of a channel of ``ergo run`` passes on to it.
PASSED_ON: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
#: The exit code if the host reads no more; it is the shell's for SIGPIPE.
HOST_GONE: Final = 141


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Have the first SIGTERM or SIGHUP interrupt the program as SIGINT does, so that temporaries are removed.

    The process then ends by the same signal, so that its parent sees the cause. A second signal ends it at once. A signal
    that is ignored at the start, as under ``nohup``, stays ignored.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        received.append(number)
        # An event loop has a handler of its own. SIGINT is ignored in a job of a shell's background.
        handler = signal.getsignal(signal.SIGINT)
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    for number in _TERMINATING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for each in received:
            os.kill(os.getpid(), each)


def end_at_once() -> None:
    """Have SIGTERM and SIGHUP end this process: the handlers of ``ending_in_order`` that a child inherits are its parent's."""
    for number in _TERMINATING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def end_as(code: int, *, host_gone: bool) -> int:
    """Return the exit code for a channel that ended with ``code``; if a signal ended it, end this process by the same.

    Args:
        code: its exit code, or the negative number of the signal.
        host_gone: whether the host reads no more.
    """
    if host_gone:
        return HOST_GONE
    if code < 0:
        # The host distinguishes an exit from a signal.
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code
