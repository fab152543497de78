"""Prepare the processes that this one starts: they end with it, and import no modules of the current directory."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

#: ``prctl``'s number for the signal that a process gets when its parent ends.
_PR_SET_PDEATHSIG: Final = 1
_VARIABLE: Final = "PYTHONSAFEPATH"
#: The value of the variable: any text has the same effect; this one shows that it was set here.
_OURS: Final = "ergo-capture"

# Load it here: ``end_with_parent`` may run between fork and exec, where nothing should be imported.
_prctl: Final = ctypes.CDLL(None).prctl


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process with SIGKILL when its parent ends; called in the child.

    The kernel sends the signal when the *thread* that forked the child ends. So fork in a thread that lives as long as
    the process, such as the event loop's, and not in a worker thread. The setting survives ``exec``, except of a
    set-user-id program, and does not apply to the child's own children.

    Args:
        parent: the parent's process id, as the parent knows it.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before the call; then no signal comes.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def protect_children() -> None:
    """Start every further Python process as with ``python -P``.

    ``python -m`` searches the current directory first. A ``queue.py`` or ``click.py`` there would be run by the worker
    that composes bundles.
    """
    if not os.environ.get(_VARIABLE):
        os.environ[_VARIABLE] = _OURS


def inherited_environment() -> dict[str, str]:
    """Return the environment without that setting, for the user's programs, which may import modules beside them."""
    return {name: value for name, value in os.environ.items() if (name, value) != (_VARIABLE, _OURS)}
