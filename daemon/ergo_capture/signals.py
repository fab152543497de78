"""What a command that stands in front of a channel of ``ergo run`` does with signals, and how it ends."""

from __future__ import annotations

import os
import signal
from typing import Final

#: The signals that are passed on to the channel.
PASSED_ON: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
#: The exit code where the host reads no more; the shell's for SIGPIPE.
HOST_GONE: Final = 141


def end_as(code: int, *, host_gone: bool) -> int:
    """Return the exit code for a channel that ended with ``code``; kill this process where a signal ended the channel.

    Args:
        code: its exit code, or the negative number of the signal.
        host_gone: whether the host reads no more.
    """
    if host_gone:
        return HOST_GONE
    if code < 0:
        # The host looks at how a channel ended.
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code
