"""``ergo-capture egress`` that kills itself at a step: ``python dying.py N EGRESS-ARGUMENTS...``.

A step is a call that writes to the outbox, to the channel or to the host. It is killed before step N, counted from 0.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from ergo_capture.__main__ import main
from ergo_capture.egress.outbox import Outbox
from ergo_capture.egress.wrapper import EgressWrapper

left = int(sys.argv.pop(1))


def dying(function: Callable[..., Any]) -> Callable[..., Any]:
    """Count calls of a function, and end this process before the last."""

    def called(*arguments: Any) -> Any:
        global left  # noqa: PLW0603 - the count of this process
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return function(*arguments)

    return called


Outbox._append = dying(Outbox._append)  # type: ignore[method-assign]
EgressWrapper._say_to_channel = dying(EgressWrapper._say_to_channel)  # type: ignore[method-assign]
EgressWrapper._say_to_host = dying(EgressWrapper._say_to_host)  # type: ignore[method-assign]
sys.argv[0] = "ergo-capture"
main()
