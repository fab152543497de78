"""``ergo-capture`` as a daemon that kills itself at a step: ``python dying_daemon.py N serve ...``.

Steps are counted from 0, from the first episode on whose intents are to be sent: before and after each commit, and before
and after each intent is sent and acknowledged. It is killed at step N.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from ergo_capture.__main__ import main
from ergo_capture.egress.channel import EgressChannel
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.session.egress import SessionEgress

left = int(sys.argv.pop(1))
has_begun = False


def step() -> None:
    """Count a step, and end this process at the last."""
    global left  # noqa: PLW0603 - the count of this process
    if has_begun:
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1


def around(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a step before a call."""

    def called(*arguments: Any) -> Any:
        step()
        return function(*arguments)

    return called


send = EgressChannel.dispatch
carry_out = SessionEgress.carry_out


async def dispatch(*arguments: Any) -> Any:
    """Make a step before an intent is sent and after it is acknowledged."""
    step()
    ack = await send(*arguments)
    step()
    return ack


async def begin(*arguments: Any) -> Any:
    """Begin to count."""
    global has_begun  # noqa: PLW0603 - as above
    has_begun = True
    return await carry_out(*arguments)


Writer._start_batch = around(Writer._start_batch)  # type: ignore[method-assign]
Writer._on_outcome = around(Writer._on_outcome)  # type: ignore[method-assign]
EgressChannel.dispatch = dispatch  # type: ignore[assignment, method-assign]
SessionEgress.carry_out = begin  # type: ignore[assignment, method-assign]
sys.argv[0] = "ergo-capture"
main()
