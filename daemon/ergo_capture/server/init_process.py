"""Process 1 of a container: reap orphans, pass on signals, end with the daemon.

The kernel makes process 1 the parent of every process whose own parent has ended, for example of one that an engine
has put in the background. Such a process stays a zombie until process 1 waits for it. The daemon itself cannot wait for
any child: it would take the exit status of its own children from the code that waits for them. So process 1 forks: the
child is the daemon, the parent waits.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Final

#: Variables in which a service manager names the process that they are for.
_PID_VARIABLES: Final = ("LISTEN_PID", "WATCHDOG_PID")
#: Added to the number of the signal that ended the daemon, as in a shell.
_KILLED: Final = 128


def fork_as_init() -> None:
    """Return in a child process if this is process 1, which exits with the child's exit code; otherwise do nothing.

    Call it before there are threads, and before anything large is imported.
    """
    if os.getpid() != 1:
        return
    # Block signals before the fork, so that none is lost and each is passed on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    daemon = os.fork()
    if daemon:
        os._exit(_wait_for(daemon))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for name in _PID_VARIABLES:
        if os.environ.get(name) == "1":
            os.environ[name] = str(os.getpid())


def _wait_for(daemon: int) -> int:
    """Reap every child and pass on every signal until the daemon ends; return its exit code."""
    while True:
        number = signal.sigwait(signal.valid_signals())
        if number != signal.SIGCHLD:
            with suppress(ProcessLookupError):
                os.kill(daemon, number)
            continue
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == daemon:
                    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else _KILLED + os.WTERMSIG(status)
                if not pid:
                    break
